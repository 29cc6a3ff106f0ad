"""What the DDS client decides by itself: names it refuses, its log lines."""

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
