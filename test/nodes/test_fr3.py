"""A Franka FR3 played by the test: the shipped file, its joint names and the nodes fit."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from std_msgs.msg import Float64, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from benchmarks import arm
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.ros import conversions, qos
from test.nodes.test_configuration import FR3_ARM, FR3_FINGERS


@pytest.fixture
def fr3(graph, monkeypatch):
    """Return a function that makes an FR3 which publishes; it stands still but for its chunks."""
    monkeypatch.setattr(arm, 'ARM_JOINTS', FR3_ARM)
    monkeypatch.setattr(arm, 'FINGER_JOINTS', FR3_FINGERS)
    return lambda: arm.Robot(graph.node, '', (120, 160), frame_rate=10.0)


def test_the_policy_sees_an_fr3_and_decides_and_every_state_has_its_reason(graph, policy, fr3):
    node = graph.listen(vla=(DiagnosticStatus, '/vla/state'),
                        diagnostics=(DiagnosticArray, '/diagnostics'))
    fr3()
    instruction = node.create_publisher(String, '/instruction', qos.LATCHED)
    graph.start('vla_node', 'robots/fr3_crisp', policy=policy[0], engine=policy[1], on_cut='act',
                input_timeout_s=2.0, max_age_s=5.0, max_skew_s=0.15, deadline_s=30.0)

    def reached(state, reason):
        graph.spin(lambda: graph.said('vla')[0] == state, 60, state)
        assert graph.said('vla')[1] == reason
    reached('IDLE', 'no instruction')
    assert graph.change(Transition.TRANSITION_DEACTIVATE)
    reached('INACTIVE', 'not activated')
    assert graph.change(Transition.TRANSITION_CLEANUP)
    reached('UNCONFIGURED', 'not configured')
    assert not graph.change(Transition.TRANSITION_ACTIVATE) and not graph.change(77)
    assert graph.change(Transition.TRANSITION_CONFIGURE)
    reached('INACTIVE', 'not activated')
    assert graph.change(Transition.TRANSITION_ACTIVATE)
    reached('IDLE', 'no instruction')
    instruction.publish(String(data='assassinate the butler'))
    graph.spin(lambda: 'assassinate' in graph.said('vla')[1], 20)
    assert graph.said('vla')[0] == 'IDLE'
    instruction.publish(String(data='put the lemon in the blue bin'))
    graph.spin(lambda: graph.said('vla')[0] == 'ACTING', 90)
    heard = len(graph.of('diagnostics'))
    graph.spin(lambda: len(graph.of('diagnostics')) > heard + 1, 20)
    values = conversions.status_values(graph.last('diagnostics').status[0])
    assert not [key for key in values if key.startswith('refused_')], values
    assert graph.interrupt('vla_node') == 0


def test_the_gate_feels_an_fr3_and_its_stuck_gripper_and_can_be_paused(graph, fr3):
    node = graph.listen(gate=(DiagnosticStatus, '/gate_state'), grip=(Float64, '/gripper_cmd'),
                        target=(PoseStamped, '/target_pose'))
    fr3().grip_moves = False
    chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
    state = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
    graph.every(0.05, lambda: state.publish(
        conversions.status_message('vla', 'ACTING', {'task': '1', 'reason': ''})))
    # Time-outs as wide as a busy machine needs; the file's own are stricter.
    graph.start('command_gate', 'robots/fr3_crisp', gripper='topic', joints_timeout_s=2.0,
                pose_timeout_s=2.0, heartbeat_timeout_s=2.0, gripper_timeout_s=1.0,
                max_latency_s=2.0)

    def pause(on):
        answer = graph.call(SetBool, '/pause', SetBool.Request(data=on))
        assert answer.success
        return answer.message
    graph.spin(lambda: graph.said('gate')[0], 60)
    assert pause(True) == pause(False) == 'STOP: not started'
    graph.spin(lambda: graph.call(Trigger, '/start').message != 'STOP: not started'
               and graph.said('gate')[1] == 'thinking', 30)
    assert pause(True) == 'HOLD: paused'
    assert not graph.call(Trigger, '/start').success
    assert pause(False) == 'HOLD: thinking'

    close = np.tile(np.float32([0.2, 0, 0, 0, 0, 0, 1]), (16, 1))
    graph.every(0.2, lambda: chunks.publish(conversions.chunk_message(
        Chunk(node.get_clock().now().nanoseconds * 1e-9, 0.05, close))))
    graph.spin(lambda: graph.last('grip') and graph.last('grip').data == 0.0, 30)
    assert graph.last('target').header.frame_id == 'base'
    graph.spin(lambda: graph.said('gate')[0] == 'STOP', 30)
    assert graph.said('gate')[1] == 'the gripper does not close: 0.080 m open'
    assert pause(True).startswith('STOP: the gripper')
    assert graph.interrupt('command_gate') == 0
