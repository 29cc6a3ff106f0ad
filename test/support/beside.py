"""Processes beside a test: ROS domains of their own, and waiting for what they do."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from typing import Any

_WORKERS = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
_WORKER = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw'))
_DOMAINS = 100 - 100 % _WORKERS  # from 102 on Linux may give a domain's ports to anybody
_drawn = itertools.count(random.SystemRandom().randrange(_DOMAINS))


def fresh_domain() -> str:
    """Return a domain that no other worker draws, each time another one.

    A killed participant haunts its domain for 10 s.
    """
    return str(1 + (_WORKER + _WORKERS * next(_drawn)) % _DOMAINS)


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Return what a condition returns once it is true; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, 'waited too long'
        time.sleep(0.02)
    return value
