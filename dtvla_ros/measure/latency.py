"""``dtvla latency``: pictures, commands and their regularity, between real processes.

Everything happens on loopback in a ROS domain of its own: no arm of the user's domain can hear
the commands that are measured.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.timer import Timer
from rich.console import Console
from rich.table import Table
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header
from tqdm import tqdm
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from dtvla_ros import share
from dtvla_ros.conventions import CHANNELS
from dtvla_ros.errors import UserError
from dtvla_ros.files import write_json
from dtvla_ros.measure.domain import use_own_domain
from dtvla_ros.measure.scheduling import SchedulingDelay
from dtvla_ros.ros import images, qos
from dtvla_ros.ros.processes import NodeProcesses
from dtvla_ros.ros.run import STEADY, joined, run

HEIGHT, WIDTH = 480, 640
FRAME_RATE = 30.0  # Hz
CHUNK_PERIOD = 0.05  # s, the row of a chunk
WARM_UP = 20  # samples at the start that do not count
PATIENCE = 30.0  # s until a process must have answered
TARGETS_MS = {'picture p50': 1.5, 'command p99': 2.0, 'jitter p99': 2.0}


class Camera(Node):
    """Publishes a picture 30 times a second, stamped when its publication begins."""

    def __init__(self) -> None:
        super().__init__('camera')
        self._picture = np.random.default_rng(0).integers(
            0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        self._out = self.create_publisher(Image, 'image', qos_profile_sensor_data)
        self.create_timer(1.0 / FRAME_RATE, self._shoot,
                          clock=STEADY)

    def _shoot(self) -> None:
        self._out.publish(images.serialize_image(self._picture, _stamp(time.time_ns())))


def _stamp(nanoseconds: int) -> Time:
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def _chunk(stamp: int, rows: int) -> JointTrajectory:
    """Return a chunk that stands still."""
    period = int(CHUNK_PERIOD * 1e9)
    return JointTrajectory(
        header=Header(stamp=_stamp(stamp)), joint_names=list(CHANNELS), points=[
            JointTrajectoryPoint(positions=[0.0] * 7, time_from_start=Duration(
                sec=k * period // 10**9, nanosec=k * period % 10**9)) for k in range(rows)])


def _pose(stamp: int) -> PoseStamped:
    message = PoseStamped(header=Header(stamp=_stamp(stamp)))
    message.pose.position.x, message.pose.position.z = 0.5, 0.2
    return message


@dataclass(frozen=True, slots=True)
class Bench:
    """A node in a domain of its own, and the processes it measures."""

    processes: NodeProcesses
    node: Node
    executor: Executor

    def spin(self, until: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
        """Run callbacks until a condition holds; raise NodeDied or UserError when it cannot."""
        end = time.monotonic() + patience
        while not until():
            self.executor.spin_once(timeout_sec=0.1)
            self.processes.require_running()
            if time.monotonic() > end:
                raise UserError(f'{what} did not come within {patience:g} s: is the machine that '
                                'busy? (see the load average with uptime)')

    def collect(self, samples: Sequence[Any], count: int, title: str) -> None:
        """Run callbacks until ``samples`` has so many, and show how far it is."""
        with tqdm(total=count, desc=title, leave=False, disable=None) as bar:
            while len(samples) < count:
                before = len(samples)
                self.spin(lambda: len(samples) > before, title)  # noqa: B023
                bar.update(min(count, len(samples)) - before)


def measure_pictures(bench: Bench, count: int) -> list[float]:
    """Return milliseconds from a picture in one process to the same in numpy here."""
    taken: list[float] = []

    def on_image(data: bytes) -> None:
        message = images.parse_image(data)
        picture = images.image_to_numpy(message)
        taken.append((time.time_ns() * 1e-9 - message.stamp) * 1e3)
        assert picture.shape == (HEIGHT, WIDTH, 3)
    subscription = bench.node.create_subscription(
        Image, 'image', on_image, qos_profile_sensor_data, raw=True)
    bench.processes.start('camera', 'dtvla_ros.measure.latency', [])
    bench.collect(taken, count + WARM_UP, 'pictures')
    bench.node.destroy_subscription(subscription)
    return taken[WARM_UP:]


class Policy:
    """What the gate needs to hear: a heartbeat, a pose, joints, and chunks."""

    def __init__(self, node: Node) -> None:
        """Start the heartbeat."""
        self.chunks = node.create_publisher(JointTrajectory, 'vla/action_chunk', qos.LATEST)
        self._state = node.create_publisher(DiagnosticStatus, 'vla/state', qos.LATCHED)
        self._poses = node.create_publisher(PoseStamped, 'ee_pose', qos_profile_sensor_data)
        self._joints = node.create_publisher(
            JointState, 'joint_states', qos_profile_sensor_data)
        self._node = node
        self._timers: list[Timer] = []
        self.every(0.04, self._beat)

    def every(self, period: float, callback: Callable[[], None]) -> None:
        """Call back regularly on the steady clock."""
        self._timers.append(self._node.create_timer(
            period, callback, clock=STEADY))

    def heard(self) -> bool:
        """Return whether the gate listens."""
        return bool(self.chunks.get_subscription_count() and self._state.get_subscription_count()
                    and self._poses.get_subscription_count())

    def _beat(self) -> None:
        self._state.publish(DiagnosticStatus(name='vla', message='ACTING', values=[
            KeyValue(key='task', value='1'), KeyValue(key='reason', value='')]))

    def show(self, stamp: int) -> None:
        """Tell a pose."""
        self._poses.publish(_pose(stamp))

    def measure(self) -> None:
        """Tell pose and joints as of now."""
        now = time.time_ns()
        self.show(now)
        self._joints.publish(JointState(header=Header(stamp=_stamp(now)), name=['joint1'],
                                        position=[now % 10**9 * 1e-9]))

    def close(self) -> None:
        """Fall silent."""
        for timer in self._timers:
            timer.cancel()  # an events executor may still call one that is only destroyed
            self._node.destroy_timer(timer)
        for publisher in (self.chunks, self._state, self._poses, self._joints):
            self._node.destroy_publisher(publisher)


def measure_commands(bench: Bench, count: int) -> list[float]:
    """Return milliseconds from a chunk to the gate's command, both seen from here."""
    node = bench.node
    came: list[float] = []
    answers = node.create_subscription(
        JointTrajectory, 'action', lambda _: came.append(time.perf_counter()), 10)
    policy = Policy(node)
    bench.processes.start('gate', 'dtvla_ros.nodes.command_gate', [
        '--ros-args', '--params-file', str(share.find(Path('config/sim.yaml')))])
    bench.spin(lambda: policy.heard() and node.count_publishers('action'), 'the command gate')
    taken: list[float] = []
    stamp = 10**9

    def answers_now() -> bool:
        policy.show(stamp)
        policy.chunks.publish(_chunk(stamp, 1))
        bench.executor.spin_once(timeout_sec=0.1)
        return bool(came)
    bench.spin(answers_now, 'a first command')  # it has heard the policy and its pose by then
    stamp += int(CHUNK_PERIOD * 1e9)
    with tqdm(total=count + WARM_UP, desc='commands', leave=False, disable=None) as bar:
        while len(taken) < count + WARM_UP:
            policy.show(stamp)
            settled = time.monotonic() + 0.01
            bench.spin(lambda: time.monotonic() > settled, 'a pause')  # noqa: B023
            before = len(came)
            sent = time.perf_counter()
            policy.chunks.publish(_chunk(stamp, 1))
            bench.spin(lambda: len(came) > before, 'a command')  # noqa: B023
            taken.append((came[before] - sent) * 1e3)
            stamp += int(CHUNK_PERIOD * 1e9)
            bar.update(1)
    policy.close()
    node.destroy_subscription(answers)
    return taken[WARM_UP:]


