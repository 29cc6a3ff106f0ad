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
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterAlreadyDeclaredException,
    ParameterNotDeclaredException,
)
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.guard_condition import GuardCondition
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


def try_shutdown() -> None:
    """Shut down if that was not done before; Humble's rclpy has no function for it."""
    if get_default_context().ok():
        shutdown()


__all__ = [
    'Client', 'Clock', 'ClockType', 'Duration', 'DurabilityPolicy', 'ExternalShutdownException',
    'Future', 'GuardCondition', 'HistoryPolicy', 'InvalidParameterTypeException',
    'InvalidParameterValueException', 'LoggingSeverity', 'Node', 'Parameter',
    'ParameterAlreadyDeclaredException', 'ParameterNotDeclaredException', 'Publisher',
    'QoSProfile', 'ReliabilityPolicy', 'Service', 'SignalHandlerOptions',
    'SingleThreadedExecutor', 'Subscription', 'Time', 'Timer', 'get_logger', 'init', 'ok',
    'qos_profile_sensor_data', 'shutdown', 'spin', 'spin_once', 'spin_until_future_complete',
    'try_shutdown']
