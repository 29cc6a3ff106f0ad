"""Command adapters: a normalised action to the messages of an arm's and gripper's controllers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped, Vector3
from numpy.typing import NDArray
from rclpy.action import ActionClient
from rclpy.node import Node
from std_msgs.msg import Float64
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import ACTION, FINGER_JOINTS, GRIPPER, TARGET_POSE, TWIST, relative
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.settings import declare
from dtvla_ros.ros import conversions, qos

GRIPPERS = ('topic', 'gripper_command', 'parallel_gripper_command')
Placed = tuple[NDArray[np.float64], NDArray[np.float64]]  # position [3] m, quaternion [4] xyzw


class GripperTopic:
    """Gripper opening as Float64, 0 closed to 1 open, once there is a command.

    The channel of an action is -1 for open, +1 for closed, 0 for no command.
    """

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(Float64, relative(GRIPPER), qos.LATEST)

    def send(self, channel: float) -> None:
        if channel:
            self._publisher.publish(Float64(data=float((1.0 - channel) / 2.0)))

    def listeners(self) -> int:
        return self._publisher.get_subscription_count()


class GripperAction:
    """A goal of control_msgs' actions whenever the command changes.

    A grasp ends in a stall, which ParallelGripperCommand reports as a failure by default, so
    the action's own result is not asked for; whether a goal was reached is measured elsewhere.
    """

    def __init__(self, node: Node, kind: str) -> None:
        self._open = declare(node, 'gripper_open_position', 0.04,
                             'position of the open gripper; Franka: half the width [m]', low=0)
        self._effort = declare(node, 'gripper_max_effort', 20.0, 'of a grasp [N]', low=0)
        self._joint = declare(node, 'gripper_joint', FINGER_JOINTS[0],
                              'joint of a parallel_gripper_command')
        self._parallel = kind == 'parallel_gripper_command'
        try:
            from control_msgs import action
            self._type: Any = (action.ParallelGripperCommand if self._parallel
                               else action.GripperCommand)
        except (ImportError, AttributeError) as error:
            raise UserError(f'parameter gripper = "{kind}": {error}; install '
                            'ros-$ROS_DISTRO-control-msgs or use "topic"') from error
        self._client = ActionClient(node, self._type, 'gripper_action')
        self._last = 0.0

    def send(self, channel: float) -> None:
        if not channel or channel == self._last or not self._client.server_is_ready():
            return
        self._last = channel
        goal = self._type.Goal()
        position = self._open if channel < 0 else 0.0
        if self._parallel:
            goal.command.name = [self._joint]
            goal.command.position = [position]
            goal.command.effort = [self._effort]
        else:
            goal.command.position = position
            goal.command.max_effort = self._effort
        self._client.send_goal_async(goal)

    def listeners(self) -> int:
        return int(self._client.server_is_ready())


Gripper = GripperTopic | GripperAction


class CommandAdapter(ABC):
    """One kind of arm. ``topic`` is the command topic's name after remapping."""

    def __init__(self, node: Node, kind: Any, topic: str, gripper: Gripper | None = None) -> None:
        self._publisher = node.create_publisher(kind, relative(topic), qos.LATEST)
        self._gripper = gripper
        self._measured: Placed | None = None
        self.topic: str = self._publisher.topic_name

    @abstractmethod
    def send(self, action: NDArray[np.float64], stamp: float, first_tick: bool = True) -> None:
        """Command a normalised action [7] for a tick [s]; zero motion means stay.

        ``first_tick``: the tick is the first one of this action.
        """

    def measure(self, position: NDArray[np.float64], quaternion: NDArray[np.float64]) -> None:
        """Take the measured pose: [3] m and [4] xyzw in the base frame."""
        self._measured = position, quaternion

    def gripper_listeners(self) -> int | None:
        """Return how many receive the gripper's commands; None where that is not known."""
        return None if self._gripper is None else self._gripper.listeners()

    def _send_gripper(self, channel: float) -> None:
        if self._gripper is not None:
            self._gripper.send(float(channel))


class OscAdapter(CommandAdapter):
    """The normalised action itself, for a simulator that runs OSC_POSE."""

    def __init__(self, node: Node, period: float) -> None:
        super().__init__(node, JointTrajectory, ACTION)
        self._period = period

    def send(self, action: NDArray[np.float64], stamp: float, first_tick: bool = True) -> None:
        row = action[None].astype(np.float32)  # [1, 7]
        self._publisher.publish(conversions.chunk_message(Chunk(stamp, self._period, row)))


class TwistAdapter(CommandAdapter):
    """Twist in the base frame for MoveIt Servo, which halts by itself after 0.1 s of silence."""

    def __init__(self, node: Node, base_frame: str, gripper: Gripper) -> None:
        super().__init__(node, TwistStamped, TWIST, gripper)
        self._base_frame = base_frame

    def send(self, action: NDArray[np.float64], stamp: float, first_tick: bool = True) -> None:
        v = conversions.floats(osc.velocity(action))
        self._publisher.publish(TwistStamped(
            header=conversions.header(stamp, self._base_frame),
            twist=Twist(linear=Vector3(x=v[0], y=v[1], z=v[2]),
                        angular=Vector3(x=v[3], y=v[4], z=v[5]))))
        self._send_gripper(action[6])


class PoseAdapter(CommandAdapter):
    """Measured pose plus offset for CRISP and FZI, which keep the last target when silent."""

    def __init__(self, node: Node, base_frame: str, gripper: Gripper) -> None:
        super().__init__(node, PoseStamped, TARGET_POSE, gripper)
        self._base_frame = base_frame
        self._from: Placed | None = None
        self._goal: Placed | None = None
        self._resting = False

    def send(self, action: NDArray[np.float64], stamp: float, first_tick: bool = True) -> None:
        if self._measured is None:
            return
        resting = not action[:6].any()
        if not resting:
            if first_tick or self._resting or self._from is None:
                # The law re-bases once per row, however often the goal is sent.
                self._from = self._measured
            goal_quaternion = None if self._goal is None else self._goal[1]
            self._goal = osc.target_pose(action, *self._from, goal_quaternion)
        elif not self._resting or self._goal is None:
            # Once: following the measured pose from tick to tick would sag under gravity.
            self._goal = self._measured
        self._resting = resting
        self._publisher.publish(conversions.pose_message(
            conversions.header(stamp, self._base_frame), *self._goal))
        self._send_gripper(action[6])


def make_adapter(node: Node, preset: str, base_frame: str, period: float) -> CommandAdapter:
    """Build a preset's adapter; declares ``gripper`` where the arm's has a topic of its own.

    Raises
    ------
    UserError
        If the gripper's action type is not installed.

    """
    if preset == 'sim_osc':
        return OscAdapter(node, period)
    kind = declare(node, 'gripper', 'topic', 'interface of the gripper', choices=GRIPPERS)
    gripper = GripperTopic(node) if kind == 'topic' else GripperAction(node, kind)
    adapter = TwistAdapter if preset == 'servo' else PoseAdapter
    return adapter(node, base_frame, gripper)
