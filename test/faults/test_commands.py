"""Rows 12 to 16, 28 to 35, 45 to 50: chunks, orders, people: all that reaches a running gate."""

import re
import time
from contextlib import contextmanager

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.srv import DescribeParameters, GetParameters
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool
from support.tasked import Client

from dtvla_ros.actions import osc
from dtvla_ros.nodes.task_run import Outcome
from dtvla_ros.ros import conversions, interfaces, qos
from test.faults.inside import policy_faults
from test.faults.rig import TASK, T

LISTED = 'put the can in the wooden bin'


@pytest.fixture(scope='module')
def running(rig):
    rig.deadline = 1.0 if rig.strict else 5.0
    rig.begin('vla_node', code=policy_faults(rig.folder), deadline_s=rig.deadline,
              allowed_instructions=f'["{TASK}", "{LISTED}"]')
    rig.begin('command_gate', arm_status='bool')
    rig.arm = rig.node.create_publisher(Bool, '/arm_status', 1)
    return rig


def spoil(rig, topic, fault):
    """Change every message of a topic from now on; return the list of times it was done."""
    times = []

    def noted(message):
        times.append(time.monotonic())
        fault(message)
        return message
    rig.faults[topic] = noted
    return times


def spoil_rows(rig, change):
    """Change the rows [n, 7] of every chunk from now on; return the list of times it was done."""
    def fault(message):
        values = np.array(change(conversions.chunk_from(message, T).values), np.float32)
        for point, row in zip(message.points, values):
            point.positions = row.astype(float).tolist()
    return spoil(rig, 'action_chunk', fault)


def channel(index, value):
    """Return a change of rows that puts a value into one channel."""
    return lambda values: np.where(np.arange(7) == index, value, values)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_12_a_non_finite_action_drops_its_chunk_and_a_second_one_stops(moving, check, bad):
    times = spoil_rows(moving, channel(2, bad))
    moving.spin(lambda: len(times) >= 2, 3, 'two chunks')
    check(12, moving.stops(times[1], 'STOP', 'non-finite', '2 in a row'))
    assert np.isfinite([v for _, v in moving.commands]).all()


@pytest.mark.parametrize('what', ['channels', 'shape'])
def test_13_a_chunk_of_another_kind_stops(moving, check, what):
    def fault(message):
        if what == 'channels':
            message.joint_names = [*message.joint_names[:6], 'grip']
        for point in message.points if what == 'shape' else ():
            point.positions = list(point.positions)[:5]
    times = spoil(moving, 'action_chunk', fault)
    moving.spin(lambda: times, 3, 'a chunk')
    check(13, moving.stops(times[0], 'STOP', what))


def test_14_ten_times_too_much_is_clamped_and_five_in_a_row_are_a_fault(moving, check):
    times = spoil_rows(moving, lambda values: 10 * values)
    moving.spin(lambda: times, 3, 'a chunk')
    moving.stops(times[0], 'FAULT', '5 actions')
    motion = np.array([v for t, v in moving.commands if t > times[0] + 0.004 and v.any()])
    # Commands of before may be among them where times are not held.
    assert 3 <= len(motion) <= 5 or (len(motion) and not moving.strict), 'still from the fifth on'
    assert (np.abs(motion).max(0) <= np.repeat([0.27, 2.7], 3) + 1e-6).all()
    since = [t for t, v in moving.commands if v.any()][-1]
    still = next(t for t, v in moving.commands if t > since)
    check(14, max(0.0, still - since - T), 'clamped, still from the fifth row')


def test_15_a_target_outside_the_box_is_rejected(moving, check):
    outward = spoil_rows(moving, channel(0, 1.0))
    moving.spin(lambda: len(outward) >= 2 and moving.moving(), 3, 'motion outwards')
    times = spoil(moving, 'ee_pose', lambda m: setattr(
        m.pose.position, 'x', osc.WORKSPACE_HIGH[0] - 0.01))
    moving.spin(lambda: times, 1, 'a pose')
    check(15, moving.stops(times[0], 'HOLD', 'target x', 'outside'))
    moving.faults.clear()
    moving.spin(moving.moving, 10, 'motion by itself')


