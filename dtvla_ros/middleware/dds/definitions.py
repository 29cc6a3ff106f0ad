"""Interfaces that rosbags does not carry, in ROS's own definition language."""

from __future__ import annotations

SERVICES: dict[str, tuple[str, str]] = {
    'std_srvs/srv/Trigger': ('', 'bool success\nstring message'),
    'std_srvs/srv/SetBool': ('bool data', 'bool success\nstring message'),
    'std_srvs/srv/Empty': ('', ''),
    'lifecycle_msgs/srv/ChangeState': ('lifecycle_msgs/Transition transition', 'bool success'),
    'lifecycle_msgs/srv/GetState': ('', 'lifecycle_msgs/State current_state'),
    'lifecycle_msgs/srv/GetAvailableStates': ('', 'lifecycle_msgs/State[] available_states'),
    'lifecycle_msgs/srv/GetAvailableTransitions': (
        '', 'lifecycle_msgs/TransitionDescription[] available_transitions'),
    'rcl_interfaces/srv/GetParameters': (
        'string[] names', 'rcl_interfaces/ParameterValue[] values'),
    'rcl_interfaces/srv/GetParameterTypes': ('string[] names', 'uint8[] types'),
    'rcl_interfaces/srv/SetParameters': (
        'rcl_interfaces/Parameter[] parameters',
        'rcl_interfaces/SetParametersResult[] results'),
    'rcl_interfaces/srv/SetParametersAtomically': (
        'rcl_interfaces/Parameter[] parameters',
        'rcl_interfaces/SetParametersResult result'),
    'rcl_interfaces/srv/ListParameters': (
        'uint64 DEPTH_RECURSIVE=0\nstring[] prefixes\nuint64 depth',
        'rcl_interfaces/ListParametersResult result'),
    'rcl_interfaces/srv/DescribeParameters': (
        'string[] names', 'rcl_interfaces/ParameterDescriptor[] descriptors'),
}
"""Service type -> (request fields, response fields)."""

DEFAULTS: dict[str, dict[str, float]] = {'geometry_msgs/msg/Quaternion': {'w': 1.0}}
"""Default values other than zero; the field definitions do not keep them."""

HASHES: dict[str, str] = {
    'rmw_dds_common/msg/ParticipantEntitiesInfo':
        'RIHS01_91a0593bacdcc50ea9bdcf849a938b128412cc1ea821245c663bcd26f83c295e'}
"""Hashes that rosbags computes differently from ROS; peers warn of a wrong or missing one."""
