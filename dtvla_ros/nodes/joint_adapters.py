"""Command adapters of arms that are commanded by their joints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from builtin_interfaces.msg import Duration
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.actions.contract import GRIPPER
from dtvla_ros.actions.joints import JointCommand
from dtvla_ros.conventions import ACTION, JOINT_COMMANDS, JOINT_TRAJECTORY, parameter, relative
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.settings import declare_all
from dtvla_ros.ros import conversions, qos

AHEAD = 2  # control periods in which a joint is to reach its target; commands may come late


@dataclass(frozen=True, slots=True)
class JointControllerSettings:
    """Parameters of an arm's joint controller."""

    controller_timeout_s: float = parameter(
        0.0, 'silence after which the controller of forward_position holds the arm by itself; '
        '0: it is not stated, and forward_position is refused', low=0.0)


class Gripper(Protocol):
    """A gripper with a topic or an action of its own; see `command_adapters`."""

    def send(self, channel: float) -> None:
        """Command it: -1 open, +1 closed, 0 no command."""

    def listeners(self) -> int:
        """Return how many there are to hear that."""


class JointAdapter(ABC):
    """One kind of arm that takes joint positions. ``topic``: of its commands after remapping.

    ``on_silence``: what the arm does when commands stop, its gate dead. Made as a `CommandAdapter`
    is, and has a ``gripper`` like one; the gate calls `send_joints` once per control tick, in
    every state.
    """

    kind: ClassVar[Any]
    name: ClassVar[str]
    on_silence: str

    def __init__(self, node: Node, base_frame: str, gripper: Gripper | None) -> None:
        self._publisher = node.create_publisher(self.kind, relative(self.name), qos.LATEST)
        self.topic: str = self._publisher.topic_name
        self.gripper = gripper

    def send_joints(self, command: JointCommand) -> None:
        """Command the joints, and the gripper where it has a topic or an action of its own."""
        message = self._message(command)
        if message is not None:
            self._publisher.publish(message)
            if self.gripper is not None:
                self.gripper.send(command.gripper)

    def look_around(self) -> None:  # noqa: B027 - as that of most Cartesian controllers
        """Ask nothing of the controller: it takes commands as soon as it is active."""

    @abstractmethod
    def _message(self, command: JointCommand) -> Any:
        """Return the controller's input, None where it is to get none in this tick."""


class SimJointAdapter(JointAdapter):
    """Positions by name, and the gripper among them, for `sim_bridge`."""

    kind, name = JointTrajectory, ACTION
    on_silence = 'the simulated arm keeps its last target; in lock-step time stands still'

    def _message(self, command: JointCommand) -> Any:
        row = np.append(command.positions, command.gripper)[None].astype(np.float32)
        return conversions.chunk_message(
            Chunk(command.stamp, 0.0, row, (*command.names, GRIPPER)))


class JointTrajectoryAdapter(JointAdapter):
    """One point per tick for joint_trajectory_controller, to be reached in `AHEAD` periods.

    Each command takes the place of the one before while that is still under way, so that the arm
    does not stop between two: it trails its targets by a period, and goes as fast as they do.
    """

    kind, name = JointTrajectory, JOINT_TRAJECTORY
    on_silence = f'goes on to its last target, at most {AHEAD} control periods, and holds there'

    def _message(self, command: JointCommand) -> Any:
        ahead = round(AHEAD * command.period * 1e9)
        # The header's stamp of 0 means now: the controller's clock need not be ours.
        return JointTrajectory(joint_names=list(command.names), points=[JointTrajectoryPoint(
            positions=conversions.floats(command.positions),
            time_from_start=Duration(sec=ahead // 10**9, nanosec=ahead % 10**9))])


class ForwardPositionAdapter(JointAdapter):
    """Positions in the order of ``arm_joints``, for a controller that forwards them.

    Raises UserError unless ``controller_timeout_s`` states when that controller stops by itself.
    """

    kind, name = Float64MultiArray, JOINT_COMMANDS

    def __init__(self, node: Node, base_frame: str, gripper: Gripper | None) -> None:
        given = declare_all(node, JointControllerSettings())
        if not given.controller_timeout_s:
            raise UserError(
                'parameter controller_timeout_s = 0: forward_position needs the time after which '
                'your controller holds the arm by itself when commands stop; '
                'forward_command_controller has none: use preset = "joint_trajectory"')
        super().__init__(node, base_frame, gripper)
        self.on_silence = ('keeps its last target; the controller holds it by itself after '
                           f'{given.controller_timeout_s:g} s')

    def _message(self, command: JointCommand) -> Any:
        return Float64MultiArray(data=conversions.floats(command.positions))
