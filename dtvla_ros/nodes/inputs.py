"""Subscribes to, validates and time-synchronises the policy's inputs."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.subscription import Subscription
from sensor_msgs.msg import JointState

from dtvla_ros.conventions import CAMERAS, EE_POSE, JOINT_STATES, image_input, relative
from dtvla_ros.nodes.pose_source import PoseSource
from dtvla_ros.policy.shapes import Size, another_shape, same_shape, shown, size_of
from dtvla_ros.policy.transform import Observation
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.settings import VlaSettings
from dtvla_ros.ros.waiting import why_silent
from dtvla_ros.safety.gate import NO_STAMP, OTHER_CLOCK
from dtvla_ros.safety.watchdog import Watchdog

JOINTS, POSE = relative(JOINT_STATES), relative(EE_POSE)
KEEP = 16  # samples per input; they span a frame of a camera and its latency, because ...
SPACING = 0.25  # ... of those that come faster, not all are kept: shares of the largest skew
FROZEN_FOR = 0.4  # the same image for this long [s] ...
FROZEN_MOTION = 0.02  # ... while a joint moved this far [rad] shows nothing of now


class Synchronizer:
    """Pairs images and measurements by their header stamps.

    ``max_skew`` [s]: largest difference from the stamp of the first of ``cameras``. ``missing``:
    what `poll` lacked.
    """

    def __init__(self, max_skew: float, cameras: Sequence[str] = CAMERAS) -> None:
        self._max_skew, self._cameras = max_skew, tuple(cameras)
        self.missing = 'nothing seen yet'
        self.clear()

    def clear(self) -> None:
        """Forget everything seen: what comes next belongs to another task."""
        self._samples: dict[str, dict[float, Any]] = {
            name: {} for name in (*self._cameras, JOINTS, POSE)}

    def image(self, camera: str, image: NDArray[np.uint8], stamp: float) -> str | None:
        """Take an image [H, W, 3]; return why it was refused, or None."""
        if not image[::4, ::4].any():
            return f'{camera} image is all black'
        self._keep(camera, stamp, image)
        return None

    def joints(self, joints: conversions.Joints) -> None:
        """Take positions of all joints."""
        self._keep(JOINTS, joints.stamp, joints)

    def pose(self, position: NDArray[np.float64], quaternion: NDArray[np.float64],
             stamp: float) -> None:
        """Take the gripper's pose in the base frame."""
        self._keep(POSE, stamp, (position, quaternion / np.linalg.norm(quaternion)))

    def poll(self, instruction: str) -> Observation | None:
        """Return the newest complete observation; None and `missing` where there is none."""
        first = self._cameras[0]
        self.missing = f'{first} image'
        for k, stamp in enumerate(reversed(self._samples[first])):
            parts = {name: self._nearest(name, stamp) for name in self._samples}
            absent = [name for name, part in parts.items() if part is None]
            if not absent:
                self.missing = ''
                joints, (position, quaternion) = parts[JOINTS], parts[POSE]
                return Observation(
                    images={name: parts[name] for name in self._cameras},
                    joint_positions=joints.positions,
                    ee_position=position, ee_quaternion=quaternion,
                    gripper_opening=joints.opening,
                    instruction=instruction, stamp=stamp)
            if k == 0:
                self.missing = f'{absent[0]} within {self._max_skew:g} s of {first}'
        return None

    def _keep(self, name: str, stamp: float, sample: Any) -> None:
        samples = self._samples[name]
        samples.pop(stamp, None)
        newest = [*itertools.islice(reversed(samples), 2)]
        if len(newest) == 2 and 0 <= stamp - newest[1] < self._max_skew * SPACING:
            del samples[newest[0]]
        samples[stamp] = sample
        if len(samples) > KEEP:
            del samples[next(iter(samples))]

    def _nearest(self, name: str, stamp: float) -> Any:
        samples = self._samples[name]
        best = min(samples, key=lambda t: abs(t - stamp), default=math.inf)
        return samples[best] if abs(best - stamp) <= self._max_skew else None


