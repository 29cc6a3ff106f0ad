"""ROS keeps no order between topics: in lock-step a chunk may come before the pose it answers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import qos_profile_sensor_data
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.ros import conversions, qos

TICK = 0.05


@pytest.fixture
def gate(graph):
    """A gate in lock-step that hears a policy; `show` a pose, `decide` a chunk, `answers`."""
    node = graph.listen(action=(JointTrajectory, '/action'),
                        gate=(DiagnosticStatus, '/gate_state'))
    chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
    state = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
    pose = node.create_publisher(PoseStamped, '/ee_pose', qos_profile_sensor_data)
    node.create_timer(0.02, lambda: state.publish(
        conversions.status_message('vla', 'ACTING', {'task': '1', 'reason': ''})))
    graph.start('command_gate', '--params-file', 'config/sim.yaml',
                '-p', 'heartbeat_timeout_s:=5.0')
    graph.spin(lambda: chunks.get_subscription_count() and pose.get_subscription_count()
               and graph.of('gate') and node.count_publishers('/action'), 30)

    class Gate:
        def show(self, t):
            message = PoseStamped(header=conversions.header(t))
            message.pose.position.x, message.pose.position.z = 0.5, 0.2
            pose.publish(message)

        def decide(self, t, rows):
            chunks.publish(conversions.chunk_message(
                Chunk(t, TICK, np.array(rows, np.float32)[:, None].repeat(7, 1))))

        def wait(self, seconds=0.3):
            begun = time.monotonic()
            graph.spin(lambda: time.monotonic() > begun + seconds, 20)

        def answers(self, count):
            """Return stamp and first channel of every command, ``count`` at least."""
            graph.spin(lambda: len(graph.of('action')) >= count, 20)
            return [(conversions.seconds(m.header.stamp), m.points[0].positions[0])
                    for _, m in graph.of('action')]
    made = Gate()
    made.wait()  # the heartbeat is heard by then, and the gate waits for the policy
    return made


def test_a_chunk_that_overtakes_its_pose_is_played_when_the_pose_is_there(gate):
    gate.decide(1.0, [0.1, 0.2])
    gate.wait()
    assert gate.answers(0) == [], 'nobody asked yet'
    gate.show(1.0)
    gate.answers(1)
    gate.show(1.0 + TICK)
    assert gate.answers(2) == [(1.0, pytest.approx(0.1)), (1.0 + TICK, pytest.approx(0.2))]
    later = 1.0 + 2 * TICK
    gate.decide(later, [0.3])
    gate.wait()
    assert len(gate.answers(2)) == 2
    gate.show(later)
    assert gate.answers(3)[2] == (pytest.approx(later), pytest.approx(0.3))


def test_an_early_chunk_waits_for_its_own_tick(gate):
    gate.show(1.0)
    gate.wait()
    gate.decide(1.0 + 2 * TICK, [0.4])
    gate.wait()
    gate.show(1.0 + TICK)
    gate.wait()
    assert gate.answers(0) == [], 'the policy still thinks about this tick'
    gate.show(1.0 + 2 * TICK)
    assert gate.answers(1) == [(pytest.approx(1.0 + 2 * TICK), pytest.approx(0.4))]
