"""Chooses a renderer that needs no display, before MuJoCo is imported."""

from __future__ import annotations

import os
import sys
from ctypes.util import find_library

from dtvla_ros.errors import UserError

LIBRARIES = {'osmesa': 'OSMesa', 'egl': 'EGL'}  # the first needs no device


def choose_gl() -> None:
    """Set ``MUJOCO_GL`` and ``PYOPENGL_PLATFORM`` if unset; a choice of the user's is kept.

    Raises UserError if no library of a renderer is installed.
    """
    chosen = os.environ.get('MUJOCO_GL', '').lower()
    if not chosen and sys.platform == 'linux':
        chosen = next((name for name, file in LIBRARIES.items() if find_library(file)), '')
        if not chosen:
            raise UserError('no software renderer for MuJoCo found; on Debian or Ubuntu run '
                            '"apt-get install libosmesa6" or "apt-get install libegl1 '
                            'libgl1-mesa-dri", or set MUJOCO_GL to egl, osmesa or glfw yourself')
        os.environ['MUJOCO_GL'] = chosen
    if chosen in LIBRARIES:
        os.environ.setdefault('PYOPENGL_PLATFORM', chosen)
