"""Tiny models run on one thread."""

import pytest
import torch
from support.small import small_policy
from support.toy import INSTRUCTIONS

from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.rollout.batched import BatchedRollouts, Rollout
from dtvla_ros.rollout.episode import EpisodeJob


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def play():
    """Play both toy tasks; return all that was seen, thought and done, and processes lost."""
    sampler = BatchSampler(*small_policy(), max_thought_tokens=4, thought_temperature=1.0,
                           action_temperature=1.0)

    def run(envs):
        jobs = iter([Rollout(EpisodeJob(task, 5, 2), (k,)) for k, task in enumerate(INSTRUCTIONS)])
        rollouts, found = BatchedRollouts(envs), {}

        def done(episode, result):
            found[result.task] = (
                result.steps, result.success, result.commands,
                [(d.thought_tokens, d.action_tokens.tolist()) for d, in episode.decisions],
                [{name: image.tobytes() for name, image in f.items()} for f in episode.frames])

        rollouts.run(sampler, lambda: next(jobs, None), done)
        assert found.keys() == set(INSTRUCTIONS)
        return found, rollouts.times.lost

    return run
