"""Rows that name a place are taught to look there, and only there."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from support.tiny import CONFIG, tiny_dataset

from dtvla_ros.data.collect import image_points
from dtvla_ros.errors import UserError
from dtvla_ros.policy.attention import sequence_mask
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.training.auxiliary.attention import (
    NOWHERE,
    PointingTargets,
    patch_of,
    pointing_loss,
    pointing_targets,
)
from dtvla_ros.training.auxiliary.stages import teach_telling
from dtvla_ros.training.objective import Objective
from dtvla_ros.training.sft import SftRun, Trainer

POINTING = replace(CONFIG, pointing_weight=0.5, pointing_layer=1, grounding_weight=0.0,
                   model=replace(CONFIG.model, layers=2))
SPANS = [(10, 19), (20, 39), (40, 49)]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trainer(dataset, tmp_path):
    return Trainer(POINTING, SftRun((dataset,), tmp_path, steps=2))


def test_patches_are_counted_row_by_row():
    points = [[0.0, 0.0], [0.99, 0.0], [0.3, 0.6], [0.5, 0.999], [1.0, 0.5], [0.5, -0.01]]
    assert patch_of(points, 16).tolist() == [0, 3, 9, 14, NOWHERE, NOWHERE]


def test_a_recorded_thing_is_where_its_point_says():
    import dtvla_sim

    env = dtvla_sim.make('tabletop', image_size=64)
    obs, _ = env.reset(seed=3)
    image = np.array(obs['agentview_image']).astype(int)
    points = dict(zip(env.things, image_points(env).reshape(-1, 2), strict=True))
    env.close()
    for name, channel in (('red_cube', 0), ('green_cube', 1)):
        column, row = (points[name] * 64).astype(int)
        colour = image[row, column]
        assert colour[channel] > 1.2 * np.delete(colour, channel).max(), name


def test_only_a_place_that_is_said_and_seen_is_asked_for():
    said = [  # (sequence, row, target)
        (0, 8, 3), (0, 9, 12), (0, 10, 25), (0, 11, 41),  # a word, x, y, z: the second thing
        (1, 5, 13),  # x, and then the row after the next: no pair
        (1, 7, 27), (1, 8, 27), (1, 9, 12),  # y before x
        (2, 4, 15),  # x at the end of one sequence, y at the start of another
        (3, 5, 25),
        (4, 6, 14), (4, 7, 29),  # near nothing
        (5, 6, 12), (5, 7, 24),  # the second thing, which is not in the picture
        (6, 6, 19), (6, 7, 31), (6, 8, 11), (6, 9, 21)]  # two places
    sequence, row, target = torch.tensor(said).T
    places = torch.tensor([[9, 10], [2, 4]]).repeat(7, 1, 1)  # two things
    patches = torch.tensor([[5, 7]]).repeat(7, 1)
    patches[5] = torch.tensor([5, NOWHERE])
    places[6, 1] = torch.tensor([0, 0])
    got = pointing_targets(torch.stack([sequence, row]), target, SPANS, places, patches)
    found = sorted(zip(*(t.tolist() for t in (got.sequence, got.row, got.column)), strict=True))
    assert found == [(0, 9, 7), (0, 10, 7), (6, 6, 5), (6, 7, 5), (6, 8, 7), (6, 9, 7)]


def test_the_loss_is_the_mean_cross_entropy():
    scores = np.random.default_rng(0).normal(size=(3, 6, 6)).astype(np.float32)
    asked = [(0, 1, 2), (2, 5, 0), (2, 4, 4)]
    report = pointing_loss(
        torch.tensor(scores), PointingTargets(*torch.tensor(asked).T))
    losses = [-log_softmax(scores[s, r].astype(np.float64))[c] for s, r, c in asked]
    shares = [softmax(scores[s, r].astype(np.float64))[c] for s, r, c in asked]
    assert float(report.loss) == pytest.approx(np.mean(losses), abs=1e-5)
    assert float(report.share) == pytest.approx(np.mean(shares), abs=1e-5)


def test_without_rows_the_loss_is_nothing():
    none = torch.zeros(0, dtype=torch.long)
    report = pointing_loss(torch.zeros(1, 4, 4), PointingTargets(none, none, none))
    assert float(report.loss) == 0.0
    assert math.isnan(float(report.share))


def test_watching_changes_nothing_and_shows_what_the_head_attends_to(trainer):
    model = trainer.model
    batch = trainer.batches.plain(np.arange(4))
    sequences = batch.input_ids, batch.attention_mask, model.encode_images(batch.pixels())
    attended = {}
    attention = model.layers[1].self_attn
    size = model.config.text.head_dim

    def keep(module, inputs, output):
        attended['rows'] = inputs[0][..., :size]  # the first head's, before the output product

    handle = attention.o_proj.register_forward_hook(keep)
    hidden = model.read(*sequences)
    handle.remove()
    scores = trainer.objective.probe.take()
    bare = HybridDecoder(model.config)
    bare.load_state_dict(model.state_dict())
    assert torch.equal(hidden, bare.read(*sequences))

    values = {}
    handle = attention.v_proj.register_forward_hook(
        lambda module, inputs, output: values.update(v=output[..., :size]))
    model.read(*sequences)
    handle.remove()
    torch.testing.assert_close(scores.softmax(-1) @ values['v'], attended['rows'],
                               atol=1e-5, rtol=0)
    seen = sequence_mask(batch.input_ids, batch.attention_mask, model.config.ids)
    assert not scores.softmax(-1)[~seen].any()


def test_the_gradient_enters_through_one_heads_queries_and_keys(trainer):
    model = trainer.model
    batch = trainer.batches.plain(np.arange(4))
    model.read(batch.input_ids, batch.attention_mask, model.encode_images(batch.pixels()))
    scores = trainer.objective.probe.take()
    targets = pointing_targets(batch.token_rows, batch.token_targets, trainer.objective.spans,
                               batch.places, batch.patches)
    assert len(targets.row) == 8, 'each tiny thought names one place'
    ids = batch.input_ids[targets.sequence, targets.row + 1]
    assert torch.equal(ids, batch.token_targets[
        (batch.token_targets >= trainer.objective.spans[0][0])
        & (batch.token_targets <= trainer.objective.spans[1][1])].view(-1, 2).T.reshape(-1))
    assert (batch.input_ids[targets.sequence, targets.column] == model.config.ids.image).all()
    pointing_loss(scores, targets).loss.backward()
    size = model.config.text.head_dim
    watched = model.layers[1].self_attn
    query = watched.q_proj.weight.grad
    assert float(query[:size].abs().sum()) > 0 == float(query[size:].abs().sum())
    assert float(watched.k_proj.weight.grad[:size].abs().sum()) > 0
    for part in (watched.v_proj, watched.o_proj, model.layers[1].mlp.down_proj):
        assert part.weight.grad is None
    assert float(model.layers[0].self_attn.v_proj.weight.grad.abs().sum()) > 0
    assert float(model.vision.stems[0].place.grad.abs().sum()) > 0


def test_the_head_learns_to_point(dataset, tmp_path):
    config = replace(POINTING, reasoning_dropout=0.0, batch_size=16)
    trainer = Trainer(config, SftRun((dataset,), tmp_path, steps=80))
    before = trainer.validate()
    for step in range(80):
        report = trainer.train_step(trainer.batches.train(step))
    after = trainer.validate()
    assert float(report.pointed) > 0.5 > 4 * before['pointed']
    assert after['pointed'] > 4 * before['pointed']


def test_telling_teaches_to_point_too(dataset, tmp_path):
    # Some initialisations need hundreds of steps; this one is quick.
    config = replace(POINTING, batch_size=16, telling_steps=60, seed=2)
    trainer = Trainer(config, SftRun((dataset,), tmp_path, steps=2))
    before = trainer.validate()['pointed']
    teach_telling(trainer.objective, trainer.batches, config, trainer.accelerator)
    trainer.average.load_state_dict(trainer.model.state_dict())
    assert trainer.validate()['pointed'] > 3 * before


def test_a_dataset_without_points_trains_without_pointing(tmp_path, caplog):
    data = tiny_dataset(tmp_path / 'data', places=False)
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(POINTING, SftRun((data,), tmp_path / 'run', steps=2))
    assert len(caplog.records) == 1
    assert str(data) in caplog.text
    report = trainer.train_step(trainer.batches.train(0))
    assert math.isfinite(float(report.loss))
    assert math.isnan(float(report.pointed))
    assert 'pointed' not in trainer.validate()


def test_a_layer_that_is_not_there_is_refused(trainer):
    with pytest.raises(UserError, match='pointing_layer 2'):
        Objective(trainer.model, replace(POINTING, pointing_layer=2), [], pointing=True)
