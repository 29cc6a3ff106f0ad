"""Chooses a renderer that needs no display, before MuJoCo is imported."""

from __future__ import annotations

import ctypes.util
import os
import sys

from dtvla_ros.errors import UserError

_LIBRARIES = {'egl': 'EGL', 'osmesa': 'OSMesa', 'glfw': 'glfw'}
REMEDY = (
    'no software renderer for MuJoCo found; on Debian or Ubuntu run '
    '"apt-get install libosmesa6" or "apt-get install libegl1 libgl1-mesa-dri", '
    'or set MUJOCO_GL to egl, osmesa or glfw yourself'
)


def choose_gl() -> str:
    """Set ``MUJOCO_GL`` and ``PYOPENGL_PLATFORM`` if unset; return the choice.

    A choice of the user's is kept. Otherwise OSMesa is preferred (it needs no device), then EGL.

    Raises
    ------
    UserError
        If neither library is installed.

    """
    chosen = os.environ.get('MUJOCO_GL', '').lower()
    if not chosen:
        if sys.platform != 'linux':
            return ''
        found = [b for b in ('osmesa', 'egl') if ctypes.util.find_library(_LIBRARIES[b])]
        if not found:
            raise UserError(REMEDY)
        chosen = found[0]
        os.environ['MUJOCO_GL'] = chosen
    if chosen in ('egl', 'osmesa'):
        os.environ.setdefault('PYOPENGL_PLATFORM', chosen)
    return chosen
