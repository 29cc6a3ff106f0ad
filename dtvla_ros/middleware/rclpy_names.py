"""The same names as ``dds.rclpy_names``, from a genuine ROS 2 installation."""

from rclpy import (
    get_default_context,
    init,
    ok,
    shutdown,
    spin,
    spin_once,
    spin_until_future_complete,
)
from rclpy.client import Client
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.exceptions import (
    InvalidParameterException,
    InvalidParameterTypeException,
    InvalidParameterValueException,
    NameValidationException,
    ParameterAlreadyDeclaredException,
    ParameterImmutableException,
    ParameterNotDeclaredException,
    ParameterUninitializedException,
)
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode as GenuineLifecycleNode
from rclpy.lifecycle import (
    LifecyclePublisher,
    LifecycleState,
    ManagedEntity,
    TransitionCallbackReturn,
)
from rclpy.logging import LoggingSeverity, get_logger
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from rclpy.service import Service
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.task import Future
from rclpy.time import Time
from rclpy.timer import Timer

BAD_INPUT: tuple[type[Exception], ...] = (
    InvalidParameterException, InvalidParameterTypeException, InvalidParameterValueException,
    NameValidationException, ParameterUninitializedException)
"""What rclpy raises where the user is wrong, not the code."""


class LifecycleNode(GenuineLifecycleNode):
    """rclpy's managed node, which a bad request cannot end.

    Up to Jazzy an impossible transition asked for over the network raises out of the service
    callback, and so out of ``spin``. Later versions log it and answer no, as this does.
    """

    def _LifecycleNodeMixin__change_state(self, transition_id: int) -> TransitionCallbackReturn:
        try:
            return super()._LifecycleNodeMixin__change_state(transition_id)
        except rclpy_implementation.RCLError as error:
            self.get_logger().error(f'Unable to start transition {transition_id}: {error}')
            return TransitionCallbackReturn.ERROR


def try_shutdown() -> None:
    """Shut down if that was not done before; Humble's rclpy has no function for it."""
    if get_default_context().ok():
        shutdown()


__all__ = [
    'BAD_INPUT', 'Client', 'Clock', 'ClockType', 'DurabilityPolicy', 'Duration',
    'ExternalShutdownException', 'Future', 'GuardCondition', 'HistoryPolicy',
    'InvalidParameterTypeException', 'InvalidParameterValueException', 'LifecycleNode',
    'LifecyclePublisher', 'LifecycleState', 'LoggingSeverity', 'ManagedEntity', 'Node',
    'Parameter', 'ParameterAlreadyDeclaredException', 'ParameterImmutableException',
    'ParameterNotDeclaredException', 'ParameterUninitializedException', 'Publisher', 'QoSProfile',
    'ReliabilityPolicy', 'Service', 'SignalHandlerOptions', 'SingleThreadedExecutor',
    'Subscription', 'Time', 'Timer', 'TransitionCallbackReturn', 'get_logger', 'init', 'ok',
    'qos_profile_sensor_data', 'shutdown', 'spin', 'spin_once', 'spin_until_future_complete',
    'try_shutdown']
