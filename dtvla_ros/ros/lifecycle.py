"""rclpy's managed node, which a bad request cannot end."""

from __future__ import annotations

from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode as RclpyLifecycleNode
from rclpy.lifecycle import TransitionCallbackReturn


class LifecycleNode(RclpyLifecycleNode):
    """Answers no where a transition is impossible.

    Up to Jazzy such a request over the network raises out of the service callback, and so ends
    the process; later versions log it, as this does.
    """

    def _LifecycleNodeMixin__change_state(self, transition_id: int) -> TransitionCallbackReturn:
        try:
            return super()._LifecycleNodeMixin__change_state(  # type: ignore[misc]
                transition_id)
        except rclpy_implementation.RCLError as error:
            self.get_logger().error(f'Unable to start transition {transition_id}: {error}')
            return TransitionCallbackReturn.ERROR
