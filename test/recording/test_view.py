"""``dtvla view`` as a user runs it, and the layouts for other viewers."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from sensor_msgs.msg import CompressedImage, Image
from trajectory_msgs.msg import JointTrajectory
from typer.testing import CliRunner

from dtvla_ros import conventions as topics
from dtvla_ros.cli import app
from dtvla_ros.ros import conversions, qos

ROOT = Path(__file__).resolve().parents[2]
FOXGLOVE = ROOT / 'config' / 'foxglove' / 'dtvla.json'
RVIZ = ROOT / 'config' / 'rviz' / 'dtvla.rviz'
OVERLAY = '/overlay/compressed'


def logged(path):
    """Return the number of rows by entity of a Rerun file, and its thoughts."""
    rerun = pytest.importorskip('rerun', reason="pip install 'dtvla_ros[viz]'")
    if not hasattr(rerun, 'chunk'):
        pytest.skip('this rerun-sdk cannot read its files back')
    found, thoughts = Counter(), []
    for chunk in rerun.chunk.RrdReader(str(path)).stream():
        found[chunk.entity_path] += chunk.num_rows
        if chunk.entity_path == '/said/thought':
            thoughts += chunk.to_record_batch().column('TextLog:text').to_pylist()
    return found, [text for [text] in thoughts]


@pytest.mark.parametrize('kind', [Image, CompressedImage], ids=['raw', 'compressed'])
def test_a_file_holds_what_was_heard(graph, tmp_path, kind):
    pytest.importorskip('rerun', reason="pip install 'dtvla_ros[viz]'")
    from test.nodes.test_overlay import Robot

    graph.listen()
    robot = Robot(graph, kind)
    actions = graph.node.create_publisher(JointTrajectory, '/action', qos.LATEST)
    path = tmp_path / 'more' / 'run.rrd'
    viewing = subprocess.Popen([sys.executable, '-m', 'dtvla_ros.cli', 'view', '--save', path],
                               stderr=subprocess.PIPE, text=True)
    try:
        heard = (actions, robot.pose, robot.thoughts, *robot.cameras.values(),
                 *robot.states.values())
        graph.spin(lambda: all(publisher.get_subscription_count() for publisher in heard), 60)
        for k in range(30):
            robot.thought = f'Thought {k // 2}.'
            actions.publish(conversions.chunk_message(conversions.Chunk(
                12.5 + 0.05 * k, 0.05, np.zeros((1, 7), np.float32))))
            graph.wait(0.1)  # long enough for the robot to publish
        graph.wait(1.0)
        viewing.send_signal(signal.SIGINT)
        _, errors = viewing.communicate(timeout=20)
    finally:
        viewing.kill()
    assert viewing.returncode == 0 and 'Warning' not in errors, errors
    assert path.stat().st_size > 10_000
    found, thoughts = logged(path)
    for entity in ('/camera/primary', '/camera/wrist', '/command', '/arm/end_effector',
                   '/arm/path'):
        assert found[entity] > 5, entity
    assert found['/said/thought'] > 3
    assert {*thoughts} >= {f'Thought {k}.' for k in range(5, 14)}
    assert found['/latency/think'] == 1, 'once per decision'
    assert found['/said/policy'] == found['/said/gate'] == 1, 'states are told when they change'


@pytest.mark.parametrize('arguments, said', [
    (('view',), 'give either'), (('view', '--spawn', '--save', 'x.rrd'), 'give either'),
    (('demo', '--viz', 'crystal'), '--viz crystal: choose')])
def test_where_to_show_must_be_said_once(arguments, said):
    assert said in str(CliRunner().invoke(app, arguments).exception)


NAMED = {path: set(re.findall(r'(?<=[\s"])/[\w/]+', path.read_text()))
         for path in (FOXGLOVE, RVIZ)}
"""The topics named anywhere in a layout."""


def test_layouts_name_only_topics_we_know():
    for path, named in NAMED.items():
        assert {*topics.IMAGES.values(), topics.PLANNED_PATH} <= named <= {
            *topics.RECORDED, OVERLAY}, path
    assert {topics.REASONING, topics.VLA_STATE, topics.GATE_STATE} <= NAMED[FOXGLOVE]


def test_every_panel_of_the_foxglove_layout_is_shown_once():
    layout = json.loads(FOXGLOVE.read_text())

    def shown(node):
        return [node] if isinstance(node, str) else shown(node['first']) + shown(node['second'])
    assert sorted(shown(layout['layout'])) == sorted(layout['configById'])


def test_rviz_listens_as_reliably_as_the_topics_are_offered():
    displays = yaml.safe_load(RVIZ.read_text())['Visualization Manager']['Displays']
    shown = (d['Topic'] for d in displays if 'Topic' in d)
    assert {topic['Value']: topic['Reliability Policy'] for topic in shown} == {
        **dict.fromkeys(('/image_primary', '/image_wrist', '/ee_pose'), 'Best Effort'),
        '/planned_path': 'Reliable'}


@pytest.mark.slow
def test_the_running_graph_has_them_all(graph, policy):
    from test.nodes.test_closed_loop import start_all

    node = start_all(graph, policy, 'sim', max_steps=60)
    graph.start('overlay', 'sim')
    graph.spin(lambda: graph.of('action') and node.count_publishers(topics.PLANNED_PATH), 90)
    there = {name for name, _ in node.get_topic_names_and_types()}
    assert set().union(*NAMED.values()) <= there
    published = {name for name in there if node.count_publishers(name)
                 and not name.endswith(('/transition_event', '/rosout', '/parameter_events'))}
    assert published <= {*topics.RECORDED, OVERLAY}, 'dtvla record misses a topic'


@pytest.mark.slow
def test_the_demo_leaves_a_rerun_file(tmp_path):
    pytest.importorskip('rerun', reason="pip install 'dtvla_ros[viz]'")
    done = subprocess.run(
        [sys.executable, '-m', 'dtvla_ros.cli', 'demo', '--viz', 'rerun', '--episodes', '1',
         '--tasks', 'stack_the_red_cube_on_the_green_cube', '--out', str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / 'demo.json').read_text())
    found, _ = logged(tmp_path / 'demo.rrd')
    assert found['/command'] >= told['commands'] > 0
    assert found['/said/thought'] == told['thoughts']
    assert found['/camera/primary'] > 5 and 'demo.rrd' in done.stdout
