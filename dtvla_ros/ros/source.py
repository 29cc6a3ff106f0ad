"""Where rclpy comes from: a sourced ROS, a conda environment or wheels, never two of them.

Nothing here imports rclpy: an import from a mix of two ROS ends in a crash, not in a message.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

from dtvla_ros.errors import UserError

# What the wheels of ROS are recognized by; no other ROS carries Python packages of these names.
WHEELS = ('ros-wheels-bootstrapper', 'ros-rclpy')
# The wheels' start-up file sets this when it has set LD_LIBRARY_PATH. Child processes inherit it.
STARTED = '_ROS_WHEELS_BOOTSTRAP_COMPLETE'
PYTHONS = ((3, 10), (3, 13))
GLIBC = (2, 28)


def wheels_installed() -> bool:
    """Return whether ROS has been installed with pip where this interpreter finds it."""
    for name in WHEELS:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return True
    return False


def why_no_wheels() -> str:
    """Return why the wheels of ROS cannot be installed here, '' if they can."""
    if platform.system() != 'Linux' or platform.machine() != 'x86_64':
        return f'{platform.system()} on {platform.machine()}'
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return f'Python {sys.version_info[0]}.{sys.version_info[1]}'
    library, version = platform.libc_ver()
    if library != 'glibc' or tuple(int(part) for part in version.split('.')[:2]) < GLIBC:
        return f'{library or "no glibc"} {version}'.strip()
    return ''


def sourced_folders() -> list[str]:
    """Return the folders with an rclpy of their own that the shell has sourced."""
    here = Path(sys.prefix).resolve()
    entries = [Path(entry) for entry in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
               if entry]
    found = [p for p in entries
             if (p / 'share/ament_index/resource_index/packages/rclpy').exists()]
    # Where only the path of the libraries is left, they would still be loaded.
    libraries = [Path(entry) for entry in os.environ.get('LD_LIBRARY_PATH', '').split(os.pathsep)
                 if entry]
    found += [p.parent for p in libraries if (p / 'librcl.so').exists()]
    return list(dict.fromkeys(str(p) for p in found if p.resolve() != here))


def rclpy_folder() -> Path | None:
    """Return the folder that ``import rclpy`` would read, None if there is none."""
    try:
        spec = importlib.util.find_spec('rclpy')
    except ValueError:  # somebody's stand-in
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _built_for_another_python(folder: Path) -> bool:
    built = {p.name for p in folder.glob('_rclpy_pybind11.*')}
    fitting = {f'_rclpy_pybind11{end}' for end in importlib.machinery.EXTENSION_SUFFIXES}
    return bool(built) and not built & fitting


def refuse_a_mix() -> None:
    """Raise UserError if wheels of ROS and a sourced ROS would meet in this process."""
    if not wheels_installed():
        return
    here = Path(sys.prefix).resolve()
    libraries = os.environ.get('LD_LIBRARY_PATH', '').split(os.pathsep)
    if os.environ.get(STARTED) and not any(Path(p).resolve() == here / 'lib' for p in libraries):
        raise UserError(
            f'{STARTED} was inherited from another environment, so the libraries of ROS in '
            f'{sys.prefix} are not found: unset {STARTED} LD_LIBRARY_PATH')
    folders = sourced_folders()
    if folders:
        raise UserError(
            f'ROS from wheels in {sys.prefix} and a sourced ROS in {folders[0]} do not mix: use a '
            'shell that has not sourced ROS, or another environment, made with ROS sourced '
            '(docs/install.md)')
    folder = rclpy_folder()
    if folder is not None and not folder.resolve().is_relative_to(here):
        raise UserError(
            f'ROS from wheels and the rclpy in {folder} do not mix: take that folder out of '
            'PYTHONPATH, or use an environment of its own that holds the wheels '
            '(docs/install.md)')


def require_one_ros() -> None:
    """Raise UserError, with the remedy, unless exactly one ROS is there to be imported."""
    refuse_a_mix()
    folder = rclpy_folder()
    if folder is None:
        raise UserError(f'rclpy is not installed: {_remedy()}')
    if _built_for_another_python(folder):
        raise UserError(
            f'the rclpy in {folder} is built for another Python than {sys.executable} '
            f'({sys.version_info[0]}.{sys.version_info[1]}): make the environment with the '
            'Python of that ROS (docs/install.md)')


def _remedy(opt: Path = Path('/opt/ros')) -> str:
    setups = sorted(opt.glob('*/setup.bash'))
    if setups:
        return f'. {setups[-1]}'
    reason = why_no_wheels()
    if not reason:
        return "pip install 'dtvla_ros[ros]', or source a ROS 2 (docs/install.md)"
    return (f'there is no wheel of it for {reason}: apt-get install ros-jazzy-ros-base and source '
            'it, or use pixi (docs/install.md)')
