"""A policy that chooses poses of the end effector, over topics."""

import json

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from scipy.spatial.transform import Rotation
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import CHANNELS, POSE_CHANNELS
from dtvla_ros.nodes.viewing import leads_somewhere, path_of
from dtvla_ros.ros import conversions, qos

TASK = 'put_the_lemon_in_the_blue_bin'
TICK, STEPS = 0.05, 30


def test_its_poses_lead_the_simulated_arm_through_the_gate(graph):
    node = graph.listen(
        pose=(PoseStamped, '/ee_pose'), action=(JointTrajectory, '/action'),
        gate=(DiagnosticStatus, '/gate_state'), episode=(String, '/sim/episode'),
        instruction=(String, '/instruction'))
    chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
    state = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
    graph.start('command_gate', 'sim', action_space='OSC_POSE_ABSOLUTE',
                heartbeat_timeout_s=20.0)
    graph.start('sim_bridge', 'sim', suite='tabletop_poses', tasks=f'[{TASK}]', max_steps=STEPS)
    graph.spin(lambda: graph.of('instruction') and graph.of('gate')
               and chunks.get_subscription_count(), 120)
    told = {'instruction': graph.last('instruction').data, 'task': '1', 'reason': ''}
    graph.every(0.05, lambda: state.publish(conversions.status_message('vla', 'ACTING', told)))
    graph.spin(lambda: graph.of('pose'), 60)
    position, turned = conversions.pose_arrays(graph.last('pose').pose)
    goal = osc.pose_row(position + [0.05, -0.04, 0.03], (
        Rotation.from_euler('z', 0.3) * Rotation.from_quat(turned)).as_quat())
    rows = np.array([[*goal, -1.0]], np.float32)
    graph.every(0.02, lambda: chunks.publish(conversions.chunk_message(Chunk(
        conversions.seconds(graph.last('pose').header.stamp), TICK, rows, POSE_CHANNELS))))
    graph.spin(lambda: json.loads(graph.last('episode').data)['done'], 120)
    reached = osc.pose_row(*conversions.pose_arrays(graph.last('pose').pose))
    np.testing.assert_allclose(reached, goal, atol=0.01)
    assert {tuple(m.joint_names) for _, m in graph.of('action')} == {CHANNELS}
    assert len(graph.of('action')) >= STEPS


def test_its_path_is_where_its_poses_are():
    rows = np.array([[0.5, 0.1, 0.2, 0, 0, 0, -1], [0.5, 0.2, 0.3, 0, 0, 0, 1]], np.float32)
    chunk = Chunk(0.0, TICK, rows, POSE_CHANNELS)
    assert leads_somewhere(chunk)
    np.testing.assert_allclose(
        path_of(np.array([0.4, 0.0, 0.2]), chunk), [[0.4, 0.0, 0.2], *rows[:, :3]], rtol=1e-6)
