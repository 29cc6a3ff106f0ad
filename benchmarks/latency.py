"""Latency from camera to numpy and from chunk to command, and regularity of the commands."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import rclpy
import typer
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from benchmarks import common
from benchmarks.common import Graph, load_average, own_graph, progress, show
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.cli import main
from dtvla_ros.cli.arguments import Json, group
from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared
from dtvla_ros.ros import images, qos
from dtvla_ros.ros.conversions import chunk_message, header, status_message, time_message
from dtvla_ros.ros.run import STEADY, run

HEIGHT, WIDTH = 480, 640
FRAME_RATE = 30.0  # Hz
CHUNK_PERIOD = 0.05  # s, of a row
WARM_UP = 20  # samples at the start that do not count
# What is held against a limit, and the limit [ms].
IMAGE, COMMAND, JITTER = ('p50', 1.5), ('p99', 2.0), ('p99', 2.0)
app = group()


class Camera(Node):
    """Publishes an image 30 times a second, stamped when its publication begins."""

    def __init__(self) -> None:
        super().__init__('camera')
        self._image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        self._out = self.create_publisher(Image, 'image', qos_profile_sensor_data)
        self.create_timer(1.0 / FRAME_RATE, self._publish, clock=STEADY)

    def _publish(self) -> None:
        self._out.publish(images.serialize_image(self._image, time_message(time.time())))


def _chunk(stamp: float, rows: int) -> JointTrajectory:
    """Return a chunk that stands still."""
    return chunk_message(Chunk(stamp, CHUNK_PERIOD, np.zeros((rows, 7), np.float32)))


def _collect(graph: Graph, samples: Sequence[Any], count: int, title: str) -> None:
    """Run callbacks until ``samples`` has so many, and show how far it is."""
    for k in progress(range(count), desc=title):
        graph.spin_until(lambda: len(samples) > k, title)  # noqa: B023


def measure_images(graph: Graph, count: int) -> list[float]:
    """Return milliseconds from an image in one process to the same in numpy here."""
    taken: list[float] = []

    def on_image(data: bytes) -> None:
        message = images.parse_image(data)
        images.image_to_numpy(message)
        taken.append((time.time() - message.stamp) * 1e3)

    graph.node.create_subscription(Image, 'image', on_image, qos_profile_sensor_data, raw=True)
    graph.processes.start('camera', 'benchmarks.latency', ['camera'])
    _collect(graph, taken, count + WARM_UP, 'images')
    return taken[WARM_UP:]


class PolicyStandIn:
    """What the gate needs to hear: a heartbeat, which it starts, a pose, joints, and chunks."""

    def __init__(self, node: Node) -> None:
        self.chunks = node.create_publisher(JointTrajectory, 'vla/action_chunk', qos.LATEST)
        self._state = node.create_publisher(DiagnosticStatus, 'vla/state', qos.LATCHED)
        self._poses = node.create_publisher(PoseStamped, 'ee_pose', qos_profile_sensor_data)
        self._joints = node.create_publisher(JointState, 'joint_states', qos_profile_sensor_data)
        node.create_timer(0.04, lambda: self._state.publish(
            status_message('vla', 'ACTING', {'task': 1, 'reason': ''})), clock=STEADY)

    def heard(self) -> bool:
        """Return whether the gate listens."""
        return all(publisher.get_subscription_count()
                   for publisher in (self.chunks, self._state, self._poses))

    def publish_pose(self, stamp: float) -> None:
        """Publish an end-effector pose."""
        message = PoseStamped(header=header(stamp))
        message.pose.position.x, message.pose.position.z = 0.5, 0.2
        self._poses.publish(message)

    def publish_state(self) -> None:
        """Publish pose and joints as of now."""
        now = time.time()
        self.publish_pose(now)
        self._joints.publish(JointState(header=header(now), name=['joint1'], position=[now % 1]))


def measure_commands(graph: Graph, count: int) -> list[float]:
    """Return milliseconds from a chunk to the gate's command, both seen from here."""
    node = graph.node
    came: list[float] = []
    node.create_subscription(
        JointTrajectory, 'action', lambda _: came.append(time.perf_counter()), 10)
    policy = PolicyStandIn(node)
    graph.start('command_gate', '--params-file', str(find_shared('config/sim.yaml')))
    graph.spin_until(lambda: policy.heard() and node.count_publishers('action'),
                     'the command gate')
    taken: list[float] = []
    stamp = 1.0

    def answers_now() -> bool:
        policy.publish_pose(stamp)
        policy.chunks.publish(_chunk(stamp, 1))
        graph.executor.spin_once(timeout_sec=0.1)
        return bool(came)

    graph.spin_until(answers_now, 'a first command')  # by then it has heard policy and pose
    for _ in progress(range(count + WARM_UP), desc='commands'):
        stamp += CHUNK_PERIOD
        policy.publish_pose(stamp)
        graph.spin(0.01)
        before = len(came)
        sent = time.perf_counter()
        policy.chunks.publish(_chunk(stamp, 1))
        graph.spin_until(lambda: len(came) > before, 'a command')  # noqa: B023
        taken.append((came[before] - sent) * 1e3)
    return taken[WARM_UP:]


