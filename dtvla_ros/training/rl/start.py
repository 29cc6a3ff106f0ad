"""What a run begins with: the weights and habits of a training run or a policy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dtvla_ros.policy.checkpoint import load_model
from dtvla_ros.policy.decoder import HybridDecoder
from dtvla_ros.policy.manifest import MANIFEST, TOKENIZER, ActionContract, PolicyManifest
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.policy.vocabulary import load_tokenizer
from dtvla_ros.training import run_state

_USUAL: dict[str, Any] = {field.name: field.default for field in fields(PolicyManifest)}


@dataclass(frozen=True, slots=True)
class Start:
    """A policy that goes on learning; ``replan_steps``: actions executed between its looks."""

    model: HybridDecoder
    transform: PolicyTransform
    replan_steps: int
    max_thought_tokens: int


def load_start(path: Path, replan_steps: int | None = None) -> Start:
    """Read a policy folder, hashes checked, or a training run.

    ``replan_steps`` None: as the policy's manifest says; a run has the usual number.
    """
    if not (path / MANIFEST).exists():
        transform = run_state.read_transform(path)
        usual = min(ActionContract().replan_steps, transform.config.chunk_steps)
        return Start(load_model(transform.config, path / run_state.WEIGHTS), transform,
                     replan_steps or usual, _USUAL['max_thought_tokens'])
    manifest = PolicyManifest.read(path)
    transform = PolicyTransform(
        manifest.config, load_tokenizer(manifest.verified(path, TOKENIZER)), manifest.statistics,
        manifest.state_in_prompt, manifest.preamble, manifest.images.mirrored)
    return Start(load_model(manifest.config, manifest.verified_weights(path)), transform,
                 replan_steps or manifest.action.replan_steps, manifest.max_thought_tokens)
