"""Episodes of a policy, many at a time: one batch decides for all that are still going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dtvla_ros.engine.batch import SampledDecision
from dtvla_ros.policy.transform import Observation
from dtvla_ros.rollout.env_pool import EnvPool, Lost
from dtvla_ros.rollout.env_worker import End, EpisodeJob, Images, Job, Look, Result
from dtvla_ros.training.grpo.branching import Branched, BranchJob
from dtvla_ros.training.grpo.trajectory import Trajectory

TRIES = 3  # of an episode whose simulator is lost again and again


@dataclass(frozen=True, slots=True)
class Rollout:
    """An episode to play. ``key`` decides its sampling: the same key draws the same tokens."""

    job: Job
    key: tuple[int, ...] = (0,)


class Sampler(Protocol):
    """What decides for a batch, ``copies`` times for each; see ``BatchSampler``."""

    def infer(self, observations: Sequence[Observation],
               seeds: Sequence[int | None] | None = None,
               copies: int = 1) -> list[SampledDecision]:
        ...


@dataclass
class RolloutTimes:
    """Where the seconds went. ``stepping`` and ``drawing`` add up over simulators side by side.

    ``playing``: all of it; ``waiting``: this process for simulators; ``deciding``: it looked,
    thought and acted; ``others``: it had done and other processes had not. ``lost``: simulators
    replaced.
    """

    playing: float = 0.0
    stepping: float = 0.0
    drawing: float = 0.0
    waiting: float = 0.0
    deciding: float = 0.0
    others: float = 0.0
    episodes: int = 0
    decisions: int = 0
    lost: int = 0


@dataclass
class Episode:
    """One that goes on, or has ended: the draws of every decision, and on which pictures."""

    rollout: Rollout
    tries: int = 1
    decisions: list[list[SampledDecision]] = field(default_factory=list)
    frames: list[Images] = field(default_factory=list)


def sampling_seed(key: Sequence[int], decision: int, draw: int = 0) -> int:
    """Return the seed of one draw of a decision, 0 <= seed < 2^63."""
    state = np.random.SeedSequence([*key, decision]).generate_state(draw + 1, np.uint64)
    return int(state[draw] >> np.uint64(1))


class RolloutEngine:
    """Plays episodes in a pool with a sampler that decides for a whole lane at once.

    The slots of the pool are dealt to ``lanes``, which take turns: while one lane's batch is
    computed, the simulators of the others step. A slot whose episode has ended gets the next
    one. Which episodes share a batch depends on nothing but their lengths, so that a repeated
    run repeats its numbers.
    """

    def __init__(self, pool: EnvPool, lanes: int = 1):
        self.pool = pool
        self._lanes = [list(range(k, pool.size, lanes)) for k in range(min(lanes, pool.size))]
        self.times = RolloutTimes()

    def run(self, sampler: Sampler, source: Callable[[], Rollout | None],
            done: Callable[[Trajectory], None]) -> None:
        """Play ``EpisodeJob``s; ``done`` gets every finished one. Otherwise as ``play``."""
        def ended(episode: Episode, result: Result) -> None:
            job = episode.rollout.job
            assert isinstance(job, EpisodeJob)
            done(Trajectory(job, episode.rollout.key, tuple(d for d, in episode.decisions),
                            tuple(episode.frames), result.success, result.steps))

        self.play(sampler, source, ended)

    def branch(
        self, sampler: Sampler, source: Callable[[], Rollout | None],
        done: Callable[[Trajectory], None], draws: int, greedy: bool = False,
    ) -> None:
        """Play ``BranchJob``s; ``done`` gets ``draws`` trajectories of each.

        All share what the episode saw. It goes on from the first draw, or, if ``greedy``, from
        the greedy decision, which is none of them.
        """
        tried = [*([None] if greedy else []), *range(draws)]

        def ended(episode: Episode, result: Result) -> None:
            job = episode.rollout.job
            assert isinstance(job, BranchJob) and isinstance(result, Branched)
            for k, draw in enumerate(tried):
                if draw is not None:
                    done(Trajectory(
                        job.episode, (*episode.rollout.key[:-1], draw),
                        tuple(drawn[k] for drawn in episode.decisions), tuple(episode.frames),
                        result.success, result.steps,
                        tuple(gained[k] for gained in result.progress)))

        self.play(sampler, source, ended, tried)

    def play(self, sampler: Sampler, source: Callable[[], Rollout | None],
             ended: Callable[[Episode, Result], None],
             draws: Sequence[int | None] = (0,)) -> None:
        """Play what ``source`` gives until it gives None and nothing goes on.

        ``source`` is asked whenever a slot is free. ``draws``: the numbers of a decision's draws,
        None for a greedy one. A job gets one chunk [T, D], or, of G draws, chunks [G, T, D].

        Raises
        ------
        RuntimeError
            If the simulator of one episode is lost ``TRIES`` times.

        """
        active: dict[int, Episode] = {}
        begun = time.perf_counter()
        going = True
        while going:
            going = False
            for lane in self._lanes:
                self._fill(lane, active, source)
                mine = [slot for slot in lane if slot in active]
                if mine:
                    going = True
                    self._advance(mine, active, sampler, source, ended, draws)
        self.times.playing += time.perf_counter() - begun

    def _fill(self, lane: Sequence[int], active: dict[int, Episode],
              source: Callable[[], Rollout | None]) -> None:
        for slot in lane:
            if slot not in active and (rollout := source()) is not None:
                active[slot] = Episode(rollout)
                self.pool.begin(slot, rollout.job)

    def _advance(self, lane: list[int], active: dict[int, Episode], sampler: Sampler,
                 source: Callable[[], Rollout | None],
                 ended: Callable[[Episode, Result], None],
                 draws: Sequence[int | None]) -> None:
        begun = time.perf_counter()
        events = self.pool.wait(lane)
        self.times.waiting += time.perf_counter() - begun
        looks: dict[int, Look] = {}
        for slot in lane:
            event, episode = events[slot], active[slot]
            if isinstance(event, Look):
                looks[slot] = event
                self.times.stepping += event.stepping
                self.times.drawing += event.drawing
            elif isinstance(event, End):
                self.times.stepping += event.stepping
                self.times.episodes += 1
                ended(active.pop(slot), event.result)
            else:
                self._again(slot, episode, event)
        self._fill(lane, active, source)  # a new start is set up while this batch is computed
        if looks:
            self._decide(looks, active, sampler, draws)

    def _again(self, slot: int, episode: Episode, why: Lost) -> None:
        self.times.lost += 1
        if episode.tries == TRIES:
            raise RuntimeError(f'{episode.rollout.job}: its simulator was lost {TRIES} times, '
                               f'at last: {why}')
        episode.tries += 1
        episode.decisions.clear()
        episode.frames.clear()
        self.pool.begin(slot, episode.rollout.job)

    def _decide(self, looks: dict[int, Look], active: dict[int, Episode],
                sampler: Sampler, draws: Sequence[int | None]) -> None:
        begun = time.perf_counter()
        seeds = [None if draw is None else sampling_seed(
                     active[slot].rollout.key, len(active[slot].decisions), draw)
                 for slot in looks for draw in draws]
        copies = len(draws)
        decisions = sampler.infer(
            [look.observation for look in looks.values()], seeds, copies)
        for number, (slot, look) in enumerate(looks.items()):
            drawn = decisions[number * copies:(number + 1) * copies]
            active[slot].decisions.append(drawn)
            active[slot].frames.append(
                {name: image.copy() for name, image in look.observation.images.items()})
            self.pool.go_on(slot, drawn[0].chunk if copies == 1
                            else np.stack([d.chunk for d in drawn]))
        self.times.deciding += time.perf_counter() - begun
        self.times.decisions += len(looks)
