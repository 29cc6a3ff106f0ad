from __future__ import annotations

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.journal import Journal
from dtvla_ros.rollout.episode import EpisodeResult

SETTINGS = {'suite': 'tabletop', 'mode': 'full', 'files': {'a': 'hash'}}


def result(seed: int) -> EpisodeResult:
    return EpisodeResult('stack', seed, seed % 2 == 0, 80, 2, 0, {'think': [0.1, 0.2]}, ('a', 'b'))


def test_continues_after_a_kill_in_mid_line(tmp_path):
    path = tmp_path / 'runs' / 'eval.jsonl'
    with Journal(path, SETTINGS) as book:
        book.add(result(1))
        book.add(result(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with Journal(path, SETTINGS) as book:
        assert set(book.done) == {('stack', 1)}
        book.add(result(2))
    assert path.read_bytes() == whole
    with Journal(path, SETTINGS) as book:
        again = book.done['stack', 2]
    assert again.success and again.latency == {'think': [0.1, 0.2]}


def test_other_settings_are_refused_and_the_file_is_kept(tmp_path):
    path = tmp_path / 'eval.jsonl'
    with Journal(path, SETTINGS) as book:
        book.add(result(1))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r'eval\.jsonl.*mode.*choose another'):
        Journal(path, {**SETTINGS, 'mode': 'masked'})
    assert path.read_bytes() == before


@pytest.mark.parametrize('text', ['hello\n', '{}\n[1]\n', '{}\n{"x": 1}\n'])
def test_a_foreign_file_is_refused_and_kept(tmp_path, text):
    path = tmp_path / 'notes.txt'
    path.write_text(text)
    with pytest.raises(UserError, match=r'notes\.txt'):
        Journal(path, SETTINGS)
    assert path.read_text() == text
