"""The same trainer for a released policy: adapters, frozen parts, many processes."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from support.released_run import CONFIG, LORA, losses, released_dataset, released_policy
from support.tiny import CONFIG as SMALL

from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import read_tensors
from dtvla_ros.training.checkpoint import CHECKPOINT, WEIGHTS
from dtvla_ros.training.config import AdapterConfig, Rates, SftConfig
from dtvla_ros.training.export import read_source
from dtvla_ros.training.sft import SftRun, Trainer, train_sft

ROOT = Path(__file__).parents[2]
SIZES = {'primary': (32, 32), 'wrist': (32, 32)}  # of the dataset's images


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('released')
    return released_policy(folder), released_dataset(folder / 'english')


@pytest.fixture
def run(made, tmp_path):
    policy, data = made
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    yield SftRun((data,), tmp_path / 'run', init=policy, steps=20)
    AcceleratorState._reset_state(reset_partial_state=True)


def logits(model, batch):
    with torch.no_grad():
        hidden = model.eval()(batch.input_ids, batch.attention_mask, batch.pixels())
        return model.token_logits(hidden)


@pytest.mark.parametrize('recipe', ['full', 'lora'])
def test_a_shipped_recipe_trains_and_keeps_the_promises(recipe, run):
    config = SftConfig.read(ROOT / 'config' / 'train' / f'deepthinkvla-3b-{recipe}.yaml')
    train_sft(replace(config, batch_size=2, accumulate=2, bucket=2), replace(run, steps=2))
    _, transform, manifest = read_source(run.out)
    _, before, promised = read_source(run.init)
    assert manifest.name == run.out.name and not manifest.files
    for name in ('license', 'preamble', 'state_in_prompt', 'max_thought_tokens', 'action',
                 'statistics'):
        assert getattr(manifest, name) == getattr(promised, name), name
    assert manifest.images == replace(promised.images, sizes=SIZES)
    assert transform.mirrored is before.mirrored is True
    assert transform.tokenizer.to_str() == before.tokenizer.to_str()
    assert not list(run.out.rglob('*.bin'))


def test_adapters_are_merged_into_what_was_trained(run):
    trainer = Trainer(LORA, run)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    for _ in range(4):
        trainer.train_step(*trainer.draw(trainer.step))
    for name, value in trainer.model.state_dict().items():
        moved = '.lora_' in name or name.startswith('vision.projector.')
        assert moved != torch.equal(value, before[name]), name
    trainer.save()
    assert not (run.out / WEIGHTS).exists()
    stored = read_tensors(run.out / CHECKPOINT / 'tensors.safetensors')
    assert not [name for name in stored if 'embed_tokens' in name or 'base_layer' in name]
    batch = trainer.batches.plain(np.array([0, 9]))
    merged, base = read_source(run.out)[0], read_source(run.init)[0]
    wanted = logits(trainer.model, batch)
    assert torch.allclose(logits(merged, batch), wanted, atol=1e-4)
    assert not torch.allclose(logits(base, batch), wanted, atol=1e-2)


@pytest.mark.parametrize('config', [
    replace(CONFIG, rates=Rates(vision=0.0), bucket=3),
    replace(LORA, accumulate=2, checkpointing=True), SMALL], ids=['full', 'lora', 'small'])
def test_a_resumed_run_has_the_same_next_losses(config, run, dataset, tmp_path):
    if config is SMALL:
        run = replace(run, data=(dataset,), init=None)
    whole, found = losses(config, replace(run, out=tmp_path / 'whole'), 5, save=True), []
    for steps in (2, 3):
        found += losses(config, run, steps, save=True)
    assert found == whole and len(set(whole)) == 5
    a, b = (read_source(out)[0].state_dict() for out in (tmp_path / 'whole', run.out))
    assert all(torch.equal(a[name], b[name]) for name in a)  # the averages


def test_each_part_learns_at_its_own_rate(run):
    config = replace(CONFIG, rates=Rates(vision=0.25, projector=0.0, decoder=1.0), warmup_steps=1)
    trainer = Trainer(config, run)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train_step(*trainer.draw(0))
    after = trainer.model.state_dict()

    moved = [(after[name] - before[name]).abs().max().item() / config.learning_rate for name in (
        'layers.0.mlp.up_proj.weight', 'vision.tower.encoder.layers.0.mlp.fc1.weight',
        'vision.projector.weight')]
    assert moved == pytest.approx([1.0, 0.25, 0.0], rel=0.05)  # Adam's first step is the rate


def test_recomputed_layers_learn_the_same(run):
    config, calls = replace(CONFIG, checkpointing=True), []
    assert losses(config, run, 3) == pytest.approx(losses(CONFIG, run, 3), rel=1e-5)
    trainer = Trainer(config, run)
    trainer.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    trainer.train_step(*trainer.draw(0))
    assert len(calls) == 2, 'once forward, once again for the backward pass'


def test_batches_of_one_length_hold_the_same_frames(run):
    plain = Trainer(CONFIG, run).batches
    maker = Trainer(replace(CONFIG, bucket=8, accumulate=2), run).batches
    assert maker.padding() < 0.5 * plain.padding()
    lengths = [[maker.train(step, rank).attention_mask.sum(1) for rank in range(2)]
               for step in range(8)]
    drawn = torch.cat([part for step in lengths for part in step])
    assert len(drawn) == 8 * 2 * CONFIG.batch_size and len(drawn.unique()) > 3
    for step in lengths:
        assert max(map(max, step)) - min(map(min, step)) < drawn.max() - drawn.min()


@pytest.mark.parametrize('config', [
    replace(CONFIG, rates=Rates(projector=0.5)),
    replace(LORA, lora=AdapterConfig(rank=4, alpha=8), checkpointing=True)], ids=['full', 'lora'])
@pytest.mark.parametrize('how', [
    ['--multi_gpu'],
    ['--use_fsdp', '--fsdp_version', '2', '--fsdp_auto_wrap_policy', 'TRANSFORMER_BASED_WRAP',
     '--fsdp_cpu_ram_efficient_loading', 'false']], ids=['DDP', 'FSDP2'])
def test_two_processes_resumed_learn_what_one_does(how, config, run, tmp_path):
    wanted = losses(replace(config, accumulate=2), replace(run, steps=10), 3, save=True)
    said, out = tmp_path / 'losses.json', tmp_path / 'two'
    launch = [sys.executable, '-m', 'accelerate.commands.launch', *how, '--num_processes',
              '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend',
              'no', '--main_process_port', '0', ROOT / 'test' / 'support' / 'released_run.py']
    told = []
    for steps in (2, 1):
        done = subprocess.run(
            [*launch, json.dumps(asdict(config)), *run.data, run.init, out, said, str(steps)],
            cwd=ROOT, env=os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'},
            capture_output=True, text=True, timeout=570)
        assert done.returncode == 0, done.stderr[-2000:]
        told += json.loads(said.read_text())
    assert told == pytest.approx(wanted, rel=1e-4)
    ours, theirs = (read_source(folder)[0].state_dict() for folder in (run.out, out))
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-4), name


@pytest.mark.parametrize(('config', 'changes', 'named'), [
    (LORA, {'init': None}, '--init'),
    (replace(CONFIG, rates=Rates(vision=0.0)), {'init': None}, '--init'),
    (replace(LORA, lora=AdapterConfig(rank=2, targets=('k_project',))), {}, 'k_project')])
def test_frozen_parts_need_a_policy_and_adapters_their_layers(config, changes, named, run):
    with pytest.raises(UserError, match=named):
        Trainer(config, replace(run, **changes))
    assert not run.out.exists()


def test_a_small_policy_gets_adapters_too(dataset, tmp_path):
    run = SftRun((dataset,), tmp_path / 'first', steps=2)
    train_sft(SMALL, run)
    train_sft(replace(SMALL, lora=AdapterConfig(rank=2, alpha=4), rates=Rates(vision=0.0)),
              replace(run, out=tmp_path / 'second', init=run.out))
    first, second = (read_source(tmp_path / name)[0].state_dict() for name in ('first', 'second'))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed == {name for name in first if name.startswith('layers.') and '_proj' in name}
