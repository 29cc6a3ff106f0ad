"""Publishes the cameras with the thought beside them, and the planned path as a marker."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

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

SILENT = 2.0  # age at which a state is no longer believed [s]
POSES = 64  # kept to find the one a chunk was decided at; at 100 Hz half a second
LINE_WIDTH = 0.006  # [m]
LINGER = 0.5  # how long a path outlives its chunk in a viewer [s]
LEVEL_INK = {DiagnosticStatus.OK: GOOD, DiagnosticStatus.WARN: WARNING,
             DiagnosticStatus.ERROR: BAD}
OPEN, CLOSED = (0.15, 0.75, 1.0), (1.0, 0.55, 0.1)  # colour of the path, by gripper


def planned_positions(position: NDArray[np.float64], chunk: Chunk) -> NDArray[np.float64]:
    """Return where a chunk leads from ``position`` [3] m: [T + 1, 3] m, the start included.

    Each row adds the speed at which the arm settles times the period (`osc.velocity`: 0.267 m/s
    per unit, 13 mm in 50 ms), not the 0.05 m by which its goal is ahead: the goal is re-based
    on the measured pose every period and never reached.
    """
    rows = np.clip(chunk.values[:, :6], -1.0, 1.0)
    steps = np.array([osc.velocity(row)[:3] for row in rows]).reshape(-1, 3) * chunk.period
    return np.concatenate([position[None], position + np.cumsum(steps, axis=0)])


def path_marker(
    position: NDArray[np.float64], chunk: Chunk, frame_id: str,
) -> Marker:
    """Return a chunk's path as a LINE_STRIP coloured by the gripper's commands."""
    commands, last = [], osc.GRIPPER_OPEN
    for row in chunk.values:
        last = osc.gripper_command(float(row[6]), last)
        commands.append(last)
    shades = [CLOSED if grip == osc.GRIPPER_CLOSED else OPEN
              for grip in [commands[0], *commands]]
    lifetime = conversions.time_message(len(chunk.values) * chunk.period + LINGER)
    marker = Marker(
        header=conversions.header(chunk.stamp, frame_id), ns=relative(names.PLANNED_PATH), id=0,
        type=Marker.LINE_STRIP, action=Marker.ADD,
        lifetime=Duration(sec=lifetime.sec, nanosec=lifetime.nanosec),
        points=[Point(x=x, y=y, z=z)
                for x, y, z in planned_positions(position, chunk).tolist()],
        colors=[ColorRGBA(r=r, g=g, b=b, a=1.0) for r, g, b in shades])
    marker.pose.orientation.w = 1.0
    marker.scale.x = LINE_WIDTH
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
        rate = declare(self, 'rate', 10.0, 'images per second while watched [Hz]', low=0.1)
        self._image_type, self._parse, self._decode = images.TRANSPORTS[declare(
            self, 'transport', 'raw', 'image topics', choices=images.TRANSPORTS)]
        self._quality = declare(self, 'jpeg_quality', 85, 'of the image, 1 to 100', low=1)
        self._base_frame = declare(self, 'base_frame', 'base', 'frame of planned_path')
        self._cameras: list[Subscription] = []
        self._frames: dict[str, bytes] = {}  # as they came
        self._poses: dict[float, NDArray[np.float64]] = {}
        self._stamps: dict[str, float] = {}  # of the frames drawn last
        self._thought = ''
        self._states: dict[str, tuple[float, DiagnosticStatus]] = {}

        self._image = self.create_publisher(CompressedImage, relative(names.OVERLAY), qos.LATEST)
        self._path = self.create_publisher(MarkerArray, relative(names.PLANNED_PATH), qos.LATEST)
        self.create_subscription(
            String, relative(names.REASONING), self._on_thought, qos.LATCHED_100)
        self.create_subscription(
            JointTrajectory, relative(names.ACTION_CHUNK), self._on_chunk, qos.LATEST)
        self.create_subscription(
            PoseStamped, relative(names.EE_POSE), self._on_pose, qos_profile_sensor_data)
        for topic in (names.VLA_STATE, names.GATE_STATE):
            self.create_subscription(DiagnosticStatus, relative(topic),
                                     functools.partial(self._on_state, topic), qos.LATCHED)
        self.create_timer(1.0 / rate, self._draw, clock=STEADY)

    def _on_thought(self, message: String) -> None:
        self._thought = message.data.replace(names.UNFINISHED, ' ...')

    def _on_state(self, topic: str, message: DiagnosticStatus) -> None:
        self._states[topic] = time.monotonic(), message

    def _on_pose(self, message: PoseStamped) -> None:
        position, _ = conversions.pose_arrays(message.pose)
        if np.isfinite(position).all():
            self._poses[conversions.seconds(message.header.stamp)] = position
            while len(self._poses) > POSES:
                del self._poses[next(iter(self._poses))]

    def _on_chunk(self, message: JointTrajectory) -> None:
        if not self._path.get_subscription_count() or not self._poses:
            return
        chunk = conversions.chunk_from(message, 1.0 / names.CONTROL_RATE)
        values = chunk.values
        if (not len(values) or values.shape[1] != len(names.CHANNELS)
                or not np.isfinite(values).all()):
            return
        decided_at = min(self._poses, key=lambda stamp: abs(stamp - chunk.stamp))
        self._path.publish(MarkerArray(markers=[
            path_marker(self._poses[decided_at], chunk, self._base_frame)]))

    def _follow_cameras(self, wanted: bool) -> None:
        if wanted and not self._cameras:
            self._cameras = [
                self.create_subscription(
                    self._image_type, relative(topic),
                    functools.partial(self._frames.__setitem__, name), qos.NEWEST_FRAME, raw=True)
                for name, topic in names.IMAGES.items()]
        elif not wanted and self._cameras:
            for subscription in self._cameras:
                self.destroy_subscription(subscription)
            self._cameras = []
            self._frames.clear()

    def _draw(self) -> None:
        wanted = self._image.get_subscription_count() > 0
        self._follow_cameras(wanted)
        if not wanted:
            return
        frame = draw_frame({name: self._pixels(name) for name in names.CAMERAS}, self._caption())
        stamp = self._stamps.get(
            names.CAMERAS[0], self.get_clock().now().nanoseconds * 1e-9)
        self._image.publish(images.serialize_compressed(
            frame, conversions.time_message(stamp), quality=min(self._quality, 100)))

    def _pixels(self, name: str) -> NDArray[np.uint8] | None:
        data = self._frames.get(name)
        if data is None:
            return None
        try:
            frame = self._parse(data)
            self._stamps[name] = frame.stamp
            return self._decode(frame)
        except images.ImageError as error:
            self.get_logger().warning(f'image_{name}: {error}', throttle_duration_sec=1.0)
            return None

    def _caption(self) -> Caption:
        _, policy = self._states.get(names.VLA_STATE, (0.0, None))
        values = {} if policy is None else conversions.status_values(policy)
        return Caption(values.get('instruction', ''), self._thought, states=(
            self._line('policy', names.VLA_STATE), self._line('gate', names.GATE_STATE),
            (latency_line(values), FAINT)))

    def _line(self, who: str, topic: str) -> tuple[str, Ink]:
        heard, status = self._states.get(topic, (0.0, None))
        if status is None or time.monotonic() - heard > SILENT:
            return f'{who}: silent', FAINT
        reason = conversions.status_values(status).get('reason', '')
        return (f'{who}: {status.message}{" - " if reason else ""}{reason}',
                LEVEL_INK.get(status.level, FAINT))


main = functools.partial(run, Overlay)

if __name__ == '__main__':
    raise SystemExit(main())
