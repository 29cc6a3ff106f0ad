"""Records demonstrations of the scripted experts: images, state, clean actions and thoughts."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dtvla_sim
from dtvla_ros.data import layout, writer
from dtvla_ros.data.layout import Episode
from dtvla_ros.errors import UserError
from dtvla_ros.interrupt import finishing
from dtvla_ros.rollout.env import SceneSetup, require_tasks
from dtvla_ros.rollout.workers import run_jobs

SEEDS_PER_BASE = 100_000
EPISODES_PER_SHARD = 8
ATTEMPTS = 5  # at an episode that the expert does not solve
ENVIRONMENT = 'observation.environment_state'
# Kinds of episodes, as datasets name them, by the option that gives their share.
SHORT, OBSERVATION, DONE, SWITCH = 'short', layout.SINGLE, 'done', 'switch'
SCENES = {'short_share': SHORT, 'observation_share': OBSERVATION, 'done_share': DONE}
PERTURBATIONS = {'clean_share': 'clean', 'release_share': 'drop', 'push_share': 'shove',
                 'switch_share': SWITCH}
APPROACH = ('reach', 'lower')  # phases before something is in the hand
APPROACHING = 30  # control steps on the way to another task's thing, at most


def require_plan(seed: int, camera_every: int, episodes: int) -> None:
    """Refuse start states of evaluations, and a frame rate that is no whole number."""
    last = dtvla_sim.EVAL_SEED_START // SEEDS_PER_BASE - 1
    if not 0 <= seed <= last:
        raise UserError(f'--seed {seed}: 0 to {last}; start states from '
                        f'{dtvla_sim.EVAL_SEED_START} on are kept for evaluation')
    if camera_every < 1 or 20 % camera_every:
        raise UserError(f'--camera-every {camera_every}: use 1, 2, 4, 5 or 10, so that the frame '
                        'rate is a whole number')
    if not 0 < episodes <= SEEDS_PER_BASE:
        raise UserError(f'--episodes {episodes}: 1 to {SEEDS_PER_BASE} per seed')


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """What to record. ``starts``: start distribution, None for the suite's own.

    Every ``camera_every``-th control step is stored (20/k fps), with the next ``chunk`` clean
    actions at 20 Hz. ``short_share`` of all episodes are the first ``short_steps`` steps from a
    random initial pose, ``observation_share`` one frame there for each task of the scene: cheap,
    and they teach localisation. ``done_share`` is short, too, and begins where the task is done
    already or nearly (one object of two, on the tabletop beside the bin, too), with one frame for
    each other task: it teaches what done means. Of the others, whole demonstrations,
    ``clean_share`` run without noise, ``release_share`` and ``push_share`` with a forced opening
    of the gripper or a push of the arm to recover from, ``switch_share`` begin in the midst of
    another task: on the way to its thing, or when it is done; they go on for ``after_success``
    control steps in which the arm waits.
    In ``randomised_share`` of the episodes, of any kind, surfaces, lights and cameras are others,
    things lie about, and half of their demonstrations begin from a random pose.
    ``antialiasing`` as of ``SceneSetup``.
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
    release_share: float = 0.12
    push_share: float = 0.12
    switch_share: float = 0.0
    short_share: float = 0.0
    observation_share: float = 0.0
    done_share: float = 0.0
    short_steps: int = 20
    after_success: int = 20
    randomised_share: float = 0.0
    antialiasing: bool = True

    def __post_init__(self) -> None:
        require_plan(self.seed, self.camera_every, self.episodes)
        for names in (SCENES, PERTURBATIONS, ('randomised_share',)):
            shares = [getattr(self, name) for name in names]
            if min(shares) < 0.0 or sum(shares) > 1.0:
                raise UserError(f'the shares {", ".join(names)} are {shares}; give fractions of 1')

    @property
    def fps(self) -> int:
        return 20 // self.camera_every

    @property
    def scene(self) -> SceneSetup:
        return SceneSetup(self.suite, self.starts, image_size=self.image_size,
                          antialiasing=self.antialiasing)


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """One episode to record. ``kind``: 'noisy', or a value of ``PERTURBATIONS`` or ``SCENES``.

    ``randomised``: it looks different.
    """

    index: int
    task: str
    seed: int
    kind: str
    randomised: bool = False


