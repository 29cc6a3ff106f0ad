"""Publishes the cameras with the thought beside them, and the planned path as a marker."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping

import numpy as np
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Point
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import ColorRGBA, String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from dtvla_ros import conventions as names
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.caption import BAD, FAINT, GOOD, WARNING, Caption, Ink, draw_frame
from dtvla_ros.conventions import relative
from dtvla_ros.nodes.settings import declare
from dtvla_ros.nodes.viewing import (
    LINGER,
    SILENT,
    Cameras,
    Poses,
    closed_along,
    leads_somewhere,
    path_of,
)
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.run import STEADY, run
from dtvla_ros.ros.waiting import tell_what_lacks, why_silent

LINE_WIDTH = 0.006  # [m]
LEVEL_INK = {DiagnosticStatus.OK: GOOD, DiagnosticStatus.WARN: WARNING,
             DiagnosticStatus.ERROR: BAD}
OPEN, CLOSED = (0.15, 0.75, 1.0), (1.0, 0.55, 0.1)  # colour of the path, by gripper


def path_marker(position: NDArray[np.float64], chunk: Chunk, frame_id: str) -> Marker:
    """Return where a chunk leads from ``position`` [3] m as a LINE_STRIP, coloured by its grip."""
    shades = [CLOSED if closed else OPEN for closed in closed_along(chunk)]
    lifetime = conversions.time_message(len(chunk.values) * chunk.period + LINGER)
    marker = Marker(
        header=conversions.header(chunk.stamp, frame_id), ns=relative(names.PLANNED_PATH),
        type=Marker.LINE_STRIP, lifetime=Duration(sec=lifetime.sec, nanosec=lifetime.nanosec),
        points=[Point(x=x, y=y, z=z) for x, y, z in path_of(position, chunk).tolist()],
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
        self._cameras = Cameras(self)
        self._quality = declare(self, 'jpeg_quality', 85, 'of the image', low=1, high=100)
        self._poses = Poses(self)
        self._base_frame = self.get_parameter('base_frame').value
        self._thought = self._task = self._stopped = ''
        self._states: dict[str, tuple[float, DiagnosticStatus]] = {}  # when it was heard [s]

        self._image = self.create_publisher(CompressedImage, relative(names.OVERLAY), qos.LATEST)
        self._path = self.create_publisher(MarkerArray, relative(names.PLANNED_PATH), qos.LATEST)
        self.create_subscription(
            String, relative(names.REASONING), self._on_thought, qos.LATCHED_10)
        self.create_subscription(
            JointTrajectory, relative(names.ACTION_CHUNK), self._on_chunk, qos.LATEST)
        self._poses.open()
        self._state_of = {topic: self.create_subscription(
            DiagnosticStatus, relative(topic), functools.partial(self._on_state, topic),
            qos.LATCHED) for topic in (names.VLA_STATE, names.GATE_STATE)}
        tell_what_lacks(self, self._lacking)
        self.create_timer(1.0 / rate, self._draw, clock=STEADY)

    def _lacking(self) -> Iterator[str]:
        """Yield why what should be drawn for those who watch never came."""
        yield from self._cameras.lacking()
        for topic, subscription in self._state_of.items():
            if self._image.get_subscription_count() and topic not in self._states:
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

    def _on_chunk(self, message: JointTrajectory) -> None:
        chunk = conversions.chunk_from(message, 1.0 / names.CONTROL_RATE)
        decided_at = self._poses.at(chunk.stamp)
        if (self._path.get_subscription_count() and decided_at is not None
                and leads_somewhere(chunk)):
            self._path.publish(MarkerArray(markers=[
                path_marker(decided_at, chunk, self._base_frame)]))

    def _draw(self) -> None:
        if not self._image.get_subscription_count():
            return self._cameras.close()
        self._cameras.open()
        shown = {name: self._cameras.newest(name) for name in self._cameras.names}
        frame = draw_frame({name: image and image[2] for name, image in shown.items()},
                           self._caption())
        first = shown[self._cameras.names[0]]
        stamp = first[0] if first else self.get_clock().now().nanoseconds * 1e-9
        self._image.publish(images.serialize_compressed(
            frame, conversions.time_message(stamp), quality=self._quality))

    def _caption(self) -> Caption:
        lines: dict[str, tuple[str, Ink]] = {}
        values: dict[str, dict[str, str]] = {}
        for who, topic in (('policy', names.VLA_STATE), ('gate', names.GATE_STATE)):
            heard, status = self._states.get(topic, (-math.inf, DiagnosticStatus()))
            told = values[who] = conversions.status_values(status)
            reason = f' - {told["reason"]}' if told.get('reason') else ''
            reason += ' - a person drives' if who == 'gate' and told.get(
                'driver') == names.PERSON else ''
            lines[who] = (f'{who}: silent', FAINT) if time.monotonic() - heard > SILENT else (
                f'{who}: {status.message}{reason}', LEVEL_INK.get(status.level, FAINT))
        policy = values['policy']
        return Caption(policy.get('instruction', ''), self._thought, states=(
            *lines.values(), (latency_line(policy), FAINT)), stopped=self._stopped,
            meaning=conversions.meaning(policy))


main = functools.partial(run, Overlay)

if __name__ == '__main__':
    raise SystemExit(main())
