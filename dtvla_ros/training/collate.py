"""Batches of whole sequences with augmentation; a step's batch depends on the step alone.

That makes resuming exact without storing any random state. Images are moved and recoloured, never
flipped or rotated: a flip would exchange left and right in the thought and in the actions.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.random import Generator as Random
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from dtvla_ros.errors import UserError
from dtvla_ros.policy.confidence import PLACE, field_reader
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.training import data
from dtvla_ros.training.auxiliary.direction_flip import DirectionFlip
from dtvla_ros.training.config import SftConfig

T = TypeVar('T')
CAPTION = 'state the place'  # the instruction whose thought lists where everything is
CAPTIONED = 8  # objects in such a thought, at most
LENGTH_STEP = 8  # sequences are padded to a multiple of this
LUMA = (0.299, 0.587, 0.114)


class Batch(NamedTuple):
    """Tensors of one step; B sequences of L ids, R supervised tokens, S action slots.

    ``frames`` uint8 [C, B, H, W, 3]; ``input_ids`` and ``attention_mask`` [B, L]; ``token_rows``
    [2, R]: (sequence, row) that predicts ``token_targets`` [R]; ``action_start`` [B];
    ``action_targets`` [B, S] counted from the first bin; ``action_mask`` [B, S]; objects as in
    ``TokenizedDataset``. A batch of the pre-training stages has the first camera's frames,
    captions up to ``<action>``, and no actions (S = 0).
    """

    frames: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    token_rows: Tensor
    token_targets: Tensor
    action_start: Tensor
    action_targets: Tensor
    action_mask: Tensor
    positions: Tensor
    unambiguous: Tensor
    target_patches: Tensor

    def pixels(self) -> Tensor:
        """Return images [B, C, 3, H, W] in -1..1, channels-last in memory as convolutions want."""
        return self.frames.float().div_(127.5).sub_(1.0).permute(1, 0, 4, 2, 3)


def _padded(length: NDArray[np.int64]) -> int:
    """Return the width of a batch of sequences of these lengths."""
    return -(-int(length.max()) // LENGTH_STEP) * LENGTH_STEP


class Collator:
    """Draws rows of a dataset and collates them with their frames into batches.

    ``frames``: those of each of the concatenated datasets; ``objects``: their E names;
    ``weights``: each dataset's share of what is drawn; by default its share of all frames.
    ``parallel``: batches that make one step, over all processes; with ``config.bucket`` above 1
    they have about the same length.
    """

    def __init__(self, dataset: data.TokenizedDataset, frames: Sequence[NDArray[np.uint8]],
                 transform: PolicyTransform, config: SftConfig, objects: Sequence[str] = (),
                 weights: Sequence[float] = (), parallel: int = 1):
        self.objects = tuple(objects)
        self._dataset, self._frames = dataset, frames
        self._transform, self._config, self._parallel = transform, config, parallel
        self._names = [
            transform.tokenizer.encode(f'{data.class_name(name)} at', add_special_tokens=False).ids
            for name in objects]
        self._starts = np.cumsum([0, *map(len, frames)])
        self._ids = transform.config.ids
        self._slots = transform.config.slots
        self._state_ids = data.StateIds(transform) if transform.state_in_prompt else None
        self._spans = data.location_spans(transform.tokenizer)
        self._flip = DirectionFlip(transform) if config.auxiliary.direction_flip else None
        self._fields = field_reader(transform.decode_thought)
        scenes = int(dataset.scene.max()) + 1
        held_out = np.random.default_rng(config.seed).permutation(scenes)
        held = np.isin(dataset.scene, held_out[:round(config.validation_share * scenes)])
        self.validation = np.flatnonzero(held)
        boost = np.where(dataset.near_toggle, config.toggle_boost, 1.0) * np.where(
            dataset.near_start, config.start_boost, 1.0)
        boost = np.minimum(boost, max(config.toggle_boost, config.start_boost))
        boost *= np.where(dataset.intervention, config.intervention_boost, 1.0)
        boost *= np.where(dataset.failed, config.failure_boost, 1.0)
        if not (boost * ~held).any():
            raise UserError(f'failure_boost {config.failure_boost:g}, intervention_boost '
                            f'{config.intervention_boost:g}: no frame is left to draw; give '
                            'other --data too, or larger values')
        self._even = self._cumulative(~held, weights)
        self._boosted = self._cumulative(boost * ~held, weights)

    def train(self, step: int, rank: int = 0) -> Batch:
        """Return the ``rank``-th training batch of a step: drawn at random, augmented."""
        return self._collate(*self._choose(step, rank))

    def plain(self, index: NDArray[np.int64]) -> Batch:
        """Return given frames without noise, dropout or colour changes."""
        return self._collate(index, np.ones(len(index), bool), None)

    def localisation(self, step: int) -> Batch:
        """Return a step's batch of the pre-training stages: captions of any training frames.

        A caption is a prompt and a thought that lists up to ``CAPTIONED`` unambiguous objects, in
        random order. Its ``token_targets`` are the location tokens, x and y in turn.
        """
        ids, rng = self._ids, np.random.default_rng([self._config.seed, step, 0, 1])
        index = self._draw(self._even, rng)
        frames = self._images(index, rng, cameras=1)
        start = np.array(data.prompt_of(self._transform, CAPTION))
        prompt = np.repeat(start[None], len(index), axis=0)
        self._noisy_state(prompt, index, rng, np.full(len(index), len(start)))
        spans = np.array(self._spans[:2])  # of the x and y tokens
        longest = sum(sorted(len(name) + 2 for name in self._names)[-CAPTIONED:])
        thought = np.full((len(index), longest + 3), ids.pad, np.int64)
        for row, frame in enumerate(index):
            chosen = rng.permutation(np.flatnonzero(self._dataset.unambiguous[frame]))[:CAPTIONED]
            tokens = [i for k in chosen for i in (
                *self._names[k], *(spans[:, 0] + self._dataset.positions[frame, k]))]
            thought[row, :len(tokens) + 3] = [ids.think, *tokens, ids.think_end, ids.action]
        input_ids = np.concatenate([prompt, thought], axis=1)
        learnt = np.any([(input_ids >= a) & (input_ids <= b) for a, b in spans], 0)
        learnt[:, :len(start)] = False
        return self._batch(
            index, frames, input_ids, input_ids != ids.pad, learnt, input_ids,
            np.argmax(input_ids == ids.action, 1), np.zeros((len(index), 0), np.int64))

    def padding(self, steps: int = 64) -> float:
        """Return the share of pads among all rows of the first training batches."""
        lengths = [self._lengths(*self._choose(step, 0)[:2]) for step in range(steps)]
        rows = sum(len(length) * _padded(length) for length in lengths)
        return 1.0 - sum(int(length.sum()) for length in lengths) / rows

    def _choose(self, step: int, rank: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], Random]:
        """Return a batch's frames [B], which keep their thought [B], and the noise's source.

        In a bucket the batches of several steps are drawn together and dealt by length.
        """
        config, bucket = self._config, self._config.bucket
        rng = np.random.default_rng([config.seed, step, rank])
        if bucket == 1:
            index = self._draw(self._boosted, rng)
            return index, rng.random(len(index)) >= config.reasoning_dropout, rng
        shared = np.random.default_rng([config.seed, step // bucket, 0, 2])
        index = np.concatenate(
            [self._draw(self._boosted, shared) for _ in range(bucket * self._parallel)])
        kept = shared.random(len(index)) >= config.reasoning_dropout
        order = np.argsort(self._lengths(index, kept), kind='stable')
        dealt = order.reshape(bucket, self._parallel, -1)
        chosen = dealt[shared.permutation(bucket)[step % bucket], rank]
        return index[chosen], kept[chosen], rng

    def _lengths(self, index: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the rows [B] of sequences without their pads."""
        thought = np.where(kept, self._dataset.thought_length[index], 2)
        return self._dataset.prompt_length[index] + thought + self._slots + 3

    def _cumulative(self, weight: NDArray[Any], weights: Sequence[float]) -> NDArray[np.float64]:
        """Return cumulative chances of all frames, each dataset's as its share of ``weights``."""
        chance = np.asarray(weight, np.float64)
        for k, share in enumerate(weights):
            part = chance[self._starts[k]:self._starts[k + 1]]
            part *= share / max(part.sum(), 1e-12)
        return np.cumsum(chance / chance.sum())

    def _draw(self, cumulative: NDArray[np.float64], rng: Random) -> NDArray[np.int64]:
        index = np.searchsorted(cumulative, rng.random(self._config.batch_size))
        return np.minimum(index, len(cumulative) - 1)

    def _source(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of the concatenated datasets each frame [B] is of."""
        return np.searchsorted(self._starts, index, side='right') - 1

    def _collate(self, index: NDArray[np.int64], kept: NDArray[np.bool_],
                 rng: Random | None) -> Batch:
        """Lay sequences out, augmented if ``rng`` is given; ``kept`` [B]: not an empty thought."""
        d, ids, count = self._dataset, self._ids, len(index)
        thought, actions = d.thought[index], d.actions[index]
        # Whose prompt and which thought is the input, and whether the thought is supervised.
        prompted, given, supervised = index, thought, kept
        other = np.zeros(count, bool)
        if rng is not None:
            if self._config.counterfactual:
                other = kept & (rng.random(count) < self._config.counterfactual)
                supervised = kept & ~other
                first, last = (self._starts[self._source(index) + k] for k in (0, 1))
                anywhere = first + (rng.random(count) * (last - first)).astype(np.int64)
                prompted = np.where(other, anywhere, index)
            given = self._noisy_locations(thought, rng)
            if self._flip is not None:
                flipped = supervised & (rng.random(count) < self._config.auxiliary.direction_flip)
                supervised = supervised & ~flipped
                given[flipped], actions[flipped] = self._flip(given[flipped], actions[flipped])
        prompt = d.prompt[prompted]
        if rng is not None:
            self._noisy_state(prompt, index, rng, d.prompt_length[prompted])

        # prompt, thought (with tags), <action>, slots, </action>, eos
        p, w = d.prompt_length[prompted], np.where(kept, d.thought_length[index], 2)
        start = p + w  # A, the row of <action>
        ends = start + self._slots + 3
        input_ids = np.full((count, _padded(ends)), ids.pad, np.int64)
        labels, learnt = input_ids.copy(), np.zeros(input_ids.shape, bool)
        for k, (a, end) in enumerate(zip(start, ends, strict=True)):
            tail = [ids.action, *actions[k], ids.action_end, ids.eos]
            tokens = given[k, :w[k]] if kept[k] else [ids.think, ids.think_end]
            input_ids[k, :end] = np.concatenate([prompt[k, :p[k]], tokens, tail])
            labels[k, p[k]:end] = np.concatenate([thought[k, :w[k]], tail])
            # A dropped or flipped thought is input only, a counterfactual one in part.
            learnt[k, p[k] if supervised[k] else a:a + 1] = learnt[k, end - 2:end] = True
            if other[k]:
                learnt[k, p[k]:a] = self._whatever_asked(thought[k, :w[k]])
        return self._batch(index, self._images(index, rng), input_ids,
                           np.arange(input_ids.shape[1]) < ends[:, None], learnt, labels, start,
                           actions)

    def _whatever_asked(self, thought: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which tokens [W] of a thought do not depend on the instruction.

        What is in the hand the images say; all behind the thing follows from that. Around words
        of a person a policy writes both under an instruction that asks for something else.
        """
        fields = self._fields(thought.tolist())
        learnt = np.array([field == 'held' for field in fields])
        if PLACE in fields:
            learnt[fields.index(PLACE):] = True
        return learnt

    def _batch(self, index: NDArray[np.int64], frames: NDArray[np.uint8],
               input_ids: NDArray[np.int64], real: NDArray[np.bool_], learnt: NDArray[np.bool_],
               labels: NDArray[np.int64], start: NDArray[np.int64],
               actions: NDArray[np.int64]) -> Batch:
        """Return the tensors of sequences [B, L] of the frames ``index`` [B].

        Tokens ``labels`` [B, L] are supervised where they are ``learnt`` [B, L].
        """
        d, (sequence, column) = self._dataset, np.nonzero(learnt)
        return Batch(*map(torch.from_numpy, (
            frames, input_ids, real.astype(np.int64), np.stack([sequence, column - 1]),
            labels[learnt], start, actions - self._ids.bins_first,
            d.action_mask[index, :actions.shape[1]], d.positions[index], d.unambiguous[index],
            d.target_patches[index])))

    def _noisy_state(self, prompt: NDArray[np.int64], index: NDArray[np.int64], rng: Random,
                     length: NDArray[np.int64]) -> None:
        """Write the frames' state tokens, with noise, into prompts of ``length`` [B], if any."""
        if self._state_ids is not None:
            sigma = np.repeat(self._config.state_noise, (3, 3, 1))
            noise = sigma * rng.standard_normal((len(index), data.STATE_TOKENS))
            self._state_ids.write(prompt, length, self._dataset.state[index] + noise)

    def _noisy_locations(self, thought: NDArray[np.int64], rng: Random) -> NDArray[np.int64]:
        """Move location tokens a little, so that the actions also read the images."""
        out = thought.copy()
        for first, last in self._spans if self._config.place_noise > 0.0 else ():
            inside = (thought >= first) & (thought <= last)
            move = np.rint(rng.normal(0.0, self._config.place_noise, thought.shape))
            out[inside] = np.clip(thought + move.astype(np.int64), first, last)[inside]
        return out

    def _images(self, index: NDArray[np.int64], rng: Random | None,
                cameras: int | None = None) -> NDArray[np.uint8]:
        """Return frames [C, B, H, W, 3], shifted and recoloured if ``rng`` is given."""
        which = self._source(index)
        stored_cameras, *shape = self._frames[0].shape[1:]
        frames = np.empty((cameras or stored_cameras, len(index), *shape), np.uint8)
        for k, (part, frame) in enumerate(zip(which, index - self._starts[which], strict=True)):
            stored = self._frames[part][frame]
            for camera, limit in enumerate(self._config.shift[:len(frames)]):
                if rng is None:
                    frames[camera, k] = stored[camera]
                else:
                    augment(stored[camera], frames[camera, k], rng, limit, self._config.colour)
        return frames


def augment(frame: NDArray[np.uint8], out: NDArray[np.uint8], rng: Random, shift: int,
            strength: float) -> None:
    """Write ``frame`` [S, S, 3] into ``out``, moved by up to ``shift`` pixels, edges repeated.

    Changes brightness, contrast about mid grey, saturation and the colour of the light.
    """
    dy, dx = rng.integers(-shift, shift + 1, 2)
    cv2.warpAffine(frame, np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]]), frame.shape[:2], dst=out,
                   flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    saturation, contrast = 1.0 + strength * rng.uniform(-1.0, 1.0, 2) * (0.3, 0.25)
    light = 1.0 + strength * rng.uniform(-0.08, 0.08, 3)
    mix = saturation * np.eye(3) + (1.0 - saturation) * np.tile(LUMA, (3, 1))
    matrix = contrast * light[:, None] * mix  # [3, 3]
    grey = 127.5
    offset = grey - contrast * light * grey + strength * rng.uniform(-0.15, 0.15) * grey
    cv2.transform(out, np.column_stack([matrix, offset]).astype(np.float32), dst=out)


