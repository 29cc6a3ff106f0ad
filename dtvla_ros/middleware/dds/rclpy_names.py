"""Everything ``middleware.ros`` hands out when it runs on Cyclone DDS."""

from dtvla_ros.errors import UserError

from .clock import Clock, ClockType, Duration, Time
from .context import (
                      ExternalShutdownException,
                      SignalHandlerOptions,
                      init,
                      ok,
                      shutdown,
                      try_shutdown,
)
from .endpoints import Client, Future, Publisher, Service, Subscription
from .executor import (
                      GuardCondition,
                      SingleThreadedExecutor,
                      spin,
                      spin_once,
                      spin_until_future_complete,
)
from .lifecycle import (
                      LifecycleNode,
                      LifecyclePublisher,
                      LifecycleState,
                      ManagedEntity,
                      TransitionCallbackReturn,
)
from .logging import LoggingSeverity, get_logger
from .node import Node
from .parameters import (
                      InvalidParameterTypeException,
                      InvalidParameterValueException,
                      Parameter,
                      ParameterAlreadyDeclaredException,
                      ParameterImmutableException,
                      ParameterNotDeclaredException,
                      ParameterUninitializedException,
)
from .qos import (
                      DurabilityPolicy,
                      HistoryPolicy,
                      QoSProfile,
                      ReliabilityPolicy,
                      qos_profile_sensor_data,
)
from .timer import Timer

BAD_INPUT: tuple[type[Exception], ...] = (UserError,)
"""What is raised where the user is wrong, not the code."""

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