def test_16_an_overrun_shows_thinking_holds_and_stops_at_the_deadline(moving, check):
    (moving.folder / 'slow').touch()
    moving.spin((moving.folder / 'waits').exists, 3, 'a decision begun')
    begun = time.monotonic()
    last = begun + moving.stops(begun, 'HOLD', 'thinking')
    moving.spin(lambda: moving.vla[0] == 'THINKING', 1, 'THINKING')
    moving.spin(lambda: moving.vla[0] == 'STOPPED', 3, 'STOPPED at the deadline')
    thinking = moving.heard['vla'][-1][0] - next(
        t for t, m in reversed(moving.heard['vla']) if m.message == 'ACTING')
    assert f'no decision within {moving.deadline:g} s' in moving.vla[1]
    check(16, max(0.0, thinking - moving.deadline - 0.05), 'at the deadline')
    moving.spin(lambda: moving.gate[0] == 'STOP', 1, 'STOP')
    assert not any(v.any() for t, v in moving.commands if t > last)
    (moving.folder / 'slow').unlink()
    moving.wait(0.5)
    assert moving.gate[0] == 'STOP', 'the late decision moves nothing'


def test_17_a_thought_that_never_ends_is_cut_and_ends_the_task(moving, check):
    (moving.folder / 'endless').touch()
    begun = time.monotonic()
    moving.stops(begun, 'STOP', 'cut at its cap')
    check(17, max(0.0, moving.still_after(begun) - begun - moving.deadline), 'before the deadline')
    written = max((m.data for _, m in moving.of('reasoning', begun)), key=len)
    assert len(written.split()) >= 20, 'it was written down to the cap'


def test_28_and_29_bad_and_unlisted_instructions_are_rejected_in_motion(moving, check):
    task = moving.told('task')
    for row, text, word in (
            (28, '', 'empty'), (28, 'x' * 10_000, '10000'), (28, 'put it\x07', 'control'),
            (29, 'put the bread in the wooden bin', 'allowed_instructions')):
        sent = time.monotonic()
        moving.instruction.publish(String(data=text))
        moving.spin(lambda word=word: 'rejected' in moving.vla[1] and word in moving.vla[1], 2)
        check(row, moving.heard['vla'][-1][0] - sent)
        assert moving.told('instruction') == TASK
    moving.spin(moving.moving, 3, 'the running task goes on')
    assert moving.told('task') == task
    moving.instruction.publish(String(data=LISTED))
    moving.spin(lambda: moving.told('instruction') == LISTED, 2, 'the new task')


def test_30_a_second_start_is_refused_and_a_stop_before_motion_is_honoured(moving, check):
    begun = time.monotonic()
    response = moving.obeyed('start')
    assert not response.success and 'already started' in response.message
    check(30, time.monotonic() - begun)
    assert moving.obeyed('stop').success
    moving.spin(lambda: moving.gate[0] == 'STOP', 2, 'the stop told')
    moving.wait(0.3)
    response = moving.obeyed('start')
    assert response.success and response.message.startswith('HOLD')
    since = time.monotonic()
    assert moving.obeyed('stop').success
    check(30, moving.stops(since, 'STOP', 'asked to stop'))


def test_31_a_second_publisher_silences_the_gate(moving, check):
    since = time.monotonic()
    other = moving.node.create_publisher(TwistStamped, '/twist_cmd', 1)
    moving.spin(lambda: moving.gate[0] == 'FAULT', 10, 'FAULT')
    moving.wait(0.3)
    check(31, max((t - since for t, _ in moving.commands), default=0.0))
    response = moving.obeyed('clear_fault')
    assert not response.success and 'another node still publishes' in response.message
    before = len(moving.commands)
    moving.wait(0.3)
    assert len(moving.commands) == before, 'silence'
    moving.node.destroy_publisher(other)
    moving.ready()


def test_32_a_halted_controller_holds_and_goes_on_from_where_it_is(moving, check):
    since = time.monotonic()
    moving.arm.publish(Bool(data=False))
    check(32, moving.stops(since, 'HOLD', 'controller'))
    moving.wait(0.3)
    moving.arm.publish(Bool(data=True))
    moving.goes_on()


