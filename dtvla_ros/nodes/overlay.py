"""What the policy sees beside what it thinks, as a picture; what it plans, as a line in space."""

from __future__ import annotations

import functools
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Point, PoseStamped
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import ColorRGBA, String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import (
    ACTION_CHUNK,
    CAMERAS,
    CHANNELS,
    CONTROL_RATE,
    EE_POSE,
    GATE_STATE,
    IMAGES,
    LATENCY,
    OVERLAY,
    PLANNED_PATH,
    REASONING,
    UNFINISHED,
    VLA_STATE,
    relative,
)
from dtvla_ros.nodes.settings import declare
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.run import STEADY, run

SILENT = 2.0  # age at which a state is no longer believed [s]
POSES = 64  # kept to find the one a chunk was decided at; at 100 Hz half a second
CONTROL_PERIOD = 1.0 / CONTROL_RATE  # of a chunk with one row, which does not say it [s]
LINE_WIDTH = 0.006  # [m]
LINGER = 0.5  # how long a path outlives its chunk in a viewer [s]
SIDE, PANEL = 352, 448  # a camera's side and the words' width in the picture [px]
COLUMNS, LINES = 41, 7
INK, FAINT, PAPER = (235, 235, 235), (150, 150, 150), (24, 26, 30)
LEVEL_INK = {DiagnosticStatus.OK: (120, 220, 130), DiagnosticStatus.WARN: (240, 200, 90),
             DiagnosticStatus.ERROR: (240, 120, 110)}
OPEN, CLOSED = (0.15, 0.75, 1.0), (1.0, 0.55, 0.1)  # of the path, by gripper


@dataclass(frozen=True, slots=True)
class Said:
    """A state and its colour, as written into the picture."""

    text: str
    ink: tuple[int, int, int] = FAINT


@dataclass(frozen=True, slots=True)
class Words:
    """Everything that is written beside the cameras."""

    instruction: str
    thought: str
    policy: Said
    gate: Said
    latency: str


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
    """Return a chunk's path as a LINE_STRIP coloured by what the gripper is told."""
    told, last = [], osc.GRIPPER_OPEN
    for row in chunk.values:
        last = osc.gripper_command(float(row[6]), last)
        told.append(last)
    shades = [CLOSED if grip == osc.GRIPPER_CLOSED else OPEN for grip in [told[0], *told]]
    lifetime = conversions.time_message(len(chunk.values) * chunk.period + LINGER)
    marker = Marker(
        header=conversions.header(chunk.stamp, frame_id), ns=relative(PLANNED_PATH), id=0,
        type=Marker.LINE_STRIP, action=Marker.ADD,
        lifetime=Duration(sec=lifetime.sec, nanosec=lifetime.nanosec),
        points=[Point(x=x, y=y, z=z)
                for x, y, z in planned_positions(position, chunk).tolist()],
        colors=[ColorRGBA(r=r, g=g, b=b, a=1.0) for r, g, b in shades])
    marker.pose.orientation.w = 1.0
    marker.scale.x = LINE_WIDTH
    return marker


def latency_line(values: Mapping[str, str]) -> str:
    """Return what a decision took, the sum first, from the values of ``vla/state``."""
    taken = {key.removeprefix(LATENCY): 1e3 * float(value)
             for key, value in values.items() if key.startswith(LATENCY)}
    first = [f'{taken.pop("total"):.0f} ms'] if 'total' in taken else []
    return ', '.join([*first, *(f'{phase} {ms:.0f}' for phase, ms in taken.items())])


def draw_words(words: Words) -> Picture.Image:
    """Return the panel beside the cameras; of a long thought its end."""
    panel = Picture.new('RGB', (PANEL, SIDE), PAPER)
    pen = ImageDraw.Draw(panel)
    large, small = ImageFont.load_default(20), ImageFont.load_default(14)
    thought = textwrap.wrap(words.thought, COLUMNS)
    if len(thought) > LINES:
        thought = ['...', *thought[1 - LINES:]]
    pen.text((14, 8), '\n'.join(textwrap.wrap(words.instruction, COLUMNS)[:2]), INK, large)
    pen.text((14, 66), 'thinks', FAINT, small)
    pen.text((14, 86), '\n'.join(thought), INK, large)
    for row, said in enumerate((words.policy, words.gate, Said(words.latency))):
        line = textwrap.shorten(said.text, 60, placeholder=' ...')
        pen.text((14, SIDE - 66 + 21 * row), line, said.ink, small)
    return panel


