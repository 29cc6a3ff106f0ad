"""What MuJoCo, robosuite and numba read when they are imported is set before, or refused."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import dtvla_sim
from dtvla_ros.errors import UserError
from dtvla_sim import prepare

GL = ('MUJOCO_GL', 'PYOPENGL_PLATFORM', 'MUJOCO_EGL_DEVICE_ID', 'CUDA_VISIBLE_DEVICES', 'DISPLAY',
      'WAYLAND_DISPLAY', 'NUMBA_CACHE_DIR', 'XDG_CACHE_HOME')
BOTH = {'OSMesa', 'EGL'}


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """Give the environment back after the test; none of these is set in it."""
    for name in GL:
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)


def choose(monkeypatch, libraries=BOTH, **given):
    monkeypatch.setattr(prepare, 'find_library', lambda name: name in libraries)
    os.environ.update(given)
    prepare.choose_gl()
    return os.environ['MUJOCO_GL'], os.environ.get('PYOPENGL_PLATFORM', '')


@pytest.mark.parametrize(('given', 'libraries', 'chosen'), [
    ({}, BOTH, ('osmesa', 'osmesa')), ({}, {'EGL'}, ('egl', 'egl')),
    ({'MUJOCO_GL': ' EGL '}, BOTH, ('egl', 'egl')), ({'MUJOCO_GL': '1'}, {'EGL'}, ('egl', 'egl')),
    ({'PYOPENGL_PLATFORM': 'egl'}, BOTH, ('egl', 'egl')),
    ({'MUJOCO_GL': 'on', 'PYOPENGL_PLATFORM': 'egl'}, BOTH, ('egl', 'egl')),
    ({'MUJOCO_GL': 'glfw', 'DISPLAY': ':0'}, BOTH, ('glfw', ''))])
def test_a_renderer_is_chosen(monkeypatch, given, libraries, chosen):
    assert choose(monkeypatch, libraries, **given) == chosen


@pytest.mark.parametrize(('given', 'libraries', 'words'), [
    ({}, set(), 'no software renderer.*apt-get install'),
    ({'MUJOCO_GL': 'nonsense'}, {'EGL'}, 'MUJOCO_GL=nonsense: no renderer.*set MUJOCO_GL to egl'),
    ({'MUJOCO_GL': 'disable'}, BOTH, 'MUJOCO_GL=disable: no renderer.*set MUJOCO_GL to osmesa'),
    ({'MUJOCO_GL': 'osmesa'}, {'EGL'}, 'MUJOCO_GL=osmesa: libOSMesa is not.*MUJOCO_GL to egl'),
    ({'MUJOCO_GL': 'egl'}, set(), 'MUJOCO_GL=egl: libEGL is not.*apt-get install libosmesa6'),
    ({'PYOPENGL_PLATFORM': 'osmesa'}, {'EGL'}, 'PYOPENGL_PLATFORM=osmesa: libOSMesa is not'),
    ({'MUJOCO_GL': 'osmesa', 'PYOPENGL_PLATFORM': 'egl'}, BOTH, 'unset PYOPENGL_PLATFORM'),
    ({'PYOPENGL_PLATFORM': 'nonsense'}, BOTH, 'PYOPENGL_PLATFORM=nonsense contradicts'),
    ({'MUJOCO_GL': 'glfw'}, BOTH, 'MUJOCO_GL=glfw needs a display.*set MUJOCO_GL to osmesa'),
    ({'MUJOCO_GL': 'egl', 'MUJOCO_EGL_DEVICE_ID': '1', 'CUDA_VISIBLE_DEVICES': '0,2'}, BOTH,
     'MUJOCO_EGL_DEVICE_ID=1 is not among CUDA_VISIBLE_DEVICES=0,2')])
def test_a_renderer_is_refused(monkeypatch, given, libraries, words):
    with pytest.raises(UserError, match=words):
        choose(monkeypatch, libraries, **given)


@pytest.mark.parametrize(('device', 'refused'), [('7', True), ('x', True), ('-1', True),
                                                 ('0', False)])
def test_a_device_of_egl(monkeypatch, device, refused):
    there = SimpleNamespace(eglQueryDevicesEXT=lambda: ['one'])
    monkeypatch.setitem(sys.modules, 'mujoco.egl', SimpleNamespace(egl_ext=there))
    given = {'MUJOCO_GL': 'egl', 'MUJOCO_EGL_DEVICE_ID': device}
    if refused:
        with pytest.raises(UserError, match=f'DEVICE_ID={device}: EGL has 1 devices here'):
            choose(monkeypatch, **given)
    else:
        assert choose(monkeypatch, **given) == ('egl', 'egl')


def test_numba_caches_where_it_can_write(monkeypatch, tmp_path):
    source = tmp_path / 'robosuite'
    (source / 'utils').mkdir(parents=True)
    assert prepare._numba_cache(source) and 'NUMBA_CACHE_DIR' not in os.environ
    os.environ['NUMBA_CACHE_DIR'] = str(tmp_path / 'mine')
    assert prepare._numba_cache(source) and os.environ['NUMBA_CACHE_DIR'] == str(tmp_path / 'mine')
    # Root may write anywhere, so say what a file system says.
    closed = {source / 'utils', Path('/proc/nowhere')}
    access = os.access
    monkeypatch.setattr(os, 'access', lambda path, mode: Path(path) not in closed
                        and access(path, mode))
    os.environ.update(NUMBA_CACHE_DIR='/proc/nowhere', XDG_CACHE_HOME=str(tmp_path / 'cache'))
    assert prepare._numba_cache(source)
    assert os.environ['NUMBA_CACHE_DIR'] == str(tmp_path / 'cache/dtvla/numba')
    monkeypatch.setattr(prepare.tempfile, 'tempdir', str(tmp_path / 'temporary'))
    os.environ.update(NUMBA_CACHE_DIR='', XDG_CACHE_HOME='/proc/nowhere')
    assert prepare._numba_cache(source)
    folder = Path(os.environ['NUMBA_CACHE_DIR'])
    assert folder.parent == tmp_path / 'temporary' and folder.stat().st_mode & 0o77 == 0
    monkeypatch.setattr(prepare.tempfile, 'tempdir', '/proc/nowhere')
    os.environ['NUMBA_CACHE_DIR'] = ''
    assert not prepare._numba_cache(source), 'then every process compiles anew'


def test_robosuite_writes_no_log_and_leaves_the_renderer_to_us(monkeypatch):
    dtvla_sim.make('tabletop').close()
    import robosuite.macros as macros

    assert (macros.FILE_LOGGING_LEVEL, macros.MUJOCO_GPU_RENDERING) == (None, False)
    handlers = logging.getLogger('robosuite_logs').handlers
    assert not any(isinstance(handler, logging.FileHandler) for handler in handlers)


def test_what_cannot_draw_is_one_line(tmp_path):
    """In a process of its own, in another folder, with no home: EGL without a driver."""
    code = ('import dtvla_sim\n'
            'try: dtvla_sim.make("tabletop").reset(seed=0)[0]["agentview_image"]\n'
            'except Exception as error: print(type(error).__name__, error)')
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, env={
            **os.environ, 'MUJOCO_GL': 'egl', 'HOME': '/proc/nowhere',
            '__EGL_VENDOR_LIBRARY_FILENAMES': os.devnull})
    assert done.stdout.startswith('UserError MUJOCO_GL=egl ') and 'osmesa' in done.stdout, done
    assert done.stderr == ''
