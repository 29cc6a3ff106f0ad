"""Record the scripted experts: images, state, clean actions and the thoughts they write."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError
from dtvla_ros.training.dataset import layout
from dtvla_ros.training.dataset.layout import Episode
from dtvla_ros.training.dataset.writer import finished_shards, merge_shards, write_shard

IMAGES = {
    'observation.images.image': 'agentview_image',
    'observation.images.wrist_image': 'robot0_eye_in_hand_image',
}
STATE_NAMES = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'finger_left', 'finger_right')
SEEDS_PER_BASE = 100_000
SHORT = 'short'
EPISODES_PER_SHARD = 8


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """What to record.

    ``camera_every``: frames are stored every k-th control step (the dataset runs at 20/k fps);
    each holds the chunk of the next ``chunk`` clean actions at 20 Hz. Shares are fractions of
    the episodes: ``clean`` without noise, ``drop`` and ``shove`` with a disturbance to recover
    from, ``short`` localisation scenes (random wander, then the first ``short_steps`` steps).
    """

    suite: str = 'tabletop'
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
    short_steps: int = 20

    def __post_init__(self) -> None:
        if self.camera_every < 1 or 20 % self.camera_every:
            raise UserError(f'--camera-every {self.camera_every}: use 1, 2, 4, 5 or 10, so that '
                            'the frame rate is a whole number')
        total = self.clean_share + self.drop_share + self.shove_share + self.short_share
        if not 0.0 <= total <= 1.0:
            raise UserError(f'the shares add up to {total:.2f}; they are fractions of one')
        if self.episodes > SEEDS_PER_BASE:
            raise UserError(f'--episodes {self.episodes}: at most {SEEDS_PER_BASE} per seed')

    @property
    def fps(self) -> int:
        """Frames per second of the dataset."""
        return 20 // self.camera_every


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """One episode to record; the same for every run with the same options."""

    index: int
    task: str
    seed: int
    kind: str


def plan_episode(options: CollectOptions, tasks: tuple[str, ...], index: int) -> EpisodePlan:
    """Return what episode ``index`` is. Asking for more episodes later only adds to the plan.

    Raises ``UserError`` when its seed would be one that evaluations use.
    """
    from dtvla_sim.tabletop.start import EVAL_SEED_START

    seed = options.seed * SEEDS_PER_BASE + index
    if seed >= EVAL_SEED_START:
        raise UserError(f'--seed {options.seed}: seeds from {EVAL_SEED_START} on are kept for '
                        f'evaluation; use at most {EVAL_SEED_START // SEEDS_PER_BASE - 1}')
    draw = np.random.default_rng([options.seed, index]).random()
    kind = 'noisy'
    for name in ('clean', 'drop', 'shove', SHORT):
        share = getattr(options, f'{name}_share')
        if draw < share:
            kind = name
            break
        draw -= share
    return EpisodePlan(index, tasks[index % len(tasks)], seed, kind)


def state_vector(obs: Any, base_position: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return [8]: hand position [m] and rotation vector [rad] in the base frame, fingers [m]."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_quat(obs['robot0_eef_quat']).as_rotvec()
    return np.concatenate([
        obs['robot0_eef_pos'] - base_position, turn, obs['robot0_gripper_qpos'],
    ]).astype(np.float32)


def things(env: Any) -> list[str]:
    """Return the names of all objects and fixtures of a scene."""
    return [*env.scene.objects, *env.scene.fixtures]


def places(env: Any) -> NDArray[np.float32]:
    """Return where all things are in the base frame, [E * 3] m."""
    return np.concatenate([
        env.scene.position(name) - env.base_position for name in things(env)]).astype(np.float32)


def environment_state(env: Any) -> NDArray[np.float32]:
    """Return joint coordinates and fixture places: enough to draw the scene again."""
    scene = env.scene
    fixtures = [scene.position(name) for name in scene.fixtures]
    return np.concatenate([scene.sim.data.qpos, *fixtures]).astype(np.float32)


def chunks_of(
    actions: NDArray[np.float32], starts: NDArray[np.int64], length: int, cuts: list[int],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the next ``length`` actions from each start [N, length * D], and what is padding.

    Slots past the end repeat the last gripper command with no motion. ``cuts``: steps at which
    something the policy could not foresee happened; a chunk begun before is padding from there.
    """
    steps = starts[:, None] + np.arange(length)  # [N, length]
    padding = steps >= len(actions)
    for cut in cuts:
        padding |= (starts[:, None] < cut) & (steps >= cut)
    chunk = actions[np.minimum(steps, len(actions) - 1)]  # [N, length, D]
    chunk[steps >= len(actions), :6] = 0.0
    return chunk.reshape(len(starts), -1), padding