# ``heard``: how many subscriptions of each node hear such a publisher.
@pytest.mark.parametrize('quality, heard', [
    (qos.LATCHED, 3), (qos.LATEST, 2), (qos.NEWEST, 1)],
    ids=['latched', 'as ros2 topic pub', 'best effort'])
def test_33_an_e_stop_while_the_policy_thinks(moving, check, quality, heard):
    estop = moving.node.create_publisher(Bool, '/estop', quality)
    moving.spin(lambda: estop.get_subscription_count() == 2 * heard, 5, 'both nodes listening')
    moving.wait(0.3)  # until they know of the publisher, too
    (moving.folder / 'slow').touch()
    moving.spin((moving.folder / 'waits').exists, 3, 'a decision begun')
    moving.wait(0.05)  # the chunk before it
    assert moving.moving() or not moving.strict
    chunks, thoughts = len(moving.of('chunk')), len(moving.of('reasoning'))
    since = time.monotonic()
    estop.publish(Bool(data=True))
    check(33, moving.stops(since, 'FAULT', 'e-stop'))
    (moving.folder / 'slow').unlink()
    moving.wait(0.5)
    assert len(moving.of('chunk')) == chunks, 'the chunk in flight is discarded'
    assert len(moving.of('reasoning')) == thoughts, 'and its thought'
    estop.publish(Bool(data=False))
    moving.wait(0.3)
    assert moving.gate[0] == 'FAULT', 'latched'
    moving.node.destroy_publisher(estop)


@contextmanager
def operators_page(moving):
    """Open the page, which may order; give the socket that a browser would have."""
    pytest.importorskip('uvicorn', reason="the page needs pip install 'dtvla_ros[operator]'")
    from websockets.sync.client import connect
    moving.start('operator', port=0, allow_control='true')
    moving.spin(lambda: 'page: ' in moving.log('operator'), 60, 'the page')
    place = re.search(r'page: http://(\S+)/', moving.log('operator'))[1]
    with connect(f'ws://{place}/live', origin=f'http://{place}') as browser:
        moving.wait(1.0)  # until it knows of both nodes, and sends images
        moving.ready()
        yield browser


def test_46_stop_on_the_operators_page(moving, check):
    with operators_page(moving) as browser:
        since = time.monotonic()
        browser.send('{"order": "stop"}')
        check(46, moving.stops(since, 'FAULT', 'e-stop'))
        moving.wait(0.5)
        assert moving.gate[0] == 'FAULT', 'latched'
    assert moving.interrupt('operator') == 0


def test_51_a_goal_that_is_canceled_in_motion(moving, check):
    if interfaces.action_type('RunTask') is None:
        pytest.skip(interfaces.NOT_INSTALLED)
    moving.start('task_server')
    client = Client(moving)
    goal = client.send(TASK)
    moving.spin(lambda: any(f.thought for f in client.feedback), 60, 'a thought on the task')
    moving.ready(heal=False)
    since = time.monotonic()
    client.cancel(goal)
    check(51, moving.stops(since, 'STOP', 'asked to stop'))
    assert client.result(goal)[1:] == (Outcome.CANCELED, 'canceled')
    client.leave()
    assert moving.interrupt('task_server') == 0


def test_34_grippers(moving, check):
    robot = moving.robot

    def grip(value, until):
        spoil_rows(moving, channel(6, value))
        moving.spin(until, 3, f'a gripper told {value:g}')
    grip(-1.0, lambda: robot.opening > 0.079)
    grip(1.0, lambda: robot.opening < 0.05)
    robot.grip_moves = False
    since = len(moving.heard['gate'])
    moving.wait(2.2 if moving.strict else 5.6)
    reasons = [message.message for _, message in moving.heard['gate'][since:]]
    assert not [said for said in reasons if 'gripper' in said], (
        'a closing gripper that stalls holds something')

    moving.ready()
    grip(-1.0, lambda: robot.opening > 0.079)
    robot.grip_moves = False
    grip(1.0, lambda: robot.grip == 0.0)
    check(34, moving.stops(time.monotonic(), 'STOP', 'does not close'))
    moving.ready()
    robot.disconnect_gripper()
    try:
        check(34, moving.stops(time.monotonic(), 'STOP', 'nobody receives', timeout=5))
    finally:
        robot.connect_gripper()


