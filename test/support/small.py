"""A tiny policy on disk, a recipe for it, and pools it can play in."""

from __future__ import annotations

from pathlib import Path

import torch

from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.policy.checkpoint import save_weights
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform, write_transform
from dtvla_ros.policy.vocabulary import build_tokenizer, special_ids
from dtvla_ros.training import run_state
from dtvla_ros.training.grpo.config import GrpoConfig

CONFIG = GrpoConfig(
    groups=2, group=4, least_spread=0.0, form='closed', learning_rate=3e-3, minibatches=2,
    micro_batch=16, environments=2, evaluate_every=100, evaluate_episodes=1)


def small_policy(seed: int = 0) -> tuple[HybridDecoder, PolicyTransform]:
    """Return an untrained policy for the toy suite's pictures; 4 actions a chunk."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = DecoderConfig.nano(
        tokenizer.get_vocab_size(), special_ids(tokenizer), width=32, layers=2, image_size=16,
        tokens=(4, 4), channels=(8, 8, 8), chunk_steps=4)
    model = HybridDecoder(config)
    return model, PolicyTransform(config, tokenizer, ActionStatistics((-1.0,) * 7, (1.0,) * 7))


def small_run(folder: Path, seed: int = 0) -> Path:
    """Write the untrained policy as a training run."""
    model, transform = small_policy(seed)
    write_transform(folder, transform)
    save_weights(model, folder / run_state.WEIGHTS)
    return folder
