"""Whether LIBERO and its assets are here, for tests that need them."""

import os
from pathlib import Path

import pytest

from dtvla_ros.errors import UserError
from dtvla_sim.libero import package

# Checkouts may have the assets beside them; they are never inside (docs/libero.md).
BESIDE = Path(__file__).parents[3] / 'shared' / 'libero' / 'assets'
if BESIDE.is_dir():
    os.environ.setdefault('DTVLA_LIBERO_ASSETS', str(BESIDE))
try:
    package.root()
    package.check_mujoco()
    package.find_assets()
    MISSING = ''
except UserError as error:
    MISSING = str(error)
needs_libero = pytest.mark.skipif(bool(MISSING), reason=MISSING)
