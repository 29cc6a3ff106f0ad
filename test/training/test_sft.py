"""Training learns, and says what of its settings is wrong."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.small import small_policy
from support.tiny import CONFIG
from support.toy import ToyEnv

from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.training import sft
from dtvla_ros.training.checkpoint import CHECKPOINT, TASKS, write_tasks
from dtvla_ros.training.config import AuxiliaryConfig, SftConfig
from dtvla_ros.training.export import read_source
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.observations import own_observations
from dtvla_ros.training.sft import SftRun, Trainer, train_sft

ROOT = Path(__file__).resolve().parents[2]


def test_training_lowers_the_loss_and_leaves_a_policy(dataset, tmp_path):
    out = tmp_path / 'run'
    run = SftRun((dataset,), out, steps=90)
    begin = Trainer(CONFIG, run).validate()
    end = train_sft(CONFIG, run)
    assert end['loss'] < 0.8 * begin['loss'] and end['thought'] < 0.6 * begin['thought']
    manifest = read_source(out)[2]
    assert manifest.tasks == tuple(DatasetReader(dataset).tasks) and not manifest.says_done
    write_tasks(out, manifest.tasks, ['can'], True)
    assert read_source(out)[2].says_done and read_source(out)[2].names == ('can',)
    (out / TASKS).write_text('{"tasks": "stack"}')
    with pytest.raises(UserError, match=f'{TASKS}: tasks: expected a list of sentences'):
        read_source(out)
    (out / TASKS).unlink()  # as of a run of before
    assert (read_source(out)[2].tasks, read_source(out)[2].says_done) == ((), False)
    kept = own_observations(out, read_source(out)[1])
    assert kept is not None
    assert len(kept.observations) == min(24, len(DatasetReader(dataset).table))
    assert not list(out.rglob('*.pt')) and any((out / 'tensorboard').iterdir())
    assert json.loads((out / CHECKPOINT / 'state.json').read_text())['step'] == 90
    with pytest.raises(UserError, match='another config'):
        Trainer(replace(CONFIG, learning_rate=1.0), run)


SFT_ERRORS = [
    ('batch_size: many', 'batch_size'), ('bach_size: 3', 'bach_size.*nano.yaml'),
    ('a: [1', 'line 1'), ('a: ' + '[' * 3000, 'no YAML'), ('1: 2', '1: Unexpected'),
    ('batch_size: 8\nbatch_size: 9', 'batch_size stands twice'), ('learning_rate: .inf', 'finite'),
    ('batch_size: 8\nmodel: {<<: {width: 8}}', '<< is not read'),
    ('just words', 'key: value'), ('model: 3', 'model'),
    ('shift: [1]', 'shift'), ('lora: {rank: -1}', 'rank'), ('lora: {ranks: 2}', 'ranks'),
    ('lora: {rank: 2}\npointing_weight: 1.0', 'attention_weight'),
    ('turned: 1.5', 'direction_flip'), ('rates: {vision: 0, projector: 0, decoder: 0}', 'all 0'),
    ('auxiliary: {pointing_weight: 1.0}', 'pointing_weight')]
GRPO_ERRORS = [
    ('num_generations: 1', 'num_generations'), ('algorithm: ppo', 'ppo'),
    ('clip_ratio_c: 0.5', 'clip_ratio_c'), ('beta: -1', 'beta'), ('groups: 0', 'num_starts'),
    ('workspace_low: [1.0, 0.0, 0.0]', 'workspace is empty on x'),
    ('workspace_high: [1.0, 0.0]', 'workspace_high'), ('first_seed: 1000000', 'first_seed')]


@pytest.mark.parametrize(('kind', 'text', 'named'), [
    *((SftConfig, *case) for case in SFT_ERRORS), *((GrpoConfig, *case) for case in GRPO_ERRORS)])
def test_a_bad_config_is_named(tmp_path, kind, text, named):
    path = tmp_path / 'config.yaml'
    path.write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        kind.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('kind', [SftConfig, GrpoConfig])
def test_the_packages_configs_are_found_from_any_folder(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    assert kind.read(Path(kind.example)) == kind.read(ROOT / kind.example)
    with pytest.raises(UserError, match='mine.yaml: no such config; .*nano.yaml'):
        kind.read(Path('mine.yaml'))


def test_set_replaces_what_the_file_says(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('learning_rate: 0.001\nseed: 1')
    read = SftConfig.read(path, ['learning_rate=5e-4', 'shift=[2, 3]', 'precision=bf16'])
    assert read == replace(SftConfig(), learning_rate=5e-4, seed=1, shift=(2, 3), precision='bf16')
    for text, named in (('seed', 'key=value'), ('=3', 'key=value'), ('seed=[1', 'no YAML'),
                        ('sead=1', 'sead'), ('seed=two', 'seed')):
        with pytest.raises(UserError, match=named):
            SftConfig.read(path, [text])


def test_keys_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('grounding_steps: 7\ntelling_steps: 8\nturned: 0.1\npointing_layer: 1\n'
                    'auxiliary: {attention_weight: 0.3}')
    changes = ['grounding_rate=5e-3', 'auxiliary.localisation_weight=0.4', 'telling_steps=9']
    assert SftConfig.read(path, changes).auxiliary == AuxiliaryConfig(
        localisation_steps=7, localisation_rate=5e-3, captioning_steps=9,
        localisation_weight=0.4, attention_weight=0.3, attention_layer=1, direction_flip=0.1)


@pytest.mark.parametrize(('options', 'named'), [
    ({'minutes': 1.0}, '--minutes'), ({'weights': (1.0, 2.0)}, '--weight: 2 for 1'),
    ({'data': ()}, 'dtvla collect')])
def test_a_bad_run_is_named(tmp_path, options, named):
    with pytest.raises(UserError, match=named):
        SftRun(**{'data': (tmp_path,), 'out': tmp_path, 'steps': 5} | options)


def test_a_missing_dataset_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match='dtvla collect'):
        train_sft(CONFIG, SftRun((tmp_path / 'none',), tmp_path / 'run', steps=1))
    assert not (tmp_path / 'run').exists()


def test_held_out_episodes_of_squares_are_not_for_images_of_another_shape(monkeypatch, tmp_path):
    monkeypatch.setattr(sft, 'open_envs', lambda *_: SimpleNamespace(info=ToyEnv()))
    run = SftRun((tmp_path,), tmp_path / 'run', steps=1, episodes=1)
    transform = small_policy()[1]
    square = SimpleNamespace(transform=replace(transform, sizes={'primary': (320, 320)}))
    assert len(sft.HeldOut(run, square).jobs) == 2
    wide = SimpleNamespace(transform=replace(transform, sizes={'primary': (320, 240)}))
    with pytest.raises(UserError, match="run: .* trained on 320x240 of the camera 'primary'; .*, "
                       'or --eval-episodes 0'):
        sft.HeldOut(run, wide)
