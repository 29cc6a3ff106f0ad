"""Record the scripted experts: images, state, clean actions and the thoughts they write."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import dtvla_sim
from dtvla_ros.data.record import (
    EPISODES_PER_SHARD,
    LOOK,
    SHORT,
    EpisodePlan,
    RecordOptions,
    record,
    task_in_turn,
)
from dtvla_ros.data.writer import finished_shards, merge_shards, write_shard
from dtvla_ros.errors import UserError
from dtvla_ros.files import write_json
from dtvla_ros.rollout.setup import SceneSetup

SEEDS_PER_BASE = 100_000
SCENES = (SHORT, LOOK)
DISTURBANCES = ('clean', 'drop', 'shove')


def require_training_block(seed: int) -> None:
    """Refuse a ``--seed`` whose block of start states is one that evaluations use."""
    last = dtvla_sim.EVAL_SEED_START // SEEDS_PER_BASE - 1
    if not 0 <= seed <= last:
        raise UserError(f'--seed {seed}: 0 to {last}; start states from '
                        f'{dtvla_sim.EVAL_SEED_START} on are kept for evaluation')


def require_frame_rate(camera_every: int) -> None:
    """Refuse a ``--camera-every`` that leaves no whole number of frames per second."""
    if camera_every < 1 or 20 % camera_every:
        raise UserError(f'--camera-every {camera_every}: use 1, 2, 4, 5 or 10, so that the frame '
                        'rate is a whole number')


def require_tasks(tasks: Sequence[str], known: Sequence[str], suite: str) -> None:
    """Refuse a task that the suite does not have."""
    for task in tasks:
        if task not in known:
            raise UserError(f'unknown task "{task}"; {suite} has: {", ".join(known)}')


def keep_recipe(path: Path, recipe: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse to mix recipes in one folder: shards are numbered by the plan they follow.

    More ``episodes`` are no other recipe. ``defaults``: what an older file does not say.
    """
    recipe = _as_read({key: value for key, value in recipe.items() if key != 'episodes'})
    if path.exists():
        before = _as_read(defaults) | json.loads(path.read_text())
        changed = sorted(k for k in recipe if before.get(k) != recipe[k])
        if changed:
            raise UserError(f'{path}: recorded with another {", ".join(changed)}; '
                            'use the same options or a new --out')
        return
    write_json(path, recipe)


def _as_read(value: dict[str, Any]) -> dict[str, Any]:
    """Return what a JSON file would give back: tuples become lists."""
    return json.loads(json.dumps(value))


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """What to record. ``starts``: start distribution, None for the suite's own.

    ``camera_every``: frames are stored every k-th control step (the dataset runs at 20/k fps);
    each holds the chunk of the next ``chunk`` clean actions at 20 Hz. Of all episodes
    ``short_share`` are localisation scenes (random wander, then the first ``short_steps`` steps)
    and ``look_share`` scenes of one frame for each task: a dozen times cheaper, and they teach
    to look. The others are whole demonstrations, and of these ``clean_share`` run without noise,
    ``drop_share`` and ``shove_share`` with a disturbance to recover from. ``antialiasing`` as of
    ``SceneSetup``.
    """

    suite: str = 'tabletop'
    starts: str | None = None
    tasks: tuple[str, ...] = ()
    episodes: int = 1200
    seed: int = 0
    camera_every: int = 2
    chunk: int = 8
    image_size: int = 128
    max_steps: int = 500
    noise: float = 1.0
    clean_share: float = 0.15
    drop_share: float = 0.12
    shove_share: float = 0.12
    short_share: float = 0.0
    look_share: float = 0.0
    short_steps: int = 20
    antialiasing: bool = True

    def __post_init__(self) -> None:
        require_frame_rate(self.camera_every)
        for names in (SCENES, DISTURBANCES):
            shares = [getattr(self, f'{name}_share') for name in names]
            if min(shares) < 0.0 or sum(shares) > 1.0:
                raise UserError(f'the shares {", ".join(names)} are {shares}; they are fractions '
                                'of one')
        if self.episodes > SEEDS_PER_BASE:
            raise UserError(f'--episodes {self.episodes}: at most {SEEDS_PER_BASE} per seed')
        require_training_block(self.seed)

    @property
    def recording(self) -> RecordOptions:
        """How densely an episode is recorded."""
        return RecordOptions(**{f.name: getattr(self, f.name) for f in fields(RecordOptions)})

    @property
    def fps(self) -> int:
        """Frames per second of the dataset."""
        return 20 // self.camera_every


