"""A small network that labels frames from proprioception, and the interface of any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from dtvla_ros.annotation.classes import Classes
from dtvla_ros.annotation.motion import Motion
from dtvla_ros.annotation.source import Source
from dtvla_ros.annotation.task import Goal

VERBS = ('put', 'place', 'pick', 'stack', 'push')
THINGS = 3  # of an instruction, whose places are features
HORIZON = 4.0  # [s]
Targets = Mapping[int, Mapping[int, int]]  # episode -> frame -> class


class Labeller(Protocol):
    """Learns classes of frames from accepted labels, then scores every frame."""

    name: str

    def fit(self, source: Source, classes: Classes, targets: Targets) -> None:
        """Learn ``targets``."""
        ...

    def scores(self, source: Source, episode: int) -> NDArray[np.float64]:
        """Return log-probabilities [N, C] of an episode's frames."""
        ...


def features(motion: Motion, goal: Goal) -> NDArray[np.float32]:
    """Return what a frame offers [N, F]: where the hand is, was and will be, and the task.

    The whole recording is known, so the hand's place at the next toggle of the gripper tells
    what it is heading for.
    """
    count, hand = len(motion), motion.hand
    frames = np.arange(count)
    toggles = motion.toggles
    ahead = np.searchsorted(toggles, frames, side='right')
    next_at = np.append(toggles, count - 1)[ahead]
    last_at = np.concatenate([[0], toggles])[ahead]
    second = max(1, round(motion.fps))
    columns = [hand, hand - hand[next_at], hand - hand[last_at]]
    for shift in (-second, -1, 1, second):
        columns.append(hand[np.clip(frames + shift, 0, count - 1)] - hand)
    opening = np.ones(count) if motion.opening is None else (
        motion.opening / max(motion.widest, 1e-6))
    seconds = np.minimum(np.stack([next_at - frames, frames - last_at, count - frames, frames]) /
                         motion.fps, HORIZON)
    flags = [opening, motion.closing, motion.is_wide(), np.minimum(ahead, 5), *seconds,
             *(np.full(count, goal.verb == verb) for verb in VERBS),
             np.full(count, len(goal.objects))]
    for k in range(THINGS):
        name = goal.things[k] if k < len(goal.things) else ''
        place = motion.places.get(name)
        columns.append(np.zeros((count, 3)) if place is None else place - hand)
        flags.append(np.full(count, place is not None))
    return np.concatenate(
        [*columns, np.stack(flags, axis=1).astype(np.float64)], axis=1).astype(np.float32)


class _Network(nn.Module):
    """Dilated convolutions over time, as matrix products: much faster on a CPU."""

    gaps = (1, 2, 4)  # frames to the neighbours a layer sees

    def __init__(self, inputs: int, classes: int, width: int = 64):
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(nn.Linear(3 * width, width) for _ in self.gaps)
        self.drop = nn.Dropout(0.1)
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)  # [B, N, F] -> [B, N, width]
        for gap, layer in zip(self.gaps, self.layers):
            padded = nn.functional.pad(x, (0, 0, gap, gap))
            around = torch.cat([padded[:, :-2 * gap], x, padded[:, 2 * gap:]], dim=-1)
            x = x + self.drop(nn.functional.gelu(layer(around)))
        return self.last(x)  # [B, N, C]


class MotionLabeller:
    """A temporal convolutional network on `features`; trains in seconds on a CPU."""

    name = 'motion'

    def __init__(self, steps: int = 600, batch: int = 16, seed: int = 0):
        self._steps, self._batch, self._seed = steps, batch, seed

    def _features(self, source: Source, episode: int) -> NDArray[np.float32]:
        return features(source.motion(episode), source.goal(episode))

    def fit(self, source: Source, classes: Classes, targets: Targets) -> None:
        rng = np.random.default_rng(self._seed)
        rows = {k: self._features(source, k) for k in targets}
        together = np.concatenate(list(rows.values()))
        self._mean, self._scale = together.mean(0), together.std(0) + 1e-3
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            self._network = _Network(together.shape[1], len(classes)).train()
            optimizer = torch.optim.AdamW(self._network.parameters(), 3e-3, weight_decay=0.01)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._steps)
            names = np.array(sorted(targets))
            for _ in tqdm(range(self._steps), desc='labeller', unit='step', disable=None):
                chosen = rng.choice(names, min(self._batch, len(names)), replace=False)
                x, y = self._collate([rows[k] for k in chosen], [targets[k] for k in chosen])
                loss = cross_entropy(self._network(x).flatten(0, 1), y.flatten(), ignore_index=-1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self._network.eval()

    def _collate(self, rows: list[NDArray[np.float32]],
                 targets: list[Mapping[int, int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, rows))
        x = np.zeros((len(rows), longest, rows[0].shape[1]), np.float32)
        y = np.full((len(rows), longest), -1, np.int64)
        for k, (row, known) in enumerate(zip(rows, targets)):
            x[k, :len(row)] = (row - self._mean) / self._scale
            y[k, list(known)] = list(known.values())
        return torch.from_numpy(x), torch.from_numpy(y)

    def scores(self, source: Source, episode: int) -> NDArray[np.float64]:
        x, _ = self._collate([self._features(source, episode)], [{}])
        with torch.inference_mode():
            return self._network(x)[0].log_softmax(-1).double().numpy()
