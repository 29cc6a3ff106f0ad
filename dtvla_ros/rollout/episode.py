"""One episode, in process and in lock-step: observe, decide, step, until success or time is up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions import osc
from dtvla_ros.conventions import ARM_JOINTS, FINGER_JOINTS
from dtvla_ros.engine.engine import Decision
from dtvla_ros.policy.transform import Observation

Box = Sequence[Sequence[float]]
Decide = Callable[[Observation], Decision]
OnDecision = Callable[[Observation, Decision, int], None]


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """What one episode came to.

    ``steps``: control steps taken. ``latency``: seconds of every decision by phase, ``total``
    included. ``thoughts``: one per decision. ``commands``: `commands_hash` of what moved the arm,
    '' where unknown.
    """

    task: str
    seed: int
    success: bool
    steps: int
    decisions: int = 0
    cut: int = 0
    latency: Mapping[str, Sequence[float]] = field(default_factory=dict)
    thoughts: Sequence[str] = ()
    commands: str = ''

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def commands_hash(commands: Sequence[NDArray[np.floating]]) -> str:
    """Return a short name of commands [N, 7]: equal only if every one of them is."""
    rows = np.asarray(commands, np.float32) + 0.0  # -0 and 0 move the same
    return hashlib.sha256(rows.tobytes()).hexdigest()[:16]


def observation_from_sim(
    obs: Mapping[str, Any], info: Mapping[str, Any], env: Any, step: int = 0
) -> Observation:
    """Return the policy's view of a simulator observation; touching the images renders them.

    LIBERO's positions are in the world frame; the policy's are in the robot's base frame. The
    finger joints of a real Panda are both positive, the simulator's second one is negative.
    """
    fingers = np.asarray(obs['robot0_gripper_qpos'], np.float64)
    joints = dict(zip(ARM_JOINTS, np.asarray(obs['robot0_joint_pos'], np.float64).tolist()))
    joints.update(zip(FINGER_JOINTS, (float(fingers[0]), float(-fingers[1]))))
    return Observation(
        images={
            'primary': obs['agentview_image'], 'wrist': obs['robot0_eye_in_hand_image'],
        },
        joint_positions=joints,
        ee_position=np.asarray(obs['robot0_eef_pos'], np.float64) - env.base_position,
        ee_quaternion=np.asarray(obs['robot0_eef_quat'], np.float64),
        gripper_opening=float(fingers[0] - fingers[1]),
        instruction=info['instruction'],
        stamp=step / env.control_rate,
    )


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of some actions: the last observation, what moved the arm, the gripper's state.

    ``over``: the episode has ended, with ``success`` or without.
    """

    obs: Mapping[str, Any]
    commands: list[NDArray[np.floating]]
    gripper: float
    success: bool
    over: bool


def execute(env: Any, actions: NDArray[np.floating], gripper: float,
            workspace: Box | None = None, timed: bool = True) -> Moved:
    """Carry out actions [n, 7], n >= 1, until they are done or the episode is over.

    ``gripper``: its command so far; the command gate's law decides the next, so that both paths
    move the same arm. ``workspace``: lower and upper corner, base frame [m]; an episode whose
    end effector leaves it is over. ``timed``: so it is when the environment says time is up.
    """
    commands: list[NDArray[np.floating]] = []
    success = over = False
    for action in actions:
        command = np.clip(action, -1.0, 1.0)
        command[6] = gripper = osc.gripper_command(float(action[6]), gripper)
        commands.append(command)
        obs, _, terminated, truncated, info = env.step(command)
        success = bool(info['success'])
        over = terminated or success or (truncated and timed) or (
            workspace is not None and not _inside(obs, env, workspace))
        if over:
            break
    return Moved(obs, commands, gripper, success, over)


def _inside(obs: Mapping[str, Any], env: Any, box: Box) -> bool:
    position = np.asarray(obs['robot0_eef_pos'], np.float64) - env.base_position  # [3]
    return bool((position >= box[0]).all() and (position <= box[1]).all())


def run_episode(
    env: Any,
    decide: Decide,
    task: str,
    seed: int,
    replan_steps: int,
    max_steps: int | None = None,
    on_decision: OnDecision | None = None,
    workspace: Box | None = None,
) -> EpisodeResult:
    """Run a policy on one start state; it looks again after every ``replan_steps`` actions.

    ``max_steps`` None: the task's own limit. ``workspace`` as of ``execute``.
    """
    obs, info = env.reset(seed=seed, options={'task': task})
    limit = max_steps or env.max_steps  # the task's own is known once it is set
    step, done, success = 0, False, False
    gripper = osc.GRIPPER_OPEN
    latency: dict[str, list[float]] = {}
    thoughts: list[str] = []
    commands: list[NDArray[np.floating]] = []
    cut = 0
    while not done and step < limit:
        observation = observation_from_sim(obs, info, env, step)
        decision = decide(observation)
        timings = {**decision.timings, 'total': sum(decision.timings.values())}
        for phase, seconds in timings.items():
            latency.setdefault(phase, []).append(round(seconds, 6))
        thoughts.append(decision.reasoning)
        cut += decision.outcome != 'complete'
        if on_decision is not None:
            on_decision(observation, decision, step)
        moved = execute(env, decision.chunk[: min(replan_steps, limit - step)], gripper,
                        workspace, max_steps is None)
        obs, gripper, done = moved.obs, moved.gripper, moved.over
        commands += moved.commands
        step += len(moved.commands)
        success = success or moved.success
    return EpisodeResult(
        task, seed, success, step, len(thoughts), cut, latency, tuple(thoughts),
        commands_hash(commands))


def run_replay_episode(
    env: Any, actions: NDArray[np.float32], task: str, seed: int,
    max_steps: int | None = None,
) -> EpisodeResult:
    """Repeat recorded actions [N, 7] with eyes closed; the last one is held for half a second."""
    env.reset(seed=seed, options={'task': task})
    limit = max_steps or env.max_steps
    settle = np.repeat(actions[-1:], int(env.control_rate / 2), axis=0)
    success, step = False, 0
    for action in np.concatenate([actions, settle])[:limit]:
        _, _, terminated, truncated, info = env.step(action)
        step += 1
        success = bool(info['success'])
        if success or terminated or (truncated and max_steps is None):
            break
    return EpisodeResult(task, seed, success, step)


def run_expert_episode(
    env: Any,
    expert: Any,
    task: str,
    seed: int,
    max_steps: int | None = None,
    disturb: Callable[[Any], NDArray[np.float32]] | None = None,
) -> tuple[EpisodeResult, NDArray[np.float32]]:
    """Run a scripted expert; return the result and the executed actions [N, 7].

    ``disturb`` maps what the expert does to the action that is executed instead.
    """
    env.reset(seed=seed, options={'task': task})
    max_steps = max_steps or env.max_steps
    expert.reset()
    executed: list[NDArray[np.float32]] = []
    thoughts: list[str] = []
    success = False
    while not success and len(executed) < max_steps:
        said = expert.act()
        action = said.action if disturb is None else disturb(said)
        if not thoughts or thoughts[-1] != said.thought:
            thoughts.append(said.thought)
        _, _, terminated, truncated, info = env.step(action)
        executed.append(np.asarray(action, np.float32))
        success = bool(info['success'])
        if terminated or truncated:
            break
    result = EpisodeResult(task, seed, success, len(executed), thoughts=tuple(thoughts))
    return result, np.stack(executed)
