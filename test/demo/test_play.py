"""A person at the prompt: what is typed reaches the graph, what happens is said."""

from __future__ import annotations

import io
import json
import re
import socket
from contextlib import suppress
from urllib.request import urlopen

import av
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from rich.console import Console
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from support.beside import fresh_domain
from support.graph import Graph
from support.terminal import terminal

from dtvla_ros.conventions import PAGE_PORT
from dtvla_ros.demo import play
from dtvla_ros.demo.play import PlayScreen, Prompt
from dtvla_ros.ros import conversions, qos
from test.demo.test_recorder import pair

TASKS = ['put the can in the wooden bin', 'stack the red cube on the green cube']


@pytest.mark.parametrize('keys, line', [
    ('put it\n', 'put it'), ('pux\x7ft it\r', 'put it'), ('no\x15yes\n', 'yes'), ('\n', ''),
    ('\x1b[Aput\x1b[D\n', 'put'), ('caf\u00e9\n', 'caf\u00e9')])
def test_a_line_is_edited(keys, line):
    from dtvla_ros.demo.keyboard import _KEY
    prompt = Prompt()
    *before, last = [prompt.press(key) for key in _KEY.findall(keys)]
    assert before == [None] * len(before) and last == line and prompt.text == ''


class Stage:
    """A `Player` among a policy, a gate and a simulator that are ours."""

    def __init__(self, folder):
        self.graph, self.output, self.folder = Graph(folder), io.StringIO(), folder
        node = self.graph.listen()
        self.graph.hear('estop', Bool, '/estop', qos.LATCHED)
        self.graph.hear('told', String, '/instruction', qos.LATCHED)
        self._states = {topic: node.create_publisher(DiagnosticStatus, topic, qos.LATCHED)
                        for topic in ('/vla/state', '/gate_state')}
        self._tasks = node.create_publisher(String, '/vla/tasks', qos.LATCHED)
        self._scene = node.create_publisher(String, '/sim/state', qos.LATCHED)
        self.orders, self.refusal = [], ''
        for name in ('/sim/reset', '/sim/knock', '/stop', '/clear_fault'):
            node.create_service(Trigger, name, lambda _, answer, name=name: self._obey(
                name, answer))
        node.create_service(SetParameters, '/sim_bridge/set_parameters', self._set)
        self.screen = PlayScreen(Prompt())
        self.screen.console = Console(file=self.output, width=200)
        self.player = self.graph.join(lambda: play.Player(self.screen, folder, 20.0, 1000))
        self.graph.every(0.02, self.player.tick)

    def _obey(self, name, answer):
        self.orders.append(name)
        answer.success, answer.message = not self.refusal, self.refusal
        return answer

    def _set(self, request, answer):
        self.orders += [(p.name, p.value.integer_value) for p in request.parameters]
        answer.results = [SetParametersResult(successful=not self.refusal, reason=self.refusal)]
        return answer

    def status(self, gate=('RUN', ''), policy='ACTING', **values):
        self._states['/vla/state'].publish(conversions.status_message(
            'vla', policy, {'reason': '', 'instruction': '', 'task': 0,
                            'understood': values.get('instruction', '')} | values))
        self._states['/gate_state'].publish(
            conversions.status_message('gate', gate[0], {'reason': gate[1]}))

    def scene(self, **values):
        self._scene.publish(String(data=json.dumps({'done': ''} | values)))

    def begin(self):
        self._tasks.publish(String(data=json.dumps(TASKS)))
        self.status()
        self.scene()
        self.until(lambda: self.player.ready, 'states')
        self.until(lambda: all(client.service_is_ready() for client in (
            *self.player._orders.values(), self.player._start)), 'services')

    def type(self, line):
        for key in f'{line}\n':
            self.player.on_key(key)

    def until(self, condition, what):
        self.graph.spin(condition, 10, what)

    def says(self, text):
        self.until(lambda: text in self.output.getvalue(), text)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', fresh_domain())
    made = Stage(tmp_path)
    made.begin()
    made.player.begin(keys=True)
    yield made
    made.graph.close()


@pytest.mark.parametrize('typed, told', [
    ('2', TASKS[1]), ('put it there, please', 'put it there, please'),
    ('reset the scene', 'reset the scene'), (f'reset {"9" * 20}', f'reset {"9" * 20}')])
