"""Training learns, and a resumed run is the run that was never stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny import CONFIG

from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import load_weights
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import read_transform
from dtvla_ros.training.checkpoint import CHECKPOINT, WEIGHTS
from dtvla_ros.training.config import AuxiliaryConfig, SftConfig
from dtvla_ros.training.sft import SftRun, build_trainer, train_sft

CONFIGS = Path(__file__).parents[2] / 'config' / 'train'
pytestmark = pytest.mark.usefixtures('one_thread')


def test_a_resumed_run_has_the_same_next_losses(dataset, tmp_path):
    run = SftRun((dataset,), tmp_path / 'whole', steps=20)
    whole = build_trainer(CONFIG, run)
    losses = [whole.train_step(whole.batches.train(k))['loss'].item() for k in range(6)]

    run = replace(run, out=tmp_path / 'halves')
    half = build_trainer(CONFIG, run)
    first = [half.train_step(half.batches.train(k))['loss'].item() for k in range(3)]
    half.save()
    again = build_trainer(CONFIG, run)
    assert again.step == 3
    rest = [again.train_step(again.batches.train(k))['loss'].item() for k in range(3, 6)]
    assert first + rest == losses
    for a, b in zip(whole.average.parameters(), again.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_lowers_the_loss_and_leaves_a_policy(dataset, tmp_path):
    out = tmp_path / 'run'
    run = SftRun((dataset,), out, steps=90, evaluate_every=60.0)
    begin = build_trainer(CONFIG, run).validate()
    end = train_sft(CONFIG, run)
    assert end['loss'] < 0.8 * begin['loss']
    assert end['thought'] < 0.6 * begin['thought']
    transform = read_transform(out)
    model = HybridDecoder(transform.config)
    load_weights(model, out / WEIGHTS)
    assert not list(out.rglob('*.pt'))
    assert any((out / 'tensorboard').iterdir())
    state = json.loads((out / CHECKPOINT / 'state.json').read_text())
    assert state['step'] == 90


def test_a_run_goes_on_only_with_its_own_config(dataset, tmp_path):
    run = SftRun((dataset,), tmp_path, steps=2)
    trainer = build_trainer(CONFIG, run)
    trainer.train_step(trainer.batches.train(0))
    trainer.save()
    with pytest.raises(UserError, match='another config'):
        build_trainer(replace(CONFIG, learning_rate=1.0), run)


@pytest.mark.parametrize('text, named', [
    ('batch_size: many', 'batch_size'), ('bach_size: 3', 'bach_size'), ('a: [1', 'malformed'),
    ('reasoning_dropout: 2.0', 'reasoning_dropout'), ('shift: [1]', 'shift'),
    ('model: 3', 'model'), ('just words', 'key: value'),
    ('lora: 3', 'lora'), ('lora: {rank: -1}', 'rank'), ('lora: {ranks: 2}', 'ranks'),
    ('lora: {rank: 2}\npointing_weight: 1.0', 'attention_weight'), ('accumulate: 0', 'accumulate'),
    ('rates: {vision: -1.0}', 'rates'), ('rates: {vision: 0, projector: 0, decoder: 0}', 'all 0'),
    ('auxiliary: {pointing_weight: 1.0}', 'pointing_weight'), ('turned: 1.5', 'direction_flip')])
def test_a_bad_config_is_named(tmp_path, text, named):
    path = tmp_path / 'config.yaml'
    path.write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        SftConfig.read(path)
    assert str(path) in str(caught.value)


def test_set_replaces_what_the_file_says(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('learning_rate: 0.001\nseed: 1')
    read = SftConfig.read(path, ['learning_rate=5e-4', 'shift=[2, 3]', 'precision=bf16'])
    assert read == replace(SftConfig(), learning_rate=5e-4, seed=1, shift=(2, 3),
                           precision='bf16')
    for text, named in (('seed', 'key=value'), ('=3', 'key=value'), ('seed=[1', 'no YAML'),
                        ('sead=1', 'sead'), ('seed=two', 'seed')):
        with pytest.raises(UserError, match=named):
            SftConfig.read(path, [text])


@pytest.mark.parametrize('path', sorted(
    path for path in CONFIGS.glob('*.yaml') if not path.stem.startswith('grpo')),
    ids=lambda path: path.stem)
def test_the_shipped_configs_are_valid(path):
    SftConfig.read(path)


def test_keys_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('grounding_steps: 7\ntelling_steps: 8\nturned: 0.1\npointing_layer: 1\n'
                    'auxiliary: {attention_weight: 0.3}')
    changes = ['grounding_rate=5e-3', 'auxiliary.localisation_weight=0.4', 'telling_steps=9']
    assert SftConfig.read(path, changes).auxiliary == AuxiliaryConfig(
        localisation_steps=7, localisation_rate=5e-3, captioning_steps=9,
        localisation_weight=0.4, attention_weight=0.3, attention_layer=1, direction_flip=0.1)


def test_time_or_steps_not_both(dataset, tmp_path):
    with pytest.raises(UserError, match='--minutes'):
        SftRun((dataset,), tmp_path, minutes=1.0, steps=5)


def test_a_missing_dataset_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match='dtvla collect'):
        train_sft(CONFIG, SftRun((tmp_path / 'none',), tmp_path / 'run', steps=1))
    assert not (tmp_path / 'run').exists()
