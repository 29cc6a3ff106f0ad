"""A run is saved from its first minute on, and a stopped one goes on as if nothing had been."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny import CONFIG, tiny_episode, write_dataset

from dtvla_ros.data import layout
from dtvla_ros.errors import UserError
from dtvla_ros.training import checkpoint, data
from dtvla_ros.training.collate import prefetch
from dtvla_ros.training.config import AuxiliaryConfig, SftRun
from dtvla_ros.training.export import read_source
from dtvla_ros.training.sft import describe, train_sft
from dtvla_ros.training.trainer import Trainer

STAGED = replace(CONFIG, auxiliary=AuxiliaryConfig(
    localisation_steps=6, captioning_steps=6, attention_weight=0.5, attention_layer=0))


@pytest.fixture
def run(dataset, tmp_path):
    return SftRun((dataset,), tmp_path / 'run', steps=6)


def signal_at(monkeypatch, number: int, number_of_signal: int) -> None:
    """Let a signal come in the midst of a step, and to the processes that make batches."""
    counted, step = [], torch.optim.AdamW.step

    def stepping(self, *arguments, **options):
        counted.append(1)
        if len(counted) == number:
            for child in multiprocessing.active_children():
                os.kill(child.pid, number_of_signal)
            os.kill(os.getpid(), number_of_signal)
        return step(self, *arguments, **options)
    monkeypatch.setattr(torch.optim.AdamW, 'step', stepping)


@pytest.mark.parametrize('at, number, said', [
    (4, signal.SIGINT, 'saved at step 4 of localisation'),
    (9, signal.SIGTERM, 'saved at step 3 of location captioning'),
    (14, signal.SIGTERM, 'saved at step 2, '), (15, signal.SIGINT, 'saved at step 3, ')])
def test_a_stopped_run_goes_on_exactly(monkeypatch, run, tmp_path, capfd, at, number, said):
    whole = replace(run, out=tmp_path / 'whole')
    train_sft(STAGED, whole)
    with monkeypatch.context() as patched:
        signal_at(patched, at, number)
        with pytest.raises(KeyboardInterrupt, match=f'{run.out}: {said}.*repeat the command'):
            train_sft(STAGED, run)
    assert 'stopping: finishing the running step, then saving' in capfd.readouterr().err
    assert (run.out / checkpoint.WEIGHTS).exists() == (at > 12), 'before, nothing to export'
    train_sft(STAGED, run)
    a, b = (read_source(out)[0].state_dict() for out in (whole.out, run.out))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not list(run.out.glob('.*'))


def test_a_second_signal_drops_the_step(monkeypatch, run):
    signal_at(monkeypatch, 3, signal.SIGINT)
    signal_at(monkeypatch, 3, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match='^$'):
        train_sft(STAGED, run)
    assert not (run.out / checkpoint.CHECKPOINT).exists()


def test_every_minute_there_is_a_checkpoint(monkeypatch, run):
    seen, save = [], Trainer.save
    monkeypatch.setattr('dtvla_ros.training.clock.SAVING', math.inf)
    monkeypatch.setattr(Trainer, 'save', lambda self: (seen.append(
        (self.pretraining and self.pretraining.step, self.step)), save(self)))
    train_sft(STAGED, replace(run, checkpoint_every=0.0))
    assert seen == [*((k, 0) for k in (1, 2, 3, 4, 5, 6) * 2), (None, 0),
                    *((None, k) for k in (1, 2, 3, 4, 5, 6, 6))]


def test_the_plan_says_what_takes_how_long(run, capsys):
    trainer = Trainer(STAGED, run)
    assert len(trainer.stages()) == 2
    trainer.measure()
    lines = describe(trainer).splitlines()
    assert [line.split('  ')[1] for line in lines[1:]] == [
        'localisation', 'location captioning', 'fine-tuning']
    assert '6 steps, about' in lines[1] and str(run.out) in lines[0]
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert all(torch.equal(before[name], value)
               for name, value in Trainer(STAGED, run).model.state_dict().items())


def test_minutes_hold_the_pre_training_too(run):
    config = replace(STAGED, auxiliary=replace(
        STAGED.auxiliary, localisation_steps=100_000, captioning_steps=50_000))
    run = replace(run, steps=None, minutes=0.1)
    trainer = Trainer(config, run)
    trainer.costs = (0.001, 0.001, 0.002)
    trainer.clock.seconds = 1.0
    assert trainer.stage_seconds(1.0) == pytest.approx([2.0 / 1.5, 1.0 / 1.5])
    text = describe(trainer)
    assert 'as much as fits' in text and '0.1 minutes' in text
    trainer.clock.seconds = 0.0
    train_sft(config, run)
    state = json.loads((run.out / checkpoint.CHECKPOINT / 'state.json').read_text())
    assert 0.0 < state['begun'] < 6.0 < 1.5 * state['seconds'] and state['step'] > 0


def test_a_policy_is_taken_on_without_pre_training(run, tmp_path):
    train_sft(CONFIG, run)
    more = replace(run, out=tmp_path / 'more', init=run.out)
    assert not Trainer(STAGED, more).stages()
    assert len(Trainer(STAGED, replace(more, pretrain=True)).stages()) == 2
    assert not Trainer(STAGED, replace(more, init=None, pretrain=False)).stages()


def test_the_average_can_act_while_attention_is_supervised(run):
    from dtvla_ros.engine.batch import BatchSampler
    from dtvla_ros.policy.transform import Observation
    trainer = Trainer(STAGED, run)
    view = Observation({name: np.zeros((32, 32, 3), np.uint8) for name in ('primary', 'wrist')},
                       {}, np.array([0.4, 0.0, 0.1]), np.array([1.0, 0.0, 0.0, 0.0]), 0.04,
                       'put the can in the wooden bin', 0.0)
    assert BatchSampler(trainer.average.eval(), trainer.transform).infer([view])


def refusing(number: int):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))
    return refuse


def test_the_folder_is_tried_before_images_are_decoded(monkeypatch, run, tmp_path):
    monkeypatch.setattr(data, '_decode', lambda *_: pytest.fail('decoded'))
    (tmp_path / 'run').write_text('a file')
    with pytest.raises(UserError, match=f'cannot write {run.out}: '):
        train_sft(CONFIG, run)
    monkeypatch.setattr('tempfile.TemporaryFile', refusing(errno.EROFS))
    with pytest.raises(UserError, match='other: Read-only file system; choose'):
        train_sft(CONFIG, replace(run, out=tmp_path / 'other'))


def test_a_full_disk_leaves_the_checkpoint_before(monkeypatch, run):
    train_sft(CONFIG, replace(run, steps=2))
    for name in ('save_file', 'write_json'):
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, name, refusing(errno.ENOSPC))
            with pytest.raises(UserError, match=f'{run.out}.*No space left on device; make room'):
                train_sft(CONFIG, run)
        assert {p.name for p in run.out.iterdir() if p.name.startswith('.')} == set()
        assert Trainer(CONFIG, run).step == 2


def test_a_dataset_that_cannot_be_written_is_decoded_into_memory(monkeypatch, tmp_path):
    root = write_dataset(tmp_path / 'data', [tiny_episode(0)])
    reader, transform = Trainer(CONFIG, SftRun((root,), tmp_path / 'a', steps=1)), None
    reader, transform = data.DatasetReader(root), reader.transform
    stored = np.array(data.open_frames(reader, transform))
    for path in (root / '.frames').iterdir():
        path.unlink()
    monkeypatch.setattr(os, 'posix_fallocate', refusing(errno.ENOSPC))
    np.testing.assert_array_equal(data.open_frames(reader, transform), stored)
    assert not list((root / '.frames').iterdir())


def test_without_shared_memory_the_remedy_is_one_that_works(monkeypatch, run):
    def full(_):
        raise RuntimeError('unable to allocate shared memory(shm) for file </torch_1>: No space '
                           'left on device (28)\nmore')
    monkeypatch.setattr(torch.Tensor, 'share_memory_', full)
    with pytest.raises(UserError, match='--loaders 2: no shared memory.*(28).*--loaders 0'):
        train_sft(CONFIG, replace(run, loaders=2))
    assert not multiprocessing.active_children()
    assert train_sft(CONFIG, replace(run, loaders=0))


def test_batches_are_the_same_whoever_makes_them(run):
    trainer = Trainer(CONFIG, run)
    for loaders in (0, 2):
        batches = prefetch(trainer.batches.train, 3, loaders, torch.device('cpu'))
        for step in (3, 4, 5):
            wanted = trainer.batches.train(step)
            assert all(map(torch.equal, wanted, next(batches)))
        batches.close()


def test_actions_of_another_size_are_told_in_numbers(tmp_path):
    episodes = [tiny_episode(k) for k in range(3)]
    for episode in episodes:
        actions = np.asarray(episode.columns[layout.ACTION])
        episode.columns[layout.ACTION] = actions[:, :6]
        chunk = np.asarray(episode.columns[layout.ACTION_CHUNK]).reshape(len(actions), -1, 7)
        episode.columns[layout.ACTION_CHUNK] = chunk[..., :6].reshape(len(actions), -1)
    root = write_dataset(tmp_path / 'six', episodes)
    for run in (SftRun((root,), tmp_path / 'run', steps=1),
                SftRun((root,), tmp_path / 'more', steps=1, init=Path('models/nano').resolve())):
        with pytest.raises(UserError, match='six: actions of 6 numbers, the policy makes 7; '):
            Trainer(CONFIG, run)
