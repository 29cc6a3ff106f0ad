"""Runs many episodes at once: one batch decides for all that are waiting for a decision."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.engine.batch import SampledDecision
from dtvla_ros.policy.transform import Observation
from dtvla_ros.rollout.episode import Job
from dtvla_ros.rollout.workers import Ask, End, Lost, Workers

Images = dict[str, NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Rollout:
    """An episode to run. ``key`` decides its sampling: the same key samples the same tokens."""

    job: Any
    key: tuple[int, ...] = (0,)


class Sampler(Protocol):
    """Decides for a batch, ``copies`` times for each observation; see ``BatchSampler``."""

    def infer(self, observations: Sequence[Observation], seeds: Sequence[int | None] | None = None,
              copies: int = 1) -> list[SampledDecision]:
        ...


@dataclass
class RolloutTimes:
    """Seconds by activity; ``stepping`` and ``drawing`` add up over simulators side by side."""

    playing: float = 0.0  # all of it
    stepping: float = 0.0
    drawing: float = 0.0
    waiting: float = 0.0  # this process for simulators
    deciding: float = 0.0  # inference
    others: float = 0.0  # for other processes that had not finished
    episodes: int = 0
    decisions: int = 0
    lost: int = 0  # simulators replaced


@dataclass
class Episode:
    """An episode under way: the samples of each decision, and the images they were made on."""

    rollout: Rollout
    decisions: list[list[SampledDecision]] = field(default_factory=list)
    frames: list[Images] = field(default_factory=list)


def sampling_seed(key: Sequence[int], decision: int, sample: int = 0) -> int:
    """Return the seed of one sample of a decision, 0 <= seed < 2^63."""
    state = np.random.SeedSequence([*key, decision]).generate_state(sample + 1, np.uint64)
    return int(state[sample] >> np.uint64(1))


class BatchedRollouts:
    """Runs episodes in simulators, with a sampler that decides for a whole group of them at once.

    The slots are dealt to ``env_groups``, which take turns: while one's batch is computed, the
    simulators of the others step. Which episodes share a batch depends on their lengths alone, so
    that a repeated run repeats its numbers.
    """

    def __init__(self, envs: Workers, env_groups: int = 1):
        self.envs, self.times = envs, RolloutTimes()
        self._groups = [list(range(k, envs.size, env_groups))
                        for k in range(min(env_groups, envs.size))]

    def run(self, sampler: Sampler, source: Callable[[], Rollout | None],
            done: Callable[[Episode, Any], None], samples: Sequence[int | None] = (0,)) -> None:
        """Run what ``source`` gives until it gives None and no episode is under way.

        ``source`` is asked whenever a slot is free, ``done`` gets each episode with its result.
        ``samples``: the numbers of a decision's samples, None for a greedy one. A job gets one
        chunk [T, D], or, of G samples, chunks [G, T, D]. Errors as of ``Workers.poll``.
        """
        active: dict[int, Episode] = {}
        start, running = time.perf_counter(), True
        while running:
            running = False
            for group in self._groups:
                self._fill(group, active, source)
                if mine := [slot for slot in group if slot in active]:
                    running = True
                    asked = self._advance(mine, active, done)
                    # A new start is set up while this batch is computed.
                    self._fill(group, active, source)
                    if asked:
                        self._decide(asked, active, sampler, samples)
        self.times.playing += time.perf_counter() - start

    def _fill(self, group: Sequence[int], active: dict[int, Episode],
              source: Callable[[], Rollout | None]) -> None:
        for slot in group:
            if slot not in active and (rollout := source()) is not None:
                active[slot] = Episode(rollout)
                self.envs.begin(slot, rollout.job)

    def _advance(self, slots: list[int], active: dict[int, Episode],
                 done: Callable[[Episode, Any], None]) -> dict[int, Ask]:
        """Wait for the slots; return which of them ask for a decision."""
        start = time.perf_counter()
        events = self.envs.wait(slots)
        self.times.waiting += time.perf_counter() - start
        asked: dict[int, Ask] = {}
        for slot in slots:
            event = events[slot]
            if isinstance(event, Lost):
                self.times.lost += 1
                active[slot] = Episode(active[slot].rollout)
            elif isinstance(event, Ask):
                asked[slot] = event
                self.times.stepping += event.stepping
                self.times.drawing += event.drawing
            elif isinstance(event, End):
                self.times.stepping += event.stepping
                self.times.episodes += 1
                done(active.pop(slot), event.result)
        return asked

    def _decide(self, asked: dict[int, Ask], active: dict[int, Episode], sampler: Sampler,
                samples: Sequence[int | None]) -> None:
        start, copies = time.perf_counter(), len(samples)
        seeds = [None if sample is None else sampling_seed(
                     active[slot].rollout.key, len(active[slot].decisions), sample)
                 for slot in asked for sample in samples]
        decisions = sampler.infer([ask.observation for ask in asked.values()], seeds, copies)
        for number, (slot, ask) in enumerate(asked.items()):
            mine = decisions[number * copies:(number + 1) * copies]
            active[slot].decisions.append(mine)
            active[slot].frames.append(
                {name: image.copy() for name, image in ask.observation.images.items()})
            self.envs.answer(slot, mine[0].chunk if copies == 1
                             else np.stack([decision.chunk for decision in mine]))
        self.times.deciding += time.perf_counter() - start
        self.times.decisions += len(asked)


def successes(rollouts: BatchedRollouts, sampler: Sampler, jobs: Sequence[Job]) -> list[bool]:
    """Return which of the jobs succeeded, in no order; every decision is the sampler's."""
    rest = map(Rollout, jobs)
    found: list[bool] = []
    rollouts.run(sampler, lambda: next(rest, None), lambda _, result: found.append(result.success))
    return found
