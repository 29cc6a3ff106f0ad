"""What the policy node sees and feels: decoded, judged, paired, and missed when it is late."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, JointState

from dtvla_ros.conventions import CAMERAS, EE_POSE, IMAGES, JOINT_STATES, relative
from dtvla_ros.nodes.observer import Observer
from dtvla_ros.nodes.pose_source import PoseSource
from dtvla_ros.nodes.settings import VlaSettings
from dtvla_ros.policy.observation import Observation
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.safety.watchdog import Watchdog

SAME_CLOCK = 1.0  # distance of a stamp from this node's clock that shows another clock [s]
FROZEN_FOR = 0.4  # the same picture for this long [s] ...
FROZEN_MOTION = 0.02  # ... while a joint moved this far [rad] is no picture of now
SAME_SHAPE = 0.01  # relative change of an aspect ratio that still counts as the same


class Inputs:
    """Subscribes to cameras, joints and the end effector's pose once `open` is called.

    ``on_sample(repeats)`` is called after every accepted sample; ``repeats`` counts how often
    its stamp came again, which in lock-step asks for an answer that got lost.
    """

    def __init__(self, node: Node, settings: VlaSettings, pose: PoseSource, period: float,
                 on_sample: Callable[[int], None]) -> None:
        self._node = node
        self._settings = settings
        self._pose = pose
        self._on_sample = on_sample
        self._observer = Observer(
            CAMERAS, settings.arm_joints, settings.finger_joints, settings.max_skew_s)
        names = [relative(topic) for topic in (*IMAGES.values(), JOINT_STATES, EE_POSE)]
        timeouts = {} if settings.lockstep else dict.fromkeys(names, settings.input_timeout_s)
        self._alive = Watchdog(timeouts, own_period=period)
        self._stamps: dict[str, float] = {}
        self._repeats: dict[str, int] = {}
        self._pictures: dict[str, _Picture] = {}
        self._posture: NDArray[np.float64] | None = None
        self._wrong: dict[str, str] = {}
        self._open: list[Any] = []
        self.refused: dict[str, int] = {}
        self.missing = ''

    def open(self) -> None:
        """Subscribe."""
        node, raw = self._node, self._settings.transport == 'raw'
        self._open = [node.create_subscription(
            Image if raw else CompressedImage, relative(IMAGES[camera]),
            self._image_callback(camera), qos.NEWEST_FRAME, raw=True) for camera in CAMERAS]
        self._open.append(node.create_subscription(
            JointState, relative(JOINT_STATES), self._on_joints, qos_profile_sensor_data))
        self._pose.open()

    def close(self) -> None:
        """Stop listening."""
        for subscription in self._open:
            self._node.destroy_subscription(subscription)
        self._open = []
        self._pose.close()

    def clear(self) -> None:
        """Forget everything seen: what comes next belongs to another task."""
        self._observer.clear()
        self._pictures.clear()

    def look(self, instruction: str) -> Observation | None:
        """Return the newest complete observation young enough to act on, or None."""
        observation = self._observer.look(instruction)
        self.missing = self._observer.missing
        if observation is None or self._settings.lockstep:
            return observation
        age = self._now() - observation.stamp
        if age > self._settings.max_age_s:
            self.missing = f'a complete look younger than {self._settings.max_age_s:g} s'
            return None
        return observation

    def wrong(self) -> str | None:
        """Return what was last refused of an input that gave nothing good since, or None."""
        return next((f'{name}: {why}' for name, why in self._wrong.items()), None)

    def trouble(self, steady: float) -> str | None:
        """Return why the arm should hold, or None."""
        late = self._alive.late(steady)
        if late:
            why = self._wrong.get(late[0])
            return f'{late[0]} missing or late' + (f': {why}' if why else '')
        for name, picture in self._pictures.items():
            if picture.frozen:
                return f'{name} shows the same picture while the arm moves'
        return None

    def _now(self) -> float:
        return self._node.get_clock().now().nanoseconds * 1e-9

    def _image_callback(self, camera: str) -> Callable[[Any], None]:
        name = relative(IMAGES[camera])
        parse, decode = ((images.parse_image, images.image_to_numpy)
                         if self._settings.transport == 'raw'
                         else (images.parse_compressed, images.compressed_to_numpy))

        def receive(data: bytes) -> None:
            stamp = math.nan  # of a message that cannot even be parsed
            try:
                message = parse(data)
                stamp = message.stamp
                image = decode(message)
                refused = self._picture(name, image, stamp) or self._observer.image(
                    camera, image, stamp)
            except images.ImageError as error:
                refused = str(error)
            self._received(name, stamp, refused)
        return receive

    def _picture(self, name: str, image: NDArray[np.uint8], stamp: float) -> str | None:
        picture = self._pictures.get(name)
        if picture is None:
            picture = self._pictures[name] = _Picture(image, stamp, self._posture)
        return picture.follow(image, stamp, self._posture)

    def _on_joints(self, message: JointState) -> None:
        stamp = conversions.seconds(message.header.stamp)
        refused = self._observer.joints(message.name, message.position, stamp)
        if not refused:
            positions = dict(zip(message.name, message.position))
            self._posture = np.array([positions[n] for n in self._settings.arm_joints])
        self._received(relative(JOINT_STATES), stamp, refused)

    def on_pose(self, position: NDArray[np.float64], quaternion: NDArray[np.float64],
                stamp: float) -> None:
        """Take the end effector's pose from the `PoseSource`."""
        self._received(relative(EE_POSE), stamp, self._observer.pose(position, quaternion, stamp))

    def _received(self, name: str, stamp: float, refused: str | None) -> None:
        """Note a sample; a repeated stamp is no sign of life, but in lock-step a request."""
        if not refused and not self._settings.lockstep:
            away = stamp - self._now()
            if abs(away) > SAME_CLOCK:
                refused = (f'stamped {away:.1f} s away from this clock: is use_sim_time the same '
                           'everywhere?')
        if refused:
            self._wrong[name] = refused
            self.refused[name] = self.refused.get(name, 0) + 1
            self._node.get_logger().warning(f'{name} refused: {refused}',
                                            throttle_duration_sec=1.0)
            return
        self._wrong.pop(name, None)
        if self._stamps.get(name) != stamp:
            self._stamps[name] = stamp
            self._repeats[name] = 0
            self._alive.feed(name, time.monotonic())
        else:
            self._repeats[name] += 1
        self._on_sample(self._repeats[name])


class _Picture:
    """One camera's last change, to tell a frozen driver from a scene at rest."""

    def __init__(self, image: NDArray[np.uint8], stamp: float,
                 posture: NDArray[np.float64] | None) -> None:
        self._aspect = image.shape[1] / image.shape[0]
        self._image, self._since, self._posture = image, stamp, posture
        self.frozen = False

    def follow(self, image: NDArray[np.uint8], stamp: float,
               posture: NDArray[np.float64] | None) -> str | None:
        """Take the next image; return why it cannot be used, or None."""
        aspect = image.shape[1] / image.shape[0]
        if abs(aspect / self._aspect - 1.0) > SAME_SHAPE:
            return (f'the picture is now {image.shape[1]}x{image.shape[0]}, another shape than '
                    'before')
        if not np.array_equal(image, self._image):
            self._image, self._since, self._posture = image, stamp, posture
            self.frozen = False
        elif self._posture is None:
            self._posture = posture
        elif posture is not None and stamp - self._since > FROZEN_FOR:
            moved = float(np.abs(posture - self._posture).max())
            self.frozen = self.frozen or moved > FROZEN_MOTION
        return None