def plan_episode(
    options: CollectOptions, tasks: tuple[str, ...], index: int, one_scene: bool = True,
) -> EpisodePlan:
    """Return what episode ``index`` is. Asking for more episodes later only adds to the plan."""
    seed = options.seed * SEEDS_PER_BASE + index
    draw = np.random.default_rng([options.seed, index]).random()
    return EpisodePlan(index, task_in_turn(tasks, index, one_scene), seed, _kind(options, draw))


def _kind(options: CollectOptions, draw: float) -> str:
    """Return the kind of an episode for a number drawn from 0..1."""
    for names in (SCENES, DISTURBANCES):
        rest = 1.0
        for name in names:
            share = getattr(options, f'{name}_share')
            if draw < share:
                return name
            draw, rest = draw - share, rest - share
        draw /= rest or 1.0
    return 'noisy'


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of a shard: episodes tried and kept by task, frames."""

    number: int
    tried: dict[str, int]
    kept: dict[str, int]
    frames: int


_ENV: Any = None


def _start_worker(options: CollectOptions) -> None:
    global _ENV
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _ENV = _scene(options).make()


def _scene(options: CollectOptions) -> SceneSetup:
    return SceneSetup(options.suite, options.starts, image_size=options.image_size,
                      antialiasing=options.antialiasing)


def _die_with_parent() -> None:
    # A killed parent cannot stop its pool, whose workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _record_shard(
    root: Path, number: int, plans: list[EpisodePlan], options: CollectOptions,
) -> ShardReport:
    tried: dict[str, int] = {}
    kept: dict[str, int] = {}
    episodes = []
    for plan in plans:
        made = record(_ENV, plan, options.recording)
        tried[plan.task] = tried.get(plan.task, 0) + 1
        kept[plan.task] = kept.get(plan.task, 0) + bool(made)
        episodes += made
    write_shard(root, number, episodes, options.fps)
    return ShardReport(number, tried, kept, sum(map(len, episodes)))


def collect(root: Path, options: CollectOptions, workers: int = 2) -> dict[str, Any]:
    """Record ``options.episodes`` episodes into ``root`` and return the dataset's info.

    Finished shards are kept, so the same command goes on where it was stopped, and a larger
    ``episodes`` adds to what is there. Raises ``UserError`` for unknown tasks, or when a worker
    process dies.
    """
    from tqdm import tqdm

    tasks, one_scene = _tasks(options)
    keep_recipe(root / 'collect.json', asdict(options) | {'tasks': tasks},
                asdict(CollectOptions()))
    done = set(finished_shards(root))
    size = EPISODES_PER_SHARD
    todo = [n for n in range(-(-options.episodes // size)) if n not in done]
    tried = kept = frames = 0
    with tqdm(total=len(todo) * size, unit='ep', disable=not todo) as bar, ProcessPoolExecutor(
            workers, multiprocessing.get_context('spawn'), _start_worker, (options,)) as pool:
        pending: set[Future[ShardReport]] = set()
        try:
            while todo or pending:
                while todo and len(pending) < 2 * workers:
                    number = todo.pop(0)
                    plans = [plan_episode(options, tasks, number * size + k, one_scene)
                             for k in range(size)]
                    pending.add(pool.submit(_record_shard, root, number, plans, options))
                ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in ready:
                    report = future.result()
                    tried += sum(report.tried.values())
                    kept += sum(report.kept.values())
                    frames += report.frames
                    bar.update(sum(report.tried.values()))
                    bar.set_postfix(success=f'{kept / tried:.0%}', frames=frames)
        except BrokenProcessPool as error:
            raise UserError('a simulator process died; run the same command again to go on '
                            '(finished shards are kept)') from error
        finally:
            pool.shutdown(cancel_futures=True)
    return merge_shards(root)


def _tasks(options: CollectOptions) -> tuple[tuple[str, ...], bool]:
    """Return the tasks to record and whether all share one scene; refuse unknown names."""
    env = _scene(options).make()
    try:
        require_tasks(options.tasks, env.tasks, options.suite)
        return options.tasks or tuple(env.tasks), env.one_scene
    finally:
        env.close()
