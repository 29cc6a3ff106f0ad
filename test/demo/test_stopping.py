"""A stop during the demonstration: said, filmed, waited for, and in the result."""

from __future__ import annotations

import functools
import io
import json

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rich.console import Console
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from support.beside import fresh_domain
from support.graph import NANO, Graph

from dtvla_ros.demo import run
from dtvla_ros.demo.display import Screen
from dtvla_ros.ros import conversions, qos

ROW = {'episode': 0, 'episodes': 2, 'task': 'put_it', 'seed': 1, 'instruction': 'put it',
       'step': 7, 'success': False, 'done': False, 'finished': False}


class Film:
    """Notes what is filmed."""

    def __init__(self):
        self.stopped, self.ended = [], []
        self.captions = []
        self.add = lambda images, caption: self.captions.append(caption)
        self.stop, self.end_episode = self.stopped.append, lambda *row: self.ended.append(row)


class Stage:
    """A demonstration's `Show` among a policy, a gate and a simulator that are ours."""

    def __init__(self, folder):
        self.graph, self.film, self.output = Graph(folder), Film(), io.StringIO()
        node = self.graph.listen()
        self.graph.hear('estop', Bool, '/estop', qos.LATCHED)
        self._states = {topic: node.create_publisher(DiagnosticStatus, topic, qos.LATCHED)
                        for topic in ('/vla/state', '/gate_state')}
        self._thought = node.create_publisher(String, '/vla/reasoning', qos.LATCHED_10)
        self._writing = node.create_publisher(String, '/vla/reasoning_stream', qos.NEWEST)
        self._row = node.create_publisher(String, '/sim/episode', qos.LATCHED_100)
        self.orders = []
        for name, kind in (('pause', SetBool), ('reset', Trigger)):
            node.create_service(kind, f'/sim/{name}', lambda request, answer, name=name: (
                self.orders.append((name, getattr(request, 'data', None))), answer)[1])
        node.create_service(Trigger, '/clear_fault', self._clear)
        self.screen = Screen(Console(file=self.output, width=200))
        self.show = self.graph.join(lambda: run.Show(self.screen, self.film))
        self.keyboard, self.competition = True, ''
        self.graph.every(0.02, lambda: self.show.tick(self.keyboard))

    def _clear(self, _, answer):
        answer.success, answer.message = not self.competition, self.competition
        if answer.success and not self.graph.last('estop').data:
            self.status(gate=('STOP', 'cleared: e-stop'), policy='THINKING')
        return answer

    def status(self, gate=('RUN', ''), policy='ACTING', **values):
        told = {'reason': '', 'instruction': 'put it', 'task': 1} | values
        self._states['/vla/state'].publish(conversions.status_message('vla', policy, told))
        self._states['/gate_state'].publish(
            conversions.status_message('gate', gate[0], {'reason': gate[1]}))

    def think(self, text):
        self._thought.publish(String(data=text))

    def write(self, text):
        self._writing.publish(String(data=text))

    def episode(self, **changes):
        self._row.publish(String(data=json.dumps(ROW | changes)))

    def until(self, condition, what):
        self.graph.spin(condition, 10, what)

    def said(self, text):
        self.until(lambda: text in self.output.getvalue(), text)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', fresh_domain())
    made = Stage(tmp_path)
    made.until(lambda: made.graph.node.count_subscribers('/gate_state'), 'the show')
    made.status()
    made.episode()
    made.until(lambda: made.show.seen.told and made.show.seen.gate_state == 'RUN', 'the states')
    made.think('holding nothing now reach it')
    made.until(lambda: made.show.seen.thought and made.show.seen.episode, 'a thought')
    yield made
    made.graph.close()


def fault(stage, reason='e-stop'):
    stage.status(gate=('FAULT', reason), policy='FAULT')
    stage.until(lambda: stage.show.fault, 'the fault')


def test_space_stops_and_c_clears_and_the_episode_begins_anew(stage):
    stage.show.on_key('x')
    stage.show.on_key('c')
    stage.graph.wait(0.1)
    assert not stage.graph.of('estop'), 'nothing is there to be cleared'
    stage.show.on_key(' ')
    stage.until(lambda: stage.graph.of('estop'), 'the e-stop')
    fault(stage)
    reason = stage.show.fault
    assert reason.startswith('e-stop (SPACE at ')
    stage.said(f'STOPPED: {reason}; clear with c')
    assert stage.film.stopped == [reason] and stage.show.seen.thought == ''
    stage.until(lambda: stage.orders == [('pause', True)], 'time standing still')
    stage.write('Nothing in hand.')
    stage.graph.wait(0.2)
    assert stage.show.seen.writing == '', 'what is still written is void'
    assert [row['reason'] for row in stage.show.rows()] == [f'stopped: {reason}']
    stage.show.on_key('c')
    stage.said('cleared')
    stage.until(lambda: stage.orders[1:] == [('reset', None), ('pause', False)], 'a new beginning')
    assert not stage.show.ended and stage.show.rows() == []
    stage.show._film({}, stage.show.seen)
    assert stage.show.seen.stopped == 'cleared: e-stop' and not stage.film.captions[-1].stopped
    stage.status(task=2)
    stage.episode(done=True, success=True, step=90)
    stage.until(lambda: stage.show.rows(), 'the end')
    assert stage.show.rows()[0]['stops'] == [reason]
    assert stage.film.ended == [('put_it', True, '')]


