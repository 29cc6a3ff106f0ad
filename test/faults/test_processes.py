"""Rows 18 to 22, 24, 37 to 39: processes that die or sleep, clocks, and a full disk."""

import signal
import time

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from rosgraph_msgs.msg import Clock

from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.processes import resident_memory
from test.faults.inside import clock_offset, policy_faults
from test.faults.rig import drop


@pytest.fixture
def moving(rig):
    """The arm in motion; whatever was killed before is started again."""
    if 'vla_node' not in rig.processes:
        rig.begin('vla_node', code=policy_faults(rig.folder))
    if 'command_gate' not in rig.processes:
        rig.begin('command_gate', code=clock_offset(rig.folder / 'offset'))
    return rig.ready()


def test_18_a_policy_out_of_memory_is_released_and_the_gate_lives(moving, check):
    before = resident_memory(moving.processes['vla_node'].pid)
    (moving.folder / 'hungry').touch()
    begun = time.monotonic()
    moving.spin(lambda: moving.vla[0] == 'STOPPED', 3, 'STOPPED')
    failed = moving.heard['vla'][-1][0]
    assert 'DEGRADED' in moving.vla[1] and 'out of memory' in moving.vla[1]
    moving.stops(begun, 'STOP', 'DEGRADED')
    check(18, max(0.0, moving.still_after(begun) - failed))
    moving.spin(lambda: resident_memory(moving.processes['vla_node'].pid) < before - 10, 1,
                'the memory of the weights given back')
    assert all(moving.processes[n].poll() is None for n in ('vla_node', 'command_gate'))
    moving.kill('vla_node')


def test_19_a_killed_policy(moving, check):
    since = time.monotonic()
    moving.kill('vla_node')
    check(19, moving.stops(since, 'STOP', 'heartbeat'))


@pytest.mark.parametrize('sink', ['servo', 'crisp'])
def test_20_a_killed_gate(moving, check, sink):
    if sink == 'crisp':
        moving.begin('command_gate', preset='crisp', profile='default')
        moving.ready()
    said = conversions.status_values(moving.last('gate'))['on_silence']
    assert said.startswith('MoveIt Servo halts' if sink == 'servo' else 'keeps the last target')
    since, place = time.monotonic(), moving.robot.position.copy()
    moving.kill('command_gate')
    moving.spin(lambda: moving.vla[0] == 'STOPPED', 2, 'STOPPED')
    check(20, next(t for t, m in moving.of('vla', since) if m.message == 'STOPPED') - since)
    assert 'command_gate is silent' in moving.vla[1]
    moving.wait(1.0)
    gone = float(np.linalg.norm(moving.robot.position - place))
    if moving.strict:
        assert gone <= 0.05 + 0.267 * 0.02, f'{gone:.3f} m'  # and what it moved before the signal
    place = moving.robot.position.copy()
    moving.wait(0.3)
    assert np.abs(moving.robot.position - place).max() < 1e-3, 'the sink is at rest'
    check(20, said=f'{sink}: {1e3 * gone:.0f} mm')


def test_21_a_policy_that_sleeps_for_ten_seconds(moving, check):
    process = moving.processes['vla_node']
    since = time.monotonic()
    process.send_signal(signal.SIGSTOP)
    check(21, moving.stops(since, 'STOP', 'heartbeat'))
    moving.wait(10.0 - (time.monotonic() - since))
    woken = time.monotonic()
    process.send_signal(signal.SIGCONT)
    moving.wait(1.0)
    assert not any(v.any() for t, v in moving.commands if t > woken), 'stale chunks move nothing'
    assert moving.gate[0] == 'STOP'


@pytest.mark.parametrize('seconds', [10, -10])
def test_22_a_wall_clock_that_jumps(moving, check, seconds):
    (moving.folder / 'new').write_text(str(seconds * 10**9))
    (moving.folder / 'new').rename(moving.folder / 'offset')
    check(22, moving.stops(time.monotonic(), 'HOLD'))
    moving.spin(lambda: 'stamped' in moving.gate[1], 2, "the arm's stamps to be another clock's")
    (moving.folder / 'offset').unlink()
    moving.goes_on()


def test_24_simulated_time_that_pauses(moving, check):
    publisher = moving.node.create_publisher(Clock, '/clock', qos.LATEST)
    timer = moving.every(0.01, lambda: publisher.publish(
        Clock(clock=conversions.time_message(time.time()))))
    moving.begin('command_gate', use_sim_time='true')
    try:
        moving.ready()
        since = time.monotonic()
        timer.cancel()
        check(24, moving.stops(since, 'HOLD', 'stood still'))
        place = moving.robot.position.copy()
        moving.wait(0.3)
        assert np.abs(moving.robot.position - place).max() < 1e-9, 'no drift'
        timer.reset()
        moving.goes_on()
    finally:
        moving.kill('command_gate')  # the next test's has the usual clock again
        timer.cancel()


def test_37_deactivated_in_motion(moving, check):
    since = time.monotonic()
    assert moving.change(Transition.TRANSITION_DEACTIVATE)
    check(37, moving.stops(since, 'STOP', 'INACTIVE', 'not activated'))
    stopped = moving.still_after(since)
    assert not moving.of('chunk', stopped + 0.05), 'no chunk after the stop'
    assert moving.vla == ('INACTIVE', 'not activated')
    assert moving.change(Transition.TRANSITION_ACTIVATE)


@pytest.mark.parametrize('name', ['vla_node', 'command_gate'])
def test_37_interrupted_in_motion(moving, check, name):
    since = time.monotonic()
    process = moving.kill(name, signal.SIGINT)
    moving.spin(lambda: moving.vla[0] == 'UNCONFIGURED' or 'shut down' in moving.gate[1], 3,
                'the last message')
    process.send_signal(signal.SIGINT)  # an impatient one must not cut the stop commands off

    def stopped():
        """Where times are held, with all stop commands; a starved machine may lose some."""
        return moving.still_after(since) is not None or (
            not moving.strict and process.poll() is not None and not moving.commands[-1][1].any())
    moving.spin(stopped, 3, 'stop commands')
    check(37, (moving.still_after(since) or since) - since)
    assert process.wait(10 if moving.strict else 30) == 0
    if name == 'command_gate':
        moving.wait(0.1)
        assert not moving.commands[-1][1].any(), 'the last word is to stand still'
    else:
        moving.spin(lambda: moving.gate[0] == 'STOP', 1, 'STOP')


def test_38_a_robot_lost_and_found(moving, check):
    topics = ('image_primary', 'image_wrist', 'joint_states', 'ee_pose')
    check(38, moving.stops(moving.inject(**dict.fromkeys(topics, drop)), 'HOLD'))
    moving.wait(1.0)
    moving.goes_on()


def test_39_a_disk_that_is_full_while_recording(moving, check, tmp_path):
    # A limit on the size of any file the recorder writes: the same error path as a full disk.
    code = ('import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
            'resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000)); '
            'from dtvla_ros.cli import main; main()')
    before = len(moving.stamps)
    done = moving.launch('record', '-c', code, 'record', '--out', str(tmp_path / 'bag'))
    moving.spin(lambda: done.poll() is not None, 40, 'the end of the recording')
    output = moving.log('record')
    assert done.returncode == 3, output
    assert 'No space left' in output or 'too large' in output, output
    gaps = np.diff(moving.stamps[before:])
    assert len(gaps) > 20 and moving.gate[0] in ('RUN', 'HOLD')
    assert gaps.max() < 0.15 or not moving.strict, 'control goes on'
    check(39, said=f'longest gap of commands {1e3 * gaps.max():.0f} ms')
