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


def test_ticks_repetition_silence_and_latency(graph, capsys):
    node = graph.listen(action=(JointTrajectory, '/action'),
                        gate=(DiagnosticStatus, '/gate_state'))
    chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
    state = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
    pose = node.create_publisher(PoseStamped, '/ee_pose', qos_profile_sensor_data)
    beating = node.create_timer(0.02, lambda: state.publish(
        conversions.status_message('vla', 'ACTING', {'task': '1', 'reason': ''})))
    graph.start('command_gate', '--params-file', 'config/sim.yaml')
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

    def answers(count, timeout=5.0):
        graph.spin(lambda: len(graph.of('action')) >= count, timeout)
        return [m for _, m in graph.of('action')]

    begun = time.monotonic()
    show(1.0)
    graph.spin(lambda: time.monotonic() > begun + 0.3, 2)
    assert not graph.of('action'), 'while the policy thinks, simulated time waits'

    rows = decide(1.0, 2)
    np.testing.assert_allclose(answers(1)[0].points[0].positions[:6], rows[0, :6])
    show(1.0)
    again = answers(2)
    np.testing.assert_array_equal(again[1].points[0].positions, again[0].points[0].positions)
    show(1.05)
    np.testing.assert_allclose(answers(3)[2].points[0].positions[:6], rows[1, :6])

    latency = []
    t = 2.0  # a jump: the old chunk would be void
    for k in range(60):
        show(t)
        sent = time.perf_counter()
        decide(t, 1)
        answers(4 + k)
        latency.append(time.perf_counter() - sent)
        t += TICK
    p50, p99 = np.percentile(np.array(latency) * 1e3, [50, 99])
    with capsys.disabled():
        print(f' chunk in to command out: p50 {p50:.2f} ms, p99 {p99:.2f} ms')
    assert p50 < 20

    count = len(graph.of('action'))
    show(t)
    beating.cancel()
    silent = time.monotonic()
    answers(count + 5)
    zeros = graph.of('action', silent)
    assert all(not np.any(m.points[0].positions[:6]) for _, m in zeros)
    assert zeros[4][0] - zeros[0][0] > 0.12, 'stillness is paced: simulated time must not race'

    client = node.create_client(Trigger, '/stop')
    assert client.wait_for_service(timeout_sec=5.0)
    done = client.call_async(Trigger.Request())
    graph.spin(done.done, 5)
    assert done.result().success and done.result().message == 'STOP: asked to stop'
    graph.spin(lambda: graph.of('gate')[-1][1].message == 'STOP', 5)