def record(env: Any, plan: EpisodePlan, options: CollectOptions) -> Episode | None:
    """Play one episode; return it, or None when the expert did not succeed."""
    from dtvla_sim.experts import make_expert
    from dtvla_sim.experts.noise import Disturber

    rng = np.random.default_rng([options.seed, plan.index, 1])
    obs, info = env.reset(seed=plan.seed, options={'task': plan.task})
    short = plan.kind == SHORT
    if short:
        obs = wander(env, obs, rng)
    expert = make_expert(env)
    expert.reset()
    disturb = Disturber('noisy' if short else plan.kind, rng, options.noise)
    limit = options.short_steps + options.chunk if short else options.max_steps
    actions, cuts = [], []
    rows: dict[str, list[Any]] = {name: [] for name in (
        layout.STATE, 'observation.joint_positions', 'observation.environment_state',
        layout.PLACES, layout.REASONING, layout.PHASE, *IMAGES)}
    success = disturbed = False
    for step in range(limit):
        act = expert.act()
        if step % options.camera_every == 0:
            for key, source in IMAGES.items():
                rows[key].append(np.array(obs[source]))
            rows[layout.STATE].append(state_vector(obs, env.base_position))
            rows['observation.joint_positions'].append(
                np.asarray(obs['robot0_joint_pos'], np.float32))
            rows['observation.environment_state'].append(environment_state(env))
            rows[layout.PLACES].append(places(env))
            rows[layout.REASONING].append(act.thought)
            rows[layout.PHASE].append(act.phase)
        clean = np.asarray(act.action, np.float32)
        actions.append(clean)
        executed = disturb(act)
        if disturb.active and not disturbed:
            cuts.append(step)
            disturbed = True
        # The evaluation's step limit does not bind here: recoveries may take their time.
        obs, _, success, _, info = env.step(executed)
        if success:
            break
    if not (success or short):
        return None
    starts = np.arange(len(rows[layout.STATE])) * options.camera_every
    if short and not success:
        starts = starts[starts + options.chunk <= len(actions)]
    clean_actions = np.stack(actions)
    chunk, padding = chunks_of(clean_actions, starts, options.chunk, cuts)
    keep = len(starts)
    texts = (layout.REASONING, layout.PHASE)
    columns: dict[str, Any] = {
        name: values[:keep] if name in texts else np.stack(values[:keep])
        for name, values in rows.items() if name not in IMAGES}
    columns |= {layout.ACTION: clean_actions[starts], layout.ACTION_CHUNK: chunk,
                layout.ACTION_IS_PAD: padding}
    return Episode(
        task=env.task.instruction, images={key: np.stack(rows[key][:keep]) for key in IMAGES},
        columns=columns, facts=asdict(plan) | {'steps': len(actions), 'success': success},
        names={layout.STATE: STATE_NAMES,
               layout.PLACES: [f'{name}.{axis}' for name in things(env) for axis in 'xyz']})


def wander(env: Any, obs: Any, rng: np.random.Generator) -> Any:
    """Drift the open gripper somewhere at random; return the observation there."""
    for _ in range(int(rng.integers(0, 3))):
        drift = np.concatenate([rng.uniform([-1, -1, -0.5], [1, 1, 0.4]),
                                rng.normal(0.0, 0.08, 3), [-1.0]])
        for _ in range(int(rng.integers(3, 14))):
            obs = env.step(drift.astype(np.float32))[0]
    return obs


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
    import dtvla_sim

    _ENV = dtvla_sim.make(options.suite, image_size=options.image_size)


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
        episode = record(_ENV, plan, options)
        tried[plan.task] = tried.get(plan.task, 0) + 1
        if episode is not None:
            kept[plan.task] = kept.get(plan.task, 0) + 1
            episodes.append(episode)
    write_shard(root, number, episodes, options.fps)
    return ShardReport(number, tried, kept, sum(map(len, episodes)))


def collect(root: Path, options: CollectOptions, workers: int = 2) -> dict[str, Any]:
    """Record ``options.episodes`` episodes into ``root`` and return the dataset's info.

    Finished shards are kept, so the same command goes on where it was stopped, and a larger
    ``episodes`` adds to what is there. Raises ``UserError`` for unknown tasks, or when a worker
    process dies.
    """
    from tqdm import tqdm

    from dtvla_sim.tabletop.tasks import TASKS

    tasks = options.tasks or tuple(TASKS)
    for task in tasks:
        if task not in TASKS:
            raise UserError(f'unknown task "{task}"; the suite has: {", ".join(TASKS)}')
    _same_recipe(root, options, tasks)
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
                    plans = [plan_episode(options, tasks, number * size + k) for k in range(size)]
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


def _same_recipe(root: Path, options: CollectOptions, tasks: tuple[str, ...]) -> None:
    """Refuse to mix recipes in one folder: shards are numbered by the plan they follow."""
    recipe = asdict(options) | {'tasks': list(tasks)}
    recipe.pop('episodes')
    path = root / 'collect.json'
    if path.exists():
        before = json.loads(path.read_text())
        changed = sorted(k for k in recipe if before.get(k) != recipe[k])
        if changed:
            raise UserError(f'{path}: recorded with another {", ".join(changed)}; '
                            'use the same options or a new --out')
        return
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe, indent=1))
