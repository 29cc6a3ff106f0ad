"""Message and service classes: genuine ones under rclpy, the DDS client's otherwise."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .backend import BACKEND

_TYPES = {
    'builtin_interfaces/msg': 'Duration Time',
    'diagnostic_msgs/msg': 'DiagnosticArray DiagnosticStatus KeyValue',
    'geometry_msgs/msg': 'Point Pose PoseArray PoseStamped Quaternion Transform '
                         'TransformStamped Twist TwistStamped Vector3 Vector3Stamped '
                         'WrenchStamped',
    'lifecycle_msgs/msg': 'State Transition TransitionDescription TransitionEvent',
    'lifecycle_msgs/srv': 'ChangeState GetAvailableStates GetAvailableTransitions GetState',
    'nav_msgs/msg': 'Path',
    'rcl_interfaces/msg': 'FloatingPointRange IntegerRange Log ParameterDescriptor '
                          'ParameterEvent ParameterType SetParametersResult',
    'rosgraph_msgs/msg': 'Clock',
    'sensor_msgs/msg': 'CameraInfo CompressedImage Image JointState',
    'std_msgs/msg': 'Bool ColorRGBA Empty Float32 Float64 Float64MultiArray Header Int8 Int32 '
                    'Int64 MultiArrayDimension MultiArrayLayout String UInt8',
    'std_srvs/srv': 'SetBool Trigger',
    'tf2_msgs/msg': 'TFMessage',
    'trajectory_msgs/msg': 'JointTrajectory JointTrajectoryPoint',
    'visualization_msgs/msg': 'Marker MarkerArray',
}
_NAMES = {leaf: f'{package}/{leaf}' for package, leaves in _TYPES.items()
          for leaf in leaves.split()}
__all__ = sorted(['get_message', 'get_service', *_NAMES])


def get_message(name: str) -> Any:
    """Return the class of 'pkg/msg/Type'; raise KeyError if it is not known here."""
    if BACKEND == 'dds':
        from .dds.types import message_class
        return message_class(name)
    return _genuine(name)


def get_service(name: str) -> Any:
    """Return the class of 'pkg/srv/Type'; raise KeyError if it is not known here."""
    if BACKEND == 'dds':
        from .dds.types import service_class
        return service_class(name)
    return _genuine(name)


def _genuine(name: str) -> Any:
    package, kind, leaf = name.split('/')
    try:
        return getattr(import_module(f'{package}.{kind}'), leaf)
    except (ImportError, AttributeError):
        raise KeyError(name) from None


def __getattr__(name: str) -> Any:
    """Load a class at its first use: genuine packages that nobody needs may be missing."""
    if name not in _NAMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    full = _NAMES[name]
    cls = get_service(full) if '/srv/' in full else get_message(full)
    globals()[name] = cls
    return cls
