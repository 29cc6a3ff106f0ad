"""``dtvla view``: the running graph in Rerun, live or into a file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
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
from dtvla_ros.data.robot_names import TYPES, RobotNames
from dtvla_ros.errors import UserError
from dtvla_ros.files import require_writable
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.conversions import message_type
from dtvla_ros.ros.run import STEADY, run

TRAIL = 200  # poses in the path behind the end effector
TRAIL_EVERY = 5  # poses between two drawings of it
JPEG_QUALITY = 80
DISCOVERY_PERIOD = 0.1  # between two searches for the cameras' type [s]
WALL_CLOCK = 1e8  # stamps from here on are dates, not seconds of a simulation
LEVELS = {DiagnosticStatus.OK: 'INFO', DiagnosticStatus.WARN: 'WARN',
          DiagnosticStatus.ERROR: 'ERROR'}
DEPTH = 100  # nothing is overwritten while an image is compressed
LATCHED = qos.profile(DEPTH, reliable=True, latched=True)


def blueprint(rr: Any) -> Any:
    """Return how the views are laid out."""
    b = rr.blueprint
    return b.Blueprint(b.Horizontal(
        b.Vertical(*(b.Spatial2DView(origin=f'camera/{name}', name=name)
                     for name in conventions.CAMERAS)),
        b.Vertical(b.TextLogView(origin='said', name='thoughts and states'),
                   b.TimeSeriesView(origin='command', name='command'),
                   b.TimeSeriesView(origin='latency', name='latency [s]')),
        b.Spatial3DView(origin='arm', name='end effector and plan')))


class Viewer(Node):
    """Hands on what it receives to a Rerun recording ``rec``."""

    def __init__(self, rr: Any, rec: Any, names: RobotNames) -> None:
        super().__init__('viewer', use_global_arguments=False)
        self._rr, self._rec = rr, rec
        self._trail: deque[list[float]] = deque(maxlen=TRAIL)
        self._poses, self._now, self._decision = 0, 0.0, ''
        self._states: dict[str, tuple[str, str]] = {}
        rec.log('command', rr.SeriesLines(names=list(CHANNELS)), static=True)
        rec.log('arm', rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        for kind, topic, callback, profile in (
                (String, conventions.REASONING, self._on_thought, LATCHED),
                (DiagnosticStatus, conventions.VLA_STATE, self._on_policy, LATCHED),
                (DiagnosticStatus, conventions.GATE_STATE, partial(self._log_state, 'gate'),
                 LATCHED),
                (JointTrajectory, conventions.ACTION, self._on_action, DEPTH),
                (TwistStamped, conventions.TWIST, self._on_twist, DEPTH),
                (PoseStamped, conventions.EE_POSE, self._on_pose, qos_profile_sensor_data),
                (MarkerArray, conventions.PLANNED_PATH, self._on_path, 10)):
            self.create_subscription(kind, names.topic(topic[1:]), callback, profile)
        self._undiscovered = {camera: names.candidates(topic[1:])
                              for camera, topic in conventions.IMAGES.items()}
        self._discovery = self.create_timer(DISCOVERY_PERIOD, self._discover, clock=STEADY)

    def _discover(self) -> None:
        """Subscribe to each camera once its type, raw or compressed, is known."""
        for name, topics in list(self._undiscovered.items()):
            kinds = {publisher.topic_type: topic for topic in reversed(topics)
                     for publisher in self.get_publishers_info_by_topic(topic)}
            if kind := next((kind for kind in TYPES[f'image_{name}'] if kind in kinds), ''):
                self.create_subscription(message_type(kind), kinds[kind],
                                         self._camera(name, kind), qos_profile_sensor_data,
                                         raw=True)
                del self._undiscovered[name]
        if not self._undiscovered:
            self._discovery.cancel()

    def _log(self, entity: str, value: Any, stamp: float | None = None) -> None:
        """Log at a time [s]; what has no stamp happens with the last one."""
        self._now = self._now if stamp is None else stamp
        kind = 'duration' if self._now < WALL_CLOCK else 'timestamp'
        self._rec.set_time('ros_time', **{kind: self._now})
        self._rec.log(entity, value)

    def _camera(self, name: str, kind: str) -> Callable[[bytes], None]:
        parse = images.parse_image if kind.endswith('/Image') else images.parse_compressed

        def show(message: bytes) -> None:
            try:
                frame = parse(message)
                if kind.endswith('/Image'):
                    shown = self._rr.Image(images.image_to_numpy(frame)).compress(JPEG_QUALITY)
                else:
                    data = frame.data.tobytes()
                    shown = self._rr.EncodedImage(contents=data, media_type=(
                        'image/png' if data.startswith(b'\x89PNG') else 'image/jpeg'))
                self._log(f'camera/{name}', shown, frame.stamp)
            except images.ImageError as error:
                self.get_logger().warning(f'{name}: {error}', throttle_duration_sec=1.0)
        return show

    def _on_thought(self, message: String) -> None:
        self._log('said/thought', self._rr.TextLog(message.data, level='INFO'))

    def _on_policy(self, message: DiagnosticStatus) -> None:
        self._log_state('policy', message)
        values = conversions.status_values(message)
        if (decision := values.get('stamp', '')) != self._decision:
            self._decision = decision
            for phase, value in conversions.latencies(values).items():
                self._log(f'latency/{phase}', self._rr.Scalars(value))

    def _log_state(self, node: str, status: DiagnosticStatus) -> None:
        """Log a node's state when it changes."""
        reason = conversions.status_values(status).get('reason', '')
        if self._states.get(node) != (status.message, reason):
            self._states[node] = status.message, reason
            self._log(f'said/{node}', self._rr.TextLog(
                f'{status.message} {reason}'.strip(), level=LEVELS.get(status.level, 'DEBUG')))

    def _on_action(self, message: JointTrajectory) -> None:
        if tuple(message.joint_names) in ((), CHANNELS) and len(message.points) and len(
                message.points[0].positions) == len(CHANNELS):
            self._command(message.header, message.points[0].positions)

    def _on_twist(self, message: TwistStamped) -> None:
        self._command(message.header, conversions.twist_array(message.twist))

    def _command(self, header: Any, values: Any) -> None:
        self._log('command', self._rr.Scalars(np.asarray(values, np.float64)),
                  conversions.seconds(header.stamp))

    def _on_pose(self, message: PoseStamped) -> None:
        self._trail.append(conversions.pose_arrays(message.pose)[0].tolist())
        self._poses += 1
        self._log('arm/end_effector', self._rr.Points3D([self._trail[-1]], radii=0.008),
                  conversions.seconds(message.header.stamp))
        if self._poses % TRAIL_EVERY == 0:
            self._log('arm/path', self._rr.LineStrips3D([list(self._trail)], radii=0.002))

    def _on_path(self, message: MarkerArray) -> None:
        for marker in message.markers:
            self._log('arm/plan', self._rr.LineStrips3D(
                [[(p.x, p.y, p.z) for p in marker.points]], radii=0.003),
                conversions.seconds(marker.header.stamp))


def view(save: Path | None, spawn: bool, names: RobotNames = RobotNames()) -> int:
    """Show the graph until Ctrl-C or SIGTERM; return the exit code. Raises ``UserError``.

    ``names``: the topics where they have other names.
    """
    if (save is None) is not spawn:
        raise UserError('give either --save FILE.rrd or --spawn')
    import rerun as rr

    rec = rr.RecordingStream('dtvla')
    if save is None:
        rec.spawn(default_blueprint=blueprint(rr))
    else:
        require_writable(save)
        save.parent.mkdir(parents=True, exist_ok=True)
        rec.save(str(save), default_blueprint=blueprint(rr))
    try:
        return run(lambda: Viewer(rr, rec, names), [])
    finally:
        rec.disconnect()
