"""How a normalised action is said to each kind of arm."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Twist, TwistStamped, Vector3
from numpy.typing import NDArray
from rclpy.node import Node
from std_msgs.msg import Float64
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import ACTION, GRIPPER, TARGET_POSE, TWIST, relative
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.gripper_action import GripperAction
from dtvla_ros.nodes.settings import declare
from dtvla_ros.ros import conversions, qos

PRESETS = ('sim_osc', 'servo', 'crisp', 'fzi')
GRIPPERS = ('topic', 'gripper_command', 'parallel_gripper_command')


class Sink(Protocol):
    """One kind of arm. ``topic`` is the command topic's name after remapping."""

    topic: str

    def send(self, action: NDArray[np.float64], stamp: float, begins: bool = True) -> None:
        """Command a normalised action [7] for a tick [s]; zero motion means stay.

        ``begins``: the tick is the first one of this action.
        """

    def gripper_listeners(self) -> int | None:
        """Return how many receive the gripper's commands; None where there is no telling."""


class OscSink:
    """The normalised action itself, for a simulator that runs OSC_POSE."""

    def __init__(self, node: Node, period: float) -> None:
        self._publisher = node.create_publisher(JointTrajectory, relative(ACTION), qos.LATEST)
        self.topic = self._publisher.topic_name
        self._period = period

    def gripper_listeners(self) -> int | None:
        return None

    def send(self, action: NDArray[np.float64], stamp: float, begins: bool = True) -> None:
        row = action[None].astype(np.float32)  # [1, 7]
        self._publisher.publish(conversions.chunk_message(Chunk(stamp, self._period, row)))


class Gripper(Protocol):
    """What opens and closes on the channel of an action: -1 open, +1 closed, 0 no command."""

    def send(self, channel: float) -> None:
        """Pass the command on."""

    def listeners(self) -> int:
        """Return how many receive it."""


class GripperTopic:
    """Gripper opening as Float64, 0 closed to 1 open, once there is a command."""

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(Float64, relative(GRIPPER), qos.LATEST)

    def send(self, channel: float) -> None:
        if channel:
            self._publisher.publish(Float64(data=float((1.0 - channel) / 2.0)))

    def listeners(self) -> int:
        return self._publisher.get_subscription_count()


class TwistSink:
    """Twist in the base frame for MoveIt Servo, which halts by itself after 0.1 s of silence."""

    def __init__(self, node: Node, base_frame: str, gripper: Gripper) -> None:
        self._publisher = node.create_publisher(TwistStamped, relative(TWIST), qos.LATEST)
        self.topic = self._publisher.topic_name
        self._gripper = gripper
        self._base_frame = base_frame

    def gripper_listeners(self) -> int | None:
        return self._gripper.listeners()

    def send(self, action: NDArray[np.float64], stamp: float, begins: bool = True) -> None:
        v = conversions.floats(osc.velocity(action))
        self._publisher.publish(TwistStamped(
            header=conversions.header(stamp, self._base_frame),
            twist=Twist(linear=Vector3(x=v[0], y=v[1], z=v[2]),
                        angular=Vector3(x=v[3], y=v[4], z=v[5]))))
        self._gripper.send(float(action[6]))


class PoseSink:
    """Measured pose plus offset for CRISP and FZI, which keep the last target when silent."""

    def __init__(self, node: Node, base_frame: str, gripper: Gripper) -> None:
        self._publisher = node.create_publisher(PoseStamped, relative(TARGET_POSE), qos.LATEST)
        self.topic = self._publisher.topic_name
        self._gripper = gripper
        self._base_frame = base_frame
        self._measured: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._from: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._goal: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._resting = False

    def gripper_listeners(self) -> int | None:
        return self._gripper.listeners()

    def measure(self, position: NDArray[np.float64], quaternion: NDArray[np.float64]) -> None:
        """Take the measured pose that the next offset is added to."""
        self._measured = position, quaternion

    def send(self, action: NDArray[np.float64], stamp: float, begins: bool = True) -> None:
        if self._measured is None:
            return
        resting = not action[:6].any()
        if not resting:
            if begins or self._resting or self._from is None:
                # The law re-bases once per row, however often the goal is sent.
                self._from = self._measured
            goal_quaternion = None if self._goal is None else self._goal[1]
            self._goal = osc.target_pose(action, *self._from, goal_quaternion)
        elif not self._resting or self._goal is None:
            # Once: following the measured pose from tick to tick would sag under gravity.
            self._goal = self._measured
        self._resting = resting
        assert self._goal is not None
        p, q = conversions.floats(self._goal[0]), conversions.floats(self._goal[1])
        self._publisher.publish(PoseStamped(
            header=conversions.header(stamp, self._base_frame),
            pose=Pose(position=Point(x=p[0], y=p[1], z=p[2]),
                      orientation=Quaternion(x=q[0], y=q[1], z=q[2], w=q[3]))))
        self._gripper.send(float(action[6]))


def make_gripper(node: Node, kind: str) -> Gripper:
    """Build what speaks to the gripper; raise UserError where its action type is not there."""
    if kind == 'topic':
        return GripperTopic(node)
    return GripperAction(node, kind)


def make_sink(node: Node, preset: str, base_frame: str, period: float) -> Sink:
    """Build the sink of a preset; declares ``gripper`` where the arm's has a topic of its own."""
    if preset not in PRESETS:
        raise UserError(f'unknown preset "{preset}"; there is: {", ".join(PRESETS)}')
    if preset == 'sim_osc':
        return OscSink(node, period)
    gripper = make_gripper(node, declare(
        node, 'gripper', 'topic', 'how the gripper is told', choices=GRIPPERS))
    kind = TwistSink if preset == 'servo' else PoseSink
    return kind(node, base_frame, gripper)