def measure_regularity(bench: Bench, rate: float, seconds: float) -> tuple[list[float], str]:
    """Return by how many ms commands came off their period, and the gate's state at the end."""
    node = bench.node
    came: list[float] = []
    states: list[str] = []

    def on_state(message: DiagnosticStatus) -> None:
        states.append(message.message)
    commands = node.create_subscription(
        TwistStamped, 'twist_cmd', lambda _: came.append(time.perf_counter()), 10)
    state = node.create_subscription(
        DiagnosticStatus, 'gate_state', on_state, qos.LATCHED)
    policy = Policy(node)
    policy.every(0.02, policy.measure)
    policy.every(0.2, lambda: policy.chunks.publish(_chunk(time.time_ns(), 8)))
    name = f'gate at {rate:g} Hz'
    bench.processes.start(name, 'dtvla_ros.nodes.command_gate', [
        '--ros-args', '-p', 'lockstep:=false', '-p', 'preset:=servo', '-p', f'rate:={rate!r}',
        '-p', 'auto_start:=true', '-p', 'gripper_timeout_s:=0.0'])
    bench.spin(policy.heard, 'the command gate')
    bench.collect(came, WARM_UP + 1 + round(rate * seconds), name)
    policy.close()
    for subscription in (commands, state):
        node.destroy_subscription(subscription)
    gaps = np.diff(came[WARM_UP:]) * 1e3
    return np.abs(gaps - 1e3 / rate).tolist(), states[-1] if states else ''


