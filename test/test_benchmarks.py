"""Benchmarks measure what they say they do; how fast it was is theirs to tell."""

import json
import os
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from benchmarks.train_step import PlainObjective, measure, random_batch, small_policy, time_steps
from dtvla_ros.errors import UserError
from dtvla_ros.policy.attention import action_start, prompt_end
from dtvla_ros.thought import Thought
from dtvla_ros.training.config import AdapterConfig, Rates, SftConfig
from dtvla_ros.training.loss import Objective

LORA = SftConfig(batch_size=1, ema=0.0, precision='no', action_sigma=0.0, thought_weight=1.0,
                 lora=AdapterConfig(rank=2, alpha=4), rates=Rates(vision=0.0), accumulate=2)


@pytest.fixture
def latency():
    pytest.importorskip('rclpy')
    return import_module('benchmarks.latency')


@pytest.fixture
def places():
    pytest.importorskip('rclpy')
    return import_module('benchmarks.places')


@pytest.mark.slow
def test_latency_of_real_processes_is_written_as_it_is_printed(
        latency, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('COLUMNS', '200')
    path = tmp_path / 'latency.json'
    latency.latency(rate=[40.0], count=20, seconds=1.0, priority=0, json_file=path)
    printed = capfd.readouterr().out
    result = json.loads(path.read_text())
    assert [row['n'] for row in result['rows']] == [20, 20, 40]
    for row in result['rows']:
        assert 0 < row['p50_ms'] <= row['p99_ms'] <= row['max_ms']
        assert f'{row["p50_ms"]:.2f}' in printed
    # A machine this busy may well stop the gate.
    assert result['rows'][2]['gate_state'] in ('RUN', 'HOLD', 'STOP')
    assert result['rmw'] in printed and 'load average' in printed


def test_no_arm_hears_a_benchmark_and_the_gate_says_what_it_refuses(latency, monkeypatch):
    for name, value in (('ROS_DOMAIN_ID', '7'), ('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET'),
                        ('ROS_STATIC_PEERS', '10.0.0.7')):
        monkeypatch.setenv(name, value)
    with latency.own_graph(lambda: latency.Node('latency')) as graph:
        assert int(os.environ['ROS_DOMAIN_ID']) > 100
        assert os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
        assert os.environ['ROS_STATIC_PEERS'] == ''
        with pytest.raises(UserError, match='^parameter rate = 33 Hz'):
            latency.measure_regularity(graph, 33.0, 1.0)


def test_rows_are_percentiles_of_what_was_taken(latency):
    row = latency.summary('x', np.arange(101.0).tolist(), latency.COMMAND)
    assert (row['n'], row['p50_ms'], row['p99_ms'], row['max_ms']) == (101, 50.0, 99.0, 100.0)
    assert (row['target_ms'], row['target_of'], row['met']) == (2.0, 'p99', False)


def test_both_training_steps_learn_the_same_tokens():
    model = small_policy(width=8, layers=1)
    batch = random_batch(1, 3, model.config)
    ids = model.config.ids
    assert action_start(batch.input_ids, ids).tolist() == batch.action_start.tolist()
    begin = prompt_end(batch.input_ids, ids)
    with torch.no_grad():
        objective = Objective(model, SftConfig(action_sigma=0.0, thought_weight=1.0))
        hidden = model(batch.input_ids, batch.attention_mask, batch.pixels())
        said, acted = objective.logits(batch, hidden)
        plain, _ = PlainObjective(model)(batch)
        assert len(said) == 3 + 5
        assert batch.token_rows[1].min() == begin[0] - 1
        # Over the whole vocabulary at the same rows, action ids among all tokens.
        rows = batch.action_start[:, None] + torch.arange(model.config.slots)
        acting = model.token_logits(hidden[torch.arange(1)[:, None], rows])
        assert torch.equal(acting[..., ids.bins_first:ids.bins_last + 1], acted)
        wanted = F.cross_entropy(
            torch.cat([said, acting.flatten(0, 1)]),
            torch.cat([batch.token_targets, batch.action_targets.flatten() + ids.bins_first]))
    assert plain.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_training_step_is_measured_in_this_process():
    done = measure('supervised', batch=1, width=8, layers=1, thought=3, steps=1, threads=1)
    assert done['seconds'] > 0 and done['memory'] > 50e6
    with pytest.raises(UserError, match='multiple of 8'):
        small_policy(width=12, layers=1)


def test_every_phase_of_a_step_is_timed():
    times = time_steps(replace(LORA, checkpointing=True), 'bench-60m', steps=1, thought=3)
    assert times['samples'] == 2 and all(seconds > 0.0 for seconds in times['seconds'].values())
    assert times['trained'] < 0.1 * times['parameters']
    # At least both passes over the decoder's matrices, for two sequences.
    assert times['flops'] > 2 * 4 * times['tokens'] * 25e6
    with pytest.raises(UserError, match='released layout'):
        time_steps(LORA, 'nano', steps=1, thought=3)


def test_places_of_a_policy_and_of_the_truth_are_counted(places, request):
    import dtvla_sim
    from dtvla_sim.perturbation import PerturbedEnv

    cells, env = ['light:2'], PerturbedEnv(dtvla_sim.make('tabletop'))
    request.addfinalizer(env.close)
    scenes = [scene for _, scene in places.scenes(env, cells, 2)]
    assert [scene.object for scene in scenes] == ['can', 'lemon']  # of the first two tasks
    true = iter(scenes)

    def perfect(observation):
        scene = next(true)
        assert np.array_equal(observation.images['primary'],
                              scene.observation.images['primary'])
        x, y = scene.places[scene.object] / 100
        return Thought.measured(
            held=None, done=None, trouble=None, phase='reach', object=scene.object,
            place=np.array([x, y, 0]), following='lower', move=np.zeros(3)).compact()

    said = places.measure(
        {'perfect': perfect, 'nano': places.thinker(places.NANO, env)}, env, cells, 2)
    row = places.summary('light:2', 'perfect', said['light:2', 'perfect'])
    assert row['near'].value == row['named'].value == 1.0 and 0.0 < row['median_cm'] < 0.75
    assert places.summary('light:2', 'nano', said['light:2', 'nano'])['near'].n == 2


@pytest.mark.parametrize(('thought', 'named', 'off'), [
    ('now reach can', False, np.inf),
    ('holding nothing done nothing now reach can at x43 y+4 next lower move back still still',
     True, 5.0),
    ('holding nothing done nothing now reach lemon at x40 y+0 next lower move still still still',
     False, 2.0),
    ('holding nothing done nothing now reach soup at x40 y+0 next lower move still still still',
     False, np.inf)], ids=['no grammar', 'right object', 'another', 'none'])
def test_what_a_thought_says_is_compared_with_where_that_is(places, thought, named, off):
    scene = places.Scene(None, 'can', {'can': np.array([40.0, 0.0]), 'lemon': np.array([40.0, 2])})
    assert places.judge(thought, scene) == (named, off)


def test_a_policy_of_another_arm_is_refused_by_the_name_of_the_suite(places):
    with pytest.raises(UserError, match='in the suite tabletop_joints .* choose another suite'):
        places.places([], suite='tabletop_joints', perturb=['light:1'])


def test_the_family_that_changes_no_image_is_refused(places):
    with pytest.raises(UserError, match='language changes no image; use camera'):
        places.places([], perturb=['language:1'])