def prefetch(make: Callable[[int], T], first: int, processes: int,
             device: torch.device) -> Generator[T, None, None]:
    """Yield ``make(first)``, ``make(first + 1)`` and so on without end, made ahead in processes.

    These are forked, to share the datasets' arrays, and leave signals to this process; with 0 all
    is done here. Tensors are pinned if ``device`` is a GPU. Raises ``UserError`` where shared
    memory, through which batches come, is used up.
    """
    steps: Any = range(sys.maxsize)  # a dataset whose samples are their own numbers

    def shared(step: int) -> Any:
        batch = make(step)
        if processes:
            try:  # here, because the thread that would do it else only prints its error
                for tensor in _tensors(batch):
                    tensor.share_memory_()
            except (RuntimeError, OSError) as error:
                return _no_memory(processes, error)
        return batch

    collate: Any = shared
    try:
        batches = iter(DataLoader(
            steps, batch_size=None, sampler=steps[first:], collate_fn=collate,
            num_workers=processes, multiprocessing_context='fork' if processes else None,
            pin_memory=device.type == 'cuda', worker_init_fn=_begin_worker))
    except OSError as error:  # of the queues
        raise _no_memory(processes, error) from error
    batch: Any = None
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:  # an error's traceback keeps neither itself nor the processes, which end by this
        del batch, batches


def _begin_worker(_: int) -> None:
    cv2.setNumThreads(0)  # a fork has none of its parent's threads to wait for
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from _tensors(part)


def _no_memory(processes: int, error: Exception) -> UserError:
    reason = str(error).splitlines()[0]
    return UserError(f'--loaders {processes}: no shared memory for batches ({reason}); use '
                     '--loaders 0, or more of /dev/shm (docker run --shm-size 1g)')
