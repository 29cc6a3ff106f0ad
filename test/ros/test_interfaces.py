"""tf2_msgs and control_msgs, apt's or built by tools/build_interfaces, work between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

rclpy = pytest.importorskip('rclpy')
TF = pytest.importorskip('tf2_msgs.msg', reason='tf2_msgs is not there: make interfaces')
action = pytest.importorskip('control_msgs.action', reason='no control_msgs: make interfaces')

PEER = """
import rclpy
from control_msgs.action import GripperCommand, ParallelGripperCommand
from geometry_msgs.msg import TransformStamped
from rclpy.action import ActionServer
from tf2_msgs.msg import TFMessage

def grip(handle):
    handle.publish_feedback(GripperCommand.Feedback(position=0.02))
    handle.succeed()
    command = handle.request.command
    return GripperCommand.Result(
        position=command.position, effort=command.max_effort, stalled=True)

def grip_in_parallel(handle):
    handle.abort()
    return ParallelGripperCommand.Result(state=handle.request.command, stalled=True)

rclpy.init()
node = rclpy.create_node('peer')
servers = [ActionServer(node, GripperCommand, 'grip', grip),
           ActionServer(node, ParallelGripperCommand, 'parallel', grip_in_parallel)]
transform = TransformStamped(child_frame_id='hand')
transform.header.frame_id = 'base'
transform.transform.translation.z = 0.25
publisher = node.create_publisher(TFMessage, '/tf', 10)
node.create_timer(0.05, lambda: publisher.publish(TFMessage(transforms=[transform])))
rclpy.spin(node)
"""


@pytest.fixture(scope='module')
def node():
    domain = str(1 + os.getpid() % 100)
    environ = {**os.environ, 'ROS_DOMAIN_ID': domain, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    peer = subprocess.Popen([sys.executable, '-c', PEER], env=environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=int(domain))
    node = rclpy.create_node('asks', context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)
    peer.kill()
    peer.wait()


def wait(node, until, seconds=20.0):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, 'nothing came'
        node.executor.spin_once(timeout_sec=0.1)


def done(node, kind, name, goal):
    """Send a goal; return (status, result, feedback)."""
    from rclpy.action import ActionClient

    client = ActionClient(node, kind, name)
    wait(node, client.server_is_ready)
    heard = []
    sent = client.send_goal_async(goal, feedback_callback=lambda m: heard.append(m.feedback))
    wait(node, sent.done)
    assert sent.result().accepted
    answered = sent.result().get_result_async()
    wait(node, answered.done)
    client.destroy()
    return answered.result().status, answered.result().result, heard


def test_a_gripper_is_closed_in_another_process(node):
    goal = action.GripperCommand.Goal()
    goal.command.position, goal.command.max_effort = 0.01, 20.0
    status, result, heard = done(node, action.GripperCommand, 'grip', goal)
    assert status == 4  # succeeded
    assert (result.position, result.effort, result.stalled, result.reached_goal) == (
        0.01, 20.0, True, False)
    assert [f.position for f in heard] in ([0.02], [])  # feedback may be overtaken


def test_a_parallel_gripper_answers_with_its_joints(node):
    goal = action.ParallelGripperCommand.Goal()
    goal.command.name, goal.command.position = ['finger'], [0.04]
    status, result, _ = done(node, action.ParallelGripperCommand, 'parallel', goal)
    assert status == 6  # aborted: it stalled
    assert (result.state.name, list(result.state.position)) == (['finger'], [0.04])


def test_a_transform_arrives(node):
    heard = []
    node.create_subscription(TF.TFMessage, '/tf', heard.append, 10)
    wait(node, lambda: heard)
    [transform] = heard[0].transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ('base', 'hand')
    assert transform.transform.translation.z == 0.25


def test_the_definitions_are_those_of_ros(node):
    """Hashes of the definitions are what peers compare."""
    node.create_publisher(TF.TFMessage, '/hash', 1)
    [info] = node.get_publishers_info_by_topic('/hash')
    if not hasattr(info, 'topic_type_hash'):
        pytest.skip('this ROS has no hashes of types')
    assert str(info.topic_type_hash) == (
        'RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087')
