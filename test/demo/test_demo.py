"""The whole loop as a user runs it: three node processes, everything over topics."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest
from support.beside import fresh_domain, wait_for
from support.graph import NANO, ROOT
from support.policies import trained_on
from support.terminal import terminal

from dtvla_ros.demo.play import run_play
from dtvla_ros.demo.run import run_demo
from dtvla_ros.errors import UserError

TASK = 'stack_the_red_cube_on_the_green_cube'


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, 'ROS_DOMAIN_ID': fresh_domain()}
    return subprocess.Popen(
        [sys.executable, '-m', 'dtvla_ros.cli', 'demo', '--out', str(out), *arguments], cwd=ROOT,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def nodes_of(pid: int) -> dict[str, int]:
    """Return node name -> process id of a demo's children."""
    children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    return {word.decode().rpartition('.')[2]: int(child) for child in children
            for word in Path(f'/proc/{child}/cmdline').read_bytes().split(b'\0')
            if word.startswith(b'dtvla_ros.nodes.')}


@pytest.mark.slow
def test_one_episode_over_topics(tmp_path):
    said = 'STACK the red cube on the green cube!'
    demo = start(tmp_path, '--tasks', TASK, '--episodes', '1', '--say', said, '--say', 'sing')
    output, errors = demo.communicate(timeout=240)
    assert demo.returncode == 0, errors + output
    assert f'you said: {said} -> understood as: {TASK.replace("_", " ")}' in output
    assert 'you said: sing -> refused: it is not among the 6 tasks of the policy' in output
    result = json.loads((tmp_path / 'demo.json').read_text())
    assert result['n'] == 1 and result['seeds'] == [1_000_000]
    steps = result['episodes'][0]['step']
    assert result['commands'] >= steps > 0
    assert result['thoughts'] >= 1 and result['latency']['think']['n'] >= 1
    assert set(result['policy']['files']) and result['versions']['mujoco']
    with av.open(str(tmp_path / 'demo.mp4')) as film:
        assert sum(1 for _ in film.decode(video=0)) > steps / 10
    assert (tmp_path / 'demo.png').stat().st_size > 10_000
    assert 'thinks: ' in output


@pytest.mark.slow
@pytest.mark.parametrize('harm', ['kill vla_node', 'ctrl-c'])
def test_nothing_survives_a_dead_node_or_ctrl_c(tmp_path, harm):
    demo = start(tmp_path, '--tasks', TASK, '--episodes', '3')
    try:
        assert any('thinks: ' in line for line in demo.stdout)
        nodes = nodes_of(demo.pid)
        assert set(nodes) == {'vla_node', 'command_gate', 'sim_bridge'}
        if harm == 'ctrl-c':
            demo.send_signal(signal.SIGINT)
        else:
            os.kill(nodes['vla_node'], signal.SIGKILL)
        _, errors = demo.communicate(timeout=30)
    finally:
        demo.kill()
    wait_for(lambda: not any(Path(f'/proc/{pid}').exists() for pid in nodes.values()))
    assert demo.returncode == (130 if harm == 'ctrl-c' else 1)
    if harm != 'ctrl-c':
        assert errors.startswith('error: vla_node ended with SIGKILL') and errors.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize('then', ['c', '\x03'], ids=['cleared', 'ctrl-c'])
def test_a_stop_is_in_the_result_whether_it_is_cleared_or_not(tmp_path, then):
    with terminal('-m', 'dtvla_ros.cli', 'demo', '--out', str(tmp_path), '--tasks', TASK,
                  '--episodes', '1', ROS_DOMAIN_ID=fresh_domain()) as shown:
        shown.wait(r'step [1-9]', 120)
        shown.press(' ')
        said = shown.wait(r'e-stop \(SPACE at [\d:]*\)')
        shown.press(then)
        code = shown.process.wait(120)
        assert shown.modes == shown.before
    result = json.loads((tmp_path / 'demo.json').read_text())
    episode, = result['episodes']
    assert episode['stops'] == [said]
    if then == 'c':
        assert (code, result['ended'], episode['success']) == (0, '', True)
    else:
        assert (code, result['ended']) == (1, f'{said}, then Ctrl-C')
        assert (episode['success'], episode['reason']) == (False, f'stopped: {said}')


@pytest.mark.parametrize('command', ['demo', 'play'])
def test_a_policy_of_images_that_are_no_squares_is_refused_before_anything_starts(
        command, tmp_path):
    policy = trained_on(tmp_path / 'policy', primary=(640, 480), wrist=(128, 128))
    out = tmp_path / 'out'
    with pytest.raises(UserError, match='the images of the suite tabletop are squares, the policy '
                       "was trained on 640x480 of the camera 'primary'"):
        (run_demo(policy, [TASK], 1, None, out) if command == 'demo' else
         run_play(policy, 'tabletop', '', None, out))
    assert not out.exists()


def test_a_policy_with_a_wrong_hash_is_refused_in_one_line(dtvla, tmp_path):
    policy = tmp_path / 'policy'
    shutil.copytree(NANO, policy)
    weights = policy / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'\x07')
    code, _, errors = dtvla('demo', '--out', tmp_path / 'out', '--policy', policy, '--tasks', TASK)
    assert code == 2
    assert errors.startswith('error: ') and 'SHA-256' in errors and errors.count('\n') == 1
