"""Where this process looks for peers: ROS's environment variables as Cyclone DDS settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from xml.sax.saxutils import quoteattr

from dtvla_ros.errors import UserError

RANGES = ('LOCALHOST', 'SUBNET', 'OFF', 'SYSTEM_DEFAULT')
MAX_PARTICIPANTS = 120
"""Participants per host that can find each other without multicast."""


def domain_id(environment: Mapping[str, str]) -> int:
    """Return ROS_DOMAIN_ID, 0 if unset; raise UserError unless it is 0 to 232."""
    text = environment.get('ROS_DOMAIN_ID', '') or '0'
    if not text.isdecimal() or int(text) > 232:
        raise UserError(f'ROS_DOMAIN_ID={text!r}: use a number from 0 to 232')
    return int(text)


def cyclone_config(environment: Mapping[str, str], security: str = '') -> str:
    """Return the Cyclone DDS configuration for these environment variables.

    Discovery stays on the loopback interface unless ROS_AUTOMATIC_DISCOVERY_RANGE says
    otherwise; ROS_STATIC_PEERS count for LOCALHOST and SUBNET, as in ROS. Anything in
    CYCLONEDDS_URI comes last and so overrides it. ``security`` is security_config's.
    """
    wanted = environment.get('ROS_AUTOMATIC_DISCOVERY_RANGE', '').upper() or 'LOCALHOST'
    if wanted not in RANGES:
        raise UserError(f'ROS_AUTOMATIC_DISCOVERY_RANGE={wanted!r}: '
                        f'use one of {", ".join(RANGES)}')
    peers = [peer for peer in environment.get('ROS_STATIC_PEERS', '').split(';') if peer]
    general = discovery = ''
    if wanted in ('LOCALHOST', 'OFF'):
        general = '<AllowMulticast>false</AllowMulticast>'
    theirs = environment.get('CYCLONEDDS_URI', '')
    # Interfaces add up, and Cyclone refuses one that is named twice.
    if wanted == 'LOCALHOST' and not peers and not _names_interfaces(theirs):
        name = 'lo0' if sys.platform == 'darwin' else 'lo'
        general += (f'<Interfaces><NetworkInterface name="{name}" multicast="false"/>'
                    '</Interfaces>')
    # One datagram per 64 kB instead of per 1.3 kB: a camera frame then costs a few system calls.
    general += '<MaxMessageSize>65500B</MaxMessageSize><FragmentSize>65000B</FragmentSize>'
    if wanted == 'OFF':
        # As rmw_cyclonedds: a tag nobody else has keeps even this machine's processes apart.
        discovery = (f'<ParticipantIndex>none</ParticipantIndex>'
                     f'<Tag>ros_discovery_off_{os.getpid()}</Tag>')
    elif wanted == 'LOCALHOST' or (wanted == 'SUBNET' and peers):
        addresses = (['127.0.0.1'] if wanted == 'LOCALHOST' else []) + peers
        listed = ''.join(f'<Peer address={quoteattr(peer)}/>' for peer in addresses)
        discovery = (f'<ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>'
                     f'{MAX_PARTICIPANTS}</MaxAutoParticipantIndex><Peers>{listed}</Peers>')
    ours = (f'<CycloneDDS><Domain><General>{general}</General>'
            f'<Discovery>{discovery}</Discovery>{security}</Domain></CycloneDDS>')
    return f'{ours},{theirs}' if theirs else ours


def _names_interfaces(uri: str) -> bool:
    """Return whether Cyclone settings, inline or in files, choose network interfaces."""
    for part in uri.split(','):
        path = part.strip().removeprefix('file://')
        if path != part.strip():
            with suppress(OSError):  # Cyclone will say that it is not there
                part = Path(path).read_text(errors='replace')
        if '<NetworkInterface' in part:
            return True
    return False
