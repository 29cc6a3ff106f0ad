"""Batches of whole sequences, drawn so that a step's batch depends on the step alone.

That makes resuming exact without storing any random state: step k of a resumed run draws the
frames, noise and colours it would have drawn in the first run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.training.augment import colour_map, recoloured, shifted, to_pixels
from dtvla_ros.training.auxiliary.direction_flip import Turning
from dtvla_ros.training.auxiliary.localisation import kind
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.frame_cache import FrameCache
from dtvla_ros.training.tokenized import (
    AFTER_STATE,
    STATE_GROUPS,
    Samples,
    StateWords,
    place_spans,
    prompt_of,
)

TELL = 'state the place'  # the instruction whose thought lists where everything is
TOLD = 8  # things in such a thought, at most
LENGTH_STEP = 8  # sequences are padded to a multiple of this


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one step; B sequences of L ids, R supervised tokens, S action slots.

    ``frames`` uint8 [C, B, H, W, 3]; ``input_ids`` and ``attention_mask`` [B, L];
    ``token_rows`` [2, R]: (sequence, row) that predicts ``token_targets`` [R];
    ``action_start`` [B]; ``action_targets`` [B, S] counted from the first bin;
    ``action_mask`` [B, S]; ``places`` [B, E, 2], ``told_apart`` [B, E] and ``patches`` [B, E] as
    in ``Samples``.
    """

    frames: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    token_rows: Tensor
    token_targets: Tensor
    action_start: Tensor
    action_targets: Tensor
    action_mask: Tensor
    places: Tensor
    told_apart: Tensor
    patches: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(**{name: getattr(self, name).to(device, non_blocking=True)
                        for name in self.__slots__})

    def pin_memory(self) -> Batch:
        """Return the batch in memory that a GPU can copy from while it computes."""
        return Batch(**{name: getattr(self, name).pin_memory() for name in self.__slots__})

    def pixels(self) -> Tensor:
        """Return images [B, C, 3, H, W] in -1..1."""
        return to_pixels(self.frames)


@dataclass(frozen=True, slots=True)
class Look:
    """A lesson in seeing.

    ``pixels`` [B, 3, H, W] of the first camera, ``places`` [B, E, 2], ``told_apart`` [B, E] and
    ``patches`` [B, E] as in ``Samples``, and ``input_ids`` [B, L] that tell the places, up to
    ``<action>``.
    """

    pixels: Tensor
    places: Tensor
    told_apart: Tensor
    patches: Tensor
    input_ids: Tensor

    def to(self, device: torch.device) -> Look:
        """Return the lesson on a device."""
        return Look(**{name: getattr(self, name).to(device, non_blocking=True)
                       for name in self.__slots__})

    def pin_memory(self) -> Look:
        """Return the lesson in memory that a GPU can copy from while it computes."""
        return Look(**{name: getattr(self, name).pin_memory() for name in self.__slots__})


