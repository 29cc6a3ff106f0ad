"""The two training steps that are compared compute the same thing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from dtvla_ros.errors import UserError
from dtvla_ros.policy.attention import action_start, prompt_end
from dtvla_ros.training.bench import PlainObjective, TrainBench, batch_of, bench, policy
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.objective import Objective

SMALL = TrainBench(width=8, layers=1, thought=3, steps=1)


def test_both_steps_learn_the_same_words():
    model = policy(SMALL)
    batch = batch_of(SMALL, model.config)
    ids = model.config.ids
    assert action_start(batch.input_ids, ids).tolist() == batch.action_start.tolist()
    begin = prompt_end(batch.input_ids, ids)
    with torch.no_grad():
        objective = Objective(model, SftConfig(action_sigma=0.0, thought_weight=1.0), ())
        said, acted = objective.logits(batch)
        plain = PlainObjective(model)(batch)
        assert len(said) == SMALL.thought + 5
        assert batch.token_rows[1].min() == begin[0] - 1
        # Over the whole vocabulary at the same rows, action ids among all words.
        rows = batch.action_start[:, None] + torch.arange(model.config.slots)
        hidden = model(batch.input_ids, batch.attention_mask, batch.pixels())
        acting = model.token_logits(hidden[torch.arange(1)[:, None], rows])
        assert torch.equal(acting[..., ids.bins_first:ids.bins_last + 1], acted)
        wanted = F.cross_entropy(
            torch.cat([said, acting.flatten(0, 1)]),
            torch.cat([batch.token_targets, batch.action_targets.flatten() + ids.bins_first]))
    assert plain.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.slow
def test_logits_only_where_supervised_are_faster_and_smaller():
    measured = bench(replace(SMALL, thought=73, steps=2))
    plain, ours = measured['plain'], measured['supervised']
    assert plain.seconds > 2.0 * ours.seconds
    assert plain.memory > 2.0 * ours.memory


def test_sizes_are_checked():
    with pytest.raises(UserError, match='multiple of 8'):
        TrainBench(width=12)
