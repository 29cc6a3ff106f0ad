"""The gate's own process in lock-step, with the test as simulator and policy."""

import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import qos_profile_sensor_data
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.ros import conversions, qos

TICK = 0.05


class Gate:
    """A gate in lock-step that hears a policy: `show` a pose, `decide` a chunk, `answers`."""

    def __init__(self, graph):
        node = graph.listen(action=(JointTrajectory, '/action'),
                            gate=(DiagnosticStatus, '/gate_state'))
        self._graph = graph
        self._chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
        state = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
        self._pose = node.create_publisher(PoseStamped, '/ee_pose', qos_profile_sensor_data)
        self.heartbeat = graph.every(0.02, lambda: state.publish(
            conversions.status_message('vla', 'ACTING', {'task': '1', 'reason': ''})))
        # A busy machine is no silent policy.
        graph.start('command_gate', 'sim', heartbeat_timeout_s=1.0)
        graph.spin(lambda: self._chunks.get_subscription_count()
                   and self._pose.get_subscription_count() and graph.of('gate')
                   and node.count_publishers('/action'), 30)
        self.wait()  # the heartbeat is heard by then, and the gate waits for the policy

    def show(self, t):
        message = PoseStamped(header=conversions.header(t))
        message.pose.position.x, message.pose.position.z = 0.5, 0.2
        self._pose.publish(message)

    def decide(self, t, rows):
        """Send a chunk whose rows have the same value in every channel."""
        values = np.array(rows, np.float32)[:, None].repeat(7, 1)
        self._chunks.publish(conversions.chunk_message(Chunk(t, TICK, values)))

    def wait(self, seconds=0.3):
        self._graph.wait(seconds)

    def answers(self, count):
        """Return stamp and first channel of every command, ``count`` at least."""
        self._graph.spin(lambda: len(self._graph.of('action')) >= count, 20)
        return [(conversions.seconds(m.header.stamp), m.points[0].positions[0])
                for _, m in self._graph.of('action')]


@pytest.fixture
def gate(graph):
    return Gate(graph)


def test_ticks_repetition_and_silence(graph, gate):
    gate.show(1.0)
    gate.wait()
    assert not gate.answers(0), 'while the policy thinks, simulated time waits'
    gate.decide(1.0, [-0.7, 0.4])
    assert gate.answers(1) == [(1.0, pytest.approx(-0.7))]
    gate.show(1.0)
    assert gate.answers(2)[1] == gate.answers(2)[0], 'asked again: the same'
    gate.show(1.0 + TICK)
    assert gate.answers(3)[2] == (pytest.approx(1.0 + TICK), pytest.approx(0.4))
    for k in range(60):  # after a jump: the old chunk would be void
        t = round(2.0 + k * TICK, 9)
        gate.show(t)
        gate.decide(t, [0.5])
        assert gate.answers(4 + k)[-1][0] == t

    count = len(gate.answers(0))
    gate.show(t + TICK)
    gate.heartbeat.cancel()
    silent = time.monotonic()
    gate.answers(count + 5)
    zeros = graph.of('action', silent)
    assert all(not np.any(m.points[0].positions[:6]) for _, m in zeros)
    assert zeros[4][0] - silent > 0.12, 'stillness is paced: simulated time must not race'
    answer = graph.call(Trigger, '/stop')
    assert answer.success and answer.message == 'STOP: asked to stop'


def test_a_chunk_that_overtakes_its_pose_or_is_early_waits_for_its_tick(gate):
    """ROS keeps no order between topics."""
    gate.decide(1.0, [0.1, 0.2])
    gate.wait()
    assert gate.answers(0) == [], 'nobody asked yet'
    gate.show(1.0)
    gate.answers(1)
    gate.show(1.0 + TICK)
    assert gate.answers(2) == [(1.0, pytest.approx(0.1)), (1.0 + TICK, pytest.approx(0.2))]
    gate.decide(1.0 + 3 * TICK, [0.4])
    gate.wait()
    gate.show(1.0 + 2 * TICK)
    gate.wait()
    assert len(gate.answers(2)) == 2, 'the policy still thinks about this tick'
    gate.show(1.0 + 3 * TICK)
    assert gate.answers(3)[2] == (pytest.approx(1.0 + 3 * TICK), pytest.approx(0.4))