def plan_episode(options: CollectOptions, tasks: Sequence[str], index: int,
                 one_scene: bool = True, attempt: int = 0) -> EpisodePlan:
    """Return what episode ``index`` is. Asking for more episodes later only adds to the plan.

    Another ``attempt`` begins from another start state of the same block.
    """
    start = index if not attempt else int(np.random.default_rng(
        [options.seed, index, 1 + attempt]).integers(SEEDS_PER_BASE))
    seed = options.seed * SEEDS_PER_BASE + start
    draw = np.random.default_rng([options.seed, index]).random()
    kind = 'noisy'
    for names in (SCENES, PERTURBATIONS):
        rest = 1.0
        for name, value in names.items():
            share = getattr(options, name)
            if kind == 'noisy' and draw < share:
                kind = value
            draw, rest = draw - share, rest - share
        draw /= rest or 1.0
    drawn = np.random.default_rng([options.seed, index, 0]).random()
    return EpisodePlan(index, task_in_turn(tasks, index, one_scene), seed, kind,
                       drawn < options.randomised_share)


def task_in_turn(tasks: Sequence[str], index: int, one_scene: bool) -> str:
    """Return the task of episode ``index``; a shard stays with a task that has its own scene."""
    turn = index if one_scene else index // EPISODES_PER_SHARD
    return tasks[turn % len(tasks)]


def image_points(env: Any) -> NDArray[np.float32]:
    """Return where all objects appear in the first camera's image, [E * 2] fractions of it."""
    positions = np.stack([env.place(name) for name in env.object_names])
    return env.image_point(positions).ravel().astype(np.float32)


