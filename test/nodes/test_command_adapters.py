"""What each kind of arm is told, read back from the topic."""

import numpy as np
import pytest
from rclpy.action import ActionServer
from scipy.spatial.transform import Rotation
from std_msgs.msg import Float64
from support.gate import Rig

from dtvla_ros.actions import osc
from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.conventions import POSE_CHANNELS
from dtvla_ros.nodes import command_adapters
from dtvla_ros.nodes.command_adapters import PRESETS, SWITCH, TwistAdapter, make_adapter
from dtvla_ros.ros import conversions
from dtvla_ros.ros.settings import GRIPPER_TOPICS

DOWN = np.array([1.0, 0, 0, 0])


@pytest.fixture
def tell(graph):
    """Return a function: preset -> (adapter, what a command puts on its topic)."""
    def build(preset, *arguments):
        node = graph.listen(*arguments, gripper=(Float64, '/gripper_cmd'))
        adapter = make_adapter(node, preset, 'base')
        graph.hear('command', PRESETS[preset].kind, adapter.topic, 10)
        graph.spin(lambda: node.count_subscribers(adapter.topic) > 0, 5)

        def command(action, stamp=1.0, first_tick=True):
            before = len(graph.of('command'))
            adapter.send(np.asarray(action, np.float64), stamp, first_tick)
            graph.spin(lambda: len(graph.of('command')) > before, 5)
            return graph.last('command')
        return adapter, command
    return build


def test_servo_gets_the_settled_speed_and_the_gripper_its_opening(tell, graph):
    _, command = tell('servo')
    message = command([1, 0, 0, 0, 0, -0.5, -1])
    assert message.header.frame_id == 'base'
    assert (message.twist.linear.x, message.twist.angular.z) == pytest.approx((0.267, -1.335))
    graph.spin(lambda: graph.of('gripper'), 5)
    assert graph.last('gripper').data == 1.0


def test_a_pose_arm_gets_measured_plus_offset_and_one_resting_place(tell):
    adapter, command = tell('crisp')

    def goal(action, measured=None, first_tick=True):
        if measured is not None:
            adapter.measured = np.array(measured), DOWN
        return conversions.pose_arrays(command(action, first_tick=first_tick).pose)
    p, q = goal([1, 0, 0, 0, 0, 0.2, 0], [0.5, 0, 0.2])
    np.testing.assert_allclose(p, [0.55, 0, 0.2])
    turned = (Rotation.from_quat(q) * Rotation.from_quat(DOWN).inv()).as_rotvec()
    np.testing.assert_allclose(turned, [0, 0, 0.1], atol=1e-9)
    ahead = [1, 0, 0, 0, 0, 0, 0]
    again, kept = goal(ahead, [0.52, 0, 0.2])
    np.testing.assert_allclose(kept, q, err_msg='no rotation asked: the goal orientation stays')
    same, _ = goal(ahead, [0.53, 0, 0.2], first_tick=False)
    np.testing.assert_allclose(same, again, err_msg='the ticks of a row have one measured pose')
    rest, _ = goal(np.zeros(7))
    np.testing.assert_allclose(rest, [0.53, 0, 0.2], err_msg='stop = the measured pose')
    sagged, _ = goal(np.zeros(7), [0.53, 0, 0.15])
    np.testing.assert_allclose(sagged, rest, err_msg='and it does not follow a sagging arm')
    guided, _ = goal(np.zeros(7), [0.53, 0.3, 0.2])
    np.testing.assert_allclose(guided, [0.53, 0.3, 0.2], err_msg='but one that a hand has moved')


@pytest.mark.parametrize('preset', ['crisp', 'servo'])
def test_a_pose_that_a_policy_chooses_reaches_arms_of_poses_and_of_twists(tell, preset):
    rig = Rig(contract=ActionContract.of_pose())
    goal = rig.position + np.array([0.02, -0.01, 0.0]), (
        Rotation.from_rotvec([0, 0, 0.1]) * osc.HOME).as_quat()
    rig.tick()
    rig.chunk(values=np.array([[*osc.pose_row(*goal), 1.0]], np.float32), channels=POSE_CHANNELS)
    adapter, command = tell(preset)
    adapter.measured = np.array(rig.position), DOWN
    told = command(rig.tick().action)
    if preset == 'crisp':
        position, turned = conversions.pose_arrays(told.pose)
        np.testing.assert_allclose(position, goal[0], atol=1e-6)
        np.testing.assert_allclose(osc.tilt(Rotation.from_quat(turned)), [0, 0, 0.1], atol=1e-6)
    else:
        np.testing.assert_allclose(
            conversions.twist_array(told.twist),
            [0.4 * 0.267, -0.2 * 0.267, 0, 0, 0, 0.2 * 2.67], atol=1e-5)


# What a gripper's driver is told, in its own unit: metres of a finger, a knuckle's angle.
UNITS = {'metres': (0.04, 0.0), 'knuckle': (0.0, 0.8)}


@pytest.mark.parametrize(('unit', 'kind'), [
    ('metres', 'topic'), ('knuckle', 'topic'), ('knuckle', 'float64'),
    ('knuckle', 'float64_multi_array'), ('knuckle', 'joint_trajectory'),
    ('metres', 'joint_trajectory')])