def test_a_sentence_or_the_number_of_a_task_is_told(stage, typed, told):
    stage.type(typed)
    stage.until(lambda: stage.graph.of('told'), 'the instruction')
    assert stage.graph.last('told').data == told and not stage.graph.of('estop')
    stage.status(instruction=told, task=1)
    stage.says(f'told: {told}')
    assert 'understood as' not in stage.output.getvalue()
    stage.status(instruction=told, understood='push it', task=2)
    stage.says('understood as: push it')


def test_orders_reach_the_simulator_and_refusals_are_said(stage):
    for typed, orders, said in (
            ('reset', ['/sim/reset'], 'begins anew'), ('knock', ['/sim/knock'], 'knocked'),
            ('reset 7', [('reset_seed', 1007), '/sim/reset'], 'begins anew'),
            ('c', [], 'nothing is stopped'), ('7', [], 'there is no task 7: 1 to 2'),
            (f'{"9" * 5000}', [], ': 1 to 2')):
        stage.orders.clear()
        stage.output.truncate(0)
        stage.type(typed)
        stage.says(said)
        assert stage.orders == orders
    stage.refusal = 'the gripper holds nothing'
    for order in ('knock', 'reset 7'):
        stage.output.truncate(0)
        stage.type(order)
        stage.says('refused: the gripper holds nothing')
    assert stage.orders[-1] != '/sim/reset'
    stage.type('tasks')
    stage.says(f'2  {TASKS[1]}')
    assert not stage.graph.of('told')
    stage.type('quit')
    stage.until(lambda: stage.player.over, 'the end')


def test_space_stops_on_an_empty_line_and_esc_while_a_sentence_is_typed(stage):
    for key in 'put it':
        stage.player.on_key(key)
    stage.graph.wait(0.2)
    assert not stage.graph.of('estop') and stage.screen.prompt.text == 'put it'
    for key, name in (('\x1b', 'ESC'), (' ', 'SPACE')):
        since = len(stage.graph.of('estop'))
        stage.player.on_key(key)
        stage.until(lambda since=since: len(stage.graph.of('estop')) > since, 'the e-stop')
        stage.status(gate=('FAULT', 'e-stop'), policy='FAULT')
        stage.says(f'STOPPED: e-stop ({name} at ')
        assert stage.screen.prompt.text == ''
        stage.type('1')
        stage.says('clear that with c, then Enter')
        assert not stage.graph.of('told')
        stage.type('c')
        stage.until(lambda: '/clear_fault' in stage.orders and not (
            stage.graph.last('estop').data), 'release and order')
        stage.status(gate=('STOP', 'cleared: e-stop'))
        stage.says('cleared: ')
        stage.output.truncate(0)
        stage.orders.clear()


def test_a_task_that_is_done_lets_the_arm_rest(stage):
    stage.status(instruction=TASKS[0], task=1)
    stage.says(f'told: {TASKS[0]}')
    stage.scene(done='put_the_can_in_the_wooden_bin', step=9)
    stage.says(f'done: {TASKS[0]}')
    stage.until(lambda: stage.orders == ['/stop'], 'rest')
    stage.status(gate=('STOP', 'asked to stop'), instruction=TASKS[0], task=1)
    stage.graph.wait(0.2)
    assert 'stopped: ' not in stage.output.getvalue()
    assert stage.screen.resting == f'done: {TASKS[0]}'
    stage.scene(step=0)
    stage.until(lambda: stage.screen.resting == play.WAITING, 'a new scene')
    stage.status(instruction=TASKS[1], task=2)
    stage.says(f'told: {TASKS[1]}')
    assert not stage.screen.resting
    stage.status(gate=('STOP', 'no chunk within 10 s'), instruction=TASKS[1], task=2)
    stage.says('stopped: no chunk within 10 s; tell it again')


@pytest.mark.parametrize('judged', [True, False])
def test_a_policy_that_says_when_it_is_done_ends_the_task_itself(stage, judged):
    """The simulator's judgement stands beside what it says."""
    stage.player._says_done = True
    stage.status(instruction=TASKS[0], task=1)
    stage.says(f'told: {TASKS[0]}')
    if judged:
        stage.scene(done='put_the_can_in_the_wooden_bin', holds=True, step=9)
        stage.says(f'done, as the simulator judges: {TASKS[0]}')
    assert not stage.screen.resting
    stage.status(gate=('HOLD', 'policy says that the task is done'), policy='DONE',
                 instruction=TASKS[0], task=1)
    stage.says(f'done: the policy says so: {TASKS[0]}' + (
        '' if judged else ' (the simulator does not)'))
    assert not stage.orders
    stage.status(instruction=TASKS[1], task=2)
    stage.says(f'told: {TASKS[1]}')
    assert not stage.screen.resting