def draw_camera(name: str, pixels: NDArray[np.uint8] | None) -> Picture.Image:
    """Return a camera's square, its picture [H, W, 3] fitted into it."""
    tile = Picture.new('RGB', (SIDE, SIDE), PAPER)
    if pixels is None:
        ImageDraw.Draw(tile).text((14, 8), f'no image_{name}', FAINT, ImageFont.load_default(20))
        return tile
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    fitted = Picture.fromarray(np.ascontiguousarray(pixels)).resize(
        size, Picture.Resampling.BILINEAR)
    tile.paste(fitted, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return tile


class Overlay(Node):
    """Draws only while somebody watches; the cameras are not even subscribed to before."""

    def __init__(self) -> None:
        super().__init__('overlay')
        rate = declare(self, 'rate', 10.0, 'pictures per second while watched [Hz]', low=0.1)
        transport = declare(
            self, 'transport', 'raw', 'image topics', choices=('raw', 'compressed'))
        self._quality = declare(self, 'jpeg_quality', 85, 'of the picture, 1 to 100', low=1)
        self._base_frame = declare(self, 'base_frame', 'base', 'frame of planned_path')
        self._image_type: Any
        self._parse: Callable[[bytes], Any]
        self._image_type, self._parse, self._decode = (
            (Image, images.parse_image, images.image_to_numpy) if transport == 'raw'
            else (CompressedImage, images.parse_compressed, images.compressed_to_numpy))
        self._cameras: list[Any] = []
        self._frames: dict[str, bytes] = {}  # as they came
        self._poses: dict[float, NDArray[np.float64]] = {}
        self._stamps: dict[str, float] = {}  # of the frames drawn last
        self._thought = ''
        self._states: dict[str, tuple[float, DiagnosticStatus]] = {}
        self._panel: tuple[Words, Picture.Image] | None = None

        self._picture = self.create_publisher(CompressedImage, relative(OVERLAY), qos.LATEST)
        self._path = self.create_publisher(MarkerArray, relative(PLANNED_PATH), qos.LATEST)
        self.create_subscription(String, relative(REASONING), self._on_thought, qos.LATCHED_10)
        self.create_subscription(
            JointTrajectory, relative(ACTION_CHUNK), self._on_chunk, qos.LATEST)
        self.create_subscription(
            PoseStamped, relative(EE_POSE), self._on_pose, qos_profile_sensor_data)
        for name in (relative(VLA_STATE), relative(GATE_STATE)):
            self.create_subscription(
                DiagnosticStatus, name, self._state_callback(name), qos.LATCHED)
        self.create_timer(
            1.0 / rate, self._draw, clock=STEADY)

    def _on_thought(self, message: String) -> None:
        self._thought = message.data.replace(UNFINISHED, ' ...')

    def _state_callback(self, name: str):
        def receive(message: DiagnosticStatus) -> None:
            self._states[name] = time.monotonic(), message
        return receive

    def _on_pose(self, message: PoseStamped) -> None:
        position, _ = conversions.pose_arrays(message.pose)
        if np.isfinite(position).all():
            self._poses[conversions.seconds(message.header.stamp)] = position
            while len(self._poses) > POSES:
                del self._poses[next(iter(self._poses))]

    def _on_chunk(self, message: JointTrajectory) -> None:
        if not self._path.get_subscription_count() or not self._poses:
            return
        chunk = conversions.chunk_from(message, CONTROL_PERIOD)
        values = chunk.values
        if not len(values) or values.shape[1] != len(CHANNELS) or not np.isfinite(values).all():
            return
        decided_at = min(self._poses, key=lambda stamp: abs(stamp - chunk.stamp))
        self._path.publish(MarkerArray(markers=[
            path_marker(self._poses[decided_at], chunk, self._base_frame)]))

    def _follow_cameras(self, wanted: bool) -> None:
        if wanted and not self._cameras:
            self._cameras = [
                self.create_subscription(
                    self._image_type, relative(IMAGES[name]),
                    functools.partial(self._frames.__setitem__, name), qos.NEWEST_FRAME, raw=True)
                for name in CAMERAS]
        elif not wanted and self._cameras:
            for subscription in self._cameras:
                self.destroy_subscription(subscription)
            self._cameras = []
            self._frames.clear()

    def _draw(self) -> None:
        wanted = self._picture.get_subscription_count() > 0
        self._follow_cameras(wanted)
        if not wanted:
            return
        words = self._words()
        if self._panel is None or self._panel[0] != words:
            self._panel = words, draw_words(words)
        canvas = Picture.new('RGB', (len(CAMERAS) * SIDE + PANEL, SIDE))
        for k, name in enumerate(CAMERAS):
            canvas.paste(draw_camera(name, self._pixels(name)), (k * SIDE, 0))
        canvas.paste(self._panel[1], (len(CAMERAS) * SIDE, 0))
        stamp = self._stamps.get(CAMERAS[0], self.get_clock().now().nanoseconds * 1e-9)
        self._picture.publish(images.serialize_compressed(
            np.asarray(canvas), conversions.time_message(stamp), quality=min(self._quality, 100)))

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

    def _words(self) -> Words:
        _, policy = self._states.get(relative(VLA_STATE), (0.0, None))
        values = {} if policy is None else conversions.status_values(policy)
        return Words(
            values.get('instruction', ''), self._thought,
            self._said('policy', relative(VLA_STATE)),
            self._said('gate', relative(GATE_STATE)), latency_line(values))

    def _said(self, who: str, name: str) -> Said:
        heard, status = self._states.get(name, (0.0, None))
        if status is None or time.monotonic() - heard > SILENT:
            return Said(f'{who}: silent')
        reason = conversions.status_values(status).get('reason', '')
        return Said(f'{who}: {status.message}{" - " if reason else ""}{reason}',
                    LEVEL_INK.get(status.level, FAINT))


def main(args: list[str] | None = None) -> int:
    """Run the node."""
    return run(Overlay, args)


if __name__ == '__main__':
    raise SystemExit(main())
