"""Wheels of ROS and a sourced ROS are told apart and never mixed; each remedy is one line."""

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from dtvla_ros.ros import environment as source

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / 'tools/rclpy_source'
SUFFIX = sysconfig.get_config_var('EXT_SUFFIX')
ASK = """
from dtvla_ros.errors import UserError
from dtvla_ros.ros.environment import require_one_ros
try:
    print(require_one_ros() or 'one')
except UserError as error:
    print(error)
"""


def put_rclpy(folder, suffix=SUFFIX):
    """Put an rclpy into a folder that ends whoever imports it."""
    (folder / 'rclpy').mkdir(parents=True)
    (folder / 'rclpy/__init__.py').write_text('raise SystemExit("it was imported")\n')
    (folder / f'rclpy/_rclpy_pybind11{suffix}').write_text('')


def put_ros(prefix):
    """Make what stands for a ROS below /opt; return what sourcing it puts into a shell."""
    index = prefix / 'share/ament_index/resource_index/packages'
    index.mkdir(parents=True)
    (index / 'rclpy').write_text('')
    put_rclpy(prefix / 'python')
    (prefix / 'lib').mkdir()
    (prefix / 'lib/librcl.so').write_text('')
    return {'AMENT_PREFIX_PATH': str(prefix), 'LD_LIBRARY_PATH': str(prefix / 'lib'),
            'PYTHONPATH': str(prefix / 'python'), 'ROS_DISTRO': 'jazzy'}


class Environment:
    """A virtual environment into which a test puts what it needs."""

    def __init__(self, folder):
        venv.create(folder, symlinks=True)
        self.folder = folder
        self.python = folder / 'bin/python'
        self.site = next(folder.glob('lib/python*/site-packages'))

    def put_wheels(self, name='ros_rclpy'):
        info = self.site / f'{name}-1.0.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        put_rclpy(self.site)
        (self.folder / 'lib/librcl.so').write_text('')
        return {'LD_LIBRARY_PATH': str(self.folder / 'lib'), source.STARTED: '1'}

    def run(self, words, environ):
        environ = environ | {'PYTHONPATH': f'{environ.get("PYTHONPATH", "")}:{ROOT}',
                             'PATH': os.environ['PATH']}
        return subprocess.run([self.python, *words], env=environ, text=True, capture_output=True,
                              timeout=60)

    def says(self, environ):
        done = self.run(['-c', ASK], environ)
        assert done.returncode == 0 and done.stdout.count('\n') == 1, done.stderr
        return done.stdout.strip()


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / 'venv')


def test_wheels_or_a_sourced_ros_and_a_workspace_of_the_users_are_one_ros(environment, tmp_path):
    assert environment.says(put_ros(tmp_path / 'jazzy')) == 'one'
    wheels = environment.put_wheels()
    assert environment.says(wheels) == 'one'
    inherited = environment.says({**wheels, 'LD_LIBRARY_PATH': '/elsewhere/lib'})
    assert inherited.endswith(f'unset {source.STARTED} LD_LIBRARY_PATH')
    index = tmp_path / 'install/share/ament_index/resource_index/packages'
    index.mkdir(parents=True)
    (index / 'my_robot').write_text('')
    for prefix in (tmp_path / 'install', environment.folder):
        assert environment.says({**wheels, 'AMENT_PREFIX_PATH': str(prefix)}) == 'one'


@pytest.mark.parametrize('left, wheel', [
    ('', 'ros_rclpy'), ('PYTHONPATH', 'ros_rclpy'),
    ('LD_LIBRARY_PATH', 'ros_wheels_bootstrapper')])
