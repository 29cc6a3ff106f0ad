"""The gate's own process in lock-step, with the test as simulator and policy."""

from __future__ import annotations

import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import qos_profile_sensor_data
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.ros import conversions, qos

TICK = 0.05


def test_ticks_repetition_and_silence(graph):
    node = graph.listen(action=(JointTrajectory, '/action'),
                        gate=(DiagnosticStatus, '/gate_state'))
    chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
    state = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
    pose = node.create_publisher(PoseStamped, '/ee_pose', qos_profile_sensor_data)
    beating = node.create_timer(0.02, lambda: state.publish(
        conversions.status_message('vla', 'ACTING', {'task': '1', 'reason': ''})))
    graph.start('command_gate', '--params-file', 'config/sim.yaml',
                '-p', 'heartbeat_timeout_s:=1.0')  # a busy machine is no silent policy
    graph.spin(lambda: chunks.get_subscription_count() and pose.get_subscription_count()
               and graph.of('gate'), 30)

    def show(t):
        message = PoseStamped(header=conversions.header(t))
        message.pose.position.x, message.pose.position.z = 0.5, 0.2
        pose.publish(message)

    def decide(t, rows):
        values = np.linspace(-1, 1, rows * 7, dtype=np.float32).reshape(rows, 7)
        chunks.publish(conversions.chunk_message(Chunk(t, TICK, values)))
        return values

    def answers(count, timeout=20.0):
        graph.spin(lambda: len(graph.of('action')) >= count, timeout)
        return [m for _, m in graph.of('action')]

    show(1.0)
    graph.wait(0.3)
    assert not graph.of('action'), 'while the policy thinks, simulated time waits'

    rows = decide(1.0, 2)
    np.testing.assert_allclose(answers(1)[0].points[0].positions[:6], rows[0, :6])
    show(1.0)
    again = answers(2)
    np.testing.assert_array_equal(again[1].points[0].positions, again[0].points[0].positions)
    show(1.05)
    np.testing.assert_allclose(answers(3)[2].points[0].positions[:6], rows[1, :6])

    t = 2.0  # a jump: the old chunk would be void
    for k in range(60):
        show(t)
        decide(t, 1)
        assert conversions.seconds(answers(4 + k)[-1].header.stamp) == t
        t = round(t + TICK, 9)

    count = len(graph.of('action'))
    show(t)
    beating.cancel()
    silent = time.monotonic()
    answers(count + 5)
    zeros = graph.of('action', silent)
    assert all(not np.any(m.points[0].positions[:6]) for _, m in zeros)
    assert zeros[4][0] - silent > 0.12, 'stillness is paced: simulated time must not race'

    answer = graph.call(Trigger, '/stop', Trigger.Request())
    assert answer.success and answer.message == 'STOP: asked to stop'
    graph.spin(lambda: graph.of('gate')[-1][1].message == 'STOP', 5)
