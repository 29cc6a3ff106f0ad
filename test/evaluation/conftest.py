from __future__ import annotations

import pytest
from support.libero_here import MISSING


@pytest.fixture(scope='session')
def libero():
    """Skip where LIBERO or its assets are missing; a checkout may have them beside it."""
    if MISSING:
        pytest.skip(MISSING)
