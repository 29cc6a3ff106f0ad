"""Named sizes to measure with, random weights for them, and what a pass over them costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import DecoderConfig, SpecialIds, TextConfig, VisionConfig
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.vocabulary import build_tokenizer, special_ids

_RELEASED_IDS = {
    'think_start_token_index': 257153, 'think_end_token_index': 257154,
    'action_start_token_index': 257155, 'action_end_token_index': 257156,
    'action_token_begin_idx': 254976, 'action_token_end_idx': 257023}
_BENCH_TOKENS = 32768  # words before the action ids


def geometry(name: str) -> DecoderConfig:
    """Return the config of a named geometry."""
    if name == 'nano':
        tokenizer = build_tokenizer()
        return DecoderConfig.nano(tokenizer.get_vocab_size(), special_ids(tokenizer))
    if name == 'bench-60m':
        v = _BENCH_TOKENS
        ids = SpecialIds(
            pad=0, eos=1, bos=2, semicolon=40, newline=41, image=v + 2048, think=v + 2049,
            think_end=v + 2050, action=v + 2051, action_end=v + 2052, bins_first=v,
            bins_last=v + 2047)
        return DecoderConfig(
            TextConfig(width=512, layers=8, heads=8, kv_heads=1, head_dim=64, mlp=2048,
                       vocabulary=v + 2064),
            VisionConfig('siglip', CAMERAS, (256, 256), 224, width=384, layers=6,
                         heads=6, mlp=1536, patch=14), ids)
    if name == 'deepthinkvla-3b':
        return DecoderConfig.from_huggingface(_RELEASED_IDS)
    raise UserError(f'geometry {name!r} is none of {", ".join(GEOMETRIES)}')


GEOMETRIES = ('nano', 'bench-60m', 'deepthinkvla-3b')


def random_model(config: DecoderConfig, device: str = 'cpu',
                 dtype: torch.dtype = torch.float32, seed: int = 0) -> HybridDecoder:
    """Return a model with random weights, made on ``device`` in ``dtype``."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return HybridDecoder(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True, slots=True)
class Scene:
    """One made-up input: ``prompt`` ids, ``pixels`` [C, 3, H, W], ``banned`` [V]."""

    prompt: list[int]
    pixels: NDArray[np.float32]
    banned: NDArray[np.bool_]


def scene(config: DecoderConfig, text_tokens: int = 35, seed: int = 0) -> Scene:
    """Return random images and a prompt with ``text_tokens`` ids after the images.

    Banned are all ids that are no plain words, so that a thought of random weights never ends
    by itself and has the length it is asked for.
    """
    ids, rng = config.ids, np.random.default_rng(seed)
    banned = np.zeros(config.text.vocabulary, bool)
    banned[ids.bins_first:] = True
    banned[[ids.pad, ids.eos, ids.bos, ids.semicolon, ids.newline, ids.image, ids.think,
            ids.think_end, ids.action, ids.action_end]] = True
    words = rng.choice(np.flatnonzero(~banned), text_tokens - 3).tolist()
    prompt = [ids.image] * config.image_tokens + [ids.bos, *words, ids.semicolon, ids.newline]
    size = config.vision.image_size
    pixels = rng.uniform(-1, 1, (len(config.vision.cameras), 3, size, size))
    return Scene(prompt, pixels.astype(np.float32), banned)


@dataclass(frozen=True, slots=True)
class Cost:
    """Arithmetic of a phase and the weights it must read at least once."""

    flops: float
    parameters: float


def layer_parameters(text: TextConfig) -> int:
    """Return the matrix elements of one decoder layer."""
    attention = text.head_dim * (2 * text.heads + 2 * text.kv_heads)
    return text.width * (attention + 3 * text.mlp)


def pass_cost(config: DecoderConfig, rows: int, past: int, read: int, columns: int) -> Cost:
    """Return the cost of a decoder pass.

    ``rows`` new rows over ``past`` cached ones; ``read`` rows are scored against ``columns``
    ids. Two operations per multiply-add; attention counted in full, as it is computed.
    """
    text = config.text
    weights = text.layers * layer_parameters(text)
    attention = 4 * text.layers * text.heads * text.head_dim * rows * (past + rows)
    head = text.width * columns
    return Cost(2.0 * rows * weights + attention + 2.0 * read * head,
                weights + (head if read else 0))


def see_cost(config: DecoderConfig) -> Cost:
    """Return the cost of encoding all cameras with SigLIP (nothing is counted for 'conv')."""
    vision = config.vision
    if vision.kind != 'siglip':
        return Cost(0.0, 0.0)
    each = 4 * vision.width ** 2 + 2 * vision.width * vision.mlp
    flops = 0.0
    for count in vision.tokens:
        flops += 2.0 * count * (vision.layers * each + 3 * vision.patch ** 2 * vision.width
                                + vision.width * config.text.width)
        flops += 4.0 * vision.layers * count ** 2 * vision.width
    return Cost(flops, vision.layers * each + vision.width * config.text.width)
