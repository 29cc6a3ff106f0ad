"""Play one planned episode and keep what was seen, meant and thought."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.data import layout
from dtvla_ros.data.layout import Episode

IMAGES = {
    'observation.images.image': 'agentview_image',
    'observation.images.wrist_image': 'robot0_eye_in_hand_image',
}
STATE_NAMES = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'finger_left', 'finger_right')
JOINTS = 'observation.joint_positions'
ENVIRONMENT = 'observation.environment_state'
SHORT, LOOK = 'short', 'look'
EPISODES_PER_SHARD = 8


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """One episode to record; the same for every run with the same options.

    ``kind``: ``'noisy'``, ``'clean'``, ``'drop'`` or ``'shove'`` (see ``Disturber``);
    ``'short'``: wander, then only the first steps; ``'look'``: wander, then one frame for each
    task that could be asked for in the scene, with the thought and action it would begin with.
    """

    index: int
    task: str
    seed: int
    kind: str


def task_in_turn(tasks: Sequence[str], index: int, one_scene: bool) -> str:
    """Return the task of episode ``index``.

    Where every task has a scene of its own, a shard stays with a task.
    """
    turn = index if one_scene else index // EPISODES_PER_SHARD
    return tasks[turn % len(tasks)]


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """How densely an episode is recorded; see ``CollectOptions``."""

    seed: int
    camera_every: int
    chunk: int
    noise: float
    max_steps: int
    short_steps: int


def state_vector(obs: Any, base_position: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return [8]: hand position [m] and rotation vector [rad] in the base frame, fingers [m]."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_quat(obs['robot0_eef_quat']).as_rotvec()
    return np.concatenate([
        obs['robot0_eef_pos'] - base_position, turn, obs['robot0_gripper_qpos'],
    ]).astype(np.float32)


def places(env: Any) -> NDArray[np.float32]:
    """Return where all things are in the base frame, [E * 3] m; NaN for what is not here."""
    return np.concatenate([
        env.place(name) - env.base_position for name in env.things]).astype(np.float32)


def image_points(env: Any) -> NDArray[np.float32]:
    """Return where all things appear in the first camera's image, [E * 2] fractions of it."""
    where = np.stack([env.place(name) for name in env.things])
    return env.image_point(where).ravel().astype(np.float32)


def environment_state(env: Any) -> NDArray[np.float32]:
    """Return joint coordinates and fixture places: enough to draw the one scene again."""
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


@dataclass
class Frames:
    """Rows of the frames kept so far."""

    images: dict[str, list[NDArray[np.uint8]]] = field(
        default_factory=lambda: {key: [] for key in IMAGES})
    numbers: dict[str, list[NDArray[np.float32]]] = field(
        default_factory=lambda: defaultdict(list))
    texts: dict[str, list[str]] = field(
        default_factory=lambda: {layout.REASONING: [], layout.PHASE: []})

    def add(self, env: Any, obs: Any, act: Any) -> None:
        """Keep what is seen now and what the expert makes of it."""
        for key, source in IMAGES.items():
            self.images[key].append(np.array(obs[source]))
        row = {layout.STATE: state_vector(obs, env.base_position),
               JOINTS: np.asarray(obs['robot0_joint_pos'], np.float32),
               layout.PLACES: places(env), layout.POINTS: image_points(env)}
        if env.one_scene:
            row[ENVIRONMENT] = environment_state(env)
        for name, values in row.items():
            self.numbers[name].append(values)
        self.texts[layout.REASONING].append(act.thought)
        self.texts[layout.PHASE].append(act.phase)

    def episode(self, env: Any, plan: EpisodePlan, actions: Sequence[NDArray[np.float32]],
                starts: NDArray[np.int64], length: int, cuts: list[int], success: bool) -> Episode:
        """Return the frames that begin at the control steps ``starts`` (the first ones kept)."""
        keep = len(starts)
        clean = np.stack(actions)
        chunk, padding = chunks_of(clean, starts, length, cuts)
        columns: dict[str, Any] = {
            name: np.stack(values[:keep]) for name, values in self.numbers.items()}
        columns |= {name: values[:keep] for name, values in self.texts.items()}
        columns |= {layout.ACTION: clean[starts], layout.ACTION_CHUNK: chunk,
                    layout.ACTION_IS_PAD: padding}
        return Episode(
            task=env.task.instruction,
            images={key: np.stack(images[:keep]) for key, images in self.images.items()},
            columns=columns, facts=asdict(plan) | {'steps': len(actions), 'success': success},
            names={layout.STATE: STATE_NAMES,
                   layout.PLACES: [f'{name}.{axis}' for name in env.things for axis in 'xyz'],
                   layout.POINTS: [f'{name}.{way}' for name in env.things
                                   for way in ('across', 'down')]})


def record(env: Any, plan: EpisodePlan, options: RecordOptions) -> list[Episode]:
    """Play a plan; return what is worth keeping: nothing when the expert did not succeed."""
    rng = np.random.default_rng([options.seed, plan.index, 1])
    obs, _ = env.reset(seed=plan.seed, options={'task': plan.task})
    if plan.kind == LOOK:
        return _look(env, wander(env, obs, rng), plan, options)
    return _play(env, obs, plan, options, rng)


def _play(env: Any, obs: Any, plan: EpisodePlan, options: RecordOptions,
          rng: np.random.Generator) -> list[Episode]:
    from dtvla_sim.experts import make_expert
    from dtvla_sim.experts.noise import Disturber

    short = plan.kind == SHORT
    if short:
        obs = wander(env, obs, rng)
    expert = make_expert(env)
    disturb = Disturber('noisy' if short else plan.kind, rng, options.noise)
    limit = options.short_steps + options.chunk if short else options.max_steps
    frames = Frames()
    actions: list[NDArray[np.float32]] = []
    cuts: list[int] = []
    success = disturbed = False
    for step in range(limit):
        act = expert.act()
        if step % options.camera_every == 0:
            frames.add(env, obs, act)
        actions.append(np.asarray(act.action, np.float32))
        executed = disturb(act)
        if disturb.active and not disturbed:
            cuts.append(step)
            disturbed = True
        # The evaluation's step limit does not bind here: recoveries may take their time.
        obs, _, success, _, _ = env.step(executed)
        if success:
            break
    if not (success or short):
        return []
    starts = np.arange(0, len(actions), options.camera_every)
    if short and not success:
        starts = starts[starts + options.chunk <= len(actions)]
    return [frames.episode(env, plan, actions, starts, options.chunk, cuts, success)]


def _look(env: Any, obs: Any, plan: EpisodePlan, options: RecordOptions) -> list[Episode]:
    """Ask the expert how it would begin each possible task from here; nothing moves."""
    from dtvla_sim.experts import make_expert

    episodes = []
    for name in env.alternatives():
        with env.asked(name):
            act = make_expert(env).act()
            frames = Frames()
            frames.add(env, obs, act)
            episodes.append(frames.episode(
                env, plan, [np.asarray(act.action, np.float32)], np.zeros(1, np.int64),
                options.chunk, [], False))
    return episodes


def wander(env: Any, obs: Any, rng: np.random.Generator) -> Any:
    """Drift the open gripper somewhere at random; return the observation there."""
    for _ in range(int(rng.integers(0, 3))):
        drift = np.concatenate([rng.uniform([-1, -1, -0.5], [1, 1, 0.4]),
                                rng.normal(0.0, 0.08, 3), [-1.0]])
        for _ in range(int(rng.integers(3, 14))):
            obs = env.step(drift.astype(np.float32))[0]
    return obs
