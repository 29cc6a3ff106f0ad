"""Serves the operator's page: watch the arm think, talk to it, stop it."""

from __future__ import annotations

import functools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros import conventions as names
from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import POLICY, parameter, relative
from dtvla_ros.nodes.operator_controls import Controls
from dtvla_ros.nodes.settings import declare_all
from dtvla_ros.nodes.viewing import (
    LINGER,
    SILENT,
    Cameras,
    Poses,
    closed_along,
    leads_somewhere,
    path_of,
)
from dtvla_ros.operator import marks
from dtvla_ros.operator.access import Access
from dtvla_ros.operator.history import Budget, Episodes, Motion, Thoughts, changes
from dtvla_ros.operator.homing import Pose, read_pose
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.frames import FrameTree
from dtvla_ros.ros.graph import Seen
from dtvla_ros.ros.run import STEADY, call_soon, run
from dtvla_ros.ros.waiting import type_name
from dtvla_ros.thought import Thought, without_told

if TYPE_CHECKING:
    from dtvla_ros.operator.server import PageServer

SAID = 6  # answers to orders that are kept
LOST = 5.0  # age at which a recorder's state is no longer believed [s]
SENSORS = qos.profile(20, reliable=False, latched=False)
LEVELS = {DiagnosticStatus.OK: 'good', DiagnosticStatus.WARN: 'warn',
          DiagnosticStatus.ERROR: 'bad', DiagnosticStatus.STALE: 'none'}
