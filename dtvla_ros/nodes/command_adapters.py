"""Command adapters: a normalised action to the messages of an arm's and gripper's controllers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, ClassVar

import numpy as np
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped, Vector3
from numpy.typing import NDArray
from rclpy.node import Node
from scipy.spatial.transform import Rotation
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import ACTION, TARGET_POSE, TWIST, relative
from dtvla_ros.nodes.grippers import GripperAction, GripperSettings, GripperTopic, make_gripper
from dtvla_ros.nodes.joint_adapters import (
    ForwardPositionAdapter,
    JointAdapter,
    JointTrajectoryAdapter,
    SimJointAdapter,
)
from dtvla_ros.nodes.settings import declare_all
from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.bringup import SIMULATED

Placed = tuple[NDArray[np.float64], NDArray[np.float64]]  # position [3] m, quaternion [4] xyzw
SWITCH = 'moveit_msgs/srv/ServoCommandType'
TWISTS = 1  # ServoCommandType's TWIST


class CommandAdapter(ABC):
    """One kind of arm. ``topic`` is the command topic's name after remapping.

    ``on_silence``: what the arm does when commands stop, its gate dead.
    ``measured``: position [3] m and quaternion [4] xyzw in the base frame, None before the first.
    """

    kind: ClassVar[Any]
    name: ClassVar[str]
    on_silence: ClassVar[str]

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

    def look_around(self) -> None:  # noqa: B027 - most controllers need nothing
        """Ask of the arm's controller what it needs before commands; called again and again."""

    @abstractmethod
    def _message(self, action: NDArray[np.float64], stamp: float, first_tick: bool) -> Any:
        """Return the arm's command, None where nothing can be told yet."""


class OscAdapter(CommandAdapter):
    """The normalised action itself, for a simulator that runs OSC_POSE."""

    kind, name = JointTrajectory, ACTION
    on_silence = 'the simulated arm plays its last action on; in lock-step time stands still'

    def _message(self, action: NDArray[np.float64], stamp: float, first_tick: bool) -> Any:
        row = action[None].astype(np.float32)  # [1, 7]
        return conversions.chunk_message(Chunk(stamp, 0.0, row))


class TwistAdapter(CommandAdapter):
    """Twist in the base frame for MoveIt Servo.

    Since Jazzy Servo takes no twists before it is told to, anew after each of its starts: where
    its service is there, it is told.
    """

    kind, name = TwistStamped, TWIST
    on_silence = 'MoveIt Servo halts it, 0.1 s later unless its incoming_command_timeout differs'

    def __init__(
        self, node: Node, base_frame: str, gripper: GripperTopic | GripperAction | None) -> None:
        super().__init__(node, base_frame, gripper)
        self._node = node
        self._switched = ''  # the service that was told

    def look_around(self) -> None:
        """Switch Servo to twists once its service appears; tell the person where it cannot be."""
        found = [name for name, kinds in self._node.get_service_names_and_types()
                 if SWITCH in kinds]
        own = self.topic.rpartition('/')[0]  # of several Servos the one that gets our commands
        name = next((name for name in found if name.rpartition('/')[0] == own), min(
            found, default=''))
        if name == self._switched:
            return
        self._switched = name
        if not name:
            return  # it is gone; the next one is told anew
        by_hand = f"ros2 service call {name} {SWITCH} '{{command_type: {TWISTS}}}'"
        try:
            kind = conversions.message_type(SWITCH)
        except KeyError:
            self._node.get_logger().warning(
                f'{name} has to be told to take twists, and moveit_msgs is not installed here: '
                f'{by_hand}')
            return
        client = self._node.create_client(kind, name)
        client.call_async(kind.Request(command_type=TWISTS)).add_done_callback(
            partial(self._told, client, name, by_hand))

    def _told(self, client: Any, name: str, by_hand: str, future: Any) -> None:
        """Say whether Servo takes twists now."""
        self._node.destroy_client(client)
        response = future.result() if future.exception() is None else None
        if response is not None and response.success:
            self._node.get_logger().info(f'{name}: MoveIt Servo takes twists')
        else:
            self._node.get_logger().warning(f'{name}: MoveIt Servo refused to take twists; '
                                            f'see its log, then {by_hand}')

    def _message(self, action: NDArray[np.float64], stamp: float, first_tick: bool) -> Any:
        v = conversions.floats(osc.velocity(action))
        return TwistStamped(
            header=conversions.header(stamp, self._base_frame),
            twist=Twist(linear=Vector3(x=v[0], y=v[1], z=v[2]),
                        angular=Vector3(x=v[3], y=v[4], z=v[5])))


class PoseAdapter(CommandAdapter):
    """Measured pose plus offset, for CRISP and FZI."""

    kind, name = PoseStamped, TARGET_POSE
    on_silence = 'keeps the last target, at most 0.05 m and 0.5 rad away'
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
        elif not self._resting or self._goal is None or self._moved_away(*self._goal):
            # Once: following the measured pose from tick to tick would sag under gravity. But an
            # arm that was guided by hand must not be pulled back when its controller goes on.
            self._goal = self.measured
        self._resting = resting
        return conversions.pose_message(conversions.header(stamp, self._base_frame), *self._goal)


    def _moved_away(self, position: NDArray[np.float64], quaternion: NDArray[np.float64]) -> bool:
        """Whether the arm is further from a resting place than two steps can lead it."""
        assert self.measured is not None
        turned = Rotation.from_quat(quaternion).inv() * Rotation.from_quat(self.measured[1])
        return bool(np.linalg.norm(self.measured[0] - position) > 2 * osc.METRES_PER_UNIT
                    or turned.magnitude() > 2 * osc.RADIANS_PER_UNIT)


PRESETS: dict[str, type[CommandAdapter] | type[JointAdapter]] = {
    'sim_osc': OscAdapter, 'servo': TwistAdapter, 'crisp': PoseAdapter, 'fzi': PoseAdapter,
    'joint_trajectory': JointTrajectoryAdapter, 'forward_position': ForwardPositionAdapter,
    'sim_joints': SimJointAdapter}


def make_adapter(node: Node, preset: str, base_frame: str) -> CommandAdapter | JointAdapter:
    """Build a preset's adapter; declares `GripperSettings`, which `SIMULATED` have no use for.

    Raise UserError if the gripper's action type is not installed.
    """
    settings = declare_all(node, GripperSettings())
    gripper = None if preset in SIMULATED else make_gripper(node, settings)
    return PRESETS[preset](node, base_frame, gripper)
