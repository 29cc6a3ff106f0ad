"""The environment of a process that uses ROS: which rclpy, and settings before it starts.

rclpy comes from a sourced ROS, a conda environment or wheels, never from two of them. Nothing
here imports it: an import from a mix of two ROS ends in a crash, not in a message.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import random
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from xml.parsers import expat

from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared, written_whole

# What the wheels of ROS are recognized by; no other ROS carries Python packages of these names.
WHEELS = ('ros-wheels-bootstrapper', 'ros-rclpy')
# The wheels' start-up file sets this when it has set LD_LIBRARY_PATH. Child processes inherit it.
STARTED = '_ROS_WHEELS_BOOTSTRAP_COMPLETE'
DISCOVERY = 'ROS_AUTOMATIC_DISCOVERY_RANGE'
FORMER_DISCOVERY = 'ROS_LOCALHOST_ONLY'  # up to Humble the only one
OTHER_HOSTS = ('ROS_STATIC_PEERS', 'ROS_DISCOVERY_SERVER')  # name machines to talk to
PROFILES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
PROFILE = 'config/fastdds.xml'
LOCAL_PROFILE = 'config/fastdds_localhost.xml'
# Where a process's port for data lies among the 250 of its domain; even ones are for discovery.
_PORT, _USUAL_PORT, _PORTS = '<offsetd3>{}</offsetd3>', 11, 50
_port = _USUAL_PORT + 2 * random.SystemRandom().randrange(_PORTS)
_OWN = 'dtvla_ros-'  # begins the name of a profile with such a port
CHOICES = {
    DISCOVERY: ('LOCALHOST', 'SUBNET', 'OFF', 'SYSTEM_DEFAULT'),
    'ROS_SECURITY_ENABLE': ('true', 'false'), 'ROS_SECURITY_STRATEGY': ('Enforce', 'Permissive'),
    'ROS_DOMAIN_ID': tuple(map(str, range(233)))}  # the ports of the next one are beyond 65535
"""Values which ROS knows; any other one it takes for its default, which may be 'no security'."""
# glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of malloc.h.
_MALLOPT = ((-1, 64 * 2**20), (-2, 4 * 2**20), (-3, 64 * 2**20))


def wheels_installed() -> bool:
    """Return whether ROS has been installed with pip where this interpreter finds it."""
    return any(True for name in WHEELS for _ in importlib.metadata.distributions(name=name))


def why_no_wheels() -> str:
    """Return what the wheels of ROS cannot be installed on here, '' if they can."""
    system, machine, (library, version) = (
        platform.system(), platform.machine(), platform.libc_ver())
    if (system, machine, library) == ('Linux', 'x86_64', 'glibc') and (
            (3, 10) <= sys.version_info[:2] <= (3, 13)
            and tuple(map(int, version.split('.')[:2])) >= (2, 28)):
        return ''
    return (f'{system} on {machine} with Python {sys.version_info[0]}.{sys.version_info[1]} and '
            f'{library or "no glibc"} {version}'.rstrip())


def sourced_folders() -> list[str]:
    """Return the folders with an rclpy of their own that the shell has sourced."""
    here = Path(sys.prefix).resolve()
    found = [p for p in _entries('AMENT_PREFIX_PATH')
             if (p / 'share/ament_index/resource_index/packages/rclpy').exists()]
    # Where only the path of the libraries is left, they would still be loaded.
    found += [p.parent for p in _entries('LD_LIBRARY_PATH') if (p / 'librcl.so').exists()]
    return list(dict.fromkeys(str(p) for p in found if p.resolve() != here))


def _entries(variable: str) -> list[Path]:
    return [Path(entry) for entry in os.environ.get(variable, '').split(os.pathsep) if entry]


def rclpy_folder() -> Path | None:
    """Return the folder that ``import rclpy`` would read, None if there is none."""
    try:
        spec = importlib.util.find_spec('rclpy')
    except ValueError:  # somebody's stand-in
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def refuse_a_mix() -> None:
    """Raise UserError if wheels of ROS and a sourced ROS would meet in this process."""
    if not wheels_installed():
        return
    here = Path(sys.prefix).resolve()
    libraries = [p.resolve() for p in _entries('LD_LIBRARY_PATH')]
    if os.environ.get(STARTED) and here / 'lib' not in libraries:
        raise UserError(
            f'{STARTED} was inherited from another environment, so the libraries of ROS in '
            f'{sys.prefix} are not found: unset {STARTED} LD_LIBRARY_PATH')
    folder = rclpy_folder()
    others = [*sourced_folders(), *(
        [] if folder is None or folder.resolve().is_relative_to(here) else [str(folder)])]
    if others:
        raise UserError(
            f'ROS from wheels in {sys.prefix} and the one in {others[0]} do not mix: use a shell '
            'that has not sourced ROS and has no PYTHONPATH, or another environment, made with '
            'ROS sourced (docs/install.md)')


def require_one_ros() -> None:
    """Raise UserError, with the remedy, unless exactly one ROS is there to be imported."""
    refuse_a_mix()
    folder = rclpy_folder()
    if folder is None:
        raise UserError(f'rclpy is not installed: {_remedy()}')
    built = [p.name for p in folder.glob('_rclpy_pybind11.*')]
    fitting = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    if built and not any(name.removeprefix('_rclpy_pybind11') in fitting for name in built):
        raise UserError(
            f'the rclpy in {folder} is built for another Python than {sys.executable} '
            f'({sys.version_info[0]}.{sys.version_info[1]}): make the environment with the '
            'Python of that ROS (docs/install.md)')


def _remedy(opt: Path = Path('/opt/ros')) -> str:
    if setups := sorted(opt.glob('*/setup.bash')):
        return f'. {setups[-1]}'
    if reason := why_no_wheels():
        return (f'there is no wheel of it for {reason}: apt-get install ros-jazzy-ros-base and '
                'source it, or use pixi (docs/install.md)')
    return "pip install 'dtvla_ros[ros]', or source a ROS 2 (docs/install.md)"


def prepare() -> None:
    """Set what the user has not set: discovery on this host only, the Fast DDS profile, logs.

    Large freed blocks stay with the process: giving back the pages of every image costs more than
    copying it. Raises ``UserError`` if no rclpy is installed, or two ROS are mixed.
    """
    require_one_ros()
    _require_known_values()
    if not (os.environ.get(FORMER_DISCOVERY) or os.environ.get(DISCOVERY)):
        os.environ[DISCOVERY] = 'LOCALHOST'
        if os.environ.get('ROS_DISTRO') == 'humble':
            os.environ[FORMER_DISCOVERY] = '1'
    _choose_logs()
    _choose_profile()
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc's
    if mallopt is not None:
        for option, size in _MALLOPT:
            mallopt(option, size)


def take_domain() -> None:
    """Choose a domain for this process and those it starts, unless one is set."""
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.SystemRandom().randint(1, 100)))


def scope() -> str:
    """Return the settings by which this process, once prepared, finds others."""
    return ' '.join(f'{name}={value}' for name, value in (
        ('ROS_DOMAIN_ID', os.environ.get('ROS_DOMAIN_ID') or '0'),
        *((name, os.environ.get(name)) for name in (DISCOVERY, FORMER_DISCOVERY, *OTHER_HOSTS)))
        if value)


def _require_known_values() -> None:
    """Refuse what ROS would silently take for something else."""
    for name, choices in CHOICES.items():
        value = os.environ.get(name)
        if value and value not in choices:
            known = ', '.join(choices) if len(choices) < 9 else f'{choices[0]} to {choices[-1]}'
            raise UserError(f'{name}={value!r}: one of {known} expected, just so')
    if os.environ.get('ROS_SECURITY_ENABLE') == 'true' and not os.environ.get(
            'ROS_SECURITY_KEYSTORE'):
        raise UserError('ROS_SECURITY_ENABLE=true, but ROS_SECURITY_KEYSTORE is not set: make one '
                        'with ros2 security create_keystore')


def _choose_logs() -> None:
    """Let ROS write its logs to the temporary folder where the home folder takes none."""
    folder = _logs()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return
    os.environ['ROS_LOG_DIR'] = tempfile.mkdtemp(prefix='ros-log-')


def _logs() -> Path:
    home = Path(os.environ.get('ROS_HOME') or Path('~/.ros').expanduser())
    return Path(os.environ.get('ROS_LOG_DIR') or home / 'log')


def _choose_profile() -> None:
    """Let Fast DDS read the user's profiles, not what our parent process chose, else ours."""
    ours = {name: find_shared(name).resolve() for name in (PROFILE, LOCAL_PROFILE)}
    given = {name: value for name in PROFILES if (value := os.environ.get(name))
             and Path(value) not in ours.values() and not Path(value).name.startswith(_OWN)}
    for name, path in given.items():
        try:  # Fast DDS goes on without a file it cannot read, and so without its restrictions
            expat.ParserCreate().Parse(Path(path).read_bytes(), True)
        except (OSError, expat.ExpatError) as error:
            raise UserError(f'{name}: {path}: {error}') from error
    if not given:
        local = not any(map(os.environ.get, OTHER_HOSTS)) and (
            os.environ.get(FORMER_DISCOVERY) == '1'
            or os.environ.get(DISCOVERY) in ('LOCALHOST', 'OFF'))
        chosen = _with_own_port(ours[LOCAL_PROFILE if local else PROFILE])
        os.environ.update(dict.fromkeys(PROFILES, str(chosen)))


def _with_own_port(profile: Path) -> Path:
    """Return a copy of a profile by which this process receives data at another port than others.

    Fast DDS gives a process the port of one that was killed. For 20 seconds others take it for
    that one, and open and remove its shared memory at every message they send: the new process
    hears its first message a second or two late, and now and then none.
    """
    text = profile.read_text().replace(_PORT.format(_USUAL_PORT), _PORT.format(_port))
    own = _logs() / f'{_OWN}{profile.stem}-{_port}.xml'
    try:
        if not own.exists() or own.read_text() != text:
            with written_whole(own) as part:
                part.write_text(text)
    except (OSError, UserError):  # a full disk keeps no robot from moving
        return profile
    return own
