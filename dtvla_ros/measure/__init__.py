"""How fast the package is on this machine, measured through real processes."""

from dtvla_ros.ros.source import require_one_ros

require_one_ros()
