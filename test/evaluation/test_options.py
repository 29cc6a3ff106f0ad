"""What cannot be asked for together is refused in one line, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('arguments, named', [
    (('--realtime',), '--via ros'), (('--via', 'pigeon'), 'pigeon'),
    (('--via', 'ros', '--perturb', 'camera:1'), '--perturb'),
    (('--via', 'ros', '--starts', 'jitter'), '--starts'),
    (('--via', 'ros', '--mode', 'replay'), 'replay'), (('--perturb', 'fog:1'), 'fog'),
    (('--starts', 'benchmark'), 'shuffle, jitter'), (('--html', '.'), '--html'),
], ids=str)
def test_refused(arguments, named, tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'dtvla_ros.cli', 'eval', '--policy', str(ROOT / 'models/nano'),
         '--json', str(tmp_path / 'r.json'), *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith('error: ') and named in done.stderr
    assert done.stderr.count('\n') == 1 and not list(tmp_path.iterdir())
