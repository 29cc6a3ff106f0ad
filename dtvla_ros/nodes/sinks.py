"""How a normalised action is said to each kind of arm."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.errors import UserError
from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import (
    Float64,
    JointTrajectory,
    Point,
    Pose,
    PoseStamped,
    Quaternion,
    Twist,
    TwistStamped,
    Vector3,
)
from dtvla_ros.nodes import wire

PRESETS = ('sim_osc', 'servo', 'crisp', 'fzi')


class Sink(Protocol):
    """One kind of arm. ``topic`` is the command topic's name after remapping."""

    topic: str

    def send(self, action: NDArray[np.float64], stamp: float) -> None:
        """Command a normalised action [7] for a tick [s]; zero motion means stay."""


class OscSink:
    """The normalised action itself, for a simulator that runs OSC_POSE."""

    def __init__(self, node: ros.Node, period: float) -> None:
        self._publisher = node.create_publisher(JointTrajectory, 'action', wire.LATEST)
        self.topic = self._publisher.topic_name
        self._period = period

    def send(self, action: NDArray[np.float64], stamp: float) -> None:
        row = action[None].astype(np.float32)  # [1, 7]
        self._publisher.publish(wire.chunk_message(Chunk(stamp, self._period, row)))


class _GripperTopic:
    """Gripper opening as Float64, 0 closed to 1 open, once there is a command."""

    def __init__(self, node: ros.Node) -> None:
        self._publisher = node.create_publisher(Float64, 'gripper_cmd', wire.LATEST)

    def send(self, channel: float) -> None:
        if channel:
            self._publisher.publish(Float64(data=float((1.0 - channel) / 2.0)))


class TwistSink:
    """Twist in the base frame for MoveIt Servo, which halts by itself after 0.1 s of silence."""

    def __init__(self, node: ros.Node, base_frame: str) -> None:
        self._publisher = node.create_publisher(TwistStamped, 'twist_cmd', wire.LATEST)
        self.topic = self._publisher.topic_name
        self._gripper = _GripperTopic(node)
        self._base_frame = base_frame

    def send(self, action: NDArray[np.float64], stamp: float) -> None:
        v = wire.floats(osc.velocity(action))
        self._publisher.publish(TwistStamped(
            header=wire.header(stamp, self._base_frame),
            twist=Twist(linear=Vector3(x=v[0], y=v[1], z=v[2]),
                        angular=Vector3(x=v[3], y=v[4], z=v[5]))))
        self._gripper.send(float(action[6]))


class PoseSink:
    """Measured pose plus offset for CRISP and FZI, which keep the last target when silent."""

    def __init__(self, node: ros.Node, base_frame: str) -> None:
        self._publisher = node.create_publisher(PoseStamped, 'target_pose', wire.LATEST)
        self.topic = self._publisher.topic_name
        self._gripper = _GripperTopic(node)
        self._base_frame = base_frame
        self._measured: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._goal: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._resting = False

    def measure(self, position: NDArray[np.float64], quaternion: NDArray[np.float64]) -> None:
        """Take the measured pose that the next offset is added to."""
        self._measured = position, quaternion

    def send(self, action: NDArray[np.float64], stamp: float) -> None:
        if self._measured is None:
            return
        resting = not action[:6].any()
        if not resting:
            goal_quaternion = None if self._goal is None else self._goal[1]
            self._goal = osc.target_pose(action, *self._measured, goal_quaternion)
        elif not self._resting or self._goal is None:
            # Once: following the measured pose from tick to tick would sag under gravity.
            self._goal = self._measured
        self._resting = resting
        assert self._goal is not None
        p, q = wire.floats(self._goal[0]), wire.floats(self._goal[1])
        self._publisher.publish(PoseStamped(
            header=wire.header(stamp, self._base_frame),
            pose=Pose(position=Point(x=p[0], y=p[1], z=p[2]),
                      orientation=Quaternion(x=q[0], y=q[1], z=q[2], w=q[3]))))
        self._gripper.send(float(action[6]))


def make_sink(node: ros.Node, preset: str, base_frame: str, period: float) -> Sink:
    """Build the sink of a preset."""
    if preset == 'sim_osc':
        return OscSink(node, period)
    if preset == 'servo':
        return TwistSink(node, base_frame)
    if preset in ('crisp', 'fzi'):
        return PoseSink(node, base_frame)
    raise UserError(f'unknown preset "{preset}"; there is: {", ".join(PRESETS)}')
