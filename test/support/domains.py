"""ROS domains for processes that run at the same time, on this machine only."""

from __future__ import annotations

import itertools
import os
import random

_WORKERS = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
_WORKER = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw'))
_DOMAINS = 100 - 100 % _WORKERS  # from 102 on Linux may give a domain's ports to anybody
_drawn = itertools.count(random.SystemRandom().randrange(_DOMAINS))


def fresh_domain() -> str:
    """Return a domain that no other worker draws, each time another one.

    A killed participant haunts its domain for 10 s.
    """
    return str(1 + (_WORKER + _WORKERS * next(_drawn)) % _DOMAINS)