def _padded(length: NDArray[np.int64]) -> int:
    """Return the width of a batch of sequences of these lengths."""
    return -(-int(length.max()) // LENGTH_STEP) * LENGTH_STEP


class BatchMaker:
    """Draws and assembles batches from samples and frames in memory-mapped files.

    ``weights``: each dataset's share of what is drawn; by default its share of all frames.
    ``parallel``: batches that make one step, over all processes; with ``config.bucket`` above 1
    they have about the same length.
    """

    def __init__(self, samples: Samples, caches: Sequence[FrameCache],
                 transform: PolicyTransform, config: SftConfig,
                 things: Sequence[str] = (), weights: Sequence[float] = (), parallel: int = 1):
        self._parallel = parallel
        self._samples = samples
        self.things = tuple(things)
        self._transform = transform
        self._names = [transform.tokenizer.encode(f'{kind(name)} at', add_special_tokens=False).ids
                       for name in things]
        self._caches = [cache.frames for cache in caches]
        self._starts = np.cumsum([0, *map(len, self._caches)])
        self._config = config
        self._ids = transform.config.ids
        self._slots = transform.config.slots
        self._words = StateWords.of(transform) if transform.state_in_prompt else None
        self._spans = place_spans(transform.tokenizer)
        self._turning = Turning.of(transform) if config.turned else None
        scenes = int(samples.scene.max()) + 1
        held_out = np.random.default_rng(config.seed).permutation(scenes)
        held = np.isin(samples.scene, held_out[:round(config.validation_share * scenes)])
        self.validation = np.flatnonzero(held)
        boost = np.where(samples.near_toggle, config.toggle_boost, 1.0) * np.where(
            samples.near_start, config.start_boost, 1.0)
        boost = np.minimum(boost, max(config.toggle_boost, config.start_boost))
        self._shares = self._cumulative(~held, weights)
        self._boosted = self._cumulative(boost * ~held, weights)

    def train(self, step: int, rank: int = 0) -> Batch:
        """Return the ``rank``-th training batch of a step: drawn at random, with noise."""
        rng = np.random.default_rng([self._config.seed, step, rank])
        if self._config.bucket > 1:
            return self._assemble(*self._alike(step, rank), rng)
        return self._assemble(self._draw(self._boosted, rng), None, rng)

    def _alike(self, step: int, rank: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return a batch's frames [B], and which keep their thought, near each other in length."""
        bucket, parallel = self._config.bucket, self._parallel
        rng = np.random.default_rng([self._config.seed, step // bucket, 0, 2])
        index = np.concatenate(
            [self._draw(self._boosted, rng) for _ in range(bucket * parallel)])
        kept = rng.random(len(index)) >= self._config.reasoning_dropout
        order = np.argsort(self._lengths(index, kept), kind='stable')
        chosen = order.reshape(bucket, parallel, -1)[rng.permutation(bucket)[step % bucket], rank]
        return index[chosen], kept[chosen]

    def padding(self, steps: int = 64) -> float:
        """Return the share of pads among all rows of the first training batches."""
        pads = rows = 0
        for step in range(steps):
            rng = np.random.default_rng([self._config.seed, step, 0])
            if self._config.bucket > 1:
                index, kept = self._alike(step, 0)
            else:
                index = self._draw(self._boosted, rng)
                kept = rng.random(len(index)) >= self._config.reasoning_dropout
            length = self._lengths(index, kept)
            rows += len(index) * _padded(length)
            pads += len(index) * _padded(length) - int(length.sum())
        return pads / rows

    def _lengths(self, index: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the rows [B] of sequences without their pads."""
        s = self._samples
        thought = np.where(kept, s.thought_length[index], 2)
        return s.prompt_length[index] + thought + self._slots + 3

    def _cumulative(self, weight: NDArray[Any], weights: Sequence[float]) -> NDArray[np.float64]:
        """Return cumulative chances of all frames, each dataset's as its share of ``weights``."""
        chance = np.asarray(weight, np.float64)
        for k, share in enumerate(weights):
            part = chance[self._starts[k]:self._starts[k + 1]]
            part *= share / max(part.sum(), 1e-12)
        return np.cumsum(chance / chance.sum())

    def _draw(self, cumulative: NDArray[np.float64], rng: Generator) -> NDArray[np.int64]:
        index = np.searchsorted(cumulative, rng.random(self._config.batch_size))
        return np.minimum(index, len(cumulative) - 1)

    def look(self, step: int) -> Look:
        """Return what the first camera sees in any training frames, and where everything is."""
        rng = np.random.default_rng([self._config.seed, step, 0, 1])
        index = self._draw(self._shares, rng)
        s = self._samples
        frames = torch.from_numpy(self._images(index, rng, cameras=1))
        return Look(pixels=to_pixels(frames)[:, 0], places=torch.from_numpy(s.places[index]),
                    told_apart=torch.from_numpy(s.told_apart[index]),
                    patches=torch.from_numpy(s.patches[index]),
                    input_ids=torch.from_numpy(self._told(index, rng)))

    def _told(self, index: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
        """Return ids [B, L]: a prompt, then a thought that lists up to ``TOLD`` things."""
        ids = self._ids
        head = np.array(prompt_of(self._transform, TELL))
        prompt = np.repeat(head[None], len(index), axis=0)
        if self._words is not None:
            at = np.full(len(index), len(head) - AFTER_STATE - len(STATE_GROUPS))
            prompt = self._noisy_state(prompt, index, rng, at)
        first = np.array([span[0] for span in self._spans[:2]])  # x and y words
        longest = sum(sorted(len(name) + 2 for name in self._names)[-TOLD:])
        out = np.full((len(index), longest + 3), ids.pad, np.int64)
        for row, frame in enumerate(index):
            told = rng.permutation(np.flatnonzero(self._samples.told_apart[frame]))[:TOLD]
            said = [i for thing in told
                    for i in (*self._names[thing], *(first + self._samples.places[frame, thing]))]
            out[row, :len(said) + 3] = [ids.think, *said, ids.think_end, ids.action]
        return np.concatenate([prompt, out], axis=1)

    def plain(self, indices: NDArray[np.int64]) -> Batch:
        """Return given frames without noise, dropout or colour changes."""
        return self._assemble(indices, np.ones(len(indices), bool), None)

    def _assemble(self, index: NDArray[np.int64], kept: NDArray[np.bool_] | None,
                  rng: Generator | None) -> Batch:
        """Put frames together, with noise if ``rng`` is given; ``kept`` None is drawn from it."""
        s, ids, count = self._samples, self._ids, len(index)
        thought, actions = s.thought[index], s.actions[index]
        if kept is None:
            assert rng is not None, 'which thoughts are kept is given or drawn'
            kept = rng.random(count) >= self._config.reasoning_dropout
        taught = kept
        asked, seen = index, thought
        if rng is not None:
            if self._config.counterfactual:
                misled = kept & (rng.random(count) < self._config.counterfactual)
                taught = kept & ~misled
                asked = np.where(misled, self._others(index, rng), index)
            seen = self._noisy_places(thought, rng)
            if self._turning is not None:
                turned = taught & (rng.random(count) < self._config.turned)
                taught = taught & ~turned
                seen[turned], actions[turned] = self._turning.turned(
                    seen[turned], actions[turned])
        prompt = s.prompt[asked]
        if rng is not None and self._words is not None:
            prompt = self._noisy_state(prompt, index, rng, s.state_at[asked])
        p = s.prompt_length[asked]
        w = np.where(kept, s.thought_length[index], 2)
        start = p + w  # A, the row of <action>
        length = start + self._slots + 3
        width = _padded(length)
        columns = np.arange(width)
        real = columns < length[:, None]  # [B, L]

        input_ids = np.full((count, width), ids.pad, np.int64)
        within = columns < p[:, None]
        input_ids[within] = prompt[np.arange(prompt.shape[1]) < p[:, None]]
        inside = (columns >= p[:, None]) & (columns < start[:, None])
        empty = np.zeros_like(seen)
        empty[:, :2] = ids.think, ids.think_end
        chosen = np.where(kept[:, None], seen, empty)
        input_ids[inside] = chosen[np.arange(chosen.shape[1]) < w[:, None]]
        row = np.arange(count)
        input_ids[row, start] = ids.action
        slots = (columns > start[:, None]) & (columns <= start[:, None] + self._slots)
        input_ids[slots] = actions.ravel()
        input_ids[row, start + self._slots + 1] = ids.action_end
        input_ids[row, start + self._slots + 2] = ids.eos

        labels = input_ids.copy()
        labels[inside] = np.where(kept[:, None], thought, empty)[
            np.arange(thought.shape[1]) < w[:, None]]
        # A dropped or turned thought, or one that another instruction asks for, is not to write:
        # only what follows it is learnt.
        learnt = real & (columns >= p[:, None]) & ~slots & ~(inside & ~taught[:, None])
        b, column = np.nonzero(learnt)
        return Batch(
            frames=torch.from_numpy(self._images(index, rng)),
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(real.astype(np.int64)),
            token_rows=torch.from_numpy(np.stack([b, column - 1])),
            token_targets=torch.from_numpy(labels[b, column]),
            action_start=torch.from_numpy(start),
            action_targets=torch.from_numpy(actions - ids.bins_first),
            action_mask=torch.from_numpy(s.action_mask[index]),
            places=torch.from_numpy(s.places[index]),
            told_apart=torch.from_numpy(s.told_apart[index]),
            patches=torch.from_numpy(s.patches[index]))

    def _others(self, index: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
        """Return any frames [B] of the same datasets."""
        which = np.searchsorted(self._starts, index, side='right') - 1
        first, last = self._starts[which], self._starts[which + 1]
        return first + (rng.random(len(index)) * (last - first)).astype(np.int64)

    def _noisy_state(self, prompt: NDArray[np.int64], index: NDArray[np.int64], rng: Generator,
                     at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Write the frames' state words, a little off, into ``prompt`` from the columns ``at``."""
        assert self._words is not None
        position, tilt, opening = self._config.state_noise
        spread = np.array([position] * 3 + [tilt] * 3 + [opening])
        steps = self._samples.state[index] + spread * rng.standard_normal((len(index), 7))
        columns = at[:, None] + np.arange(7)
        out = prompt.copy()
        np.put_along_axis(out, columns, self._words.ids(steps), axis=1)
        return out

    def _noisy_places(self, thought: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
        """Move location words a little, so that the actions also look for themselves."""
        if self._config.place_noise <= 0.0:
            return thought
        out = thought.copy()
        for first, last in self._spans:
            inside = (thought >= first) & (thought <= last)
            move = np.rint(rng.normal(0.0, self._config.place_noise, thought.shape))
            out[inside] = np.clip(thought + move.astype(np.int64), first, last)[inside]
        return out

    def _images(self, index: NDArray[np.int64], rng: Generator | None,
                cameras: int | None = None) -> NDArray[np.uint8]:
        which = np.searchsorted(self._starts, index, side='right') - 1
        local = index - self._starts[which]
        stored_cameras, *shape = self._caches[0].shape[1:]
        frames = np.empty((cameras or stored_cameras, len(index), *shape), np.uint8)
        for k, (cache, frame) in enumerate(zip(which, local, strict=True)):
            stored = self._caches[cache][frame]
            for camera, limit in enumerate(self._config.shift[:len(frames)]):
                image = frames[camera, k]
                if rng is None:
                    image[:] = stored[camera]
                    continue
                shifted(stored[camera], image, *rng.integers(-limit, limit + 1, 2))
                recoloured(image, colour_map(rng, self._config.colour))
        return frames
