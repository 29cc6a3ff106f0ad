"""Which middleware this process uses."""

from __future__ import annotations

import os
from importlib.util import find_spec

from dtvla_ros.errors import UserError

VARIABLE = 'DTVLA_MIDDLEWARE'


def choose() -> str:
    """Return ``'rclpy'`` or ``'dds'``; the environment decides before what is installed does.

    Raise UserError if the variable names something else or a backend that is not there.
    """
    wanted = os.environ.get(VARIABLE, '')
    if wanted not in ('', 'rclpy', 'dds'):
        raise UserError(f"{VARIABLE}={wanted!r}: use 'rclpy' or 'dds', or leave it unset")
    present = {'rclpy': find_spec('rclpy') is not None, 'dds': find_spec('cyclonedds') is not None}
    if wanted and not present[wanted]:
        remedy = {'rclpy': 'source your ROS 2 setup.bash',
                  'dds': "run: pip install cyclonedds==11.0.1 'rosbags==0.11.9'"}[wanted]
        raise UserError(f'{VARIABLE}={wanted}, but it is not installed: {remedy}')
    if wanted:
        return wanted
    if present['rclpy']:
        return 'rclpy'
    if present['dds']:
        return 'dds'
    raise UserError('neither rclpy nor cyclonedds is installed: source your ROS 2 setup.bash, '
                    'or run: pip install cyclonedds==11.0.1 rosbags==0.11.9')


BACKEND = choose()
