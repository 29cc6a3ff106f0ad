"""Command adapters of arms that are commanded by their joints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.actions.contract import GRIPPER
from dtvla_ros.actions.joints import JointCommand
from dtvla_ros.conventions import ACTION, relative
from dtvla_ros.ros import conversions, qos

if TYPE_CHECKING:
    from dtvla_ros.nodes.command_adapters import GripperAction, GripperTopic


class JointAdapter(ABC):
    """One kind of arm that takes joint positions. ``topic``: of its commands after remapping.

    Made as a `CommandAdapter` is, and has a ``gripper`` like one; the gate calls `send_joints`
    once per control tick, in every state.
    """

    kind: ClassVar[Any]
    name: ClassVar[str]

    def __init__(
        self, node: Node, base_frame: str, gripper: GripperTopic | GripperAction | None) -> None:
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

    @abstractmethod
    def _message(self, command: JointCommand) -> Any:
        """Return the controller's input, None where it is to get none in this tick."""


class SimJointAdapter(JointAdapter):
    """Positions by name, and the gripper among them, for `sim_bridge`."""

    kind, name = JointTrajectory, ACTION

    def _message(self, command: JointCommand) -> Any:
        row = np.append(command.positions, command.gripper)[None].astype(np.float32)
        return conversions.chunk_message(
            Chunk(command.stamp, 0.0, row, (*command.names, GRIPPER)))
