"""The gate's state machine, without ROS: every rule of the fault table that lives here."""

import dataclasses

import numpy as np
import pytest

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.safety.gate import Gate, GateConfig, GateState
from dtvla_ros.safety.limits import PROFILES, Limits

DT = 0.05
RUN, HOLD, STOP, FAULT = GateState
UNLESS_TOLD = {
    'auto_start': True, 'heartbeat_timeout_s': 0.12, 'joints_timeout_s': 0.15,
    'pose_timeout_s': 0.15, 'clock_stall_s': 0.0, 'clock_domain_s': 0.0, 'gripper_timeout_s': 0.0}


class Rig:
    """A gate fed like a live system at 20 Hz, unless told to leave something out."""

    def __init__(self, limits=PROFILES['fidelity'], **config):
        config = GateConfig(**{**UNLESS_TOLD, **config})
        self.period = 1.0 / config.rate
        self.gate = Gate(config, limits)
        self.now, self.steady = 100.0, 7.0
        self.position = [0.5, 0.0, 0.3]
        self.task, self.policy_state = '0', 'THINKING'

    def chunk(self, value=0.5, rows=8, gripper=1.0, stamp=None, **change):
        values = np.full((rows, 7), value, np.float32)
        values[:, 6] = gripper
        made = Chunk(self.now if stamp is None else stamp, DT, values)
        return self.gate.on_chunk(dataclasses.replace(made, **change), self.now)

    def tick(self, *, without=(), joints=0.0, **frozen):
        self.now += self.period * (not frozen.get('clock_stands'))
        self.steady += self.period
        gate, now, steady = self.gate, self.now, self.steady
        if 'heartbeat' not in without:
            gate.on_heartbeat(steady, self.policy_state, 'because', self.task)
        if 'joints' not in without:
            gate.on_joints(np.full(7, joints), frozen.get('joint_stamp', now), steady)
        if 'pose' not in without:
            gate.on_pose(self.position, now + frozen.get('pose_ahead', 0.0), steady)
        return gate.tick(now, steady)

    def moving(self):
        self.tick()
        assert self.chunk() is None
        command = self.tick()
        assert command.state is RUN
        assert command.action[0] == pytest.approx(0.5)
        return self

    def resumes(self):
        """It moves again with a new chunk."""
        self.tick()
        self.chunk()
        assert self.tick().state is RUN


def still(command, gripper=1.0):
    """Whether a command keeps the arm still and the gripper as it is."""
    np.testing.assert_array_equal(command.action, [0, 0, 0, 0, 0, 0, gripper])
    return True


def test_it_waits_plays_rows_and_waits_with_the_gripper_as_last_commanded():
    rig = Rig()
    command = rig.tick()
    assert (command.state, command.reason, command.waiting) == (HOLD, 'thinking', True)
    assert still(command, gripper=0.0)
    rig.moving()
    assert [rig.tick().state for _ in range(8)] == [RUN] * 7 + [HOLD]
    assert still(rig.tick())


@pytest.mark.parametrize(('fault', 'word'), [
    ({'without': ('joints',)}, 'joint states'), ({'without': ('pose',)}, 'pose'),
    ({'joint_stamp': 1.0}, 'joint states'), ({'joints': np.nan}, 'joint states')])
def test_stale_measurements_hold_within_150_ms_and_resume_with_a_new_chunk(fault, word):
    rig = Rig().moving()
    if 'without' not in fault:
        rig.tick(**fault)  # the sample that stands still, or never counts
    commands = [rig.tick(**fault) for _ in range(4)]
    assert [c.state for c in commands[:2]] == [RUN, RUN] or 'without' not in fault
    assert commands[3].state is HOLD and word in commands[3].reason and still(commands[3])
    rig.tick()
    assert rig.tick().reason == 'thinking', 'the old chunk is gone'
    rig.resumes()


def test_a_dead_policy_stops_the_arm_within_150_ms_and_its_chunk_is_discarded():
    rig = Rig().moving()
    seen = rig.now
    commands = [rig.tick(without=('heartbeat',)) for _ in range(8)]
    assert all(c.state is STOP for c in commands[2:]), 'third silent tick = 150 ms'
    assert all(still(c) for c in commands[2:])
    assert 'heartbeat' in commands[-1].reason
    rig.tick()
    assert 'STOP' in rig.chunk(), 'a policy that wakes up does not move the arm with that task'
    assert rig.tick().state is STOP
    rig.task = '1'
    rig.tick()
    assert 'flushed' in rig.chunk(stamp=seen)
    rig.resumes()


