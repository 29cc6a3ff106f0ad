from __future__ import annotations

import os
from pathlib import Path

import pytest

from dtvla_ros.errors import UserError


@pytest.fixture(scope='session')
def libero():
    """Skip where LIBERO or its assets are missing; a checkout may have them beside it."""
    from dtvla_sim.libero import package

    beside = Path(__file__).parents[3] / 'shared' / 'libero' / 'assets'
    if beside.is_dir():
        os.environ.setdefault('DTVLA_LIBERO_ASSETS', str(beside))
    try:
        package.root()
        package.check_mujoco()
        package.find_assets()
    except UserError as error:
        pytest.skip(str(error))