def test_35_parameters_that_must_not_change(moving, check):
    gate, policy = '/command_gate', '/vla/vla_node'

    def refused(node, word='', **change):
        [result] = moving.set(node, **change)
        assert not result.successful and word in result.reason, result.reason

    def read():
        return moving.call(GetParameters, f'{gate}/get_parameters', GetParameters.Request(
            names=['linear_speed', 'joints_timeout_s']))
    before = read()
    refused(gate, 'stop the gate first', linear_speed=0.5)
    refused(gate, joints_timeout_s=9.0)
    refused(policy, 'clean', deadline_s=60.0)
    refused(policy, threads=0)
    assert moving.obeyed('stop').success
    refused(gate, linear_speed=-1.0)
    refused(gate, 'empty', workspace_low=[9.0, 0.0, 0.0])
    assert read() == before
    assert moving.set(gate, linear_speed=0.1)[0].successful, 'a stopped gate takes a limit'
    moving.ready()
    assert max(np.abs(v[:3]).max() for _, v in moving.commands[-3:]) <= 0.1 + 1e-6
    check(35, said='refused')
    speed, timeout = moving.call(
        DescribeParameters, f'{gate}/describe_parameters', DescribeParameters.Request(
            names=['linear_speed', 'heartbeat_timeout_s'])).descriptors
    assert [r.from_value for r in speed.floating_point_range] == [1e-6]
    assert [r.from_value for r in timeout.floating_point_range] == [0.05]
    assert not speed.read_only and timeout.read_only


@pytest.mark.parametrize('how, state', [('pause', 'HOLD'), ('stop', 'STOP'), ('estop', 'FAULT')])
def test_45_a_thought_override_moves_nothing_that_stands_still(moving, check, how, state):
    override = moving.node.create_publisher(String, '/vla/thought_override', qos.LATEST)
    moving.spin(lambda: override.get_subscription_count() == 2, 5, 'the policy listening')
    moving.wait(0.3)  # until it knows of the publisher, too
    override.publish(String(data='move down'))  # what stands ends with the task
    since = time.monotonic()
    if how == 'pause':
        assert moving.call(SetBool, '/pause', SetBool.Request(data=True)).success
    elif how == 'stop':
        assert moving.obeyed('stop').success
    else:
        moving.estop.publish(Bool(data=True))
    moving.stops(since, state)
    moving.spin(lambda: (moving.vla[0] == 'FAULT') == (how == 'estop'), 2, 'the policy, too')
    moving.wait(0.1)
    sent, taken, refused = time.monotonic(), moving.told('overrides'), moving.told(
        'override_refusals')
    override.publish(String(data='move up'))
    moving.spin(lambda: (taken, refused) != (moving.told('overrides'), moving.told(
        'override_refusals')), 2, 'an answer')
    check(45, moving.heard['vla'][-1][0] - sent)
    if how != 'pause':  # in which it may stand until the arm goes on
        reason = 'FAULT, e-stop' if how == 'estop' else 'the task: asked to stop'
        assert reason in moving.told('override_rejected')
        assert moving.told('override') == ''
    moving.wait(0.5)
    assert moving.gate[0] == state, moving.gate
    assert not any(v.any() for t, v in moving.commands if t > sent)
    if how == 'pause':
        assert moving.call(SetBool, '/pause', SetBool.Request(data=False)).success
    moving.node.destroy_publisher(override)
    moving.ready()


class Person:
    """Drives to the left with 0.05 m/s, 20 times a second, once the gate was told."""

    def __init__(self, rig):
        self.rig, self.speed = rig, 0.05
        self.topic = rig.node.create_publisher(TwistStamped, '/human_twist', qos.LATEST)
        self.timer = rig.every(T, self.say)
        rig.spin(lambda: self.topic.get_subscription_count() == 1, 5, 'the gate listening')
        rig.wait(0.5)  # until it knows of the publisher, too

    def say(self):
        message = TwistStamped()
        message.header.stamp = self.rig.node.get_clock().now().to_msg()
        message.twist.linear.y = self.speed
        self.topic.publish(message)

    def order(self, on):
        return self.rig.call(SetBool, '/takeover', SetBool.Request(data=on))

    def drives(self):
        return self.rig.gate[0] == 'RUN' and np.allclose(
            self.rig.commands[-1][1][:3], [0.0, 0.05, 0.0], atol=1e-6)

    def take_over(self):
        answer = self.order(True)
        assert answer.success, answer.message
        self.rig.spin(self.drives, 10, 'motion by the person')

    def leave(self):
        self.timer.cancel()
        self.rig.node.destroy_publisher(self.topic)


