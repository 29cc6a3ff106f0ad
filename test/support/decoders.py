"""Decoders to test with: the golden one, and small random ones of other geometries."""

from __future__ import annotations

import functools
from dataclasses import astuple

import numpy as np
import torch

from dtvla_ros.policy.checkpoint import load_weights
from dtvla_ros.policy.config import DecoderConfig, SpecialIds, TextConfig, VisionConfig
from dtvla_ros.policy.model import HybridDecoder
from support.golden import document, golden


@functools.cache
def golden_decoder(weights: str) -> HybridDecoder:
    torch.set_num_threads(1)
    data = document('config')
    cameras = tuple(f'camera_{k}' for k in range(data.get('cameras', 2)))
    model = HybridDecoder(DecoderConfig.from_huggingface(data, cameras=cameras))
    load_weights(model, golden(f'weights_{weights}.safetensors'))
    return model


def by_sample(pixel_values: torch.Tensor, model: HybridDecoder) -> torch.Tensor:
    """[B * C, 3, H, W] -> [B, C, 3, H, W]."""
    return pixel_values.unflatten(0, (-1, len(model.config.vision.cameras)))


@functools.cache
def small_decoder(kv_heads: int = 2, image_size: int = 28, bins: int = 32) -> HybridDecoder:
    """Return a random model: 4 heads, 2 cameras, norms and biases random too."""
    torch.set_num_threads(1)
    torch.manual_seed(kv_heads)
    ids = SpecialIds(pad=7, eos=3, bos=9, semicolon=50, newline=12, image=4, think=61,
                     think_end=60, action=8, action_end=2, bins_first=70, bins_last=69 + bins)
    text = TextConfig(40, 2, 4, kv_heads, head_dim=16, mlp=56, vocabulary=80 + bins)
    vision = VisionConfig('siglip', ('left', 'right'), ((image_size // 14) ** 2,) * 2, image_size,
                          width=24, layers=1, heads=2, mlp=32, patch=14)
    model = HybridDecoder(DecoderConfig(text, vision, ids, chunk_steps=3, action_dim=4))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 or 'norm' in name:
                weight.normal_(0.0, 0.2)
    return model


def sequence(config: DecoderConfig, rng: np.random.Generator, words: int,
             thought: int) -> list[int]:
    """Return a whole sequence; the prompt holds all four tags as literal text."""
    ids = config.ids
    special = {*astuple(ids), *range(ids.bins_first, ids.bins_last)}
    ordinary = [i for i in range(config.text.vocabulary) if i not in special]
    said = rng.choice(ordinary, words + thought).tolist()
    actions = rng.integers(ids.bins_first, ids.bins_last + 1, config.slots).tolist()
    return [*[ids.image] * config.image_tokens, ids.bos, ids.think, ids.think_end, ids.action,
            ids.action_end, *said[:words], ids.semicolon, ids.newline, ids.think, *said[words:],
            ids.think_end, ids.action, *actions, ids.action_end, ids.eos]


def images(config: DecoderConfig, rng: np.random.Generator, count: int) -> torch.Tensor:
    """Return noise in -1..1, [count, C, 3, H, W]."""
    size = config.vision.image_size
    noise = rng.uniform(-1.0, 1.0, (count, len(config.vision.cameras), 3, size, size))
    return torch.from_numpy(noise.astype(np.float32))


def padded(rows: list[list[int]], left: list[int], width: int,
           pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask [B, width], row k after ``left[k]`` pads."""
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for k, (row, first) in enumerate(zip(rows, left, strict=True)):
        ids[k, first:first + len(row)] = torch.tensor(row)
        mask[k, first:first + len(row)] = 1
    return ids, mask
