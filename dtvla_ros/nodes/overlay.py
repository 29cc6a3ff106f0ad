"""Publishes the cameras with the thought beside them, and the planned path as a marker."""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping

import numpy as np
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Point, PoseStamped
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import ColorRGBA, String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from dtvla_ros import conventions as names
from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.caption import BAD, FAINT, GOOD, WARNING, Caption, Ink, draw_frame
from dtvla_ros.conventions import relative
from dtvla_ros.nodes.settings import declare
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.run import STEADY, run
from dtvla_ros.ros.waiting import tell_what_lacks, why_silent

SILENT = 2.0  # age at which a state is no longer believed [s]
POSES = 64  # kept to find the one a chunk was decided at; at 100 Hz half a second
LINE_WIDTH = 0.006  # [m]
LINGER = 0.5  # how long a path outlives its chunk in a viewer [s]
LEVEL_INK = {DiagnosticStatus.OK: GOOD, DiagnosticStatus.WARN: WARNING,
             DiagnosticStatus.ERROR: BAD}
OPEN, CLOSED = (0.15, 0.75, 1.0), (1.0, 0.55, 0.1)  # colour of the path, by gripper


def path_marker(position: NDArray[np.float64], chunk: Chunk, frame_id: str) -> Marker:
    """Return where a chunk leads from ``position`` [3] m as a LINE_STRIP, coloured by its grip.

    A row adds the speed at which the arm settles times the period (0.267 m/s per unit, 13 mm in 50
    ms), not the 0.05 m its goal is ahead, which is re-based every period.
    """
    grips = [osc.GRIPPER_OPEN]
    for row in chunk.values:
        grips.append(osc.gripper_command(float(row[6]), grips[-1]))
    shades = [CLOSED if grip == osc.GRIPPER_CLOSED else OPEN for grip in (grips[1], *grips[1:])]
    steps = np.clip(chunk.values[:, :3].astype(np.float64), -1.0, 1.0) * (
        osc.METRES_PER_SECOND_PER_UNIT * chunk.period)
    places = np.vstack([position, position + np.cumsum(steps, axis=0)]).tolist()
    lifetime = conversions.time_message(len(chunk.values) * chunk.period + LINGER)
    marker = Marker(
        header=conversions.header(chunk.stamp, frame_id), ns=relative(names.PLANNED_PATH),
        type=Marker.LINE_STRIP, lifetime=Duration(sec=lifetime.sec, nanosec=lifetime.nanosec),
        points=[Point(x=x, y=y, z=z) for x, y, z in places],
        colors=[ColorRGBA(r=r, g=g, b=b, a=1.0) for r, g, b in shades])
    marker.pose.orientation.w, marker.scale.x = 1.0, LINE_WIDTH
    return marker


def latency_line(values: Mapping[str, str]) -> str:
    """Return the latency by phase, the sum first, from the values of ``vla/state``."""
    taken = {phase: 1e3 * value for phase, value in conversions.latencies(values).items()}
    first = [f'{taken.pop("total"):.0f} ms'] if 'total' in taken else []
    return ', '.join([*first, *(f'{phase} {ms:.0f}' for phase, ms in taken.items())])