def test_a_gripper_is_told_in_the_unit_of_its_driver(graph, unit, kind):
    wide, shut = UNITS[unit]
    node = graph.listen('--ros-args', '-p', f'gripper:={kind}', '-p',
                        f'gripper_open_position:={wide}', '-p', f'gripper_closed_position:={shut}',
                        '-p', 'gripper_joint:=knuckle')
    adapter = make_adapter(node, 'servo', 'base')
    adapter.gripper.send(1.0)
    message_type = conversions.message_type(GRIPPER_TOPICS[kind])
    graph.hear('gripper', message_type, adapter.gripper.topic, 10)
    graph.spin(lambda: adapter.gripper.listeners() == 1, 20)
    expected = {-1.0: 1.0, 1.0: 0.0} if kind == 'topic' else {-1.0: wide, 1.0: shut}
    for channel in (0.0, -1.0, -1.0, 1.0):
        adapter.gripper.send(channel)
    count = 2 if kind == 'joint_trajectory' else 3  # told once, or as often as it is commanded
    graph.spin(lambda: len(graph.of('gripper')) >= count, 20)

    def position(message):
        if kind != 'joint_trajectory':
            return message.data[0] if kind == 'float64_multi_array' else message.data
        assert message.joint_names == ['knuckle'] and len(message.points) == 1
        assert conversions.seconds(message.points[0].time_from_start) > 0
        return message.points[0].positions[0]
    told = [position(message) for _, message in graph.of('gripper')]
    assert [told[0], told[-1], len(told)] == [expected[-1.0], expected[1.0], count]


class Service:
    """A graph in which MoveIt Servo has, or has not, its service; notes what it is asked."""

    def __init__(self, *names, success=True):
        self.names, self.success, self.asked, self.said = list(names), success, [], []

    def get_service_names_and_types(self):
        return [('/other/trigger', ['std_srvs/srv/Trigger']),
                *((name, [SWITCH]) for name in self.names)]

    def create_client(self, kind, name):
        self.asked.append(name)
        return self

    def destroy_client(self, client):
        assert client is self

    def call_async(self, request):
        assert request == {'command_type': 1}, 'ServoCommandType.TWIST'
        return self

    def add_done_callback(self, callback):
        callback(self)

    def exception(self):
        return None

    def result(self):
        return self

    def get_logger(self):
        return self

    def info(self, text):
        self.said.append(f'info {text}')

    def warning(self, text):
        self.said.append(f'warning {text}')


@pytest.fixture
def servo(graph, monkeypatch):
    """Return a function: a graph's service -> what looks for it, its topic Servo's."""
    node = graph.listen('--ros-args', '-r', 'twist_cmd:=/servo_node/delta_twist_cmds')

    class Kind:
        Request = dict
    monkeypatch.setattr(command_adapters.conversions, 'message_type', lambda name: Kind)

    def build(service):
        adapter = TwistAdapter(node, 'base', None)
        adapter._node = service
        return adapter.look_around
    return build


OWN = '/servo_node/switch_command_type'


def test_servo_is_told_to_take_twists_once_it_is_there_and_again_after_a_restart(servo):
    service = Service()
    look = servo(service)
    look()
    assert not service.asked, 'a Servo without the service (Humble) needs nothing'
    service.names = ['/left/servo_node/switch_command_type', OWN]
    look()
    look()
    assert service.asked == [OWN], 'the one that gets our commands, once'
    assert service.said == [f'info {OWN}: MoveIt Servo takes twists']
    service.names = []
    look()
    service.names = [OWN]
    look()
    assert service.asked == [OWN, OWN]


def test_what_to_call_is_said_where_servo_refuses_or_moveit_msgs_is_missing(servo, monkeypatch):
    by_hand = f"ros2 service call {OWN} {SWITCH} '{{command_type: 1}}'"
    service = Service(OWN, success=False)
    servo(service)()
    assert [said for said in service.said if said.startswith('warning') and by_hand in said]

    def missing(name):
        raise KeyError(name)
    monkeypatch.setattr(command_adapters.conversions, 'message_type', missing)
    service = Service(OWN)
    look = servo(service)
    look()
    look()
    assert not service.asked and len(service.said) == 1
    assert 'moveit_msgs is not installed' in service.said[0] and by_hand in service.said[0]


@pytest.mark.parametrize('kind', ['gripper_command', 'parallel_gripper_command'])
def test_a_goal_is_sent_when_the_grippers_command_changes_and_then_only(tell, graph, kind):
    action = pytest.importorskip('control_msgs.action', reason='control_msgs is not installed')
    adapter, send = tell('servo', '--ros-args', '-p', f'gripper:={kind}')
    goals, parallel = [], kind == 'parallel_gripper_command'
    server_type = action.ParallelGripperCommand if parallel else action.GripperCommand

    def command(*channels, goals_then):
        for channel in channels:
            send([0.0] * 6 + [channel])
        graph.spin(lambda: len(goals) >= goals_then, 20)

    def execute(goal):
        """Note a goal and fail it, as a gripper does that grasped something."""
        goals.append(goal.request.command)
        goal.abort()
        return server_type.Result()

    command(-1.0, goals_then=0)
    assert adapter.gripper.listeners() == 0
    server = ActionServer(graph.node, server_type, 'gripper_action', execute)
    graph.spin(lambda: adapter.gripper.listeners() == 1, 20)
    command(0.0, goals_then=0)
    graph.wait(0.2)
    assert not goals, 'no command yet'
    command(-1.0, -1.0, -1.0, goals_then=1)
    command(1.0, 1.0, 0.0, 1.0, goals_then=2)
    command(-1.0, -1.0, goals_then=3)
    graph.wait(0.3)
    told = [(g.position[0], g.effort[0], *g.name) if parallel else (g.position, g.max_effort)
            for g in goals]
    joint = ('panda_finger_joint1',) * parallel
    assert told == [(0.04, 20.0, *joint), (0.0, 20.0, *joint), (0.04, 20.0, *joint)]
    server.destroy()
    graph.spin(lambda: adapter.gripper.listeners() == 0, 20)
