"""``dtvla robustness`` as a user runs it, stopped and continued."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TASK = 'put_the_lemon_in_the_blue_bin'


def robustness(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'dtvla_ros.cli', 'robustness', '--workers', '1', *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_stopped_table_is_continued_cell_by_cell(tmp_path):
    journals, out = tmp_path / 'journals', tmp_path / 'r.json'
    command = ('--tasks', TASK, '--episodes', '1', '--families', 'noise,language', '--strengths',
               '3', '--resume', str(journals), '--json', str(out))
    done = robustness(*command)
    assert done.returncode == 0, done.stderr
    first = json.loads(out.read_text())
    assert set(first['families']) == {'noise', 'language'} and first['strengths'] == ['3']
    assert first['undisturbed']['n'] == first['families']['noise']['3']['n'] == 1
    assert 'strength 3' in done.stdout and 'undisturbed' in done.stdout

    files = {path.name: path for path in journals.iterdir()}
    assert set(files) == {'undisturbed.jsonl', 'noise-3.jsonl', 'language-3.jsonl'}
    before = {name: path.read_bytes() for name, path in files.items()}
    # As after a kill: one cell has its header only, another a success that never was.
    lost = files['noise-3.jsonl']
    lost.write_bytes(before['noise-3.jsonl'].splitlines(keepends=True)[0])
    flipped = json.loads(before['language-3.jsonl'].splitlines()[1])
    flipped['success'] = not flipped['success']
    files['language-3.jsonl'].write_bytes(
        before['language-3.jsonl'].splitlines(keepends=True)[0]
        + json.dumps(flipped).encode() + b'\n')
    assert robustness(*command).returncode == 0
    second = json.loads(out.read_text())
    assert second['families']['noise'] == first['families']['noise']
    assert second['families']['language']['3']['successes'] == int(flipped['success'])
    again = json.loads(lost.read_text().splitlines()[1])
    row = json.loads(before['noise-3.jsonl'].splitlines()[1])
    assert (again['commands'], again['steps']) == (row['commands'], row['steps'])

    other = robustness(*command, '--mode', 'masked')
    assert other.returncode == 2 and 'mode' in other.stderr


@pytest.mark.parametrize('arguments, named', [
    (('--families', 'fog'), 'fog'), (('--strengths', '4'), '"4"'),
    (('--strengths', '1,1'), 'twice'), (('--mode', 'replay'), 'replay')])
def test_unknown_cells_are_refused_before_anything_runs(arguments, named, tmp_path):
    done = robustness(*arguments, '--json', str(tmp_path / 'r.json'))
    assert done.returncode == 2 and named in done.stderr
    assert done.stderr.count('\n') == 1 and not list(tmp_path.iterdir())
