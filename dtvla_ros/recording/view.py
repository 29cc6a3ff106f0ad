"""``dtvla view``: the running graph in Rerun, live or into a file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

from dtvla_ros import conventions
from dtvla_ros.conventions import CHANNELS
from dtvla_ros.errors import UserError
from dtvla_ros.files import require_writable
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.conversions import message_type
from dtvla_ros.ros.run import STEADY, run

TRAIL = 200  # poses in the path behind the hand
TRAIL_EVERY = 5  # poses between two drawings of it
JPEG_QUALITY = 80
PNG = b'\x89PNG'
LOOK_PERIOD = 0.1  # between two looks for the cameras' type [s]
WALL_CLOCK = 1e8  # stamps from here on are dates, not seconds of a simulation
LEVELS = {DiagnosticStatus.OK: 'INFO', DiagnosticStatus.WARN: 'WARN',
          DiagnosticStatus.ERROR: 'ERROR'}
DEPTH = 100  # nothing is overwritten while a picture is compressed
LATCHED = qos.profile(DEPTH, reliable=True, latched=True)


def load_rerun() -> Any:
    """Return the ``rerun`` module; raise UserError with the remedy where it is missing."""
    try:
        import rerun
    except ImportError as error:
        raise UserError(
            "Rerun is not installed; run: pip install 'rerun-sdk>=0.24,<0.42'") from error
    return rerun


def blueprint(rr: Any) -> Any:
    """Return how the views are laid out."""
    b = rr.blueprint
    return b.Blueprint(b.Horizontal(
        b.Vertical(*(b.Spatial2DView(origin=f'camera/{name}', name=name)
                     for name in conventions.IMAGES)),
        b.Vertical(b.TextLogView(origin='said', name='thoughts and states'),
                   b.TimeSeriesView(origin='command', name='command'),
                   b.TimeSeriesView(origin='latency', name='latency [s]')),
        b.Spatial3DView(origin='arm', name='hand and plan')))


class Viewer(Node):
    """Hands on what it hears to a Rerun recording ``rec``."""

    def __init__(self, rr: Any, rec: Any) -> None:
        super().__init__('viewer', use_global_arguments=False)
        self._rr, self._rec = rr, rec
        self._trail: deque[list[float]] = deque(maxlen=TRAIL)
        self._poses = 0
        self._now = 0.0
        self._decision = ''
        self._told: dict[str, tuple[str, str]] = {}
        rec.log('command', rr.SeriesLines(names=list(CHANNELS)), static=True)
        rec.log('arm', rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)

        sensor = qos_profile_sensor_data
        self.create_subscription(String, conventions.REASONING, self._on_thought, LATCHED)
        self.create_subscription(DiagnosticStatus, conventions.VLA_STATE, self._on_policy, LATCHED)
        self.create_subscription(
            DiagnosticStatus, conventions.GATE_STATE, lambda m: self._said('gate', m), LATCHED)
        self.create_subscription(JointTrajectory, conventions.ACTION, self._on_action, DEPTH)
        self.create_subscription(TwistStamped, conventions.TWIST, self._on_twist, DEPTH)
        self.create_subscription(PoseStamped, conventions.EE_POSE, self._on_pose, sensor)
        self.create_subscription(MarkerArray, conventions.PLANNED_PATH, self._on_path, 10)
        self._unseen = dict(conventions.IMAGES)
        self._looking = self.create_timer(
            LOOK_PERIOD, self._look, clock=STEADY)

    def _look(self) -> None:
        """Subscribe to each camera once its type, raw or compressed, is known."""
        for name, topic in list(self._unseen.items()):
            publishers = self.get_publishers_info_by_topic(topic)
            if publishers:
                kind = publishers[0].topic_type
                self.create_subscription(
                    message_type(kind), topic, self._camera(name, kind.endswith('/Image')),
                    qos_profile_sensor_data, raw=True)
                del self._unseen[name]
        if not self._unseen:
            self._looking.cancel()

    def _at(self, stamp: float | None = None) -> None:
        """Set the time of what is logged next; what has no stamp happens with the last one."""
        if stamp is not None:
            self._now = stamp
        if self._now < WALL_CLOCK:
            self._rec.set_time('ros_time', duration=self._now)
        else:
            self._rec.set_time('ros_time', timestamp=self._now)

    def _camera(self, name: str, raw: bool) -> Callable[[Any], None]:
        def show(message: bytes) -> None:
            try:
                if not raw:
                    frame = images.parse_compressed(message)
                    self._at(frame.stamp)
                    data = frame.data.tobytes()
                    kind = 'image/png' if data.startswith(PNG) else 'image/jpeg'
                    self._rec.log(f'camera/{name}', self._rr.EncodedImage(
                        contents=data, media_type=kind))
                    return
                image = images.parse_image(message)
                self._at(image.stamp)
                pixels = images.image_to_numpy(image)
            except images.ImageError as error:
                self.get_logger().warning(f'{name}: {error}', throttle_duration_sec=1.0)
                return
            self._rec.log(f'camera/{name}', self._rr.Image(pixels).compress(JPEG_QUALITY))
        return show

    def _on_thought(self, message: String) -> None:
        if not message.data.endswith(conventions.UNFINISHED):
            self._at()
            self._rec.log('said/thought', self._rr.TextLog(message.data, level='INFO'))

    def _on_policy(self, message: DiagnosticStatus) -> None:
        self._said('policy', message)
        values = {pair.key: pair.value for pair in message.values}
        if values.get('stamp', '') == self._decision:
            return
        self._decision = values.get('stamp', '')
        for key, value in values.items():
            if key.startswith(conventions.LATENCY):
                self._rec.log(f'latency/{key.removeprefix(conventions.LATENCY)}',
                              self._rr.Scalars(float(value)))

    def _said(self, who: str, status: DiagnosticStatus) -> None:
        reason = next((pair.value for pair in status.values if pair.key == 'reason'), '')
        if self._told.get(who) != (status.message, reason):
            self._told[who] = status.message, reason
            self._at()
            self._rec.log(f'said/{who}', self._rr.TextLog(
                f'{status.message} {reason}'.strip(), level=LEVELS.get(status.level, 'DEBUG')))

    def _on_action(self, message: JointTrajectory) -> None:
        if len(message.points) and len(message.points[0].positions) == len(CHANNELS):
            self._command(message.header, message.points[0].positions)

    def _on_twist(self, message: TwistStamped) -> None:
        v, w = message.twist.linear, message.twist.angular
        self._command(message.header, (v.x, v.y, v.z, w.x, w.y, w.z))

    def _command(self, header: Any, values: Sequence[float]) -> None:
        self._at(conversions.seconds(header.stamp))
        self._rec.log('command', self._rr.Scalars(np.asarray(values, np.float64)))

    def _on_pose(self, message: PoseStamped) -> None:
        p = message.pose.position
        self._at(conversions.seconds(message.header.stamp))
        self._trail.append([p.x, p.y, p.z])
        self._poses += 1
        self._rec.log('arm/hand', self._rr.Points3D([self._trail[-1]], radii=0.008))
        if self._poses % TRAIL_EVERY == 0:
            self._rec.log('arm/path', self._rr.LineStrips3D([list(self._trail)], radii=0.002))

    def _on_path(self, message: MarkerArray) -> None:
        for marker in message.markers:
            self._at(conversions.seconds(marker.header.stamp))
            self._rec.log('arm/plan', self._rr.LineStrips3D(
                [[(p.x, p.y, p.z) for p in marker.points]], radii=0.003))


def view(save: Path | None, spawn: bool) -> int:
    """Show the graph until Ctrl-C or SIGTERM; return the exit code.

    Raises
    ------
    UserError
        If not exactly one of the two is asked for, the file cannot be written, or Rerun is
        missing.

    """
    if (save is None) is not spawn:
        raise UserError('give either --save FILE.rrd or --spawn')
    if save is not None:
        require_writable(save)
    rr = load_rerun()
    rec = rr.RecordingStream('dtvla')
    if save is None:
        rec.spawn(default_blueprint=blueprint(rr))
    else:
        save.parent.mkdir(parents=True, exist_ok=True)
        rec.save(str(save), default_blueprint=blueprint(rr))
    try:
        return run(lambda: Viewer(rr, rec), [])
    finally:
        rec.disconnect()
