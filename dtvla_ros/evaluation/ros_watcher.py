"""A node that only listens: what the policy thinks, what the arm is told, how episodes end."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.conventions import (
    ACTION,
    CAMERAS,
    EPISODE,
    GATE_STATE,
    IMAGES,
    LATENCY,
    REASONING,
    UNFINISHED,
    VLA_STATE,
)
from dtvla_ros.evaluation.ros_seen import Seen
from dtvla_ros.ros import images, qos

# Deep, so that nothing is overwritten while a picture is drawn.
_LATCHED = qos.profile(100, reliable=True, latched=True)


OnFrame = Callable[[dict[str, NDArray[np.uint8]], Seen], None]
OnEpisode = Callable[[dict[str, Any]], None]


class Watcher(Node):
    """Collects `Seen`; hands on every pair of pictures and every finished episode.

    A pair is handed on when the next one comes, so that the thought it led to is known by then.
    """

    def __init__(self, on_frame: OnFrame, on_episode: OnEpisode):
        super().__init__('demo_watcher')
        self.seen = Seen()
        self._on_frame, self._on_episode = on_frame, on_episode
        self._pair: dict[str, NDArray[np.uint8]] = {}
        self._stamp = -1.0
        self._decision = ''
        sensor = qos_profile_sensor_data
        for name, topic in IMAGES.items():
            self.create_subscription(
                Image, topic, functools.partial(self._image, name), sensor, raw=True)
        self.create_subscription(String, REASONING, self._reasoning, _LATCHED)
        self.create_subscription(String, EPISODE, self._episode, _LATCHED)
        self.create_subscription(DiagnosticStatus, VLA_STATE, self._vla_state, _LATCHED)
        self.create_subscription(DiagnosticStatus, GATE_STATE, self._gate_state, _LATCHED)
        self.create_subscription(JointTrajectory, ACTION, self._action, 100)

    def _image(self, name: str, data: bytes) -> None:
        try:
            message = images.parse_image(data)
            picture = images.image_to_numpy(message)
        except images.ImageError as error:
            self.get_logger().warning(f'{name}: {error}')
            return
        if message.stamp != self._stamp:
            self.flush()
            self._stamp = message.stamp
        self._pair[name] = picture

    def flush(self) -> None:
        """Hand on the pair that is waiting for its thought."""
        if len(self._pair) == 2:
            self._on_frame({k: self._pair[k] for k in CAMERAS}, self.seen)
        self._pair = {}

    def _reasoning(self, message: String) -> None:
        self.seen.writing = message.data.endswith(UNFINISHED)
        self.seen.thought = message.data.removesuffix(UNFINISHED)
        self.seen.thoughts += not self.seen.writing

    def _episode(self, message: String) -> None:
        row = json.loads(message.data)
        self.seen.episode = row
        if row.get('done'):
            self.flush()
            self.seen.episodes.append(row)
            self._on_episode(row)
        self.seen.finished = self.seen.finished or bool(row.get('finished'))

    def _vla_state(self, message: DiagnosticStatus) -> None:
        self.seen.vla_state = message.message
        values = {pair.key: pair.value for pair in message.values}
        decision = values.get('stamp', '')
        if decision == self._decision:
            return
        self._decision = decision
        for key, value in values.items():
            if key.startswith(LATENCY):
                phase = key.removeprefix(LATENCY)
                self.seen.latency.setdefault(phase, []).append(float(value))

    def _gate_state(self, message: DiagnosticStatus) -> None:
        self.seen.gate_state = message.message
        self.seen.gate_reason = next((p.value for p in message.values if p.key == 'reason'), '')

    def _action(self, message: JointTrajectory) -> None:
        self.seen.commands += 1
