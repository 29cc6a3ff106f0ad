"""A step of a recipe is timed by phase, and what it must compute is counted rightly."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from dtvla_ros.engine.geometry import geometry
from dtvla_ros.errors import UserError
from dtvla_ros.training.bench import TrainBench, batch_of
from dtvla_ros.training.config import LoraChoice, Rates, SftConfig
from dtvla_ros.training.step_times import random_objective, step_flops, time_steps

WHOLE = SftConfig(batch_size=1, ema=0.0, precision='no', action_sigma=0.0, thought_weight=1.0,
                  grounding_weight=0.0, pointing_weight=0.0)
LORA = replace(WHOLE, lora=LoraChoice(rank=2, alpha=4), rates=Rates(vision=0.0))


@pytest.mark.parametrize('config', [WHOLE, replace(LORA, checkpointing=True)])
def test_the_operations_of_a_step_are_those_that_torch_counts(config):
    policy = geometry('bench-60m')
    objective = random_objective(config, policy)
    batch = batch_of(TrainBench(batch=1, thought=9), policy)
    with FlopCounterMode(display=False) as counter:
        objective(batch).loss.backward()
    counted = step_flops(config, policy, batch.input_ids.shape[1], len(batch.token_targets))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.08)


def test_every_phase_of_a_step_is_timed():
    times = time_steps(replace(LORA, accumulate=2), 'bench-60m', steps=1, thought=3)
    assert times.samples == 2
    assert all(seconds > 0.0 for seconds in times.seconds.values())
    assert times.learnt < 0.1 * times.parameters
    assert times.total == pytest.approx(sum(times.to_dict()['seconds'].values()))
    assert any('samples/s' in line for line in times.lines())


def test_a_geometry_of_another_layout_is_refused():
    with pytest.raises(UserError, match='released layout'):
        time_steps(WHOLE, 'nano')