class Overlay(Node):
    """Draws only while somebody watches; the cameras are not even subscribed to before."""

    def __init__(self) -> None:
        super().__init__('overlay')
        rate = declare(self, 'rate', 10.0, 'images per second while watched [Hz]', low=0.1,
                       high=100.0)
        self._image_type, self._parse, self._decode = images.TRANSPORTS[declare(
            self, 'transport', 'raw', 'image topics', choices=images.TRANSPORTS)]
        self._quality = declare(self, 'jpeg_quality', 85, 'of the image', low=1, high=100)
        self._base_frame = declare(self, 'base_frame', 'base', 'frame of planned_path')
        self._cameras: list[Subscription] = []
        self._frames: dict[str, bytes] = {}  # as they came
        self._poses: deque[tuple[float, NDArray[np.float64]]] = deque(maxlen=POSES)  # by stamp [s]
        self._stamps: dict[str, float] = {}  # of the frames drawn last
        self._thought = self._task = self._stopped = ''
        self._states: dict[str, tuple[float, DiagnosticStatus]] = {}  # when it was heard [s]

        self._image = self.create_publisher(CompressedImage, relative(names.OVERLAY), qos.LATEST)
        self._path = self.create_publisher(MarkerArray, relative(names.PLANNED_PATH), qos.LATEST)
        self.create_subscription(
            String, relative(names.REASONING), self._on_thought, qos.LATCHED_10)
        self.create_subscription(
            JointTrajectory, relative(names.ACTION_CHUNK), self._on_chunk, qos.LATEST)
        self.create_subscription(
            PoseStamped, relative(names.EE_POSE), self._on_pose, qos_profile_sensor_data)
        self._state_of = {topic: self.create_subscription(
            DiagnosticStatus, relative(topic), functools.partial(self._on_state, topic),
            qos.LATCHED) for topic in (names.VLA_STATE, names.GATE_STATE)}
        tell_what_lacks(self, self._lacking)
        self.create_timer(1.0 / rate, self._draw, clock=STEADY)

    def _lacking(self) -> Iterator[str]:
        """Yield why what should be drawn for those who watch never came."""
        for (name, _), subscription in zip(names.IMAGES.items(), self._cameras):
            if name not in self._frames:
                yield why_silent(self, subscription)
        for topic, subscription in self._state_of.items():
            if self._cameras and topic not in self._states:
                yield why_silent(self, subscription)

    def _on_thought(self, message: String) -> None:
        self._thought = message.data

    def _on_state(self, topic: str, message: DiagnosticStatus) -> None:
        self._states[topic] = time.monotonic(), message
        task = conversions.status_values(message).get('task', self._task)
        stopped = self._stopped if topic != names.GATE_STATE else conversions.stop_reason(message)
        if task != self._task or (stopped and not self._stopped):
            self._thought = ''  # it is of another task
        self._task, self._stopped = task, stopped

    def _on_pose(self, message: PoseStamped) -> None:
        position, quaternion = conversions.pose_arrays(message.pose)
        if refused := (conversions.refuse_frame(message.header.frame_id, self._base_frame)
                       or conversions.refuse_pose(position, quaternion)):
            self.get_logger().warning(f'ee_pose refused: {refused}', throttle_duration_sec=5.0)
        else:
            self._poses.append((conversions.seconds(message.header.stamp), position))

    def _on_chunk(self, message: JointTrajectory) -> None:
        chunk = conversions.chunk_from(message, 1.0 / names.CONTROL_RATE)
        rows, width = chunk.values.shape
        if (self._path.get_subscription_count() and self._poses and rows
                and width == len(names.CHANNELS) and np.isfinite(chunk.values).all()):
            _, decided_at = min(self._poses, key=lambda pose: abs(pose[0] - chunk.stamp))
            self._path.publish(MarkerArray(markers=[
                path_marker(decided_at, chunk, self._base_frame)]))

    def _draw(self) -> None:
        wanted = self._image.get_subscription_count() > 0
        if wanted and not self._cameras:
            self._cameras = [self.create_subscription(
                self._image_type, relative(topic), functools.partial(
                    self._frames.__setitem__, name), qos.NEWEST, raw=True)
                for name, topic in names.IMAGES.items()]
        if not wanted:
            while self._cameras:
                self.destroy_subscription(self._cameras.pop())
            return self._frames.clear()
        frame = draw_frame({name: self._pixels(name) for name in names.CAMERAS}, self._caption())
        stamp = self._stamps.get(names.CAMERAS[0], self.get_clock().now().nanoseconds * 1e-9)
        self._image.publish(images.serialize_compressed(
            frame, conversions.time_message(stamp), quality=self._quality))

    def _pixels(self, name: str) -> NDArray[np.uint8] | None:
        if name not in self._frames:
            return None
        try:
            frame = self._parse(self._frames[name])
            self._stamps[name] = frame.stamp
            return self._decode(frame)
        except images.ImageError as error:
            self.get_logger().warning(f'image_{name}: {error}', throttle_duration_sec=1.0)
            return None

    def _caption(self) -> Caption:
        lines: dict[str, tuple[str, Ink]] = {}
        values: dict[str, dict[str, str]] = {}
        for who, topic in (('policy', names.VLA_STATE), ('gate', names.GATE_STATE)):
            heard, status = self._states.get(topic, (-math.inf, DiagnosticStatus()))
            told = values[who] = conversions.status_values(status)
            reason = f' - {told["reason"]}' if told.get('reason') else ''
            lines[who] = (f'{who}: silent', FAINT) if time.monotonic() - heard > SILENT else (
                f'{who}: {status.message}{reason}', LEVEL_INK.get(status.level, FAINT))
        policy = values['policy']
        return Caption(policy.get('instruction', ''), self._thought, states=(
            *lines.values(), (latency_line(policy), FAINT)), stopped=self._stopped,
            meaning=conversions.meaning(policy))


main = functools.partial(run, Overlay)

if __name__ == '__main__':
    raise SystemExit(main())
