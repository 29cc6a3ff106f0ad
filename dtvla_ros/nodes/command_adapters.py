"""Command adapters: a normalised action to the messages of an arm's and gripper's controllers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped, Vector3
from numpy.typing import NDArray
from rclpy.action import ActionClient
from rclpy.node import Node
from std_msgs.msg import Float64
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import (
    ACTION,
    FINGER_JOINTS,
    GRIPPER,
    TARGET_POSE,
    TWIST,
    parameter,
    relative,
)
from dtvla_ros.nodes.joint_adapters import JointAdapter, SimJointAdapter
from dtvla_ros.nodes.settings import declare_all, installed
from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.bringup import SIMULATED

ACTIONS = {'gripper_command': 'control_msgs/action/GripperCommand',
           'parallel_gripper_command': 'control_msgs/action/ParallelGripperCommand'}
Placed = tuple[NDArray[np.float64], NDArray[np.float64]]  # position [3] m, quaternion [4] xyzw


@dataclass(frozen=True, slots=True)
class GripperSettings:
    """Parameters of the gripper's interface, of arms that have one."""

    gripper: str = parameter('topic', 'interface of the gripper', choices=('topic', *ACTIONS))
    gripper_open_position: float = parameter(
        0.04, 'position of the open gripper; Franka: half the width [m]', low=0)
    gripper_max_effort: float = parameter(20.0, 'of a grasp [N]', low=0)
    gripper_joint: str = parameter(FINGER_JOINTS[0], 'joint of a parallel_gripper_command')


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

    def __init__(self, node: Node, settings: GripperSettings) -> None:
        kind, self._settings = settings.gripper, settings
        self._parallel = kind == 'parallel_gripper_command'
        self._type = installed(ACTIONS[kind], f'gripper = "{kind}"', '"topic"')
        self._client = ActionClient(node, self._type, 'gripper_action')
        self._last = 0.0

    def send(self, channel: float) -> None:
        if not channel or channel == self._last or not self._client.server_is_ready():
            return
        given, goal = self._settings, self._type.Goal()
        self._last, position = channel, given.gripper_open_position if channel < 0 else 0.0
        effort = given.gripper_max_effort
        command = {'position': position, 'max_effort': effort} if not self._parallel else {
            'name': [given.gripper_joint], 'position': [position], 'effort': [effort]}
        for name, value in command.items():
            setattr(goal.command, name, value)
        self._client.send_goal_async(goal)

    def listeners(self) -> int:
        return int(self._client.server_is_ready())


class CommandAdapter(ABC):
    """One kind of arm. ``topic`` is the command topic's name after remapping.

    ``measured``: position [3] m and quaternion [4] xyzw in the base frame, None before the first.
    """

    kind: ClassVar[Any]
    name: ClassVar[str]

    def __init__(
        self, node: Node, base_frame: str, gripper: GripperTopic | GripperAction | None) -> None:
        self._publisher = node.create_publisher(self.kind, relative(self.name), qos.LATEST)
        self.topic: str = self._publisher.topic_name
        self._base_frame, self.gripper = base_frame, gripper
        self.measured: Placed | None = None

    def send(self, action: NDArray[np.float64], stamp: float, first_tick: bool = True) -> None:
        """Command a normalised action [7] for a tick [s]; zero motion means stay.

        ``first_tick``: the tick is the first one of this action.
        """
        message = self._message(action, stamp, first_tick)
        if message is not None:
            self._publisher.publish(message)
            if self.gripper is not None:
                self.gripper.send(float(action[6]))

    @abstractmethod
    def _message(self, action: NDArray[np.float64], stamp: float, first_tick: bool) -> Any:
        """Return the arm's command, None where nothing can be told yet."""


class OscAdapter(CommandAdapter):
    """The normalised action itself, for a simulator that runs OSC_POSE."""

    kind, name = JointTrajectory, ACTION

    def _message(self, action: NDArray[np.float64], stamp: float, first_tick: bool) -> Any:
        row = action[None].astype(np.float32)  # [1, 7]
        return conversions.chunk_message(Chunk(stamp, 0.0, row))


class TwistAdapter(CommandAdapter):
    """Twist in the base frame for MoveIt Servo, which halts by itself after 0.1 s of silence."""

    kind, name = TwistStamped, TWIST

    def _message(self, action: NDArray[np.float64], stamp: float, first_tick: bool) -> Any:
        v = conversions.floats(osc.velocity(action))
        return TwistStamped(
            header=conversions.header(stamp, self._base_frame),
            twist=Twist(linear=Vector3(x=v[0], y=v[1], z=v[2]),
                        angular=Vector3(x=v[3], y=v[4], z=v[5])))


class PoseAdapter(CommandAdapter):
    """Measured pose plus offset for CRISP and FZI, which keep the last target when silent."""

    kind, name = PoseStamped, TARGET_POSE
    _from: Placed | None = None
    _goal: Placed | None = None
    _resting = False

    def _message(self, action: NDArray[np.float64], stamp: float, first_tick: bool) -> Any:
        if self.measured is None:
            return None
        resting = not action[:6].any()
        if not resting:
            if first_tick or self._resting or self._from is None:
                # The law re-bases once per row, however often the goal is sent.
                self._from = self.measured
            goal_quaternion = None if self._goal is None else self._goal[1]
            self._goal = osc.target_pose(action, *self._from, goal_quaternion)
        elif not self._resting or self._goal is None:
            # Once: following the measured pose from tick to tick would sag under gravity.
            self._goal = self.measured
        self._resting = resting
        return conversions.pose_message(conversions.header(stamp, self._base_frame), *self._goal)


PRESETS: dict[str, type[CommandAdapter] | type[JointAdapter]] = {
    'sim_osc': OscAdapter, 'servo': TwistAdapter, 'crisp': PoseAdapter, 'fzi': PoseAdapter,
    'sim_joints': SimJointAdapter}


def make_adapter(node: Node, preset: str, base_frame: str) -> CommandAdapter | JointAdapter:
    """Build a preset's adapter; declares `GripperSettings`, which `SIMULATED` have no use for.

    Raise UserError if the gripper's action type is not installed.
    """
    settings = declare_all(node, GripperSettings())
    gripper: GripperTopic | GripperAction | None = None
    if preset not in SIMULATED:
        gripper = (GripperTopic(node) if settings.gripper == 'topic' else
                   GripperAction(node, settings))
    return PRESETS[preset](node, base_frame, gripper)