READ_ONLY = 'this page is read-only: parameter allow_control'


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Parameters of the page."""

    host: str = parameter('127.0.0.1', 'address that the page is served on')
    port: int = parameter(names.PAGE_PORT, 'its port; 0: a free one', low=0, high=65535)
    token: str = parameter('', 'secret in the address of the page; needed where host is not this '
                           'machine')
    allow_control: bool = parameter(False, 'the page may order; else it only shows')
    rate: float = parameter(10.0, 'updates per second while somebody watches [Hz]', low=0.5,
                            high=30.0)
    jpeg_quality: int = parameter(80, 'of the images', low=1, high=100)
    table_z: float = parameter(
        0.0, 'height of the table in base_frame, where a place of the thought is marked [m]')


class Operator(Node):
    """A page that shows what policy, gate and arm do, and lets a person order them.

    It orders only with ``allow_control``, over the topics and services that others use, too, and
    so through the gate. Cameras, poses and commands are subscribed to while somebody watches.
    """

    def __init__(self) -> None:
        super().__init__('operator')
        given = self._given = declare_all(self, OperatorSettings())
        self._access = Access(given.host, given.token)
        self._server: PageServer | None = None
        self._motion = Motion()
        self._cameras, self._poses = Cameras(self), Poses(self, self._on_pose)
        self._base = self.get_parameter('base_frame').value.lstrip('/')
        self._seen, self._said = Seen(), deque[dict[str, str]](maxlen=SAID)
        self._thoughts, self._episodes = Thoughts(), Episodes()
        self._budget = Budget()
        self._tree, self._lenses = FrameTree(), dict[str, marks.Lens]()
        self._watching: list[Any] = []  # subscriptions while somebody watches
        self._commands: dict[str, tuple[Any, Callable[[Any], None]]] = {
            names.ACTION: (JointTrajectory, self._on_action),
            names.TWIST: (TwistStamped, self._on_twist),
            names.TARGET_POSE: (PoseStamped, self._on_target)}
        self._commanded: set[str] = set()  # of these, those that are subscribed to
        self._status: dict[str, tuple[float, DiagnosticStatus]] = {}  # when it was heard [s]
        self._policy: dict[str, str] = {}
        self._record = -np.inf, DiagnosticStatus()  # when the recorder's state was heard [s]
        self._driver = POLICY
        self._tasks: list[str] = []
        self._scene: dict[str, Any] = {}
        self._chunk: Chunk | None = None
        self._latency: dict[str, Any] = {}
        self._able: dict[str, bool] = {}
        self._images: dict[str, tuple[float, bytes]] = {}  # stamp and JPEG as shown
        self._controls = Controls(self, self._say) if given.allow_control else None
        for kind, topic, receive, profile in (
                (String, names.REASONING, self._on_thought, qos.LATCHED_10),
                (String, names.REASONING_STREAM, lambda message: self._seen.take_writing(
                    message.data), qos.NEWEST),
                (String, names.VLA_TASKS, self._on_tasks, qos.LATCHED),
                (String, names.SIM_STATE, self._on_scene, qos.LATCHED),
                (String, names.EPISODE, self._on_episode, qos.LATCHED_100),
                (String, names.EPISODE_MARK, self._on_mark, qos.LATEST),
                (JointTrajectory, names.ACTION_CHUNK, self._on_chunk, qos.LATEST),
                (DiagnosticStatus, names.RECORD_STATE, self._on_record, qos.LATCHED),
                (DiagnosticStatus, names.VLA_STATE, self._on_policy, qos.LATCHED),
                (DiagnosticStatus, names.GATE_STATE, self._on_gate, qos.LATCHED)):
            self.create_subscription(kind, relative(topic), receive, profile)
        self.create_timer(1.0 / given.rate, self._show, clock=STEADY)
        self.create_timer(1.0, self._look_around, clock=STEADY)

    def serve(self) -> Operator:
        """Open the page; return the node. Raises UserError where its address is taken."""
        from dtvla_ros.operator.server import PageServer  # here: an extra, missed in one line
        self._server = PageServer(self._access, self._given.port, self._on_order, self._on_gone)
        self.get_logger().info(f'page: {self._server.start()}' + (
            '' if self._controls else ' (read-only: allow_control is false)'))
        return self

    def destroy_node(self) -> None:
        """Close the page."""
        if self._server is not None:
            self._server.close()
        super().destroy_node()

    def _on_order(self, order: str, value: str | bool, socket: int) -> None:
        """Take an order in the server's thread; a stop does not wait for the executor."""
        controls = self._controls
        if controls is None:
            call_soon(self, lambda: self._say(READ_ONLY, 'bad'))
        elif order == 'stop':
            controls.stop()
            call_soon(self, self._show)
        else:
            call_soon(self, lambda: controls.obey(order, value, socket))

    def _on_gone(self, socket: int) -> None:
        if (controls := self._controls) is not None:
            call_soon(self, lambda: controls.driving.gone(socket))

    def _say(self, text: str, level: str) -> None:
        self._said.append({'at': _time_of_day(), 'text': text, 'level': level})

    def _on_thought(self, message: String) -> None:
        self._seen.take_thought(message.data)
        self._thoughts.add(message.data, _time_of_day())

    def _on_tasks(self, message: String) -> None:
        self._tasks = [task for task in self._read(message, list) if isinstance(task, str)]

    def _on_scene(self, message: String) -> None:
        self._scene = self._read(message, dict)
        self._episodes.judged(self._scene.get('done', ''), time.monotonic(), self._step)
        if self._controls is not None:
            self._controls.driving.home = read_pose(self._scene.get('home'))

    def _on_episode(self, message: String) -> None:
        self._episodes.simulated(self._read(message, dict))

    def _on_record(self, message: DiagnosticStatus) -> None:
        before = self._record[1].level
        self._record = time.monotonic(), message
        if message.level == DiagnosticStatus.ERROR != before:
            self._say(conversions.status_values(message).get('reason', ''), 'bad')

    def _on_mark(self, message: String) -> None:
        mark = message.data.strip()
        if (good := names.MARKS.get(mark)) is None:
            self._say(f'{names.EPISODE_MARK}: "{mark[:40]}" is neither '
                      f'{" nor ".join(names.MARKS)}', 'bad')
        else:
            self._episodes.mark(good)
            self._say(f'marked: {mark}', 'good')

    def _read(self, message: String, kind: type) -> Any:
        """Return a message's JSON; an empty one, and a warning, where it is none of this kind."""
        with suppress(ValueError, RecursionError):
            if isinstance(value := json.loads(message.data), kind):
                return value
        self.get_logger().warning(f'no JSON {kind.__name__}: {message.data[:60]!r}',
                                  throttle_duration_sec=5.0)
        return kind()

    def _on_policy(self, message: DiagnosticStatus) -> None:
        now, refusals = time.monotonic(), self._seen.refusals
        self._status['policy'] = now, message
        before, values = self._policy, self._seen.take_policy(message)
        self._policy = values
        self._tell_of_override(before, values)
        if self._seen.refusals > refusals:
            self._say('refused: {}: {}'.format(*self._seen.rejected), 'bad')
        self._episodes.policy(self._seen.task, self._seen.told, message.message,
                              self._seen.vla_reason, self._step, now)
        if taken := conversions.latencies(values):
            total = taken.pop('total', sum(taken.values()))
            self._latency |= {'total': total, 'phases': list(taken.items())}

    def _tell_of_override(self, before: Mapping[str, str], now: Mapping[str, str]) -> None:
        """Say whether what was put into the thought was taken."""
        def more(key: str) -> bool:
            return bool(before) and int(now.get(key, 0)) > int(before.get(key, 0))
        if more('override_refusals'):
            self._say(f'refused: {now.get("override_rejected", "")}', 'bad')
        elif more('overrides'):
            stands = now.get('override', '')
            self._say(f'thought corrected: {stands}' if stands else
                      "thought: the policy's own again", 'good')

    @property
    def _step(self) -> int:
        return int(self._policy.get('step', 0))

    def _on_gate(self, message: DiagnosticStatus) -> None:
        now = time.monotonic()
        self._status['gate'] = now, message
        self._driver = conversions.status_values(message).get('driver', POLICY)
        if self._controls is not None:
            self._controls.driving.follow(self._driver)
        self._seen.take_gate(message)
        self._episodes.gate(self._seen.stopped_task, now, self._step)

    def _on_chunk(self, message: JointTrajectory) -> None:
        chunk = conversions.chunk_from(message, 1.0 / names.CONTROL_RATE)
        if leads_somewhere(chunk):
            self._chunk = chunk
            if budget := self._budget.add(chunk.stamp, len(chunk.values) * chunk.period):
                self._latency['budget'] = budget

    def _watch(self) -> None:
        """Subscribe to what is only worth its cost while somebody watches."""
        self._cameras.open()
        self._poses.open()
        subscribe = self.create_subscription
        self._watching = [
            *(subscribe(CameraInfo, relative(topic), functools.partial(self._on_lens, camera),
                        qos_profile_sensor_data)
              for camera, topic in ((name, names.camera_info_topic(name))
                                    for name in self._cameras.names))]
        try:
            transforms = conversions.message_type('tf2_msgs/msg/TFMessage')
        except KeyError:
            return self._say('tf2_msgs is not installed: no marks in the images', 'none')
        self._watching += [subscribe(
            transforms, topic, functools.partial(self._on_transforms, static),
            qos.profile(100, reliable=True, latched=static))
            for topic, static in (('/tf', False), ('/tf_static', True))]

    def _unwatch(self) -> None:
        self._cameras.close()
        self._poses.close()
        while self._watching:
            self.destroy_subscription(self._watching.pop())
        self._commanded.clear()
        self._images.clear()

    def _on_transforms(self, static: bool, message: Any) -> None:
        self._tree.take(message, static)

    def _on_lens(self, camera: str, message: CameraInfo) -> None:
        lens = marks.Lens(np.reshape(message.k, (3, 3)), np.array(message.d),
                          (message.width, message.height))
        if lens.sound and message.distortion_model in marks.MODELS:
            self._lenses[camera] = lens

    def _on_action(self, message: JointTrajectory) -> None:
        chunk = conversions.chunk_from(message, 1.0 / names.CONTROL_RATE)
        if leads_somewhere(chunk):
            self._motion.command(chunk.stamp, np.clip(chunk.values[0, :3], -1.0, 1.0).astype(
                np.float64) * osc.METRES_PER_SECOND_PER_UNIT)

    def _on_pose(self, position: NDArray[np.float64], quaternion: NDArray[np.float64],
                 stamp: float) -> None:
        self._motion.measure(stamp, position)
        if self._controls is not None:
            self._controls.driving.at = Pose(position, quaternion)

    def _on_twist(self, message: TwistStamped) -> None:
        self._motion.command(conversions.seconds(message.header.stamp),
                             conversions.twist_array(message.twist)[:3])

    def _on_target(self, message: PoseStamped) -> None:
        stamp = conversions.seconds(message.header.stamp)
        if (position := self._poses.at(stamp)) is not None:
            ahead = conversions.pose_arrays(message.pose)[0] - position
            self._motion.command(
                stamp, ahead * osc.METRES_PER_SECOND_PER_UNIT / osc.METRES_PER_UNIT)

    def _look_around(self) -> None:
        """See which services are there, and on which topic the arm is commanded."""
        self._able = self._controls.able() if self._controls else {}
        for topic, (kind, receive) in self._commands.items():
            # Two of them may be one topic, of the type that the controller takes.
            if self._watching and topic not in self._commanded and type_name(kind) in {
                    end.topic_type for end in self.get_publishers_info_by_topic(
                        self.resolve_topic_name(relative(topic)))}:
                self._commanded.add(topic)
                self._watching.append(self.create_subscription(
                    kind, relative(topic), receive, SENSORS))

    def _show(self) -> None:
        """Send the page what there is; begin or cease to watch."""
        fault = self._controls.tick(self._seen) if self._controls else (
            self._seen.gate_reason if self._seen.gate_state == 'FAULT' else '')
        server = self._server
        if server is None or not server.watched:
            if self._watching:
                self._unwatch()
            return
        if not self._watching:
            self._watch()
        frames = dict.fromkeys(self._cameras.names, b'')
        marked: dict[str, Any] = {}
        for camera in self._cameras.names:
            if (newest := self._cameras.newest(camera)) is not None:
                stamp, frame_id, pixels = newest
                if self._images.get(camera, (None,))[0] != stamp:
                    self._images[camera] = stamp, images.to_jpeg(
                        pixels, self._given.jpeg_quality).tobytes()
                frames[camera] = self._images[camera][1]
                marked[camera] = self._marks(camera, stamp, frame_id)
        server.publish(self._state(fault) | {'marks': marked}, frames)

    def _state(self, fault: str) -> dict[str, Any]:
        """Return what the page shows beside the images."""
        seen, told = self._seen, self._policy
        parts = changes(self._thoughts.last, seen.writing) if seen.writing else [
            (without_told(seen.thought)[0], False)]
        proposed, decoded = int(told.get('draft_proposed', 0)), told.get('decoded', '')
        return {
            'control': self._controls is not None, 'able': self._able, 'fault': fault,
            'time': int(time.time()), 'cameras': list(self._cameras.names),
            'domain': os.environ.get('ROS_DOMAIN_ID', '0'),
            'policy': self._light('policy'), 'gate': self._light('gate'),
            'driver': {'who': self._driver,
                       'page': self._controls.driving.page if self._controls else ''},
            'task': {'asked': seen.told, 'meaning': seen.meaning, 'refused': seen.refused,
                     'why': told.get('rejected', '')},
            'tasks': self._tasks, 'scene': self._scene,
            'thought': {
                'parts': parts, 'whole': not seen.writing,
                'draft': f'{told["draft_accepted"]} of {proposed} drafted tokens kept' + (
                    f', newly decoded: {decoded}' if decoded else '') if proposed else '',
                'corrected': told.get('override', ''),
                'confidence': told.get('confidence', ''), 'question': told.get('question', '')},
            'thoughts': self._thoughts.rows(), 'latency': dict(self._latency),
            'motion': self._motion.rows(), 'episodes': self._episodes.rows(),
            'recording': self._recording(), 'said': list(self._said)}

    def _recording(self) -> dict[str, Any]:
        """Return whether a bag is written, and where, how long and how large it is."""
        heard, status = self._record
        on = status.message == names.RECORDING
        if on and time.monotonic() - heard > LOST:
            return {'on': False, 'said': 'nothing is heard of record_server any more'}
        return {'on': on, 'said': conversions.status_values(status).get('reason', '')}

    def _light(self, who: str) -> dict[str, str]:
        """Return state, reason and level of policy or gate."""
        heard, status = self._status.get(who, (-np.inf, DiagnosticStatus()))
        if time.monotonic() - heard > SILENT:
            return {'state': 'SILENT', 'reason': f'nothing is heard of the {who}', 'level': 'bad'}
        return {'state': status.message, 'level': LEVELS.get(status.level, 'none'),
                'reason': conversions.status_values(status).get('reason', '')}

    def _marks(self, camera: str, stamp: float, frame_id: str) -> dict[str, Any]:
        """Return what can be drawn into a camera's image: the named place and the chunk's path."""
        lens = self._lenses.get(camera)
        placed = self._tree.look_up(self._base, frame_id.lstrip('/'))
        if lens is None or placed is None:
            return {}
        found: dict[str, Any] = {}
        view = functools.partial(marks.project, lens=lens, position=placed[0], rotation=placed[1])
        thought = Thought.parse(self._policy.get('thought', '')) if self._seen.thought else None
        if thought is not None:
            place = marks.ring(thought.x / 100, thought.y / 100, self._given.table_z)
            found |= {'ring': view(place), 'name': thought.object.replace('_', ' ')}
        path = self._path(stamp)
        if path is not None and self._chunk is not None:
            found |= {'path': view(path), 'closed': closed_along(self._chunk)}
        return found

    def _path(self, stamp: float) -> NDArray[np.float64] | None:
        """Return where the newest chunk leads, if it is not over at a stamp [s]."""
        chunk = self._chunk
        if chunk is None or not -LINGER <= stamp - chunk.stamp <= (
                len(chunk.values) * chunk.period + LINGER):
            return None
        position = self._poses.at(chunk.stamp)
        return None if position is None else path_of(position, chunk)


def _time_of_day() -> str:
    return time.strftime('%H:%M:%S')


def serving() -> Operator:
    """Serve a page for a browser, which shows what policy, gate and arm do.

    With allow_control it orders, too. Its address is logged.
    """
    return Operator().serve()


main = functools.partial(run, serving)

if __name__ == '__main__':
    raise SystemExit(main())
