"""Lets every test and its processes import test/support; what needs ROS needs rclpy."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.ros.processes import remove_dead_segments
from dtvla_sim.prepare import prepare

PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # support, benchmarks
sys.path[:0] = PATHS
if 'PYTEST_XDIST_WORKER' in os.environ:  # workers side by side share the cores
    os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['PYTHONPATH'] = os.pathsep.join(
    path for path in (*PATHS, os.environ.get('PYTHONPATH')) if path)
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ['ROS_DOMAIN_ID'] = import_module('support.beside').fresh_domain()

with suppress(UserError):  # before anything imports MuJoCo; what draws says what is missing
    prepare()

HAS_ROS = find_spec('rclpy') is not None
if not HAS_ROS:
    collect_ignore = ['ros', 'nodes', 'faults', 'demo', 'doctor', 'recording',
                      'fuzz/test_images.py', 'fuzz/test_nodes.py', 'evaluation/test_over_ros.py']


def pytest_report_header() -> str:
    """Say what is left out where there is no ROS."""
    return '' if HAS_ROS else f'rclpy is not installed, left out: {", ".join(collect_ignore)}'


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tests kill nodes; give back the memory those shared."""
    remove_dead_segments()


@pytest.fixture(scope='module', autouse=True)
def own_precision():
    """Begin without the precision of what was trained before; a process has one."""
    if 'accelerate.state' in sys.modules:
        sys.modules['accelerate.state'].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
    """Return the folder of a small dataset; nobody may write there."""
    from support.tiny import tiny_dataset

    return tiny_dataset(tmp_path_factory.mktemp('tiny'))


@pytest.fixture
def dtvla(monkeypatch, capsys, tmp_path):
    """Run a command in this process, in an empty folder; return exit code, output and error."""
    from dtvla_ros import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', ['dtvla', *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return (left.value.code, *capsys.readouterr())

    monkeypatch.setattr('faulthandler.enable', lambda: None)  # by rclpy; capsys has no file
    monkeypatch.setenv('COLUMNS', '200')
    monkeypatch.chdir(tmp_path)
    return run
