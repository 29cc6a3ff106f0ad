"""A task that somebody waits for, judged without ROS and without waiting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dtvla_ros.nodes.task_run import ANSWER, ASK_AGAIN, SILENT, STOPPING, Outcome, Said, TaskRun

ROOT = Path(__file__).resolve().parents[2]
TASK = 'put the lemon in the blue bin'
OTHER = 'put the can in the wooden bin'


class World:
    """Policy and gate of a test; `tick` passes time and lets both say what they are."""

    def __init__(self, instruction=TASK, limit=0.0):
        self.now, self.run = 100.0, TaskRun(instruction, limit, 100.0)
        self.policy, self.gate = ('IDLE', 'no instruction'), ('HOLD', 'policy is idle')
        self.values = {'task': '4', 'refusals': '1', 'instruction': OTHER}
        self.heard = {}
        self.deaf = set()

    def tick(self, seconds=0.05, tasks=()):
        self.now += seconds
        for who, (state, reason) in (('policy', self.policy), ('gate', self.gate)):
            if who not in self.deaf:
                more = self.values if who == 'policy' else {}
                self.heard[who] = Said(state, {'reason': reason, **more}, self.now)
        return self.run.judge(self.now, self.heard.get('policy', Said()),
                              self.heard.get('gate', Said()), tasks)

    def take(self):
        """Let the policy take the instruction, and the gate run."""
        assert self.tick() is None and self.run.asks(self.now)
        self.run.said(self.now)
        self.policy, self.gate = ('ACTING', ''), ('RUN', '')
        self.values |= {'task': '5', 'instruction': self.run.instruction}
        assert self.tick() is None and self.run.taken
        assert self.tick() is None
        return self


def test_the_numbers_of_outcomes_are_those_of_the_action():
    text = (ROOT / 'dtvla_interfaces/action/RunTask.action').read_text()
    told = {name: int(number) for name, number in re.findall(
        r'^uint8 ([A-Z_]+) = (\d)', text, re.MULTILINE)}
    assert told == {'UNKNOWN': 0, **{each.name: int(each) for each in Outcome}}


def test_a_task_is_told_taken_and_done():
    world = World(f' {TASK}\n').take()
    assert world.run.instruction == TASK and not world.run.asks(world.now)
    assert world.tick(1000.0) is None, 'without a limit it may take long'
    world.policy = 'DONE', 'the policy says that the task is complete'
    assert world.tick() == (Outcome.DONE, world.policy[1])
    assert not world.run.stopping


def test_what_is_not_answered_is_told_again_and_then_given_up():
    world = World()
    world.tick()
    world.run.said(world.now)
    assert not world.run.asks(world.now + 0.5 * ASK_AGAIN)
    assert world.run.asks(world.now + ASK_AGAIN)
    outcome, reason = world.tick(ANSWER + 0.1)
    assert outcome is Outcome.STOPPED and 'did not answer' in reason


def test_a_refusal_says_what_the_policy_takes():
    world = World('dance')
    world.tick()
    world.run.said(world.now)
    world.values |= {'refusals': '2', 'rejected_instruction': 'dance', 'rejected': 'it is none'}
    assert world.tick(tasks=[TASK, OTHER]) == (
        Outcome.REFUSED, f'it is none; it takes: {TASK}, {OTHER}')


@pytest.mark.parametrize('change, outcome, words, stopped', [
    ({'policy': ('STOPPED', 'no decision within 5 s')}, 'STOPPED', 'no decision', True),
    ({'policy': ('INACTIVE', 'not activated')}, 'STOPPED', 'policy INACTIVE', True),
    ({'policy': ('FAULT', 'e-stop')}, 'STOPPED', 'policy FAULT: e-stop; dtvla stop --clear', True),
    ({'gate': ('FAULT', 'e-stop')}, 'STOPPED', 'gate FAULT: e-stop; dtvla stop --clear', True),
    ({'gate': ('STOP', 'asked to stop')}, 'STOPPED', 'gate STOP: asked to stop', False),
    ({'values': {'instruction': OTHER, 'task': '6'}}, 'PREEMPTED', OTHER, False),
    ({'values': {'instruction': '', 'task': '0'}}, 'STOPPED', 'policy ACTING', True)])
def test_a_task_ends_when_policy_or_gate_end_it(change, outcome, words, stopped):
    world = World().take()
    world.policy, world.gate = change.get('policy', world.policy), change.get('gate', world.gate)
    world.values |= change.get('values', {})
    ending = world.tick()
    assert world.run.stopping == stopped
    if stopped:  # the gate may not have heard of it: it is told to stop
        world.gate = world.gate if world.gate[0] == 'FAULT' else ('STOP', 'asked to stop')
        ending = ending or world.tick()
    assert ending[0].name == outcome and words in ending[1]


def test_the_same_task_begun_anew_goes_on():
    world = World().take()
    world.values['task'] = '6'
    assert world.tick() is None


@pytest.mark.parametrize('who', ['policy', 'gate'])
@pytest.mark.parametrize('taken', [False, True])
def test_a_node_that_is_gone_ends_it(who, taken):
    world = World().take() if taken else World()
    world.deaf = {who}
    assert world.tick(min(SILENT, ANSWER) - 0.5) is None
    ending = world.tick(ANSWER)
    if taken:
        assert world.run.stopping
        world.gate = 'STOP', 'asked to stop'
        ending = world.tick(STOPPING + 0.1)
    assert ending[0] is Outcome.STOPPED
    assert ending[1].startswith(f'nothing is heard of the {who}')
    assert ('the stop of the arm itself' in ending[1]) == (taken and who == 'gate')


def test_a_policy_that_is_being_loaded_is_waited_for_one_that_is_not_activated_is_not():
    world = World()
    world.policy = 'LOADING', "the policy's weights are being read"
    for _ in range(10):
        assert world.tick(ANSWER) is None and not world.run.asks(world.now)
    world.policy = 'INACTIVE', 'joint names missing'
    assert world.tick() is None
    assert world.tick(ANSWER + 0.1) == (Outcome.STOPPED, 'policy INACTIVE: joint names missing')


def test_a_fault_of_before_refuses_the_task_at_once():
    world = World()
    world.gate = 'FAULT', 'e-stop'
    assert world.tick() == (Outcome.STOPPED, 'gate FAULT: e-stop; dtvla stop --clear')
    assert not world.run.asks(world.now)


@pytest.mark.parametrize('how, outcome', [('cancel', Outcome.CANCELED),
                                          ('limit', Outcome.TIMED_OUT)])
def test_an_arm_in_motion_is_stopped_before_the_task_ends(how, outcome):
    world = World(limit=60.0).take()
    if how == 'cancel':
        world.run.cancel()
    assert world.tick(0.05 if how == 'cancel' else 60.0) is None and world.run.stopping
    assert world.tick() is None, 'the gate runs still'
    world.gate = 'STOP', 'asked to stop'
    assert world.tick() == (outcome, 'canceled' if how == 'cancel' else 'not done within 60 s')


def test_a_stop_that_the_gate_does_not_confirm_is_said():
    world = World().take()
    world.run.cancel()
    world.tick()
    outcome, reason = world.tick(STOPPING + 0.1)
    assert outcome is Outcome.CANCELED and 'has not said that it stopped' in reason


def test_what_is_canceled_while_the_policy_is_told_is_stopped_once_it_is_taken():
    world = World()
    world.run.cancel()
    assert world.tick() == (Outcome.CANCELED, 'canceled'), 'nothing was said yet'
    world = World()
    world.tick()
    world.run.said(world.now)
    world.run.cancel()
    assert world.tick() is None and not world.run.stopping
    world.values |= {'task': '5', 'instruction': TASK}
    world.tick()
    world.tick()
    assert world.run.taken and world.run.stopping


def test_a_gate_that_is_not_started_is_waited_for():
    world = World()
    world.gate = 'STOP', 'not started'
    world.tick()
    world.run.said(world.now)
    world.policy = 'ACTING', ''
    world.values |= {'task': '5', 'instruction': TASK}
    assert world.tick() is None and world.tick(60.0) is None
    assert world.run.wants_start(world.heard['gate'])
    assert world.run.state(*world.heard.values()) == (
        'gate STOP: not started; dtvla topic call /start')
    world.gate = 'RUN', ''
    assert world.tick() is None and world.run.state(*world.heard.values()) == 'policy ACTING'
    world.gate = 'STOP', 'asked to stop'
    assert world.tick() == (Outcome.STOPPED, 'gate STOP: asked to stop')


def test_a_gate_that_refuses_its_start_ends_the_task():
    world = World()
    world.gate = 'STOP', 'not started'
    world.tick()
    world.values |= {'task': '5', 'instruction': TASK}
    world.tick()
    world.run.start_answered(world.now, 'joint states missing')
    assert not world.run.wants_start(world.heard['gate']) and world.tick() is None
    assert world.tick(1.1) == (Outcome.STOPPED, 'gate not started: joint states missing')


def test_a_gate_that_holds_says_why():
    world = World().take()
    world.gate = 'HOLD', 'paused'
    world.tick()
    assert world.run.state(*world.heard.values()) == 'gate HOLD: paused'
    world.gate = 'HOLD', 'thinking'
    world.tick()
    assert world.run.state(*world.heard.values()) == 'policy ACTING'
