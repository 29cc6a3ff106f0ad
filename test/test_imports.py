"""The house rules: who imports whom, and what a process must not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEARNING = ('torch', 'transformers', 'onnxruntime')
ROS = ('rclpy',)


def loaded_after(statement: str, names: tuple[str, ...]) -> set[str]:
    """Return which of ``names`` a fresh interpreter holds after ``statement``."""
    program = f'import sys; {statement}; print(*[n for n in {names!r} if n in sys.modules])'
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_check_sees_what_is_loaded():
    assert loaded_after('import json', ('json', *LEARNING)) == {'json'}


def test_package_import_is_light():
    assert loaded_after('import dtvla_ros', (*LEARNING, *ROS, 'numpy')) == set()


def test_command_line_import_is_light():
    assert loaded_after('import dtvla_ros.cli', (*LEARNING, *ROS, 'mujoco')) == set()


@pytest.mark.parametrize(
    'room', ['actions.codec', 'safety.gate', 'ros.run', 'ros.images']
)
def test_rooms_without_learning(room):
    assert loaded_after(f'import dtvla_ros.{room}', LEARNING) == set()


def test_gate_process_never_loads_learning_or_the_simulator():
    names = (*LEARNING, 'mujoco', 'robosuite')
    assert loaded_after('import dtvla_ros.nodes.command_gate', names) == set()


def test_nobody_breaks_the_import_rules():
    program = 'from importlinter.cli import lint_imports; raise SystemExit(lint_imports())'
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
