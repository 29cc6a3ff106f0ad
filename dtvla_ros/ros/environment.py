"""Settings of a process that must stand before rclpy is initialised."""

from __future__ import annotations

import ctypes
import os

from dtvla_ros import share
from dtvla_ros.ros.source import require_one_ros

DISCOVERY = 'ROS_AUTOMATIC_DISCOVERY_RANGE'
FORMER_DISCOVERY = 'ROS_LOCALHOST_ONLY'  # before Iron
PROFILES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
PROFILE = 'config/fastdds.xml'
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
_KEPT = 64 * 2**20
_TOP_PAD = 4 * 2**20


def prepare() -> None:
    """Set what the user has not set: discovery on this host only, the Fast DDS profile.

    Large freed blocks are kept by the process from here on: giving back the pages of every image
    costs more than copying it.

    Raises
    ------
    UserError
        If no rclpy is installed, or a sourced ROS and the wheels are mixed.

    """
    require_one_ros()
    if not os.environ.get(FORMER_DISCOVERY):
        os.environ.setdefault(DISCOVERY, 'LOCALHOST')
    if not any(os.environ.get(name) for name in PROFILES):
        os.environ.update(dict.fromkeys(PROFILES, str(share.find(PROFILE).resolve())))
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc's
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TOP_PAD, _TOP_PAD)