def test_a_short_silence_can_be_a_hold():
    rig = Rig(heartbeat_stop_s=1.0).moving()
    for _ in range(3):
        command = rig.tick(without=('heartbeat',))
    assert command.state is HOLD and still(command)
    rig.resumes()
    for _ in range(22):
        command = rig.tick(without=('heartbeat',))
    assert command.state is STOP


def test_a_non_finite_chunk_is_dropped_whole_and_two_stop():
    rig = Rig().moving()
    assert 'non-finite' in rig.chunk(value=np.nan)
    assert rig.tick().state is RUN, 'the good chunk plays on'
    rig.chunk(value=np.inf)
    command = rig.tick()
    assert command.state is STOP and still(command)


@pytest.mark.parametrize(('change', 'word'), [
    ({'channels': ('a',) * 7}, 'channels'), ({'values': np.zeros((8, 6), np.float32)}, 'shape'),
    ({'values': np.zeros((0, 7), np.float32)}, 'shape'), ({'period': 0.1}, 'period')])
def test_a_chunk_that_breaks_the_contract_stops_at_once(change, word):
    rig = Rig().moving()
    assert word in rig.chunk(**change)
    command = rig.tick()
    assert command.state is STOP and word in command.reason and still(command)


def test_ten_times_too_large_is_clamped_then_a_fault():
    rig = Rig()
    rig.tick()
    rig.chunk(value=10.0)
    commands = [rig.tick() for _ in range(5)]
    assert all(c.state is RUN and c.action[0] == pytest.approx(1.0) for c in commands[:4])
    assert commands[4].state is FAULT and still(commands[4])
    rig.task = '1'
    assert rig.tick().state is FAULT, 'latched'
    assert rig.gate.start(rig.steady) is not None
    assert rig.gate.clear_fault() is None
    assert rig.gate.start(rig.steady) is None
    assert rig.tick().state is HOLD


def test_the_safe_profile_clamps_ordinary_actions_without_a_fault():
    rig = Rig(limits=Limits())
    rig.tick()
    rig.chunk(value=1.0, rows=20)
    speeds = [np.linalg.norm(0.267 * rig.tick().action[:3]) for _ in range(20)]
    assert max(speeds) <= 0.25 + 1e-9
    assert rig.gate.state is RUN


def test_a_target_outside_the_box_is_rejected():
    rig = Rig().moving()
    rig.position = [0.899, 0.0, 0.3]
    command = rig.tick()
    assert command.state is HOLD and 'outside' in command.reason and still(command)
    assert command.played and not command.waiting
    rig.position = [0.5, 0.0, 0.3]
    assert rig.tick().state is RUN


def test_thinking_has_a_deadline_and_idling_has_none():
    rig = Rig(thinking_deadline_s=0.5)
    commands = [rig.tick() for _ in range(14)]
    assert commands[8].reason == 'thinking'
    assert commands[-1].state is STOP and 'no chunk within' in commands[-1].reason
    rig = Rig(thinking_deadline_s=0.5)
    rig.policy_state = 'IDLE'
    assert [rig.tick().state for _ in range(30)][-1] is HOLD


def test_the_policys_own_hold_and_stop_are_obeyed():
    rig = Rig().moving()
    rig.policy_state = 'HOLDING'
    assert rig.tick().reason == 'policy holds: because'
    rig.policy_state = 'STOPPED'
    assert rig.tick().state is STOP


@pytest.mark.parametrize('jump', [10.0, -10.0])
def test_a_clock_jump_voids_every_chunk(jump):
    rig = Rig().moving()
    before = rig.now
    rig.now += jump
    assert rig.tick().state is HOLD
    if jump > 0:
        assert 'flushed' in rig.chunk(stamp=before)
    else:
        assert 'future' in rig.chunk(stamp=before)
    rig.chunk()
    assert rig.tick().state is RUN


def test_estop_is_a_latched_fault_that_discards_the_chunk_in_flight():
    rig = Rig().moving()
    seen = rig.now
    rig.gate.on_estop(True)
    command = rig.tick()
    assert command.state is FAULT and command.reason == 'e-stop' and still(command)
    assert 'FAULT' in rig.chunk()
    assert 'pressed' in rig.gate.clear_fault()
    rig.gate.on_estop(False)
    assert rig.tick().state is FAULT
    rig.gate.clear_fault()
    rig.gate.start(rig.steady)
    assert 'flushed' in rig.chunk(stamp=seen)
    rig.chunk()
    assert rig.tick().state is RUN


