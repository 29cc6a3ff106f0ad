"""Runs one episode in lock-step: observe, infer, step, until success or the step limit."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions import osc
from dtvla_ros.conventions import ARM_JOINTS, FINGER_JOINTS
from dtvla_ros.engine.engine import Decision
from dtvla_ros.policy.completion import Completion, decisions_in_a_row
from dtvla_ros.policy.transform import Observation
from dtvla_ros.rollout.env import Env, SimObservation

Box = Sequence[Sequence[float]]
Infer = Callable[[Observation], Decision]  # `Policy.infer`, or whatever stands in for it
OnDecision = Callable[[Observation, Decision, int], None]


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """Outcome of one episode."""

    task: str
    seed: int
    success: bool
    steps: int  # control steps taken, until success
    decisions: int = 0
    truncated: int = 0  # thoughts that hit their cap
    latency: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of decisions, by phase
    thoughts: Sequence[str] = ()  # one per decision
    commands: str = ''  # `commands_hash` of what moved the arm, '' where unknown
    said_done: int | None = None  # control step at which the policy said so, if it did
    too_early: bool = False  # it did while the task was not done
    # Where the policy was told in other words: these, the task they meant to it, why it refused.
    said: str = ''
    understood: str = ''
    refused: str = ''
    certainty: Mapping[str, Sequence[float]] = field(default_factory=dict)  # features by name

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> EpisodeResult:
        """Return what a journal holds; earlier versions called ``truncated`` ``cut``."""
        return cls(**{'truncated' if key == 'cut' else key: v for key, v in row.items()})


class Job(Protocol):
    """An episode to run in a given environment; ``infer`` returns chunks [T, D].

    Its result, which may come from another process, has ``success`` and control ``steps``.
    """

    def run(self, env: Env, infer: Infer) -> Any:
        ...


@dataclass(frozen=True, slots=True)
class EpisodeJob:
    """A task, the seed of its start, and the rest as of ``run_episode``."""

    task: str
    seed: int
    replan_steps: int
    max_steps: int | None = None
    workspace: Box | None = None

    def run(self, env: Env, infer: Infer) -> EpisodeResult:
        return run_episode(env, infer, self.task, self.seed, self.replan_steps, self.max_steps,
                           workspace=self.workspace)


def commands_hash(commands: Sequence[NDArray[np.floating]]) -> str:
    """Return a 16-digit hash of commands [N, D]."""
    rows = np.asarray(commands, np.float32) + 0.0  # -0 and 0 move the same
    return hashlib.sha256(rows.tobytes()).hexdigest()[:16]


def observation_from_sim(obs: SimObservation, info: Mapping[str, Any], env: Env,
                         step: int = 0) -> Observation:
    """Return the policy's view of a simulator observation, positions in the robot's base frame.

    The finger joints of a real Panda are both positive, the simulator's second one is negative.
    """
    fingers = np.asarray(obs['robot0_gripper_qpos'], np.float64)
    joints = np.append(obs['robot0_joint_pos'], fingers * [1.0, -1.0]).astype(np.float64)
    return Observation(
        images={name: obs[key] for name, key in env.views.items()},
        joint_positions=dict(zip((*ARM_JOINTS, *FINGER_JOINTS), joints.tolist())),
        ee_position=np.asarray(obs['robot0_eef_pos'], np.float64) - env.base_position,
        ee_quaternion=np.asarray(obs['robot0_eef_quat'], np.float64),
        gripper_opening=float(fingers[0] - fingers[1]), instruction=info['instruction'],
        stamp=step / env.control_rate)


@dataclass(frozen=True, slots=True)
class Executed:
    """Outcome of some actions."""

    obs: SimObservation  # the last one
    commands: list[NDArray[np.floating]]  # those sent
    gripper: float  # its command
    success: bool
    over: bool  # the episode has ended, with ``success`` or without


def execute(env: Env, actions: NDArray[np.floating], gripper: float,
            workspace: Box | None = None, timed: bool = True, solved: bool = False) -> Executed:
    """Carry out actions [n, D], n >= 1, until they are done or the episode is over.

    ``gripper``: its command so far, -1 open to +1 closed; the next follows from the command
    gate's law, as over ROS.
    ``workspace``: lower and upper corner, base frame [m]; an episode whose end effector leaves
    it is over. ``timed``: it is also over when the environment truncates it. ``solved``: success
    was reached before, and neither it nor time ends the episode now.
    """
    def inside(box: Box) -> bool:
        position = np.asarray(obs['robot0_eef_pos'], np.float64) - env.base_position  # [3]
        return bool((position >= box[0]).all() and (position <= box[1]).all())

    commands: list[NDArray[np.floating]] = []
    success, over, contract = False, False, env.contract
    k = contract.gripper_index
    for action in actions:
        command = np.clip(action, -1.0, 1.0) if contract.is_normalised else np.array(action)
        if k is not None:
            gripper = osc.gripper_command(float(contract.switch(action[k])), gripper)
            command[k] = contract.from_switch(gripper)
        commands.append(command)
        obs, _, terminated, truncated, info = env.step(command)
        success = bool(info['success'])
        over = not solved and (terminated or success or (truncated and timed)) or (
            workspace is not None and not inside(workspace))
        if over:
            break
    return Executed(obs, commands, gripper, success, over)


def run_episode(env: Env, infer: Infer, task: str, seed: int, replan_steps: int,
                max_steps: int | None = None, on_decision: OnDecision | None = None,
                workspace: Box | None = None, after_success: int = 0,
                understand: Callable[[str], str] | None = None) -> EpisodeResult:
    """Run a policy from one start state; it replans after every ``replan_steps`` actions.

    ``max_steps`` None: the task's own limit. ``workspace`` as of ``execute``. The episode ends
    when the policy says that it is done, or ``after_success`` control steps after success.
    ``understand`` turns the environment's instruction into the policy's.
    """
    obs, info = env.reset(seed=seed, options={'task': task})
    if understand is not None:
        info = {**info, 'instruction': understand(info['instruction'])}
    limit = max_steps or env.max_steps  # the task's own is known once it is set
    over, holds, truncated, gripper = False, False, 0, osc.GRIPPER_OPEN
    solved = said_done = None  # control steps
    completion, needed = Completion(), decisions_in_a_row(replan_steps, env.control_rate)
    latency: defaultdict[str, list[float]] = defaultdict(list)
    certainty: defaultdict[str, list[float]] = defaultdict(list)
    thoughts: list[str] = []
    commands: list[NDArray[np.floating]] = []
    while not over and (step := len(commands)) < limit:
        observation = observation_from_sim(obs, info, env, step)
        decision = infer(observation)
        timings = {**decision.timings, 'total': sum(decision.timings.values())}
        for phase, seconds in timings.items():
            latency[phase].append(round(seconds, 6))
        for feature, value in decision.certainty.items():
            certainty[feature].append(round(value, 5))
        thoughts.append(decision.reasoning)
        truncated += decision.outcome != 'complete'
        if on_decision is not None:
            on_decision(observation, decision, step)
        if completion.add(decision.reasoning, needed):
            said_done = step
            break
        rows = decision.chunk[:replan_steps]
        while len(rows) and not over and len(commands) < limit:
            executed = execute(env, rows[:limit - len(commands)], gripper, workspace,
                               max_steps is None, solved is not None)
            obs, gripper, holds = executed.obs, executed.gripper, executed.success
            commands += executed.commands
            rows, over = rows[len(executed.commands):], executed.over
            if holds and solved is None:
                solved = len(commands)
                limit, over = solved + after_success, False
    return EpisodeResult(
        task, seed, solved is not None, solved or len(commands), len(thoughts), truncated,
        dict(latency), tuple(thoughts), commands_hash(commands[:solved]), said_done,
        said_done is not None and not holds, certainty=dict(certainty))


def run_replay_episode(env: Env, actions: NDArray[np.float32], task: str, seed: int,
                       max_steps: int | None = None) -> EpisodeResult:
    """Replay recorded actions [N, D] open-loop; the last one is held for half a second."""
    env.reset(seed=seed, options={'task': task})
    settle = np.repeat(actions[-1:], int(env.control_rate / 2), axis=0)
    step = 0
    for action in np.concatenate([actions, settle])[:max_steps or env.max_steps]:
        step += 1
        _, _, terminated, truncated, info = env.step(action)
        if info['success'] or terminated or (truncated and max_steps is None):
            break
    return EpisodeResult(task, seed, bool(info['success']), step)


def run_expert_episode(env: Env, expert: Any, task: str, seed: int, max_steps: int | None = None,
                       disturb: Callable[[Any], NDArray[np.float32]] | None = None
                       ) -> tuple[EpisodeResult, NDArray[np.float32]]:
    """Run an expert, its steps mapped to actions of OSC_POSE by ``disturb``.

    ``max_steps`` None: the task's own limit. Return what the arm was commanded [N, D], too.
    """
    env.reset(seed=seed, options={'task': task})
    expert.reset()
    executed: list[NDArray[np.float32]] = []
    thoughts: list[str] = []
    over = False
    while not over and len(executed) < (max_steps or env.max_steps):
        step = expert.act()
        action = env.action_of(step.action if disturb is None else disturb(step))
        if thoughts[-1:] != [step.thought]:
            thoughts.append(step.thought)
        _, _, terminated, truncated, info = env.step(action)
        executed.append(np.asarray(action, np.float32))
        over = info['success'] or terminated or (truncated and max_steps is None)
    return EpisodeResult(task, seed, bool(info['success']), len(executed),
                         thoughts=tuple(thoughts)), np.stack(executed)
