"""Training learns, and a resumed run is the run that was never stopped."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny import CONFIG, tiny_dataset

from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import load_weights
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import read_transform
from dtvla_ros.training import run_state
from dtvla_ros.training.auxiliary.stages import teach_eye, teach_telling
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.sft import SftRun, Trainer, learning_rate, train_sft

RECIPES = Path(__file__).parents[2] / 'config' / 'train'


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_resumed_run_has_the_same_next_losses(dataset, tmp_path):
    run = SftRun((dataset,), tmp_path / 'whole', steps=20)
    whole = Trainer(CONFIG, run)
    losses = [whole.train_step(whole.batches.train(k)).loss.item() for k in range(6)]

    run = replace(run, out=tmp_path / 'halves')
    half = Trainer(CONFIG, run)
    first = [half.train_step(half.batches.train(k)).loss.item() for k in range(3)]
    half.save()
    again = Trainer(CONFIG, run)
    assert again.step == 3
    rest = [again.train_step(again.batches.train(k)).loss.item() for k in range(3, 6)]
    assert first + rest == losses
    for a, b in zip(whole.average.parameters(), again.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_lowers_the_loss_and_leaves_a_policy(dataset, tmp_path):
    out = tmp_path / 'run'
    run = SftRun((dataset,), out, steps=90, evaluate_every=60.0)
    begin = Trainer(CONFIG, run).validate()
    end = train_sft(CONFIG, run)
    assert end['loss'] < 0.8 * begin['loss']
    assert end['thought'] < 0.6 * begin['thought']
    transform = read_transform(out)
    model = HybridDecoder(transform.config)
    load_weights(model, out / run_state.WEIGHTS)
    assert not list(out.rglob('*.pt'))
    assert any((out / 'tensorboard').iterdir())
    state = json.loads((out / run_state.CHECKPOINT / 'state.json').read_text())
    assert state['step'] == 90


def test_the_first_lessons_teach_seeing_and_saying(dataset, tmp_path):
    config = replace(CONFIG, grounding_steps=150, grounding_rate=8e-3, telling_steps=100,
                     batch_size=16)
    trainer = Trainer(config, SftRun((dataset,), tmp_path, steps=2))
    objective, eye = trainer.objective, trainer.model.vision.stems[0]
    look = trainer.batches.look(0)
    assert look.input_ids[0, -1] == trainer.transform.config.ids.action
    told = trainer.transform.decode_thought(look.input_ids[0].tolist()).split(';')[-1].split()
    x, y = (look.places[0, 0] + torch.tensor([20, -45])).tolist()
    assert told == ['can', 'at', f'x{x}', f'y{y:+d}']

    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    first = objective.seen(eye(look.pixels), look.places, look.told_apart).loss.item()
    teach_eye(objective, trainer.batches, config, trainer.accelerator)
    assert objective.seen(eye(look.pixels), look.places, look.told_apart).loss.item() < 0.7 * first
    for name, value in trainer.model.state_dict().items():
        assert name.startswith('vision.stems.0.') != torch.equal(value, before[name]), name

    untaught = teach_telling(objective, trainer.batches, replace(config, telling_steps=1),
                             trainer.accelerator)
    assert teach_telling(objective, trainer.batches, config, trainer.accelerator) > untaught + 0.1


def test_lessons_are_given_once(dataset, tmp_path):
    run = SftRun((dataset,), tmp_path, steps=2)
    config = replace(CONFIG, grounding_steps=2, telling_steps=2)
    trainer = Trainer(config, run)
    trainer.prepare()
    taught = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    again = Trainer(config, run)
    again.prepare()
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, taught[name])
        assert torch.equal(value, again.average.state_dict()[name])


def test_without_places_there_are_no_lessons(tmp_path):
    data = tiny_dataset(tmp_path / 'data', places=False)
    trainer = Trainer(replace(CONFIG, grounding_steps=5), SftRun((data,), tmp_path / 'r', steps=2))
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.prepare()
    assert all(map(torch.equal, before, trainer.model.parameters()))
    report = trainer.train_step(trainer.batches.train(0))
    assert math.isfinite(report.loss.item())


def test_a_run_goes_on_only_with_its_own_config(dataset, tmp_path):
    run = SftRun((dataset,), tmp_path, steps=2)
    trainer = Trainer(CONFIG, run)
    trainer.train_step(trainer.batches.train(0))
    trainer.save()
    with pytest.raises(UserError, match='another config'):
        Trainer(replace(CONFIG, learning_rate=1.0), run)


def test_the_rate_warms_up_and_falls():
    rates = [learning_rate(CONFIG, step, step / 100) for step in range(100)]
    assert rates[0] < rates[3] < rates[5]
    assert rates[5] > rates[50] > rates[99]
    assert rates[99] == pytest.approx(CONFIG.final_rate * CONFIG.learning_rate, rel=0.1)


@pytest.mark.parametrize('text, named', [
    ('batch_size: many', 'batch_size'), ('bach_size: 3', 'bach_size'), ('a: [1', 'malformed'),
    ('reasoning_dropout: 2.0', 'reasoning_dropout'), ('shift: [1]', 'shift'),
    ('model: 3', 'model'), ('just words', 'key: value'),
    ('lora: 3', 'lora'), ('lora: {rank: -1}', 'rank'), ('lora: {ranks: 2}', 'ranks'),
    ('lora: {rank: 2}\npointing_weight: 1.0', 'pointing_weight'), ('accumulate: 0', 'accumulate'),
    ('rates: {vision: -1.0}', 'rates'), ('rates: {vision: 0, projector: 0, decoder: 0}', 'all 0')])
def test_a_bad_recipe_is_named(tmp_path, text, named):
    path = tmp_path / 'recipe.yaml'
    path.write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        SftConfig.read(path)
    assert str(path) in str(caught.value)


def test_what_is_set_counts_instead_of_what_the_recipe_says(tmp_path):
    path = tmp_path / 'recipe.yaml'
    path.write_text('learning_rate: 0.001\nseed: 1')
    read = SftConfig.read(path, ['learning_rate=5e-4', 'shift=[2, 3]', 'precision=bf16'])
    assert read == replace(SftConfig(), learning_rate=5e-4, seed=1, shift=(2, 3),
                           precision='bf16')
    for text, named in (('seed', 'key=value'), ('=3', 'key=value'), ('seed=[1', 'no YAML'),
                        ('sead=1', 'sead'), ('seed=two', 'seed')):
        with pytest.raises(UserError, match=named):
            SftConfig.read(path, [text])


@pytest.mark.parametrize('recipe', sorted(
    path for path in RECIPES.glob('*.yaml') if not path.stem.startswith('grpo')),
    ids=lambda path: path.stem)
def test_the_shipped_recipes_are_valid(recipe):
    SftConfig.read(recipe)


def test_time_or_steps_not_both(dataset, tmp_path):
    with pytest.raises(UserError, match='--minutes'):
        SftRun((dataset,), tmp_path, minutes=1.0, steps=5)


def test_a_missing_dataset_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match='dtvla collect'):
        train_sft(CONFIG, SftRun((tmp_path / 'none',), tmp_path / 'run', steps=1))
    assert not (tmp_path / 'run').exists()