class Inputs:
    """Cameras, joint states and the end effector's pose of a policy node.

    ``on_sample(repeats)`` follows every accepted sample; in lock-step a repeated stamp asks for an
    answer that got lost. Declares as `PoseSource`. ``period`` [s]: how often `trouble` is asked.
    """

    def __init__(self, node: Node, settings: VlaSettings, period: float,
                 on_sample: Callable[[int], None]) -> None:
        self._node, self._period, self._on_sample = node, period, on_sample
        self._pose = PoseSource(node, self._on_pose,
                                lambda why: self._received(POSE, math.nan, why))
        self._open: list[Subscription] = []
        self._reset(settings)

    def _reset(self, settings: VlaSettings) -> None:
        self._settings = settings
        self._joints = conversions.JointReader(
            settings.arm_joints, settings.finger_joints, opening=settings.metres)
        self._topics = {name: image_input(name) for name in settings.cameras}
        self._synchronizer = Synchronizer(settings.max_skew_s, settings.cameras)
        timeouts = {} if settings.lockstep else dict.fromkeys(
            (*self._topics.values(), JOINTS, POSE), settings.input_timeout_s)
        self._alive = Watchdog(timeouts, own_period=self._period)
        self._stamps: dict[str, tuple[float, int]] = {}  # the last, and how often it came again
        self._cameras: dict[str, _FrozenCheck] = {}
        self._trained: Mapping[str, Size] = {}
        self._posture: NDArray[np.float64] | None = None
        self._wrong: dict[str, str] = {}
        self.refused: Counter[str] = Counter()
        self.missing = ''

    def open(self, settings: VlaSettings) -> None:
        """Subscribe, everything from before forgotten."""
        self._reset(settings)
        node, (kind, _, _) = self._node, images.TRANSPORTS[settings.transport]
        self._open = [node.create_subscription(
            kind, topic, functools.partial(self._on_image, camera), qos.NEWEST, raw=True)
            for camera, topic in self._topics.items()]
        self._open.append(node.create_subscription(
            JointState, JOINTS, self._on_joints, qos_profile_sensor_data))
        self._pose.open()

    def expect(self, sizes: Mapping[str, Size]) -> None:
        """Refuse images of another shape than these [px], by camera, from the last ones on."""
        self._trained = sizes
        refused = {name: why for camera, name in self._topics.items()
                   if (last := self._cameras.get(name)) and (
                       why := another_shape(last.size, sizes.get(camera)))}
        if refused:
            self.clear()
        for name, why in refused.items():
            self._received(name, math.nan, why)

    def close(self) -> None:
        while self._open:
            self._node.destroy_subscription(self._open.pop())
        self._pose.close()

    def clear(self) -> None:
        """Forget everything seen: what comes next belongs to another task."""
        self._synchronizer.clear()
        self._cameras.clear()

    def poll(self, instruction: str) -> Observation | None:
        """Return the newest complete observation young enough to act on, or None."""
        observation = self._synchronizer.poll(instruction)
        self.missing = self._synchronizer.missing
        oldest = math.inf if self._settings.lockstep else self._settings.max_age_s
        if observation is not None and self._now() - observation.stamp > oldest:
            self.missing = f'a complete observation younger than {oldest:g} s'
            return None
        return observation

    def wrong(self) -> str | None:
        """Return what was last refused of an input that gave nothing good since, or None."""
        return next((f'{name}: {why}' for name, why in self._wrong.items()), None)

    def lacking(self) -> Iterator[str]:
        """Yield why nothing came from each input that gave nothing, good or bad, since `open`."""
        heard = self._stamps.keys() | self._wrong.keys()
        for name, subscription in zip((*self._topics.values(), JOINTS), self._open):
            if name not in heard:
                yield why_silent(self._node, subscription)
        if POSE not in heard:
            yield self._pose.lacking()

    def trouble(self, steady: float) -> str | None:
        """Return why the arm should hold, or None."""
        if late := self._alive.late(steady):
            why = self._wrong.get(late[0])
            return f'{late[0]} missing or late' + (f': {why}' if why else '')
        return next((f'{name} shows the same image while the arm moves'
                     for name, camera in self._cameras.items() if camera.frozen), None)

    def _now(self) -> float:
        return self._node.get_clock().now().nanoseconds * 1e-9

    def _on_image(self, camera: str, data: bytes) -> None:
        _, parse, decode = images.TRANSPORTS[self._settings.transport]
        name, stamp = self._topics[camera], math.nan  # of a message that cannot be parsed
        try:
            message = parse(data)
            stamp = message.stamp
            refused = self._other_clock(stamp)
            if not refused:
                image = decode(message)
                refused = another_shape(size_of(image), self._trained.get(camera))
            if not refused:
                check = self._cameras.setdefault(name, _FrozenCheck(image, stamp, self._posture))
                refused = check.follow(image, stamp, self._posture) or self._synchronizer.image(
                    camera, image, stamp)
        except images.ImageError as error:
            refused = str(error)
        self._received(name, stamp, refused)

    def _on_joints(self, message: JointState) -> None:
        stamp = conversions.seconds(message.header.stamp)
        joints = self._joints.take(message.name, message.position, stamp)
        if joints is None:
            if self._joints.why:
                self._received(JOINTS, stamp, self._joints.why)
            return
        refused = self._other_clock(joints.stamp) or conversions.refuse_opening(joints.opening)
        if not refused:
            self._posture = np.array([joints.positions[n] for n in self._settings.arm_joints])
            self._synchronizer.joints(joints)
        self._received(JOINTS, joints.stamp, refused)

    def _on_pose(self, position: NDArray[np.float64], quaternion: NDArray[np.float64],
                 stamp: float) -> None:
        if not (refused := self._other_clock(stamp)):
            self._synchronizer.pose(position, quaternion, stamp)
        self._received(POSE, stamp, refused)

    def _other_clock(self, stamp: float) -> str | None:
        """Return why a stamp [s] is none of this clock, or None."""
        limit = 0.0 if self._settings.lockstep else self._settings.clock_domain_s
        if limit and abs(away := stamp - self._now()) > limit:
            return OTHER_CLOCK.format(away) if stamp else NO_STAMP
        return None

    def _received(self, name: str, stamp: float, refused: str | None) -> None:
        """Note a sample; a repeated stamp is no sign of life, but in lock-step a request."""
        if refused:
            self._wrong[name] = refused
            self.refused[name] += 1
            self._node.get_logger().warning(f'{name} refused: {refused}',
                                            throttle_duration_sec=1.0)
            return
        self._wrong.pop(name, None)
        last, repeats = self._stamps.get(name, (None, 0))
        repeats = repeats + 1 if last == stamp else 0
        self._stamps[name] = stamp, repeats
        if not repeats:
            self._alive.feed(name, time.monotonic())
        self._on_sample(repeats)


class _FrozenCheck:
    """One camera's last change, to tell a frozen driver from a scene at rest."""

    def __init__(self, image: NDArray[np.uint8], stamp: float,
                 posture: NDArray[np.float64] | None) -> None:
        self.size = size_of(image)
        self._image, self._since, self._posture = image, stamp, posture
        self.frozen = False

    def follow(self, image: NDArray[np.uint8], stamp: float,
               posture: NDArray[np.float64] | None) -> str | None:
        """Take the next image; return why it cannot be used, or None."""
        if not same_shape(size := size_of(image), self.size):
            return f'the image is now {shown(size)}, another shape than before'
        if not np.array_equal(image, self._image):
            self._image, self._since, self._posture = image, stamp, posture
            self.frozen = False
        elif self._posture is None:
            self._posture = posture
        elif posture is not None and stamp - self._since > FROZEN_FOR:
            moved = float(np.abs(posture - self._posture).max())
            self.frozen = self.frozen or moved > FROZEN_MOTION
        return None
