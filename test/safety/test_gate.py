"""The gate's state machine, without ROS: every rule of the fault table that lives here."""

import numpy as np
import pytest
from support.gate import DT, Rig, still

from dtvla_ros.safety.gate import GateState
from dtvla_ros.safety.limits import Limits

RUN, HOLD, STOP, FAULT = GateState


def test_it_waits_plays_rows_and_waits_and_one_non_finite_chunk_is_dropped_whole():
    """The good one plays on, and the gripper stays as last commanded."""
    rig = Rig()
    command = rig.tick()
    assert (command.state, command.reason, command.waiting) == (HOLD, 'thinking', True)
    assert still(command, gripper=0.0)
    rig.moving()
    assert 'non-finite' in rig.chunk(np.nan)
    assert [rig.tick().state for _ in range(8)] == [RUN] * 7 + [HOLD]
    assert still(rig.tick())


def test_a_clock_that_stands_still_is_noticed_from_when_it_last_went():
    rig = Rig(heartbeat_timeout_s=1.0, joints_timeout_s=1.0, pose_timeout_s=1.0).moving()
    gate, now, steady = rig.gate, rig.now + 0.02, rig.steady
    assert not gate.has_stop_condition(now, steady + 0.02)
    rig.now, rig.clock_stands = now, True
    assert [rig.tick().state for _ in range(2)] == [RUN] * 2, 'the tick sees what the watch saw'
    assert not gate.has_stop_condition(now, steady + 0.135)
    assert gate.has_stop_condition(now, steady + 0.145)


@pytest.mark.parametrize(('ticks', 'state', 'word', 'fault'), [
    # Of 50 ms, the last one still in time.
    (4, HOLD, 'joint states', {'silent': 'joints'}), (4, HOLD, 'pose', {'silent': 'pose'}),
    (4, HOLD, 'joint states', {'joints': np.nan}),
    (4, HOLD, 'joint states', {'joint_stamp': 100.1}),
    (4, HOLD, 'use_sim_time', {'pose_ahead': 1.7e9}),
    (3, HOLD, 'stood still', {'clock_stands': True}), (1, HOLD, '', {'now': 90.0}),
    (1, HOLD, '', {'now': 110.0}), (1, HOLD, 'outside', {'position': [0.899, 0.0, 0.3]}),
    (1, HOLD, 'policy holds: because', {'policy_state': 'HOLDING'}),
    (1, HOLD, 'the task is done', {'policy_state': 'DONE'}),
    (1, HOLD, 'paused', lambda rig: rig.gate.pause(True)),
    (1, HOLD, 'servo halted', lambda rig: setattr(rig.gate, 'arm_unable', 'servo halted')),
    (3, STOP, 'heartbeat', {'silent': 'heartbeat'}),
    (1, STOP, 'policy says STOPPED', {'policy_state': 'STOPPED'}),
    (1, STOP, 'INACTIVE', {'policy_state': 'INACTIVE'}),
    (1, STOP, 'non-finite', lambda rig: (rig.chunk(np.nan), rig.chunk(np.inf))),
    (1, STOP, 'channels', lambda rig: rig.chunk(channels=('a',) * 7)),
    (1, STOP, 'shape', lambda rig: rig.chunk(values=np.zeros((8, 6), np.float32))),
    (1, STOP, 'shape', lambda rig: rig.chunk(rows=0)),
    (1, STOP, 'period', lambda rig: rig.chunk(period=0.1)),
    (5, FAULT, 'beyond', lambda rig: rig.chunk(10.0, stamp=rig.now + 0.01)),
    (1, FAULT, 'e-stop', lambda rig: rig.gate.on_estop(True))])
def test_a_fault_ends_motion_in_time_voids_what_was_decided_and_tells_why(
        ticks, state, word, fault):
    rig = Rig().moving()
    seen, played = rig.now, rig.gate.queue.consumed
    if callable(fault):
        fault(rig)
    else:
        vars(rig).update(fault)
    *before, last = [rig.tick() for _ in range(ticks)]
    assert last.state is state and word in last.reason and still(last)
    assert all(c.state in (RUN, HOLD) and np.abs(c.action).max() <= 1.0 for c in before)
    assert rig.gate.queue.consumed == played or not rig.clock_stands, 'no row twice'
    if state is FAULT:
        assert word != 'e-stop' or 'pressed' in rig.gate.clear_fault()
        assert 'clear it first' in rig.gate.start(rig.steady)
    rig.heal()
    if state is not HOLD:
        assert rig.tick().state is state and state.name in rig.chunk(), 'not with that task'
        assert rig.gate.clear_fault() is None
        rig.task = '1'
    if word != 'outside':  # where rows go on
        assert rig.tick().waiting and rig.chunk(stamp=seen - DT), 'the old chunk is gone'
    rig.moving()


def test_a_task_that_is_done_holds_for_as_long_as_it_takes_and_lets_lock_step_wait():
    rig = Rig(thinking_deadline_s=1.0).moving()
    rig.policy_state = 'DONE'
    commands = [rig.tick() for _ in range(60)]
    assert all(c.state is HOLD and c.waiting and still(c) for c in commands)
    rig.policy_state, rig.task = 'THINKING', '1'
    rig.moving()


def test_a_short_silence_can_be_a_hold():
    rig = Rig(heartbeat_stop_s=1.0).moving()
    rig.silent = 'heartbeat'
    assert [rig.tick().state for _ in range(3)][-1] is HOLD
    rig.heal()
    rig.moving().silent = 'heartbeat'
    assert [rig.tick().state for _ in range(22)][-1] is STOP


def test_the_safe_profile_clamps_without_a_fault_and_a_hold_brakes_within_its_acceleration():
    rig = Rig(limits=Limits())
    rig.tick()
    rig.chunk(value=1.0, rows=20)
    fast = [rig.tick() for _ in range(19)]
    assert max(np.linalg.norm(0.267 * c.action[:3]) for c in fast) <= 0.25 + 1e-9
    assert rig.gate.state is RUN
    rig.policy_state = 'HOLDING'
    braking = [rig.tick() for _ in range(7)]
    assert 0 < braking[0].action[0] < fast[-1].action[0] and still(braking[-1])


def test_thinking_has_a_deadline_and_idling_has_none_nor_ends_loading_a_task_there_was_not():
    rig = Rig(thinking_deadline_s=0.5)
    rig.policy_state = 'LOADING'
    assert rig.tick().state is HOLD
    rig.heal()
    commands = [rig.tick() for _ in range(14)]
    assert commands[8].reason == 'thinking'
    assert commands[-1].state is STOP and 'no chunk within' in commands[-1].reason
    rig = Rig(thinking_deadline_s=0.5)
    rig.policy_state = 'IDLE'
    assert [rig.tick().state for _ in range(30)][-1] is HOLD


def test_a_faster_gate_plays_each_row_for_several_ticks():
    rig = Rig(rate=100.0)
    rig.tick()
    assert rig.chunk(rows=2) is None
    commands = [rig.tick() for _ in range(11)]
    assert [c.first_tick for c in commands[:10]] == [True, *[False] * 4] * 2
    assert [c.state for c in commands] == [RUN] * 10 + [HOLD]
    assert rig.gate.queue.consumed == 2 and 'period' in rig.chunk(period=0.01)