@pytest.fixture
def person(moving):
    made = Person(moving)
    yield made
    if not made.timer.is_canceled():
        made.leave()
    moving.ready()


def test_47_the_person_who_drives_falls_silent_and_is_gone(moving, check, person):
    person.take_over()
    assert moving.told('driver') == 'person'
    person.timer.cancel()
    check(47, moving.stops(time.monotonic(), 'HOLD', 'human_twist'))
    person.timer.reset()
    moving.spin(person.drives, 10, 'motion by itself')
    person.leave()
    check(47, moving.stops(time.monotonic(), 'STOP', 'is gone', timeout=10))
    moving.spin(lambda: moving.told('driver') == 'policy', 2, 'the policy knowing')


def test_48_a_person_who_wants_too_much_is_clipped_and_then_stopped(moving, check, person):
    person.take_over()
    moving.faults['ee_pose'] = lambda m: setattr(
        m.pose.position, 'y', osc.WORKSPACE_HIGH[1] - 0.001) or m
    check(48, moving.stops(time.monotonic(), 'HOLD', 'target y', 'outside'))
    moving.faults.clear()
    moving.spin(person.drives, 10, 'motion by itself')
    person.speed, since = 2.0, time.monotonic()
    moving.stops(since, 'FAULT', '5 actions', 'human_twist')
    assert max(np.abs(v).max() for t, v in moving.commands if t > since) <= 0.27 + 1e-6
    check(48, said='clipped')


def test_50_the_page_of_the_person_who_drives_is_lost(moving, check):
    with operators_page(moving) as browser:
        browser.send('{"order": "takeover", "value": "me"}')
        moving.spin(lambda: moving.told('driver') == 'person', 10, 'the takeover')
        timer = moving.every(T, lambda: browser.send(
            '{"order": "drive", "value": "0 0.05 0 0 0 0"}'))
        moving.spin(lambda: np.allclose(moving.commands[-1][1][:3], [0.0, 0.05, 0.0], atol=1e-6),
                    10, 'motion by the page')
        timer.cancel()
        since = time.monotonic()
    check(50, moving.stops(since, 'STOP', timeout=5))
    assert moving.interrupt('operator') == 0


def test_49_two_drivers(moving, check, person):
    other = moving.node.create_publisher(TwistStamped, '/human_twist', 1)
    moving.spin(lambda: other.get_subscription_count() == 1, 5, 'the gate listening')
    moving.wait(0.5)
    answer = person.order(True)
    assert not answer.success and '2 nodes publish /human_twist' in answer.message
    moving.wait(0.5)
    assert moving.moving(), 'nothing to the policy'
    moving.node.destroy_publisher(other)
    moving.wait(0.5)
    person.take_over()
    since = time.monotonic()
    other = moving.node.create_publisher(TwistStamped, '/human_twist', 1)
    check(49, moving.stops(since, 'FAULT', '2 nodes publish', timeout=10))
    moving.node.destroy_publisher(other)


def test_a_person_takes_over_and_hands_back(moving, person):
    person.take_over()
    assert moving.told('driver') == 'person'
    step = int(moving.told('step'))
    moving.spin(lambda: int(moving.told('step')) > step + 1, 10, 'a policy that thinks on')
    assert person.drives()
    since = time.monotonic()
    assert person.order(False).success
    moving.spin(lambda: moving.told('driver') == 'policy', 2, 'the policy knowing')
    moving.spin(lambda: moving.of('vla', since) and moving.told('draft_proposed') == '0', 5,
                'a thought without a draft')
    moving.spin(moving.moving, 10, 'motion by the policy')