def test_a_hold_brakes_within_the_acceleration_limit():
    rig = Rig(limits=Limits())
    rig.tick()
    rig.chunk(value=0.6, rows=20)
    for _ in range(12):
        fast = rig.tick()
    rig.policy_state = 'HOLDING'
    braking = rig.tick()
    assert 0 < braking.action[0] < fast.action[0]
    for _ in range(6):
        braking = rig.tick()
    assert still(braking)


def test_it_starts_when_told_and_once_and_with_measurements_only():
    rig = Rig(auto_start=False)
    for _ in range(4):
        rig.tick(without=('pose',))
    assert 'end-effector pose' in rig.gate.start(rig.steady)
    assert 'not started' in rig.chunk()
    assert rig.tick().state is STOP
    assert rig.gate.start(rig.steady) is None
    assert rig.gate.start(rig.steady) == 'already started'
    rig.gate.stop('changed my mind')
    assert 'changed my mind' in rig.chunk()
    assert rig.tick().state is STOP, 'a stop before the first motion is honoured'
    assert rig.gate.start(rig.steady) is None
    rig.resumes()


@pytest.mark.parametrize('turn', ['pause', 'arm'])
def test_pause_and_an_unable_arm_hold_and_go_on_with_a_new_chunk_only(turn):
    rig = Rig().moving()
    switch = rig.gate.pause if turn == 'pause' else (
        lambda on: setattr(rig.gate, 'arm_unable', 'servo halted' if on else ''))
    switch(True)
    command = rig.tick()
    assert command.state is HOLD and command.reason in ('paused', 'servo halted')
    assert still(rig.tick())
    switch(False)
    assert rig.tick().reason == 'thinking', 'no wind-up'
    rig.chunk()
    assert rig.tick().state is RUN


def test_a_standing_clock_holds_and_repeats_no_row():
    rig = Rig(clock_stall_s=0.12).moving()
    commands = [rig.tick(clock_stands=True) for _ in range(5)]
    assert commands[2].state is HOLD and 'stood still' in commands[2].reason
    assert rig.gate.queue.consumed == 1
    rig.resumes()


def test_stamps_of_another_clock_hold_and_say_so():
    rig = Rig(clock_domain_s=1.0).moving()
    commands = [rig.tick(pose_ahead=1.7e9) for _ in range(4)]
    assert commands[-1].state is HOLD and 'use_sim_time' in commands[-1].reason
    stopped = Rig(clock_domain_s=1.0, auto_start=False)
    for _ in range(6):
        stopped.tick(pose_ahead=-12.0)
    assert 'use_sim_time' in stopped.gate.start(stopped.steady)


def test_a_faster_gate_plays_each_row_for_several_ticks():
    rig = Rig(rate=100.0)
    rig.tick()
    assert rig.chunk(rows=2) is None
    commands = [rig.tick() for _ in range(11)]
    assert [c.first_tick for c in commands[:10]] == [True, *[False] * 4] * 2
    assert [c.state for c in commands] == [RUN] * 10 + [HOLD]
    assert rig.gate.queue.consumed == 2
    assert 'period' in rig.chunk(period=0.01)


def test_a_stuck_gripper_stops_and_a_new_start_gives_it_a_chance():
    rig = Rig(gripper_timeout_s=0.3, auto_start=False)
    rig.gate.gripper.measure(0.08)
    rig.tick()
    rig.gate.start(rig.steady)
    rig.chunk(rows=20)
    states = [rig.tick().state for _ in range(10)]
    assert states[0] is RUN and states[-1] is STOP
    assert 'does not close' in rig.gate.reason
    assert rig.gate.start(rig.steady) is None
    assert rig.tick().state is HOLD


def test_an_inactive_policy_ends_the_task_but_not_before_there_was_one():
    rig = Rig()
    rig.policy_state = 'LOADING'
    assert rig.tick().state is HOLD
    rig.policy_state = 'ACTING'
    rig.moving()
    rig.policy_state = 'INACTIVE'
    assert rig.tick().state is STOP and 'INACTIVE' in rig.gate.reason
    rig.policy_state, rig.task = 'ACTING', '1'
    rig.resumes()
