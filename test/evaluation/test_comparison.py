from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.comparison import (
    BEGIN,
    END,
    compare,
    markdown,
    read_results,
)
from dtvla_ros.evaluation.report import summarise, versions
from dtvla_ros.files import write_between
from dtvla_ros.rollout.episode import EpisodeResult

ROOT = Path(__file__).resolve().parents[2]
TASKS = ('stack_the_cube', 'push_the_cube')


def result(folder, mode, good, files=None, suite='tabletop', starts='shuffle', episodes=10,
           **more):
    played = [
        EpisodeResult(task, seed, k < good, 50, 1, 0, {'total': [0.02]})
        for task in TASKS for k, seed in enumerate(range(100, 100 + episodes))]
    row = {'suite': suite, 'starts': starts, 'mode': mode, 'seeds': [100, 99 + episodes],
           'versions': versions(), **summarise(played, TASKS), **more}
    if files:
        row['files'] = files
    path = folder / f'{suite}-{starts}-{mode}.json'
    path.write_text(json.dumps(row))
    return path


def test_table_holds_every_mode_and_the_total(tmp_path):
    files = [result(tmp_path, 'replay', 1), result(tmp_path, 'full', 9, {'a': 'x'})]
    lines = markdown(read_results(files)).splitlines()
    assert lines[0] == '| task | thinks | open-loop replay |'
    assert lines[2] == '| stack the cube | 9/10 (60% - 98%) | 1/10 |'
    assert lines[4].startswith('| **all** | 18/20 (') and lines[4].endswith('| 2/20 |')
    assert '20 ms median' in lines[-1]


def test_document_keeps_what_is_around_the_table(tmp_path):
    document = tmp_path / 'README.md'
    document.write_text(f'before\n{BEGIN}\nold\n{END}\nafter\n')
    compare([result(tmp_path, 'full', 10)], document, None)
    text = document.read_text()
    assert text.startswith(f'before\n{BEGIN}\n| task') and text.endswith(f'{END}\nafter\n')
    assert 'old' not in text
    document.write_text('no markers')
    with pytest.raises(UserError, match=r'README\.md lacks'):
        write_between(document, BEGIN, END, 'table')
    assert document.read_text() == 'no markers'


def test_what_does_not_belong_together_is_refused(tmp_path):
    full = result(tmp_path, 'full', 9, {'a': 'x'})
    with pytest.raises(UserError, match='already there'):
        read_results([full, full])
    with pytest.raises(UserError, match='different policies'):
        read_results([full, result(tmp_path, 'masked', 9, {'a': 'y'})])
    (tmp_path / 'x.json').write_text('{"mode": "full"}')
    with pytest.raises(UserError, match=r'x\.json is not a result'):
        read_results([tmp_path / 'x.json'])


def test_other_starts_and_suites_are_other_rows(tmp_path):
    policy = {'a': 'x'}
    files = [
        result(tmp_path, 'replay', 2, None, 'libero_object', 'shuffle'),
        result(tmp_path, 'full', 8, policy, 'libero_object', 'shuffle'),
        result(tmp_path, 'full', 10, policy, 'libero_object', 'benchmark', threads=2, workers=3),
        result(tmp_path, 'masked', 1, policy, 'libero_object', 'benchmark'),
        result(tmp_path, 'full', 9, policy, 'tabletop', 'shuffle')]
    lines = markdown(read_results(files)).splitlines()
    assert lines[0] == '| suite, starts | thinks | empty thought | open-loop replay |'
    assert [line.split(' | ')[0] for line in lines[2:5]] == [
        '| tabletop, shuffle', '| libero_object, benchmark', '| libero_object, shuffle']
    assert lines[4] == ('| libero_object, shuffle | 16/20 (58% - 92%) | - | 4/20 (8% - 42%) |')
    assert lines[3].startswith('| libero_object, benchmark | 20/20 (84% - 100%) | 2/20 (')
    with pytest.raises(UserError, match='--policy: a manifest holds the success of one'):
        compare(files, None, tmp_path)
    with pytest.raises(UserError, match='already there'):
        read_results([*files, files[0]])


@pytest.mark.parametrize('key, value', [
    ('perturb', ['camera:2']), ('flags', {'msaa_samples': 0}), ('seeds', [101, 110]),
    ('tasks', {'stack_the_cube': {'successes': 1, 'n': 1}})])
def test_what_was_measured_otherwise_is_not_compared(tmp_path, key, value):
    full = result(tmp_path, 'full', 9)
    other = result(tmp_path, 'replay', 9, **{key: value})
    with pytest.raises(UserError, match=f'differ in {key}'):
        read_results([full, other])


@pytest.mark.parametrize('suite, said', [('tabletop', False), ('libero_object', True)])
def test_of_libero_alone_it_is_said_how_it_is_drawn(tmp_path, suite, said):
    file = result(tmp_path, 'full', 9, suite=suite, flags={'msaa_samples': 0})
    assert ('antialiasing' in markdown(read_results([file]))) == said


def test_a_cell_may_have_fewer_episodes_and_says_so(tmp_path):
    full, few = result(tmp_path, 'full', 10), result(tmp_path, 'replay', 10, episodes=4)
    line = markdown(read_results([full, few])).splitlines()[4]
    assert line == '| **all** | 20/20 (84% - 100%) | 8/8 |'


@pytest.mark.skipif(shutil.which('make') is None, reason='no make')
def test_one_command_measures_every_cell_once(tmp_path):
    def wanted():
        done = subprocess.run(
            ['make', '-n', 'libero-table', f'TABLE={tmp_path}', 'POLICY=models/nano', 'VENV=.venv',
             'EPISODES=20'], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        lines = done.stdout.replace('\\\n', ' ').splitlines()
        calls = [line for line in lines if 'dtvla eval' in line]
        assert all('--episodes 20' in c and '--resume' in c for c in calls)
        assert f'dtvla report {tmp_path}' in done.stdout
        return {tuple(re.findall(r'--(?:suite|starts|mode) (\w+)', c)) for c in calls}

    cells = wanted()
    assert len(cells) == 25 and ('libero_object', 'shuffle', 'swapped') in cells
    assert ('libero_spatial', 'jitter', 'replay') in cells
    assert not any(cell[:2] == ('libero_spatial', 'shuffle') for cell in cells)
    (tmp_path / 'libero_object-jitter-full.json').touch()
    assert cells - wanted() == {('libero_object', 'jitter', 'full')}
