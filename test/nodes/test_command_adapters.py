"""What each kind of arm is told, read back from the topic."""

import numpy as np
import pytest
from rclpy.action import ActionServer
from scipy.spatial.transform import Rotation
from std_msgs.msg import Float64

from dtvla_ros.nodes.command_adapters import PRESETS, make_adapter
from dtvla_ros.ros import conversions

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
