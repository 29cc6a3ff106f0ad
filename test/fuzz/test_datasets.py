"""Datasets with one thing wrong: used, reported or refused in one line by whatever reads them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.published import published_dataset
from support.tiny import CONFIG, tiny_dataset

from test.fuzz.mutations import damaged, one_line, one_line_of, seeds

TOKENIZER = 'tokenizer.json'


@pytest.fixture(scope='module')
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return sound datasets of each version, images in videos and in parquet files."""
    folder = tmp_path_factory.mktemp('sound')
    return {'v30': tiny_dataset(folder / 'v30', 2),
            'v21': published_dataset(folder / 'v21', 2),
            'png': published_dataset(folder / 'png', 2, png=True)}


@pytest.fixture(autouse=True)
def tokenizer(sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Go where the tokenizer of the published datasets lies."""
    monkeypatch.chdir(sources['v21'])


def test_a_seed_always_does_the_same_and_only_that(
        sources: dict[str, Path], tmp_path: Path) -> None:
    """One file differs, or two where they are swapped."""
    def contents(folder: Path) -> dict[Path, bytes]:
        return {path.relative_to(folder): path.read_bytes()
                for path in folder.rglob('*') if path.is_file()}

    sound, told = contents(sources['v21']), set()
    for seed in list(seeds('datasets', 60)) * 2:
        with damaged(sources['v21'], tmp_path, seed) as (folder, what):
            made = contents(folder)
        told.add((seed, what))
        names = {name for name in {*sound, *made} if sound.get(name) != made.get(name)}
        assert len(names) <= 2, what
        assert not tmp_path.exists() or not any(tmp_path.iterdir())
    assert len(told) == len(seeds('datasets', 60))


def train(folder: Path, out: Path) -> None:
    """Do what a fine-tuning does until its data are loaded."""
    from dtvla_ros.training import data
    from dtvla_ros.training.initialisation import new_transform

    reader = data.open_demonstrations(folder)
    transform = new_transform(CONFIG, [reader])
    data.tokenize([reader], transform, data.object_names([reader]))
    data.open_frames(reader, transform)


# Each with its share of the mutations: the fast ones more.
COMMANDS: dict[str, tuple[int, Callable[[Path, Path], tuple[object, ...]]]] = {
    'inspect': (6, lambda data, out: ('data', 'inspect', data, '--tokenizer', TOKENIZER)),
    'validate': (6, lambda data, out: ('data', 'validate', data)),
    'keyframes': (3, lambda data, out: ('annotate', 'keyframes', '--data', data, '--out', out)),
    'convert': (3, lambda data, out: (
        'data', 'convert', data, '--tokenizer', TOKENIZER, '--out', out)),
    'stats': (2, lambda data, out: ('data', 'stats', data, '--out', out)),
    'view': (2, lambda data, out: ('data', 'view', data, '--out', out / 'page.html'))}
TRAIN = 2
PARTS = TRAIN + sum(share for share, _ in COMMANDS.values())


@pytest.mark.parametrize('name', COMMANDS)
def test_a_damaged_dataset_is_answered_in_one_line(
        sources: dict[str, Path], tmp_path: Path, name: str, total: int) -> None:
    share, arguments = COMMANDS[name]
    versions = ['v30'] if name == 'keyframes' else list(sources)
    for seed in seeds('datasets', total * share, PARTS):
        out = tmp_path / f'out{seed}'
        with damaged(sources[versions[seed % len(versions)]], tmp_path, seed) as (folder, what):
            one_line(*arguments(folder, out), what=f'seed {seed}: {what}')
            shutil.rmtree(out, ignore_errors=True)


def test_a_damaged_dataset_is_learnt_from_or_refused(
        sources: dict[str, Path], tmp_path: Path, total: int) -> None:
    for seed in seeds('datasets', total * TRAIN, PARTS):
        with damaged(sources['v30'], tmp_path, seed) as (folder, what):
            one_line_of(train, folder, tmp_path, what=f'seed {seed}: {what}')


def test_a_damaged_annotation_is_answered_in_one_line(
        sources: dict[str, Path], tmp_path: Path, total: int) -> None:
    """Key frames, labels, answers, decisions and what was accepted, read by what comes after."""
    data, sound = ('--data', sources['v30']), tmp_path / 'annotation'
    for command in (('keyframes',), ('label',), ('apply', '--accept-rest')):
        assert one_line('annotate', *command, *data, '--out', sound).code == 0
    steps: tuple[tuple[object, ...], ...] = (
        ('keyframes',), ('label',), ('label', '--estimate'), ('label', '--provider', 'replay'),
        ('review',), ('apply', '--accept-rest'), ('agree',), ('fill', '--steps', 1))
    for seed in seeds('annotations', total):
        with damaged(sound, tmp_path / 'copies', seed) as (folder, what):
            step = steps[seed % len(steps)]
            more = (('--to', folder / 'to') if step[0] == 'fill' else
                    ('--answers', folder / 'answers.jsonl') if 'replay' in step else ())
            one_line('annotate', *step, *data, '--out', folder, *more, what=f'seed {seed}: {what}')
