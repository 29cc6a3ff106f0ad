"""What a process must not load; who may import whom is checked by `make lint`."""

from __future__ import annotations

import subprocess
import sys

import pytest

LEARNING = ('torch', 'transformers', 'onnxruntime')


@pytest.mark.parametrize('modules, names, loaded', [
    ('json', ('json', *LEARNING), 'json'),  # the check sees what is loaded
    ('dtvla_ros', (*LEARNING, 'rclpy', 'numpy'), ''),
    ('dtvla_ros.cli', (*LEARNING, 'rclpy', 'mujoco', 'numpy'), ''),
    ('dtvla_ros.actions.codec, dtvla_ros.ros.run, dtvla_ros.ros.images', LEARNING, ''),
    ('dtvla_ros.nodes.command_gate, dtvla_ros.nodes.overlay',
     (*LEARNING, 'mujoco', 'robosuite'), '')])
def test_a_process_loads_what_it_needs(modules, names, loaded):
    program = f'import sys, {modules}; print(*[n for n in {names!r} if n in sys.modules])'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          check=True, timeout=60)
    assert done.stdout.strip() == loaded
