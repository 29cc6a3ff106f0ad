"""The node record_server: bags when the page or a program asks for them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool
from support.tasked import Client

from dtvla_ros.data.bag import decode, kept_names, open_bag
from dtvla_ros.nodes.record_server import Outcome
from dtvla_ros.ros import conversions, images, interfaces, qos

SUCCEEDED, CANCELED, ABORTED = (GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_CANCELED,
                                GoalStatus.STATUS_ABORTED)
WITHOUT = "import sys; sys.modules['dtvla_interfaces'] = None"
FULL = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))'
needs_interfaces = pytest.mark.skipif(
    interfaces.action_type('RecordEpisode') is None, reason=interfaces.NOT_INSTALLED)


class Served:
    """A record server, joints of ours that it hears, and what a person and a simulator say."""

    def __init__(self, graph):
        self.graph = graph
        node = graph.listen(state=(DiagnosticStatus, '/record_state'))
        self._joints = node.create_publisher(JointState, '/joints', qos_profile_sensor_data)
        self.texts = {topic: node.create_publisher(String, topic, profile) for topic, profile in (
            ('/episode_mark', qos.LATEST), ('/sim/episode', qos.LATCHED_100),
            ('/instruction', qos.LATEST))}
        graph.every(0.02, lambda: self._joints.publish(
            JointState(name=['a'], position=[0.5])))

    def start(self, folder, code='', **parameters):
        self.graph.start('record_server', '', '-r', 'joint_states:=/joints', code=code,
                         folder=folder, **parameters)

    def say(self, topic, text):
        """Say it once server and bag hear it."""
        listeners = 1 if topic == '/instruction' else 2
        self.graph.spin(lambda: self.texts[topic].get_subscription_count() >= listeners, 30, topic)
        self.texts[topic].publish(String(data=text))

    def record(self, on):
        answer = self.graph.call(SetBool, '/record', SetBool.Request(data=on))
        return answer.success, answer.message

    @property
    def state(self):
        """State, level and reason, as last told."""
        status = self.graph.last('state')
        return (status.message, status.level, conversions.status_values(status)['reason']) if (
            status) else ('', b'', '')

    def until_heard(self):
        def heard():
            found = re.search(r'(\d+) messages', self.state[2])
            return self.state[0] == 'RECORDING' and found and int(found[1]) > 20
        self.graph.spin(heard, 60, 'messages in the bag')


@pytest.fixture
def served(graph):
    return Served(graph)


def read(bag):
    """Return the messages of a bag by topic."""
    found = {}
    with open_bag(Path(bag)) as reader:
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(decode(connection, data))
    return found


def test_a_person_begins_and_ends_a_bag_without_the_interfaces(served, graph, tmp_path):
    params = tmp_path / 'robot.yaml'
    params.write_text('/**: {ros__parameters: {base_frame: base_link}}')
    served.start(tmp_path / 'bags', WITHOUT, params_file=params)
    graph.spin(lambda: served.state[0] == 'IDLE', 60, 'the state')
    assert served.record(False) == (False, 'nothing is being recorded')
    good, bag = served.record(True)
    assert good and Path(bag).parent == tmp_path / 'bags'
    served.until_heard()
    assert served.state[2].endswith(f' MB, into {bag}')
    assert served.record(True) == (False, f'{bag} is being recorded; end it first')
    served.say('/episode_mark', 'success')
    graph.wait(0.3)
    good, said = served.record(False)
    assert good and said.startswith(f'{bag}: ') and said.endswith(' MB')
    graph.spin(lambda: served.state == ('IDLE', DiagnosticStatus.OK, said), 10, said)
    found = read(bag)
    assert len(found['/joints']) > 20 and [m.data for m in found['/episode_mark']] == ['success']
    with open_bag(Path(bag)) as reader:
        kept = kept_names(reader, Path(bag))
    assert (kept.topics, kept.base_frame) == ({'joint_states': '/joints'}, 'base_link')

    good, second = served.record(True)
    assert good and second != bag
    served.until_heard()
    assert graph.interrupt('record_server') == 0
    assert len(read(second)['/joints']) > 20, 'it is finished when the node ends'
    assert graph.log('record_server').count(interfaces.NOT_INSTALLED) == 1


def test_a_bag_that_cannot_be_made_or_finished_is_said_in_one_line(served, graph, tmp_path):
    (tmp_path / 'file').touch()
    served.start(tmp_path / 'file' / 'bags')
    good, said = served.record(True)
    assert not good and re.fullmatch(
        r'cannot write \S+: Not a directory; choose another folder \(parameter folder\)', said)
    assert graph.interrupt('record_server') == 0 and 'Traceback' not in graph.log('record_server')

    camera = graph.node.create_publisher(Image, '/image_primary', qos_profile_sensor_data)
    graph.every(0.05, lambda: camera.publish(images.serialize_image(
        np.zeros((256, 256, 3), np.uint8), Time(sec=1), 'camera')))
    served.start(tmp_path / 'bags', FULL)
    good, bag = served.record(True)
    graph.spin(lambda: served.state[1] == DiagnosticStatus.ERROR, 60, 'the full disk')
    kept = sum(map(len, read(bag).values()))
    assert served.state[2] == (f'{bag}: File too large; recording stopped, its first {kept} '
                               'messages are kept and can be read')
    graph.wait(1.0)
    assert served.record(True)[0], 'another one may be tried'


@needs_interfaces
def test_an_episode_from_its_goal_to_every_way_it_can_end(served, graph, tmp_path):
    served.start(tmp_path)
    client = Client(graph, 'RecordEpisode', '/record_episode')

    # the time is over; what is told meanwhile does not count
    goal = client.send('put it there', seconds=4, name='lemon/first')
    served.say('/episode_mark', 'failure')
    served.say('/episode_mark', 'success')
    served.texts['/instruction'].publish(String(data='something else'))
    refused = client.result(client.send())
    assert refused == (ABORTED, Outcome.UNMARKED,
                       f'{tmp_path / "lemon/first"} is being recorded; end it first')
    assert client.result(goal) == (SUCCEEDED, Outcome.SUCCESS,
                                   'the time limit of 4 s is over; marked by a person')
    assert client.answer.bag == str(tmp_path / 'lemon/first')
    assert client.feedback[-1].seconds > 2 and client.feedback[-1].messages > 20
    found = read(client.answer.bag)
    assert [m.data for m in found['/instruction']] == ['put it there']
    assert [m.data for m in found['/episode_mark']] == ['failure', 'success']

    # canceled: the bag is kept
    goal = client.send(name='second')
    served.until_heard()
    served.say('/instruction', 'put it here')
    served.say('/sim/episode', json.dumps({'done': True, 'success': False}))
    graph.wait(0.3)
    client.cancel(goal)
    assert client.result(goal) == (CANCELED, Outcome.FAILURE, 'canceled; judged by the simulator')
    assert [m.data for m in read(tmp_path / 'second')['/instruction']] == ['put it here']

    # ended by a person
    goal = client.send(name='third')
    graph.spin(lambda: served.state[0] == 'RECORDING', 30, 'the bag')
    assert served.record(False)[0]
    assert client.result(goal) == (SUCCEEDED, Outcome.UNMARKED,
                                   'ended by the service record; nobody marked it')

    for name, why in (('second', f'{tmp_path / "second"} exists already; give another name'),
                      ('../x', f'name ../x: give one below {tmp_path}, which parameter folder '
                       'says'), ('x' * 300, 'File name too long')):
        status, outcome, reason = client.result(client.send(name=name))
        assert (status, outcome, client.answer.bag) == (ABORTED, Outcome.UNMARKED, '')
        assert why in reason
