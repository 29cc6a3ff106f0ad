"""``dtvla latency`` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rclpy

from dtvla_ros.measure import latency


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-m', 'dtvla_ros.cli', 'latency', *words], text=True,
                          capture_output=True, timeout=150)


@pytest.mark.slow
def test_measures_real_processes_and_writes_what_it_prints(tmp_path: Path) -> None:
    path = tmp_path / 'latency.json'
    done = _run('--count', '20', '--seconds', '1', '--rate', '40', '--json', str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert [row['n'] for row in result['rows']] == [20, 20, 40]
    for row in result['rows']:
        assert 0 < row['p50_ms'] <= row['p99_ms'] <= row['max_ms']
        assert row['met'] == (row[f'{row["target_of"]}_ms'] <= row['target_ms'])
        assert f'{row["p50_ms"]:.2f}' in done.stdout
    # How fast it was is what the command is for; a machine this busy may well stop the gate.
    assert result['rows'][2]['gate_state'] in ('RUN', 'HOLD', 'STOP')
    assert result['rmw'] == rclpy.get_rmw_implementation_identifier()
    assert result['load_average']['before'] >= 0
    assert 'load average' in done.stdout


def test_a_rate_the_gate_refuses_is_said_in_one_line() -> None:
    done = _run('--count', '10', '--seconds', '1', '--rate', '33')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('error: parameter rate = 33 Hz')
    assert done.stderr.count('\n') == 1


def test_help_teaches() -> None:
    done = _run('--help')
    assert done.returncode == 0
    assert 'dtvla latency' in done.stdout


def test_nobody_else_hears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own domain has an arm on it; the commands measured must not get there."""
    monkeypatch.setenv('ROS_DOMAIN_ID', '7')
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    monkeypatch.setenv('ROS_STATIC_PEERS', '10.0.0.7')
    with latency._alone(tmp_path):
        assert int(os.environ['ROS_DOMAIN_ID']) > 100
        assert os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
        assert os.environ['ROS_STATIC_PEERS'] == ''


def test_rows_are_percentiles_of_what_was_taken() -> None:
    row = latency._row('x', np.arange(101.0).tolist(), target='command p99')
    assert (row['n'], row['p50_ms'], row['p99_ms'], row['max_ms']) == (101, 50.0, 99.0, 100.0)
