"""A tiny policy on disk, a configuration for it, and samplers and runs of it on the toy suite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import torch
from accelerate import Accelerator

from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.policy.checkpoint import save_weights
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform, write_transform
from dtvla_ros.policy.vocabulary import build_tokenizer, special_ids
from dtvla_ros.rollout.batched import BatchedRollouts, Rollout
from dtvla_ros.rollout.workers import open_envs
from dtvla_ros.training import checkpoint
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.learner import Learner
from dtvla_ros.training.grpo.rollout import Trajectory, run_rollouts

from .toy import SIZE, ToyScene

CONFIG = GrpoConfig(num_starts=2, num_generations=4, min_reward_range=0.0,
                    format_reward='closed', learning_rate=3e-3, num_minibatches=2,
                    micro_batch=16, num_envs=2, evaluate_every=2, evaluate_episodes=1)


def small_policy(image_size: int = SIZE,
                 tokens: tuple[int, int] = (4, 4)) -> tuple[HybridDecoder, PolicyTransform]:
    """Return an untrained policy, for the toy suite's images; 4 actions a chunk."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = DecoderConfig.nano(
        tokenizer.get_vocab_size(), special_ids(tokenizer), width=32, layers=2,
        image_size=image_size, tokens=tokens, channels=(8, 8, 8), chunk_steps=4)
    model = HybridDecoder(config)
    return model, PolicyTransform(config, tokenizer, ActionStatistics((-1.0,) * 7, (1.0,) * 7))


def small_run(folder: Path, image_size: int = SIZE, tokens: tuple[int, int] = (4, 4)) -> Path:
    """Write the untrained policy as a training run."""
    model, transform = small_policy(image_size, tokens)
    write_transform(folder, transform)
    save_weights(model, folder / checkpoint.WEIGHTS)
    return folder


def sampler_of(model: HybridDecoder, transform: PolicyTransform,
               config: GrpoConfig = CONFIG) -> BatchSampler:
    """Return what samples thoughts of up to 6 tokens at the temperatures of a configuration."""
    return BatchSampler(model, transform, max_thought_tokens=6,
                        thought_temperature=config.thought_temperature,
                        action_temperature=config.action_temperature)


def learner_of(policy: tuple[HybridDecoder, PolicyTransform], config: GrpoConfig) -> Learner:
    """Return a learner of a policy on the CPU."""
    return Learner(*policy, sampler_of(*policy).banned, config, Accelerator(cpu=True))


def run_toys(sampler: BatchSampler, rollouts: Iterable[Rollout], limit: int = 12, groups: int = 1,
             samples: Sequence[int | None] = (0,)) -> list[Trajectory]:
    """Return the trajectories of two simulators of the toy suite, in the order of their keys."""
    jobs, found = list(rollouts), []
    with closing(open_envs(ToyScene(limit=limit), 2)) as envs:
        run_rollouts(BatchedRollouts(envs, groups), sampler,
                     lambda: jobs.pop(0) if jobs else None, found.append, samples)
    return sorted(found, key=lambda trajectory: trajectory.key)