def test_before_the_nodes_are_heard_only_a_stop_counts(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', fresh_domain())
    stage = Stage(tmp_path)
    assert not stage.player.ready
    for line in ('1', 'film'):
        stage.type(line)
        stage.says(f'"{line}" comes too early: the nodes still start')
    assert stage.player._film is None and not stage.graph.of('told')
    stage.player.on_key(' ')
    stage.says('e-stop pressed (SPACE at ')
    stage.says('): the gate stops as soon as it hears it, it is starting')
    stage.type('c')
    stage.says('e-stop released')
    stage.until(lambda: not stage.graph.last('estop').data, 'the release')
    stage.player.on_key('\x1b')
    stage.begin()
    assert stage.player.ready
    stage.player.begin(keys=True)
    stage.type('1')
    stage.says('it is stopped: clear that with c')
    stage.status(gate=('FAULT', 'e-stop'), policy='FAULT')
    stage.says('STOPPED: e-stop (ESC at ')
    stage.type('quit')
    stage.until(lambda: stage.player.over, 'the end')
    assert not stage.graph.of('told')
    stage.graph.close()


def test_a_film_on_request_from_here_or_from_another_terminal(stage):
    def shoot(images):
        for _ in range(images):
            stage.player._on_frame(pair(90), stage.player.seen)
    shoot(3)
    stage.type('film')
    stage.says('filming')
    shoot(8)
    stage.type('film')
    stage.says('filmed')
    with av.open(str(stage.folder / 'play-1.mp4')) as film:
        assert sum(1 for _ in film.decode(video=0)) == 4
    for on, said in ((True, 'play-2.mp4'), (True, 'it is filming'), (False, 'play-2.mp4'),
                     (False, 'not filming')):
        answer = stage.graph.call(SetBool, '/play/film', SetBool.Request(data=on))
        assert answer.success and said in answer.message
        shoot(2)
    for said in ('filming', 'nothing was filmed: no image came meanwhile'):
        stage.type('film')
        stage.says(said)
    assert not list(stage.folder.glob('*3.mp4'))


def test_a_film_says_that_a_person_drives(stage):
    class Kept(list):
        def add(self, images, caption):
            self.append(caption)

        def close(self):
            pass
    stage.player._film = film = Kept()
    for driver in ('policy', 'person'):
        stage.player.seen.take_gate(conversions.status_message('gate', 'RUN', {'driver': driver}))
        stage.player._screen.resting = ''
        for _ in range(play.FILM_EVERY):
            stage.player._on_frame(pair(90), stage.player.seen)
    stage.player._film = None
    own, driven = film
    assert (own.footer, own.states) == ('gate RUN', ())
    assert [text for text, _ in driven.states] == ['gate RUN', 'a person drives']


def test_the_page_gets_a_port_of_its_own():
    with suppress(OSError), socket.create_server(('127.0.0.1', PAGE_PORT)):
        assert play.free_port() not in (0, PAGE_PORT)


@pytest.mark.slow
def test_a_person_plays(tmp_path):
    with terminal('-m', 'dtvla_ros.cli', 'play', '--open', '--out', str(tmp_path), DISPLAY='',
                  WAYLAND_DISPLAY='', ROS_DOMAIN_ID=fresh_domain()) as shown:
        shown.wait('From another terminal')
        shown.wait(r'page: http://127\.0\.0\.1:\d+/')
        with urlopen(re.search(r'page: (\S+)', shown.shown)[1], timeout=20) as page:
            assert b'STOP' in page.read()
        shown.press('film\nfly away\n')
        shown.wait('refused: .* nearest')
        shown.press('5\n')
        shown.wait('told: push the green cube onto the yellow mark')
        shown.wait('gate RUN')
        shown.press(' ')
        shown.wait(r'STOPPED: e-stop \(SPACE')
        shown.press('c\n')
        shown.wait('cleared')
        shown.press('reset\n')
        shown.wait('begins anew')
        shown.press('5\n')
        shown.wait('done: push', 120)
        shown.press('\x03')
        assert shown.process.wait(20) == 0
        assert shown.modes == shown.before and 'Traceback' not in shown.shown
    assert (tmp_path / 'play-1.mp4').stat().st_size > 10_000
