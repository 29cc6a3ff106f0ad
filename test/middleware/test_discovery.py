"""Where a process looks for peers: ROS's environment variables and Cyclone DDS's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.middleware import ros

if ros.BACKEND != 'dds':
    pytest.skip("the DDS client's own settings", allow_module_level=True)

from dtvla_ros.middleware.dds.discovery import cyclone_config, domain_id


@pytest.mark.parametrize(('environment', 'present', 'absent'), [
    ({}, ['name="lo', '>false</AllowMulticast>', '127.0.0.1'], []),
    ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'subnet'}, [], ['name="lo', 'Peer ', 'AllowMulticast']),
    ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF', 'ROS_STATIC_PEERS': '10.0.0.7'},
     ['>false</AllowMulticast>', '<Tag>ros_discovery_off_'], ['127.0.0.1', '10.0.0.7']),
    ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET', 'ROS_STATIC_PEERS': '10.0.0.7'}, ['"10.0.0.7"'],
     ['127.0.0.1', 'AllowMulticast']),
    ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SYSTEM_DEFAULT', 'ROS_STATIC_PEERS': '10.0.0.7'}, [],
     ['10.0.0.7', 'AllowMulticast']),
    ({'ROS_STATIC_PEERS': '10.0.0.7;robot'}, ['"10.0.0.7"', '"robot"', '127.0.0.1'], ['"lo']),
    ({'CYCLONEDDS_URI': 'file:///mine.xml'}, [',file:///mine.xml'], [])])
def test_discovery_follows_ros_variables(environment: dict[str, str], present: list[str],
                                         absent: list[str]) -> None:
    config = cyclone_config(environment)
    assert all(text in config for text in present), config
    assert not any(text in config for text in absent), config


@pytest.mark.parametrize('environment', [
    {'ROS_DOMAIN_ID': 'x'}, {'ROS_DOMAIN_ID': '233'}, {'ROS_DOMAIN_ID': '-1'}])
def test_bad_domains_are_named(environment: dict[str, str]) -> None:
    with pytest.raises(UserError, match='ROS_DOMAIN_ID'):
        domain_id(environment)


def test_interfaces_of_a_file_are_not_named_twice(tmp_path: Path) -> None:
    path = tmp_path / 'cyclone.xml'
    path.write_text('<CycloneDDS><Domain><General><Interfaces><NetworkInterface name="lo"/>'
                    '</Interfaces></General></Domain></CycloneDDS>')
    assert '"lo' not in cyclone_config({'CYCLONEDDS_URI': f'file://{path}'})
    path.write_text('<CycloneDDS/>')
    assert '"lo' in cyclone_config({'CYCLONEDDS_URI': f'file://{path}'})


def _domain(offset: int) -> str:
    return str(1 + (int(os.environ['ROS_DOMAIN_ID']) + offset) % 100)


@pytest.mark.parametrize(('environment', 'seen'), [
    ({}, True), ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}, True),
    ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF'}, False),
    ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF', 'ROS_STATIC_PEERS': '127.0.0.1'}, False),
    ({'ROS_DOMAIN_ID': 'another'}, False),
    ({'CYCLONEDDS_URI': '<CycloneDDS><Domain><Discovery><Tag>apart</Tag></Discovery></Domain>'
                        '</CycloneDDS>'}, False),
    ({'CYCLONEDDS_URI': '<CycloneDDS><Domain><General><Interfaces><NetworkInterface name="lo"/>'
                        '</Interfaces></General></Domain></CycloneDDS>'}, True)])
def test_who_sees_whom(make_node: Any, spin_until: Any, start_peer: Any,
                       environment: dict[str, str], seen: bool) -> None:
    if 'ROS_DOMAIN_ID' in environment:
        environment = {'ROS_DOMAIN_ID': _domain(1)}
    peer = start_peer(**environment)
    assert peer.stdout.readline() == 'ready\n'
    node = make_node()
    found = spin_until(lambda: node.count_publishers('word'), node, timeout=20.0 if seen else 2.0)
    assert bool(found) is seen


@pytest.mark.parametrize('environment', [
    {'CYCLONEDDS_URI': '<'},
    {'CYCLONEDDS_URI': '<CycloneDDS><Domain><Nope/></Domain></CycloneDDS>'},
    {'CYCLONEDDS_URI': 'file:///nothing/here.xml'}, {'CYCLONEDDS_URI': 'ä'},
    {'ROS_DOMAIN_ID': '1000'}, {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'moon'}])
def test_what_is_wrong_is_said_in_one_line(start_peer: Any, environment: dict[str, str]) -> None:
    peer = start_peer(**environment)
    out, err = peer.communicate(timeout=20)
    # Cyclone prints the place in its settings first.
    assert (peer.returncode, out) == (2, '')
    assert err.splitlines()[-1].startswith('error: ')
    assert next(iter(environment)) in err.splitlines()[-1]
    assert 'Traceback' not in err
