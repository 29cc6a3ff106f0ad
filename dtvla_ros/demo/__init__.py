"""The demonstration: three node processes, watched over their topics."""

from dtvla_ros.ros.environment import require_one_ros

require_one_ros()
