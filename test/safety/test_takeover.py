"""A person drives in the policy's place: under the same limits, and without a jump."""

import numpy as np
import pytest
from support.gate import DT, Rig, still

from dtvla_ros.actions import osc
from dtvla_ros.conventions import PERSON, POLICY
from dtvla_ros.safety.gate import GateState
from dtvla_ros.safety.limits import Limits

RUN, HOLD, STOP, FAULT = GateState
UNIT = osc.METRES_PER_SECOND_PER_UNIT
EASED = 0.4 * DT / UNIT  # change of the normalised motion in one tick of a handover


class Driven(Rig):
    """A rig with a person, who says ``twist`` before every tick once it is set."""

    def __init__(self, **config):
        self.twist = None
        super().__init__(**config)

    def tick(self):
        if self.twist is not None:
            self.refused = self.gate.on_human(self.twist, self.now, self.steady)
        return super().tick()

    def drive(self, x=0.2, **angular):
        self.twist = np.array([x, 0.0, 0.0, 0.0, 0.0, angular.get('yaw', 0.0)])

    def taken_over(self, x=0.2):
        """A person drives, and the handover is over."""
        self.moving()
        assert self.gate.take_over(self.steady) is None
        self.drive(x)
        commands = [self.tick() for _ in range(30)]
        assert commands[-1].state is RUN
        assert commands[-1].action[0] == pytest.approx(x / UNIT)
        return self


def test_the_persons_twist_is_executed_and_the_policys_chunks_are_not():
    rig = Driven().taken_over()
    played = rig.gate.queue.consumed
    assert rig.gate.account()['driver'] == PERSON
    for k in range(20):
        assert rig.chunk(-0.9) == 'a person drives'
        rig.drive(0.1 + 0.001 * k, yaw=0.5)
        command = rig.tick()
        assert command.action[0] == pytest.approx((0.1 + 0.001 * k) / UNIT)
        assert command.action[5] == pytest.approx(0.5 / osc.RADIANS_PER_SECOND_PER_UNIT)
        assert command.action[6] == 1.0, 'the grip stays until the person tells it'
    rig.gate.on_human_gripper(1.0)
    assert rig.tick().action[6] == osc.GRIPPER_OPEN
    rig.gate.on_human_gripper(0.0)
    assert rig.tick().action[6] == osc.GRIPPER_CLOSED
    assert rig.gate.queue.consumed == played
    assert 'already' in rig.gate.take_over(rig.steady)


def test_no_jump_from_one_driver_to_the_other_and_back():
    rig = Driven()
    commands = [rig.moving(0.9).tick()]
    assert rig.gate.take_over(rig.steady) is None
    commands += [rig.tick() for _ in range(26)]  # nothing said yet: slower, then still
    assert commands[1].reason == 'taken over: no human_twist yet' and still(commands[-1])
    rig.drive(-0.2)
    commands += [rig.tick() for _ in range(20)]
    assert rig.gate.hand_back() is None
    assert rig.chunk(0.8, stamp=rig.now - 0.01), 'observed while the person drove'
    commands += [rig.tick() for _ in range(3)]
    assert commands[-1].reason == 'thinking'
    assert rig.chunk(0.8, rows=40) is None
    commands += [rig.tick() for _ in range(30)]
    motion = np.array([c.action[:3] for c in commands])
    assert np.linalg.norm(np.diff(motion, axis=0), axis=1).max() == pytest.approx(EASED)
    assert motion[:, 0].min() == pytest.approx(-0.2 / UNIT)
    assert motion[-1] == pytest.approx(0.8)
    assert rig.gate.account()['handover_jump'] == pytest.approx(0.4 * DT)
    assert rig.gate.account()['driver'] == POLICY
    rig.chunk(-0.8, rows=40)
    assert rig.tick().action[0] == pytest.approx(-0.8), 'the handover is over'


@pytest.mark.parametrize(('ticks', 'state', 'word', 'fault'), [
    (5, HOLD, 'human_twist missing or older than 0.2 s', {'twist': None}),
    (4, HOLD, 'joint states', {'silent': 'joints'}), (4, HOLD, 'pose', {'silent': 'pose'}),
    (1, HOLD, 'outside', {'position': [0.899, 0.0, 0.3]}),
    (1, HOLD, 'paused', lambda rig: rig.gate.pause(True)),
    (1, HOLD, 'servo halted', lambda rig: setattr(rig.gate, 'arm_unable', 'servo halted')),
    (2, STOP, 'human_twist is not finite, 2 in a row', {'twist': np.full(6, np.nan)}),
    (5, FAULT, '5 actions in a row beyond +-1: human_twist', {'twist': np.full(6, 1.0)}),
    (1, FAULT, 'e-stop', lambda rig: rig.gate.on_estop(True))])
def test_what_stops_the_policy_stops_a_person(ticks, state, word, fault):
    rig = Driven().taken_over()
    if callable(fault):
        fault(rig)
    else:
        vars(rig).update(fault)
    commands = [rig.tick() for _ in range(ticks)]
    assert commands[-1].state is state and word in commands[-1].reason and still(commands[-1])
    assert all(np.abs(c.action).max() <= 1.01 for c in commands)
    assert rig.gate.driver == (PERSON if state is HOLD else POLICY)
    if state is FAULT:
        assert 'clear it first' in rig.gate.take_over(rig.steady)
    elif state is HOLD:
        rig.heal()
        rig.drive()
        assert rig.tick().state is RUN, 'goes on with the next twist'


@pytest.mark.parametrize(('fault', 'state'), [
    ({'silent': 'heartbeat'}, STOP), ({'policy_state': 'STOPPED'}, STOP),
    ({'policy_state': 'HOLDING'}, HOLD), ({'policy_state': 'DONE'}, HOLD)])
def test_a_policy_that_is_gone_stops_no_person_and_moves_nothing_afterwards(fault, state):
    rig = Driven().taken_over()
    vars(rig).update(fault)
    assert {rig.tick().state for _ in range(20)} == {RUN}
    assert rig.gate.hand_back() is None
    assert rig.tick().state is state


def test_an_ended_task_stays_ended_behind_a_person_and_limits_hold():
    rig = Driven(limits=Limits(), auto_start=False)
    for _ in range(3):
        rig.tick()
    assert rig.gate.take_over(rig.steady) is None, 'out of STOP'
    rig.drive(0.267)
    speeds = [UNIT * rig.tick().action[0] for _ in range(40)]
    assert max(speeds) == pytest.approx(0.25), 'the profile'
    assert rig.gate.hand_back() is None and rig.gate.state is STOP
    assert 'start' in rig.gate.reason and 'already' in rig.gate.hand_back()
    rig.silent = 'pose'
    for _ in range(5):
        rig.tick()
    assert 'pose' in rig.gate.take_over(rig.steady)


def test_a_twist_by_another_clock_does_not_count_nor_one_while_the_policy_drives():
    rig = Driven().moving()
    assert rig.gate.on_human(np.full(6, np.nan), 0.0, rig.steady) is None
    assert rig.gate.take_over(rig.steady) is None
    assert 'stamp is 0' in rig.gate.on_human(np.zeros(6), 0.0, rig.steady)
    assert rig.tick().reason == 'taken over: no human_twist yet'


def test_a_faster_gate_counts_rows_of_a_person_as_of_the_policy():
    rig = Driven(rate=100.0)
    rig.moving()
    assert rig.gate.take_over(rig.steady) is None
    rig.drive(0.1)
    assert [rig.tick().first_tick for _ in range(10)] == [True, *[False] * 4] * 2