def measure_regularity(graph: Graph, rate: float, seconds: float) -> tuple[list[float], str]:
    """Return by how many ms commands came off their period, and the gate's state at the end."""
    came: list[float] = []
    states: list[str] = []
    graph.node.create_subscription(
        TwistStamped, 'twist_cmd', lambda _: came.append(time.perf_counter()), 10)
    graph.node.create_subscription(
        DiagnosticStatus, 'gate_state', lambda message: states.append(message.message),
        qos.LATCHED)
    policy = PolicyStandIn(graph.node)
    graph.node.create_timer(0.02, policy.publish_state, clock=STEADY)
    graph.node.create_timer(
        0.2, lambda: policy.chunks.publish(_chunk(time.time(), 8)), clock=STEADY)
    graph.start('command_gate', '-p', 'lockstep:=false', '-p', 'preset:=servo', '-p',
                f'rate:={rate!r}', '-p', 'auto_start:=true', '-p', 'gripper_timeout_s:=0.0')
    graph.spin_until(policy.heard, 'the command gate')
    _collect(graph, came, WARM_UP + 1 + round(rate * seconds), f'gate at {rate:g} Hz')
    return np.abs(np.diff(came[WARM_UP:]) * 1e3 - 1e3 / rate).tolist(), (states or [''])[-1]


def summary(name: str, taken: Sequence[float], target: tuple[str, float],
            **more: Any) -> dict[str, Any]:
    """Return percentiles of what was taken [ms], one of them held against a limit."""
    p50, p99, top = np.percentile(taken, [50, 99, 100]).round(3).tolist()
    percentile, limit = target
    return {'what': name, 'n': len(taken), 'p50_ms': p50, 'p99_ms': p99, 'max_ms': top, **more,
            'target_ms': limit, 'target_of': percentile,
            'met': {'p50': p50, 'p99': p99}[percentile] <= limit}


@app.command()
def latency(
    rate: Annotated[list[float] | None, typer.Option(min=1.0, help='Control rate of the gate '
        '[Hz]; repeat for several. [default: 20 and 100]')] = None,
    count: Annotated[int, typer.Option(min=10, help='Images and commands measured.')] = 300,
    seconds: Annotated[float, typer.Option(
        min=1.0, help='How long each control rate is watched.')] = 10.0,
    priority: Annotated[int, typer.Option(min=0, max=90, help='Real-time priority (SCHED_FIFO) of '
        'everything measured; 0: none.')] = 0,
    json_file: Json = None,
) -> None:
    """Measure what the path from camera to arm costs on this machine, without a policy.

    A camera process to numpy in this one; a chunk through a real command gate; and how far the
    gate's commands come off their period. Runs on loopback in a ROS domain of its own, so no
    arm hears it. Leave the machine alone meanwhile: the load average is printed beside the
    numbers because a busy machine shows in p99 first.

    **Examples**

    `python -m benchmarks.latency`

    `python -m benchmarks.latency --rate 50 --seconds 30 --json out/latency.json`

    `sudo -E python -m benchmarks.latency --priority 20` when nothing ordinary may interrupt
    """
    if priority:
        try:  # also of the processes it starts
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        except (OSError, AttributeError, ValueError) as error:
            raise UserError(f'--priority {priority}: {error}; allow it with an rtprio limit for '
                            'this user, or leave it out') from error
    load = {'before': load_average()}
    # A graph of its own for each: a former gate would compete on its topic.
    with common.scheduling_delay() as delays:
        with own_graph(lambda: Node('latency')) as graph:
            rows = [summary(f'image {WIDTH}x{HEIGHT}, camera process to numpy here',
                            measure_images(graph, count), IMAGE)]
        with own_graph(lambda: Node('latency')) as graph:
            rows.append(summary('chunk to command through the gate process',
                                measure_commands(graph, count), COMMAND))
        for hertz in rate or (20.0, 100.0):
            with own_graph(lambda: Node('latency')) as graph:
                off, state = measure_regularity(graph, hertz, seconds)
            rows.append(summary(f'command off its period at {hertz:g} Hz', off, JITTER,
                                gate_state=state))
    load['after'] = load_average()
    result = {
        'rmw': rclpy.get_rmw_implementation_identifier(), 'cores': os.cpu_count(),
        'priority': priority, 'load_average': load, 'scheduling_ms': delays, 'rows': rows}
    show(('milliseconds', 'n', 'p50', 'p99', 'max', 'target'), (
        (row['what'], row['n'], *(f'{row[key]:.2f}' for key in ('p50_ms', 'p99_ms', 'max_ms')),
         f'{row["target_of"]} <= {row["target_ms"]:g} {"met" if row["met"] else "missed"}')
        for row in rows),
        f'{result["rmw"]}, {f"priority {priority}" if priority else "ordinary priority"}, '
        f'{result["cores"]} cores, load average {load["before"]} before and {load["after"]} '
        f'after; {common.DELAY.format_map(delays)}', json_file, result)


if __name__ == '__main__':
    if sys.argv[1:] == ['camera']:
        raise SystemExit(run(Camera, []))
    main(app)
