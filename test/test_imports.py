"""What a process must not load; who may import whom is checked by `make lint`."""

from __future__ import annotations

import subprocess
import sys

import pytest

LEARNING = ('torch', 'transformers', 'onnxruntime')
ROS = ('rclpy',)


def loaded_after(statement: str, names: tuple[str, ...]) -> set[str]:
    """Return which of ``names`` a fresh interpreter holds after ``statement``."""
    program = f'import sys; {statement}; print(*[n for n in {names!r} if n in sys.modules])'
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(('modules', 'names', 'loaded'), [
    ('json', ('json', *LEARNING), {'json'}),  # the check sees what is loaded
    ('dtvla_ros', (*LEARNING, *ROS, 'numpy'), set()),
    ('dtvla_ros.cli', (*LEARNING, *ROS, 'mujoco', 'numpy'), set()),
    ('dtvla_ros.actions.codec, dtvla_ros.ros.run, dtvla_ros.ros.images', LEARNING, set()),
    ('dtvla_ros.nodes.command_gate', (*LEARNING, 'mujoco', 'robosuite'), set())])
def test_a_process_loads_what_it_needs(modules, names, loaded):
    assert loaded_after(f'import {modules}', names) == loaded