def test_a_fault_that_is_not_cleared_says_why(stage):
    stage.competition = 'another node still publishes /action'
    fault(stage, 'another node publishes /action')
    stage.show.on_key('c')
    stage.said('not cleared: another node still publishes /action')
    assert stage.output.getvalue().count('STOPPED') == 1


def test_where_nobody_can_press_a_key_it_ends(stage, monkeypatch):
    monkeypatch.setattr(run, 'UNATTENDED', 0.5)
    stage.keyboard = False
    fault(stage)
    stage.said('stop --clear')
    stage.until(lambda: stage.show.ended, 'the end')
    assert 'not cleared within' in stage.show.ended and 'e-stop (at ' in stage.show.ended


def test_a_task_that_ended_by_itself_and_why_an_episode_failed_are_said(stage):
    stage.status(gate=('STOP', 'policy says STOPPED: no decision within 5 s'), policy='STOPPED')
    stage.said('stopped: policy says STOPPED: no decision within 5 s')
    assert stage.show.seen.thought == '' and not stage.orders
    stage.episode(done=True, reason='not done within 180 steps')
    stage.said('not done within 180 steps')
    assert stage.film.ended == [('put_it', False, 'not done within 180 steps')]


def test_a_new_task_clears_the_thought(stage):
    stage.write('Holding the can.')
    stage.until(lambda: stage.show.seen.writing == 'Holding the can.', 'a thought being written')
    stage.status(task=2)
    stage.until(lambda: not (stage.show.seen.thought or stage.show.seen.writing),
                'no thought of the former task')


def test_how_a_thought_is_written_counts_from_where_it_differs(stage):
    stage.think('Nothing in hand. Reaching for the can.')
    stage.until(lambda: stage.show.seen.thoughts == 2, 'the thought')
    stage.write('Nothing in hand.')
    stage.graph.wait(0.2)
    assert not stage.show.seen.writing
    stage.write('Nothing in hand. Lowering onto the can.')
    stage.until(lambda: stage.show.seen.writing, 'the next thought')
    stage.think('Nothing in hand. Lowering onto the can. Moving down.')
    stage.until(lambda: not stage.show.seen.writing, 'the whole thought')
    assert stage.show.seen.thought.endswith('Moving down.') and stage.show.seen.thoughts == 3


def test_a_policy_that_has_not_heard_of_the_release_is_still_stopped(stage):
    fault(stage)
    stage.status(gate=('STOP', 'cleared: e-stop'), policy='FAULT', reason='e-stop')
    stage.until(lambda: stage.show.seen.gate_state == 'STOP', 'a cleared gate')
    stage.graph.wait(0.2)
    assert stage.show.fault.startswith('e-stop (at ') and stage.orders == [('pause', True)]
    stage.show.on_key('c')
    stage.until(lambda: stage.graph.of('estop'), 'the release')
    assert not stage.graph.last('estop').data


@pytest.mark.parametrize('ended', [0, 1])
def test_ctrl_c_keeps_the_episodes_that_ended(tmp_path, monkeypatch, capfd, ended):
    def watch(_, show, nodes):
        yield
        show.seen.episodes += [ROW | {'success': True}] * ended
        raise KeyboardInterrupt
    monkeypatch.setenv('ROS_DOMAIN_ID', fresh_domain())
    monkeypatch.setattr(run, 'watch', watch)
    monkeypatch.setattr(run, 'start_nodes', lambda *_: None)
    demo = functools.partial(run.run_demo, NANO, ['put_it'], 2, None, tmp_path)
    if not ended:
        with pytest.raises(KeyboardInterrupt, match='^interrupted before an episode ended$'):
            demo()
        assert not (tmp_path / 'demo.json').exists()
        return
    result = demo()
    assert (result['ended'], result['successes'], result['n']) == ('Ctrl-C', 1, 1)
    assert json.loads((tmp_path / 'demo.json').read_text()) == result
    shown = capfd.readouterr().out
    assert 'demo.json' in shown and 'demo.mp4' not in shown, 'nothing was filmed'
