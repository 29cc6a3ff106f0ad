"""Sets what MuJoCo, robosuite and numba read when they are imported, before they are."""

from __future__ import annotations

import os
import sys
import tempfile
from ctypes.util import find_library
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from dtvla_ros.errors import UserError

LIBRARIES = {'osmesa': 'OSMesa', 'egl': 'EGL'}  # the first needs no device
WINDOWS = ('glfw', 'glx')  # need a display
# What MuJoCo takes for "whatever there is".
_ANY = ('', 'enable', 'enabled', 'on', 'true', '1')
_MACROS, _PRIVATE = 'robosuite.macros', 'robosuite.macros_private'


def prepare() -> None:
    """Choose a renderer that needs no display, a writable cache of numba, no log file.

    What the user has set is kept where it can work. Raises UserError where it can not, or if no
    library of a renderer is installed.
    """
    choose_gl()
    _set_macros()


def choose_gl() -> None:
    """Set ``MUJOCO_GL`` and ``PYOPENGL_PLATFORM``; MuJoCo asks for them to be the same.

    Raises UserError for a renderer that there is not, and for two different ones.
    """
    if sys.platform != 'linux':
        return
    given, opengl = (os.environ.get(name, '').lower().strip()
                     for name in ('MUJOCO_GL', 'PYOPENGL_PLATFORM'))
    there = [name for name, file in LIBRARIES.items() if find_library(file)]
    chosen = opengl if given in _ANY and opengl in LIBRARIES else given
    if chosen in _ANY:
        if not there:
            raise UserError('no software renderer for MuJoCo found; on Debian or Ubuntu run '
                            '"apt-get install libosmesa6" or "apt-get install libegl1 '
                            'libgl1-mesa-dri", or set MUJOCO_GL to egl, osmesa or glfw yourself')
        chosen = there[0]
    elif chosen not in (*LIBRARIES, *WINDOWS):
        raise UserError(f'MUJOCO_GL={chosen}: no renderer of that name draws images; {_other()}')
    elif chosen in LIBRARIES and chosen not in there:
        name = 'PYOPENGL_PLATFORM' if chosen != given else 'MUJOCO_GL'
        raise UserError(f'{name}={chosen}: lib{LIBRARIES[chosen]} is not installed; {_other()}')
    elif chosen in WINDOWS and not (
            os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        raise UserError(f'MUJOCO_GL={chosen} needs a display, and there is none; {_other()}')
    if chosen in LIBRARIES and opengl not in ('', chosen):
        raise UserError(f'PYOPENGL_PLATFORM={opengl} contradicts MUJOCO_GL={chosen}; unset '
                        'PYOPENGL_PLATFORM')
    os.environ['MUJOCO_GL'] = chosen
    if chosen in LIBRARIES:
        os.environ['PYOPENGL_PLATFORM'] = chosen
    if chosen == 'egl':
        _check_device()


def cannot_draw(error: Exception) -> UserError:
    """Return what to say where a renderer could not be made."""
    chosen = os.environ.get('MUJOCO_GL', '')
    return UserError(f'MUJOCO_GL={chosen} cannot draw here ({error or type(error).__name__}); '
                     f'{_other(chosen)}')


def _other(not_this: str = '') -> str:
    there = [name for name, file in LIBRARIES.items() if find_library(file) and name != not_this]
    return f'set MUJOCO_GL to {there[0]}, or unset it' if there and not not_this else (
        f'set MUJOCO_GL to {there[0]}' if there else
        'on Debian or Ubuntu run "apt-get install libosmesa6" and set MUJOCO_GL to osmesa')


def _check_device() -> None:
    """Refuse a device of EGL that there is not; robosuite also compares it with CUDA's."""
    given = os.environ.get('MUJOCO_EGL_DEVICE_ID')
    if given is None:
        return
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    if visible and given not in visible:
        raise UserError(f'MUJOCO_EGL_DEVICE_ID={given} is not among CUDA_VISIBLE_DEVICES='
                        f'{visible}; choose one of them, or unset MUJOCO_EGL_DEVICE_ID')
    from mujoco.egl import egl_ext

    count = len(egl_ext.eglQueryDevicesEXT())
    if not count:
        raise cannot_draw(RuntimeError('EGL has no device'))
    if not (given.isdecimal() and int(given) < count):
        raise UserError(f'MUJOCO_EGL_DEVICE_ID={given}: EGL has {count} devices here, counted '
                        'from 0; choose one of them, or unset MUJOCO_EGL_DEVICE_ID')


def _set_macros() -> None:
    """Load robosuite's settings and change them before the rest of it reads them.

    Its log in the temporary folder may belong to another user; it would set ``MUJOCO_GL`` itself;
    and it warns of a file with a user's own settings that is not there.
    """
    found = find_spec('robosuite')
    if found is None or found.origin is None or 'robosuite' in sys.modules:
        return
    spec = spec_from_file_location(_MACROS, Path(found.origin).with_name('macros.py'))
    assert spec is not None and spec.loader is not None
    macros: Any = module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL, macros.MUJOCO_GPU_RENDERING = None, False
    macros.CACHE_NUMBA = _numba_cache(Path(found.origin).parent)
    sys.modules[_MACROS] = macros
    sys.modules.setdefault(_PRIVATE, ModuleType(_PRIVATE))


def _numba_cache(robosuite: Path) -> bool:
    """Let numba keep what it compiles where it can write; return whether there is such a place.

    It would choose the folder of the source, or the user's cache.
    """
    given = os.environ.pop('NUMBA_CACHE_DIR', None)
    if given and _writable(Path(given)):
        os.environ['NUMBA_CACHE_DIR'] = given
        return True
    source = robosuite / 'utils'
    if os.access(source, os.W_OK) and _writable(source / '__pycache__'):
        return True
    home = os.environ.get('XDG_CACHE_HOME') or str(Path('~/.cache').expanduser())
    for folder in (Path(home, 'dtvla', 'numba'),
                   Path(tempfile.gettempdir(), f'dtvla-numba-{os.getuid()}')):
        # Nobody else may put compiled code there.
        if _writable(folder) and folder.stat().st_uid == os.getuid():
            os.environ['NUMBA_CACHE_DIR'] = str(folder)
            return True
    return False


def _writable(folder: Path) -> bool:
    """Whether a folder is there, or can be made for this user alone, and can be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.access(folder, os.W_OK)
    except OSError:
        return False