def _row(name: str, taken: Sequence[float], **more: Any) -> dict[str, Any]:
    p50, p99 = np.percentile(taken, [50, 99])
    return {'what': name, 'n': len(taken), 'p50_ms': round(float(p50), 3),
            'p99_ms': round(float(p99), 3), 'max_ms': round(max(taken), 3), **more}


@contextmanager
def _alone(logs: Path) -> Iterator[Bench]:
    """Make a bench nobody else can hear, and end it with its processes."""
    use_own_domain()
    with joined(lambda: Node('latency')) as (node, executor), NodeProcesses(logs) as processes:
        yield Bench(processes, node, executor)


def _take_priority(priority: int) -> None:
    """Put this process, and so those it starts, above everything that is not real-time."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, AttributeError, ValueError) as error:
        raise UserError(f'--priority {priority}: {error}; allow it with an rtprio limit for this '
                        'user, or leave it out') from error


def run_latency(rates: Sequence[float], count: int, seconds: float, priority: int,
                json_file: Path | None) -> dict[str, Any]:
    """Measure, print the table, write ``json_file`` if given, return what is in it.

    ``priority``: of SCHED_FIFO for everything that is measured; 0 for an ordinary process.
    """
    if priority:
        _take_priority(priority)
    before = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    # Each measurement has a domain of its own: a former gate would be a rival on its topic.
    with tempfile.TemporaryDirectory(prefix='dtvla_latency_') as folder, \
            SchedulingDelay() as delays:
        logs = Path(folder)
        with _alone(logs / 'pictures') as bench:
            rows.append(_row(f'picture {WIDTH}x{HEIGHT}, camera process to numpy here',
                             measure_pictures(bench, count), target='picture p50'))
        with _alone(logs / 'commands') as bench:
            rows.append(_row('chunk to command through the gate process',
                             measure_commands(bench, count), target='command p99'))
        for index, rate in enumerate(rates):
            with _alone(logs / f'rate{index}') as bench:
                off, state = measure_regularity(bench, rate, seconds)
                rows.append(_row(f'command off its period at {rate:g} Hz', off,
                                 target='jitter p99', gate_state=state))
    for row in rows:
        name = row.pop('target')
        row['target_ms'], row['target_of'] = TARGETS_MS[name], name.rpartition(' ')[2]
        row['met'] = row[f'{row["target_of"]}_ms'] <= row['target_ms']
    result = {
        'rmw': rclpy.get_rmw_implementation_identifier(), 'cores': os.cpu_count(),
        'priority': priority,
        'load_average': {'before': round(before, 2), 'after': round(os.getloadavg()[0], 2)},
        'scheduling_ms': delays.summary(), 'rows': rows}
    _show(result)
    if json_file is not None:
        write_json(json_file, result)
    return result


def _show(result: dict[str, Any]) -> None:
    table = Table('milliseconds')
    for name in ('n', 'p50', 'p99', 'max', 'target'):
        table.add_column(name, justify='right')
    for row in result['rows']:
        target = f'{row["target_of"]} <= {row["target_ms"]:g}'
        table.add_row(row['what'], str(row['n']), *(
            f'{row[key]:.2f}' for key in ('p50_ms', 'p99_ms', 'max_ms')),
            f'{target} {"met" if row["met"] else "missed"}')
    load = result['load_average']
    console = Console()
    console.print(table)
    urgency = f'priority {result["priority"]}' if result['priority'] else 'ordinary priority'
    console.print(f'{result["rmw"]}, {urgency}, {result["cores"]} cores, load average '
                  f'{load["before"]} before and {load["after"]} after; a thread that sleeps 1 ms '
                  f'wakes late by p50 {result["scheduling_ms"]["p50"]:.2f}, p99 '
                  f'{result["scheduling_ms"]["p99"]:.2f} ms')


if __name__ == '__main__':
    raise SystemExit(run(Camera))
