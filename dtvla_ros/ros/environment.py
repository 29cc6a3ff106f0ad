"""Settings of a process that must stand before rclpy is initialised."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from xml.parsers import expat

from dtvla_ros import share
from dtvla_ros.errors import UserError
from dtvla_ros.ros.source import require_one_ros

DISCOVERY = 'ROS_AUTOMATIC_DISCOVERY_RANGE'
FORMER_DISCOVERY = 'ROS_LOCALHOST_ONLY'  # up to Humble the only one
OTHER_HOSTS = ('ROS_STATIC_PEERS', 'ROS_DISCOVERY_SERVER')  # name machines to talk to
DOMAIN = 'ROS_DOMAIN_ID'
KEYSTORE = 'ROS_SECURITY_KEYSTORE'
PROFILES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
PROFILE = 'config/fastdds.xml'
LOCAL_PROFILE = 'config/fastdds_localhost.xml'
CHOICES = {
    DISCOVERY: ('LOCALHOST', 'SUBNET', 'OFF', 'SYSTEM_DEFAULT'),
    'ROS_SECURITY_ENABLE': ('true', 'false'),
    'ROS_SECURITY_STRATEGY': ('Enforce', 'Permissive')}
"""Values which ROS knows; any other one it takes for its default, which may be 'no security'."""
_LAST_DOMAIN = 232  # the ports of the next one are beyond 65535
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
    _require_known_values()
    if not (os.environ.get(FORMER_DISCOVERY) or os.environ.get(DISCOVERY)):
        os.environ[DISCOVERY] = 'LOCALHOST'
        if os.environ.get('ROS_DISTRO') == 'humble':
            os.environ[FORMER_DISCOVERY] = '1'
    _choose_profile()
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc's
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TOP_PAD, _TOP_PAD)


def _require_known_values() -> None:
    """Refuse what ROS would silently take for something else."""
    for name, choices in CHOICES.items():
        value = os.environ.get(name)
        if value and value not in choices:
            raise UserError(f'{name}={value!r}: one of {", ".join(choices)} expected, just so')
    if os.environ.get('ROS_SECURITY_ENABLE') == 'true' and not os.environ.get(KEYSTORE):
        raise UserError(f'ROS_SECURITY_ENABLE=true, but {KEYSTORE} is not set: make one with '
                        'ros2 security create_keystore')
    domain = os.environ.get(DOMAIN)
    if domain and not (domain.isascii() and domain.isdigit() and int(domain) <= _LAST_DOMAIN):
        raise UserError(f'{DOMAIN}={domain!r}: a number from 0 to {_LAST_DOMAIN} expected')


def _choose_profile() -> None:
    """Let Fast DDS read the user's profiles, else ours.

    A child may have another range than its parent, so what a parent of ours chose does not count
    as the user's.
    """
    ours = {name: str(share.find(name).resolve()) for name in (PROFILE, LOCAL_PROFILE)}
    given = {name: value for name in PROFILES
             if (value := os.environ.get(name)) and value not in ours.values()}
    for name, value in given.items():
        _require_xml(name, value)
    if not given:
        chosen = ours[LOCAL_PROFILE if _is_local() else PROFILE]
        os.environ.update(dict.fromkeys(PROFILES, chosen))


def _is_local() -> bool:
    return not any(os.environ.get(name) for name in OTHER_HOSTS) and (
        os.environ.get(FORMER_DISCOVERY) == '1'
        or os.environ.get(DISCOVERY) in ('LOCALHOST', 'OFF'))


def _require_xml(name: str, path: str) -> None:
    """Fast DDS goes on without a file that it cannot read, and so without its restrictions."""
    try:
        expat.ParserCreate().Parse(Path(path).read_bytes(), True)
    except OSError as error:
        raise UserError(f'{name}: {path}: {error.strerror}') from error
    except expat.ExpatError as error:
        raise UserError(f'{name}: {path}: {error}') from error