def test_wheels_in_a_sourced_ros_or_one_path_left_of_it_are_refused(
        environment, tmp_path, left, wheel):
    """Also by make."""
    wheels, ros = environment.put_wheels(wheel), put_ros(tmp_path / 'jazzy')
    ros['LD_LIBRARY_PATH'] += f':{wheels["LD_LIBRARY_PATH"]}'
    variables = {**wheels, **({left: ros[left]} if left else ros)}
    said = environment.says(variables)
    assert str(tmp_path / 'jazzy') in said and 'do not mix' in said
    done = environment.run([SOURCE, 'check'], variables)
    assert (done.returncode, done.stderr) == (2, f'error: {said}\n')


def test_without_rclpy_or_with_one_for_another_python_the_remedy_is_named(environment):
    said = environment.says({})
    assert said.startswith('rclpy is not installed: ')
    assert 'pip install' in said or 'setup.bash' in said or 'apt-get' in said
    put_rclpy(environment.site, '.cpython-38-x86_64-linux-gnu.so')
    assert 'built for another Python' in environment.says({})


@pytest.mark.parametrize('system, machine, python, libc, reason', [
    ('Linux', 'x86_64', (3, 12, 1), ('glibc', '2.28'), ''),
    ('Linux', 'aarch64', (3, 12, 1), ('glibc', '2.39'), 'Linux on aarch64'),
    ('Darwin', 'arm64', (3, 12, 1), ('', ''), 'Darwin on arm64'),
    ('Linux', 'x86_64', (3, 14, 0), ('glibc', '2.39'), 'Python 3.14'),
    ('Linux', 'x86_64', (3, 9, 9), ('glibc', '2.39'), 'Python 3.9'),
    ('Linux', 'x86_64', (3, 10, 0), ('glibc', '2.27'), 'glibc 2.27'),
    ('Linux', 'x86_64', (3, 10, 0), ('', ''), 'no glibc')])
def test_where_there_is_no_wheel_the_reason_is_known_and_an_installed_ros_is_named_first(
        monkeypatch, tmp_path, system, machine, python, libc, reason):
    for name, value in (('system', system), ('machine', machine), ('libc_ver', libc)):
        monkeypatch.setattr(source.platform, name, lambda value=value: value)
    monkeypatch.setattr(source.sys, 'version_info', python)
    said = source._remedy(tmp_path)
    assert ('pixi' in said and reason in said) if reason else ('pip install' in said)
    (tmp_path / 'jazzy').mkdir()
    (tmp_path / 'jazzy/setup.bash').write_text('')
    assert source._remedy(tmp_path) == f'. {tmp_path}/jazzy/setup.bash'


def test_make_uses_a_sourced_ros_and_wants_its_python(environment, tmp_path):
    ros = put_ros(tmp_path / 'jazzy')
    for word, said in (('options', '--system-site-packages'), (
            'install', f'rclpy: {tmp_path}/jazzy/python/rclpy')):
        done = environment.run([SOURCE, word], ros)
        assert done.stdout == f'{said}\n', done.stderr
    done = environment.run([SOURCE, 'options'], {**ros, 'PYTHONPATH': ''})
    assert done.returncode == 2 and 'make PYTHON=' in done.stderr


def test_make_goes_on_where_there_is_neither(environment):
    program = ('import platform, runpy, sys; platform.machine = lambda: "aarch64"; '
               f'sys.argv = ["rclpy_source", "install"]; '
               f'runpy.run_path({str(SOURCE)!r}, run_name="__main__")')
    done = environment.run(['-c', program], {})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('\n') == 1 and 'pixi' in done.stdout and 'apt' in done.stdout


@pytest.mark.parametrize('kept', [False, True])
def test_logs_go_to_the_temporary_folder_where_home_takes_none(monkeypatch, tmp_path, kept):
    for name in ('ROS_HOME', 'ROS_LOG_DIR'):
        monkeypatch.setenv(name, '')
    monkeypatch.setenv('HOME', str(tmp_path) if kept else '/proc/nowhere')
    source._choose_logs()
    chosen = os.environ['ROS_LOG_DIR']
    assert chosen == '' if kept else Path(chosen).is_dir()
    source._choose_logs()
    assert os.environ['ROS_LOG_DIR'] == chosen
