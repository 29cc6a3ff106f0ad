"""Measurements of running nodes and of training steps; they need a checkout of the package."""

from dtvla_ros.ros.environment import refuse_a_mix

refuse_a_mix()
