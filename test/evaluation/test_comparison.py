from __future__ import annotations

import json

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.comparison import (
    BEGIN,
    END,
    compare,
    markdown,
    read_results,
)
from dtvla_ros.evaluation.protocol import EpisodeResult
from dtvla_ros.evaluation.report import summarise, versions
from dtvla_ros.files import write_between

TASKS = ('stack_the_cube', 'push_the_cube')


def result(folder, mode, good, files=None):
    episodes = [
        EpisodeResult(task, seed, k < good, 50, 1, 0, {'total': [0.02]})
        for task in TASKS for k, seed in enumerate(range(100, 110))]
    row = {'suite': 'tabletop', 'mode': mode, 'seeds': [100, 109], 'versions': versions(),
           **summarise(episodes, TASKS)}
    if files:
        row['files'] = files
    path = folder / f'{mode}.json'
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


def test_other_starts_are_not_compared(tmp_path):
    full, replay = result(tmp_path, 'full', 9), result(tmp_path, 'replay', 9)
    row = json.loads(replay.read_text())
    replay.write_text(json.dumps({**row, 'starts': 'jitter'}))
    with pytest.raises(UserError, match='differ in starts'):
        read_results([full, replay])