@dataclass
class Frames:
    """Columns of the frames kept so far, in the base frame; of objects that are not there NaN."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def add(self, env: Any, obs: Any, act: Any) -> None:
        """Keep what is observed now and what the expert makes of it."""
        from scipy.spatial.transform import Rotation

        for camera, source in env.views.items():
            self.columns[layout.camera_key(camera)].append(np.array(obs[source]))
        base = env.base_position
        row = {
            # Gripper [m], rotation vector [rad], fingers [m].
            layout.STATE: [obs['robot0_eef_pos'] - base,
                           Rotation.from_quat(obs['robot0_eef_quat']).as_rotvec(),
                           obs['robot0_gripper_qpos']],
            layout.JOINTS: [obs['robot0_joint_pos']],
            layout.PLACES: [env.place(name) - base for name in env.object_names],
            layout.POINTS: [image_points(env)]}
        if env.one_scene:  # enough to draw it again
            row[ENVIRONMENT] = [env.scene.sim.data.qpos,
                                *map(env.scene.position, env.scene.fixtures)]
        for name, parts in row.items():
            self.columns[name].append(np.concatenate(parts).astype(np.float32))
        self.columns[layout.REASONING].append(act.thought)
        self.columns[layout.PHASE].append(act.phase)

    def episode(self, env: Any, plan: EpisodePlan, actions: Sequence[NDArray[np.float32]],
                starts: NDArray[np.int64], length: int, breaks: Sequence[int], success: bool,
                ) -> Episode:
        """Return the frames that begin at the control steps ``starts`` (the first ones kept).

        ``actions``: the expert's, at every control step. ``length``, ``breaks``: as of
        ``layout.action_chunks``.
        """
        keep, clean = len(starts), np.stack(actions)
        kept = {name: values[:keep] for name, values in self.columns.items()}
        columns: dict[str, Any] = {name: values if isinstance(values[0], str) else np.stack(values)
                                   for name, values in kept.items()}
        images = {key: columns.pop(key) for key in map(layout.camera_key, env.views)}
        contract = env.contract
        columns |= {layout.ACTION: clean[starts],
                    **layout.action_chunks(clean, starts, length, breaks, contract)}
        told = {} if contract.is_normalised else {layout.ACTION: contract.channels}
        names = {kind: [f'{name}.{axis}' for name in env.object_names for axis in axes]
                 for kind, axes in ((layout.PLACES, 'xyz'), (layout.POINTS, ('across', 'down')))}
        return Episode(env.task.instruction, images, columns,
                       asdict(plan) | {'steps': len(actions), layout.SUCCESS: success},
                       {layout.STATE: layout.STATE_NAMES, **names, **told})


def record(env: Any, plan: EpisodePlan, options: CollectOptions) -> list[Episode]:
    """Run a planned episode; return what is worth keeping: nothing where the expert failed."""
    from dtvla_sim.experts import arrange
    from dtvla_sim.randomisation import randomised

    again = [plan.seed] if plan.seed != options.seed * SEEDS_PER_BASE + plan.index else []
    rng = np.random.default_rng([options.seed, plan.index, 1, *again])
    obs, _ = env.reset(seed=plan.seed, options={'task': plan.task})
    posed = False
    if plan.kind == DONE:
        obs, posed = arrange(env, rng)
    looks = np.random.default_rng([options.seed, plan.index, 3])
    if plan.kind in SCENES.values() and not posed or (
            plan.randomised and looks.random() < 0.5):
        obs = random_initial_pose(env, obs, rng)
    with randomised(env, looks) if plan.randomised else nullcontext(obs) as obs:
        if plan.kind == OBSERVATION:
            return _observe(env, obs, plan, options, env.alternatives())
        others = [name for name in env.alternatives() if name != plan.task]
        if plan.kind == SWITCH and others:
            obs = _begin(env, obs, options, others[int(rng.integers(len(others)))], rng)
        beside = _observe(env, obs, plan, options, others) if plan.kind == DONE else []
        return _demonstrate(env, obs, plan, options, rng) + beside


def _observe(env: Any, obs: Any, plan: EpisodePlan, options: CollectOptions,
             tasks: Iterable[str]) -> list[Episode]:
    """Return of each task the frame in which the expert begins it from here; nothing moves."""
    from dtvla_sim.experts import make_expert

    plan, episodes = replace(plan, kind=OBSERVATION), []
    for name in tasks:
        with env.asked(name):
            act = make_expert(env).act()
            frames = Frames()
            frames.add(env, obs, act)
            clean = np.asarray(env.action_of(act.action), np.float32)
            episodes.append(frames.episode(
                env, plan, [clean], np.zeros(1, np.int64), options.chunk, [], False))
    return episodes


def _demonstrate(env: Any, obs: Any, plan: EpisodePlan, options: CollectOptions,
                 rng: np.random.Generator) -> list[Episode]:
    from dtvla_sim.experts import make_expert
    from dtvla_sim.experts.noise import Departure, Disturber

    short = plan.kind in (SHORT, DONE)
    expert = make_expert(env)
    kind = 'noisy' if short or plan.kind == SWITCH else plan.kind
    perturb = Disturber(kind, rng, options.noise)
    limit = options.short_steps + options.chunk if short else options.max_steps
    leave = Departure(rng.spawn(1)[0])  # what comes before does not depend on it
    frames, success, solved = Frames(), False, 0  # control steps until success
    actions: list[NDArray[np.float32]] = []
    breaks: list[int] = []
    while len(actions) < (solved + options.after_success if solved else limit):
        step = len(actions)
        act = expert.act()
        if step % options.camera_every == 0:
            frames.add(env, obs, act)
        actions.append(np.asarray(env.action_of(act.action), np.float32))
        executed = leave(perturb(act)) if solved else perturb(act)
        if perturb.active and not breaks:
            breaks.append(step)
        # The evaluation's step limit does not bind here: recoveries may take their time.
        obs, _, success, _, _ = env.step(env.action_of(executed))
        if success and not solved and plan.kind != DONE:
            solved = len(actions)
    if not (solved or short):
        return []
    starts = np.arange(0, len(actions), options.camera_every)
    if short and not solved:
        starts = starts[starts + options.chunk <= len(actions)]
    return [frames.episode(env, plan, actions, starts, options.chunk, breaks,
                           bool(solved or success))]


def _begin(env: Any, obs: Any, options: CollectOptions, task: str, rng: np.random.Generator,
           ) -> Any:
    """Let the expert begin another task, or do it; return the observation where it breaks off.

    Nothing is in the hand there.
    """
    from dtvla_sim.experts import make_expert
    from dtvla_sim.experts.noise import Disturber

    finishes, stays = rng.random() < 0.5, int(rng.integers(options.after_success + 1))
    approaching = int(rng.integers(1, APPROACHING))
    with env.asked(task):
        expert, perturb = make_expert(env), Disturber('noisy', rng, options.noise)
        for step in range(options.max_steps):
            act = expert.act()
            if not finishes and (step == approaching or act.phase not in APPROACH):
                break
            obs = env.step(env.action_of(perturb(act)))[0]
            if env.done(task):
                if not stays:
                    break
                stays -= 1
    return obs


def random_initial_pose(env: Any, obs: Any, rng: np.random.Generator) -> Any:
    """Move the open gripper to a random pose; return the observation there."""
    for _ in range(int(rng.integers(0, 3))):
        action = np.concatenate([rng.uniform([-1, -1, -0.5], [1, 1, 0.4]),
                                 rng.normal(0.0, 0.08, 3), [-1.0]])
        for _ in range(int(rng.integers(3, 14))):
            obs = env.step(env.action_of(action.astype(np.float32)))[0]
    return obs


def make_recorder(options: CollectOptions, tasks: tuple[str, ...], one_scene: bool,
                  ) -> Callable[[tuple[int, range]], Generator[bool, None, dict[str, bytes]]]:
    """Return what records a shard, its number and plans, in a process maybe elsewhere.

    It yields of each episode whether the expert solved it, which it may try ``ATTEMPTS`` times,
    and returns the shard's files by name.
    """
    env = options.scene.make()

    def record_shard(shard: tuple[int, range]) -> Generator[bool, None, dict[str, bytes]]:
        number, plans = shard
        episodes: list[Episode] = []
        for index in plans:
            tries = (record(env, plan_episode(options, tasks, index, one_scene, k), options)
                     for k in range(ATTEMPTS))
            made = next(filter(None, tries), [])
            episodes += made
            yield bool(made)
        with tempfile.TemporaryDirectory(prefix='dtvla-shard-') as folder:
            made_in = writer.write_shard(
                Path(folder), number, episodes, options.fps, tried=len(plans))
            return {path.name: path.read_bytes() for path in made_in.iterdir()}
    return record_shard


def collect(root: Path, options: CollectOptions, workers: int = 2,
            ray: str | None = None) -> dict[str, Any]:
    """Record ``options.episodes`` episodes into ``root`` and return the dataset's info.

    Finished shards are kept, so the same command goes on where it was stopped, and a larger
    ``episodes`` adds to what is there. On Ctrl-C the running shards are finished, and
    KeyboardInterrupt says how many episodes there are. ``ray``: the cluster whose machines run the
    simulators. Raises ``UserError`` for unknown tasks, or when a worker process dies again and
    again.
    """
    from tqdm import tqdm

    with closing(options.scene.make()) as env:
        require_tasks(options.tasks, env.tasks, options.suite)
        tasks, one_scene = options.tasks or tuple(env.tasks), env.one_scene
        contract = env.contract
    writer.require_same_options(root / 'collect.json', asdict(options) | {'tasks': tasks},
                                asdict(CollectOptions(after_success=0)))  # formerly it ended there
    todo = writer.missing_shards(root, options.episodes, EPISODES_PER_SHARD)
    left = sum(map(len, todo.values()))
    solved: list[bool] = []
    with finishing(f'the running shards, {EPISODES_PER_SHARD} episodes each') as stop, tqdm(
            total=options.episodes, initial=options.episodes - left, unit='ep',
            disable=not todo) as bar:
        def tell(success: bool) -> None:
            solved.append(success)
            bar.update()
            bar.set_postfix(success=f'{np.mean(solved):.0%}')

        try:
            with closing(run_jobs([*todo.items()], make_recorder, (options, tasks, one_scene),
                                  workers, ray=ray, tell=tell, stop=stop)) as recorded:
                for (number, _), files in recorded:
                    writer.keep_shard(root, number, files)
                    del todo[number]
        except RuntimeError as error:
            raise UserError(f'shard {error}; run the same command again to go on (finished '
                            'shards are kept)') from error
        info = {} if stop and not writer.finished_shards(root) else writer.merge_shards(
            root, contract=contract)
    if todo:
        raise KeyboardInterrupt(
            f'{root}: {options.episodes - sum(map(len, todo.values()))} of {options.episodes} '
            'episodes are kept; repeat the command to go on')
    return info
