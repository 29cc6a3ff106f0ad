"""What a policy folder says, read without its weights."""

from __future__ import annotations

from pathlib import Path

from dtvla_ros.policy.manifest import TOKENIZER, PolicyManifest
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.policy.vocabulary import load_tokenizer


def transform_of(folder: Path, manifest: PolicyManifest) -> PolicyTransform:
    """Return a policy folder's transform; the tokenizer is hashed before it is parsed."""
    return PolicyTransform(
        manifest.config, load_tokenizer(manifest.verified(folder, TOKENIZER)),
        manifest.statistics, manifest.state_in_prompt, manifest.preamble,
        manifest.images.mirrored)
