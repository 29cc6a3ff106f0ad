"""An untrained policy of the small preset, and something for it to look at."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.engine.export import export_policy
from dtvla_ros.engine.proof import Proof
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import MANIFEST, WEIGHTS, ImageContract, PolicyManifest, sha256
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.shapes import Size
from dtvla_ros.policy.transform import Observation, PolicyTransform
from dtvla_ros.policy.vocabulary import build_tokenizer, special_ids

INSTRUCTION = 'put the can in the wooden bin'
NANO = Path(__file__).resolve().parents[2] / 'models' / 'nano'


def untrained(layers: int = 2, seed: int = 0) -> tuple[HybridDecoder, PolicyTransform]:
    """Return a model with random weights (norms too) and its transform."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = DecoderConfig.nano(tokenizer.get_vocab_size(), special_ids(tokenizer), layers=layers)
    model = HybridDecoder(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if 'norm' in name:
                weight.normal_(0.0, 0.2)
    statistics = ActionStatistics((-0.8,) * 6 + (-1.0,), (0.9,) * 6 + (1.0,))
    return model, PolicyTransform(config, tokenizer, statistics)


def write_untrained(folder: Path, layers: int = 2) -> HybridDecoder:
    """Export an untrained policy into ``folder``; return its model."""
    model, transform = untrained(layers)
    export_policy(model, transform, folder, PolicyManifest(
        'untrained', 'Apache-2.0', transform.config, transform.statistics, {}))
    return model


def write_proven(folder: Path, count: int = 6) -> None:
    """Export an untrained policy with so many recorded observations into ``folder``."""
    model, transform = untrained()
    export_policy(model, transform, folder, PolicyManifest(
        'proven', 'Apache-2.0', transform.config, transform.statistics, {}, max_thought_tokens=9),
        observations=Proof.of([observation(seed, 160) for seed in range(count)], transform))


def fitting(contract: ActionContract = ActionContract(),
            cameras: tuple[str, ...] = ('primary', 'wrist'), **sizes: Size) -> Any:
    """Return what `require_contract` compares of a transform."""
    return SimpleNamespace(contract=contract, sizes=sizes, config=SimpleNamespace(
        vision=SimpleNamespace(cameras=cameras)))


def trained_on(folder: Path, **sizes: Size) -> Path:
    """Copy ``models/nano`` as if the images of its demonstrations had had these sizes."""
    shutil.copytree(NANO, folder)
    (folder / MANIFEST).write_text(replace(
        PolicyManifest.read(NANO), images=ImageContract(sizes=sizes)).to_json())
    return folder


def rehash(folder: Path, name: str) -> None:
    """Let the manifest say that a file is as it should be."""
    manifest = PolicyManifest.read(folder)
    (folder / MANIFEST).write_text(replace(
        manifest, files={**manifest.files, name: sha256(folder / name)}).to_json())


def tamper(folder: Path) -> None:
    """Make one matrix noise, so that every engine computes something else than was recorded.

    Its bytes are replaced where they are: the graphs refer to them by their place.
    """
    path = folder / WEIGHTS
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8 + size])
    begin, end = next(value['data_offsets'] for name, value in header.items()
                      if name.endswith('down_proj.weight'))
    noise = np.random.default_rng(0).normal(0.0, 0.3, (end - begin) // 4).astype(np.float32)
    data[8 + size + begin:8 + size + end] = noise.tobytes()
    path.write_bytes(data)
    rehash(folder, WEIGHTS)


def observation(seed: int = 0, size: int = 128, instruction: str = INSTRUCTION) -> Observation:
    """Return an observation of noise, the gripper over the table."""
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (size, size, 3), np.uint8)
              for name in ('primary', 'wrist')}
    return Observation(images, {}, np.array([0.45, -0.118, 0.03]), np.array([1.0, 0.0, 0.0, 0.0]),
                       0.04, instruction, 0.0)
