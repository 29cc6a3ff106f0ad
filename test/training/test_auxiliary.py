"""Auxiliary supervision: attention on the named object's patch, localisation and captioning."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from support.tiny import CONFIG, tiny_dataset

from dtvla_ros.errors import UserError
from dtvla_ros.policy.attention import sequence_mask
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.training.auxiliary.localisation import attention_targets, pretrain
from dtvla_ros.training.config import AuxiliaryConfig
from dtvla_ros.training.data import NOWHERE
from dtvla_ros.training.sft import SftRun, Trainer

AUXILIARY = AuxiliaryConfig(localisation_steps=0, captioning_steps=0, localisation_weight=0.0,
                            attention_weight=0.5, attention_layer=1)
ATTENTION = replace(CONFIG, auxiliary=AUXILIARY, model=replace(CONFIG.model, layers=2))
SPANS = [(10, 19), (20, 39), (40, 49)]


@pytest.fixture
def trainer(dataset, tmp_path):
    return Trainer(ATTENTION, SftRun((dataset,), tmp_path, steps=2))


@pytest.fixture
def asked(trainer):
    """Return the attention loss, a batch of four, and the [sequence, row, column] it asks for."""
    loss, batch = trainer.objective.auxiliary['attention'], trainer.batches.plain(np.arange(4))
    return loss, batch, attention_targets(batch.token_rows, batch.token_targets, loss.spans,
                                          batch.positions, batch.target_patches)


def test_only_a_location_that_is_said_and_visible_is_a_target():
    said = [  # (sequence, row, target)
        (0, 8, 3), (0, 9, 12), (0, 10, 25), (0, 11, 41),  # a word, x, y, z: the second object
        (1, 5, 13),  # x, and then the row after the next: no pair
        (1, 7, 27), (1, 8, 27), (1, 9, 12),  # y before x
        (2, 4, 15),  # x at the end of one sequence, y at the start of another
        (3, 5, 25),
        (4, 6, 14), (4, 7, 29),  # near nothing
        (5, 6, 12), (5, 7, 24),  # the second object, which is not in the image
        (6, 6, 19), (6, 7, 31), (6, 8, 11), (6, 9, 21)]  # two locations
    sequence, row, target = torch.tensor(said).T
    positions = torch.tensor([[9, 10], [2, 4]]).repeat(7, 1, 1)  # two objects
    patches = torch.tensor([[5, 7]]).repeat(7, 1)
    patches[5] = torch.tensor([5, NOWHERE])
    positions[6, 1] = torch.tensor([0, 0])
    got = attention_targets(torch.stack([sequence, row]), target, SPANS, positions, patches)
    assert sorted(got.T.tolist()) == [
        [0, 9, 7], [0, 10, 7], [6, 6, 5], [6, 7, 5], [6, 8, 7], [6, 9, 7]]


def test_the_loss_is_the_mean_cross_entropy_over_the_targets(asked):
    loss, batch, targets = asked
    length = batch.input_ids.shape[1]
    loss.scores = scores = torch.randn(4, length, length, generator=torch.Generator())
    value, metrics = loss(batch, None)
    losses = -log_softmax(scores.double().numpy(), -1)[tuple(targets)]
    assert float(value) == pytest.approx(losses.mean(), abs=1e-5)
    assert float(metrics['attended']) == pytest.approx(np.exp(-losses).mean(), abs=1e-5)
    loss.scores = scores
    value, metrics = loss(
        batch._replace(target_patches=torch.full_like(batch.target_patches, NOWHERE)), None)
    assert float(value) == 0.0 and math.isnan(float(metrics['attended']))


def test_the_hook_changes_nothing_and_shows_what_the_head_attends_to(trainer):
    model = trainer.model
    batch = trainer.batches.plain(np.arange(4))
    sequences = batch.input_ids, batch.attention_mask, model.encode_images(batch.pixels())
    kept, attention, size = {}, model.layers[1].self_attn, model.config.text.head_dim
    # The first head's values, and its output before the output product.
    attention.v_proj.register_forward_hook(lambda m, i, o: kept.update(values=o[..., :size]))
    attention.o_proj.register_forward_hook(lambda m, i, o: kept.update(out=i[0][..., :size]))
    hidden = model.read(*sequences)
    weights = trainer.objective.auxiliary['attention'].scores.softmax(-1)
    bare = HybridDecoder(model.config)
    bare.load_state_dict(model.state_dict())
    assert torch.equal(hidden, bare.read(*sequences))
    torch.testing.assert_close(weights @ kept['values'], kept['out'], atol=1e-5, rtol=0)
    visible = sequence_mask(batch.input_ids, batch.attention_mask, model.config.ids)
    assert not weights[~visible].any()


def test_the_gradient_enters_through_one_heads_queries_and_keys(trainer, asked):
    model, (loss, batch, (sequence, row, column)) = trainer.model, asked
    model.read(batch.input_ids, batch.attention_mask, model.encode_images(batch.pixels()))
    assert len(row) == 8, 'each tiny thought names one location'
    assert (batch.input_ids[sequence, column] == model.config.ids.image).all()
    loss(batch, None)[0].backward()
    size, attention = model.config.text.head_dim, model.layers[1].self_attn
    query = attention.q_proj.weight.grad
    assert query[:size].any() and not query[size:].any()
    assert attention.k_proj.weight.grad[:size].any()
    for part in (attention.v_proj, attention.o_proj, model.layers[1].mlp.down_proj):
        assert part.weight.grad is None
    assert model.layers[0].self_attn.v_proj.weight.grad.any()
    assert model.vision.stems[0].place.grad.any()


def test_the_head_learns_to_attend_from_demonstrations_and_from_captions(dataset, tmp_path):
    # Some initialisations need hundreds of steps for captions; seed 2 is quick.
    demonstrated, captioned = (Trainer(replace(ATTENTION, batch_size=16, **changes), SftRun(
        (dataset,), tmp_path / str(k), steps=80)) for k, changes in enumerate((
            {'reasoning_dropout': 0.0},
            {'seed': 2, 'auxiliary': replace(AUXILIARY, captioning_steps=60)})))
    before = [trainer.validate()['attended'] for trainer in (demonstrated, captioned)]
    for step in range(80):
        metrics = demonstrated.train_step(demonstrated.batches.train(step))
    assert float(metrics['attended']) > 0.5 > 4 * before[0]
    assert demonstrated.validate()['attended'] > 4 * before[0]
    captioned.pretrain()
    assert captioned.validate()['attended'] > 3 * before[1]


def test_a_layer_that_is_not_there_is_refused(dataset, tmp_path):
    config = replace(ATTENTION, auxiliary=replace(AUXILIARY, attention_layer=2))
    with pytest.raises(UserError, match='attention_layer 2'):
        Trainer(config, SftRun((dataset,), tmp_path, steps=2))


def test_pre_training_teaches_to_localise_and_then_to_say_it(dataset, tmp_path):
    def stages(localisation, captioning):
        return replace(CONFIG, batch_size=16, auxiliary=AuxiliaryConfig(
            localisation, 8e-3, captioning))

    trainer = Trainer(stages(150, 100), SftRun((dataset,), tmp_path, steps=2))
    objective, stem = trainer.objective, trainer.model.vision.stems[0]
    batch = trainer.batches.localisation(0)
    assert batch.input_ids[0, -1] == trainer.transform.config.ids.action
    said = trainer.transform.decode_thought(batch.input_ids[0].tolist()).split(';')[-1].split()
    x, y = (batch.positions[0, 0] + torch.tensor([20, -45])).tolist()
    assert said == ['can', 'at', f'x{x}', f'y{y:+d}']

    def loss():
        return objective.auxiliary['localisation'](batch, stem(batch.pixels()[:, 0]))[0].item()
    before, first = {k: v.clone() for k, v in trainer.model.state_dict().items()}, loss()
    pretrain(objective, trainer.batches, stages(150, 0), trainer.accelerator)
    assert loss() < 0.7 * first
    for name, value in trainer.model.state_dict().items():
        assert name.startswith('vision.stems.0.') != torch.equal(value, before[name]), name

    untaught, taught = (pretrain(objective, trainer.batches, stages(0, n), trainer.accelerator)[1]
                        for n in (1, 100))
    assert taught > untaught + 0.1


def test_a_dataset_without_positions_trains_without_auxiliary_losses(tmp_path, caplog):
    data = tiny_dataset(tmp_path / 'data', places=False)
    config = replace(ATTENTION, auxiliary=replace(AUXILIARY, localisation_steps=5))
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(config, SftRun((data,), tmp_path / 'run', steps=2))
    assert [str(data) in record.message for record in caplog.records] == [True]
    trainer.pretrain()
    assert not (tmp_path / 'run').exists(), 'there is nothing to pre-train on'
    metrics = trainer.train_step(trainer.batches.train(0))
    assert math.isfinite(float(metrics['loss']))
    assert not {'attended', 'localised'} & (set(metrics) | set(trainer.validate()))
