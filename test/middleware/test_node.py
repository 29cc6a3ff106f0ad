"""What the DDS client decides by itself: names it refuses, log lines, where it looks for peers."""

from __future__ import annotations

from typing import Any

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import String


@pytest.mark.skipif(ros.BACKEND != 'dds', reason='rclpy raises errors of its own')
@pytest.mark.parametrize('topic', ['', 'a b', '/a//b', 'a/', '1a', 'ä', '~x'])
def test_bad_names_are_refused(make_node: Any, topic: str) -> None:
    with pytest.raises(UserError):
        make_node().create_publisher(String, topic, 1)
    with pytest.raises(UserError):
        make_node('bad name')


def test_log_lines(make_node: Any, capfd: pytest.CaptureFixture[str]) -> None:
    logger = make_node('gate', namespace='/vla').get_logger()
    logger.debug('hidden')
    for index in range(3):
        logger.warning(f'late {index}', throttle_duration_sec=10.0)
        logger.info('once', once=True)
    logger.error('bad')
    lines = capfd.readouterr().err.splitlines()
    assert [line.split('] ', 2)[0] + '] ' + line.split('] ', 2)[2] for line in lines] == [
        '[WARN] [vla.gate]: late 0', '[INFO] [vla.gate]: once', '[ERROR] [vla.gate]: bad']


@pytest.mark.skipif(ros.BACKEND != 'dds', reason="the DDS client's own settings")
@pytest.mark.parametrize(('environment', 'present', 'absent'), [
    ({}, ['name="lo', '>false</AllowMulticast>', '127.0.0.1'], []),
    ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'subnet'}, [], ['name="lo', 'Peer ', 'AllowMulticast']),
    ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF'}, ['>false</AllowMulticast>'], ['127.0.0.1']),
    ({'ROS_STATIC_PEERS': '10.0.0.7;robot'}, ['"10.0.0.7"', '"robot"', '127.0.0.1'], ['"lo']),
    ({'CYCLONEDDS_URI': 'file:///mine.xml'}, [',file:///mine.xml'], [])])
def test_discovery_follows_ros_variables(environment: dict[str, str], present: list[str],
                                         absent: list[str]) -> None:
    from dtvla_ros.middleware.dds.discovery import cyclone_config
    config = cyclone_config(environment)
    assert all(text in config for text in present), config
    assert not any(text in config for text in absent), config


@pytest.mark.skipif(ros.BACKEND != 'dds', reason="the DDS client's own settings")
@pytest.mark.parametrize('environment', [
    {'ROS_DOMAIN_ID': 'x'}, {'ROS_DOMAIN_ID': '233'}, {'ROS_DOMAIN_ID': '-1'}])
def test_bad_domains_are_named(environment: dict[str, str]) -> None:
    from dtvla_ros.middleware.dds.discovery import domain_id
    with pytest.raises(UserError, match='ROS_DOMAIN_ID'):
        domain_id(environment)
