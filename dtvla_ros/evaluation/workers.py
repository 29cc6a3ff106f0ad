"""Runs evaluation episodes in processes that hold a simulator and a policy or an expert."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.ablations import ablated, other_instruction
from dtvla_ros.policy.confidence import Calibration
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.policy.understanding import NotUnderstood, understanding_of
from dtvla_ros.rollout import episode
from dtvla_ros.rollout.env import SceneSetup, require_contract
from dtvla_ros.rollout.episode import EpisodeResult

if TYPE_CHECKING:
    from dtvla_ros.engine.policy import Policy

Job = tuple[str, int]  # task and seed
DEMONSTRATION_TRIES = 20


def task_of(job: tuple[Any, ...]) -> str:
    """Return the task of a job: those of one task share a process, for LIBERO builds scenes."""
    return str(job[-2])


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """Options of an evaluation; None: as the policy or the suite says, or no such file.

    ``threads``: of an engine on the CPU. ``ray``: address of the cluster that runs the episodes,
    None for this machine. ``after_success`` as of ``run_episode``. ``videos`` and ``stills``:
    folders for what is kept of failures. ``instructions``: file of wordings; ``said``: the one of
    each episode, in place of its task's own instruction. ``calibration``: the policy's, if any.
    """

    policy: Path = Path()
    scene: SceneSetup = SceneSetup('tabletop')
    tasks: Sequence[str] = ()
    episodes: int = 50
    mode: str = 'full'
    engine: str = 'onnx'
    workers: int = 2
    ray: str | None = None
    seed: int | None = None
    device: str = 'cpu'
    threads: int = 1
    replan_steps: int | None = None
    after_success: int = 0
    via: str = 'inprocess'
    realtime: bool = False
    videos: Path | None = None
    stills: Path | None = None
    journal: Path | None = None
    html: Path | None = None
    json_file: Path | None = None
    instructions: Path | None = None
    said: Mapping[Job, str] = field(default_factory=dict)
    calibration: Calibration | None = None


def keep(options: EvalOptions, result: EpisodeResult, files: Mapping[str, bytes]) -> None:
    """Write an episode's ``videos`` and ``stills`` where the options say, for earlier ones."""
    for kind, into, end in (('videos', options.videos, 'mp4'), ('stills', options.stills, 'jpg')):
        if into is not None:
            path = into / f'{result.task}-{result.seed}.{end}'
            path.unlink(missing_ok=True)
            if kind in files:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(files[kind])


def load(options: EvalOptions, env: Any) -> tuple[Policy, int]:
    """Return the policy, thinking for itself, and how many actions are executed per decision.

    Raises UserError if it does not load, or on the CPU though another device was asked for, and
    where it does not fit the environment's arm and cameras.
    """
    from dtvla_ros.engine.load import load_policy

    policy, manifest = load_policy(options.policy, options.engine, options.threads, options.device)
    if options.device != 'cpu' and getattr(policy.engine, 'device', None) == 'cpu':
        raise UserError(f'--device {options.device}: the engine {options.engine} fell back to the '
                        'CPU (the log says why); mend that, or use --device cpu')
    require_contract(policy.transform, str(options.policy), env)
    return policy, options.replan_steps or manifest.action.replan_steps


def make_policy_worker(options: EvalOptions) -> Callable[
        [tuple[Any, ...]], tuple[EpisodeResult, dict[str, bytes]]]:
    """Return what runs (task, seed), or (perturbation or '', task, seed), with a policy.

    With the result comes what ``FailureRecord`` keeps: the machine may be another one.
    """
    from dtvla_ros.evaluation.video import FailureRecord
    from dtvla_sim.perturbation import PerturbedEnv

    made = options.scene.make()
    env = made if isinstance(made, PerturbedEnv) else PerturbedEnv(made)
    policy, replan = load(options, env)
    # Made when the first episode is told in other words: most evaluations have none.
    understanding = functools.cache(
        lambda: understanding_of(options.policy, PolicyManifest.read(options.policy)))

    def run(job: tuple[Any, ...]) -> tuple[EpisodeResult, dict[str, bytes]]:
        *perturbations, task, seed = job
        if perturbations:
            env.use([name for name in perturbations if name])
        infer = ablated(policy, options.mode, seed, lambda: other_instruction(env, seed))
        record = FailureRecord(
            options.videos, options.stills, f'{task}-{seed}', env.control_rate / replan)
        said = options.said.get((task, seed))
        told: dict[str, Any] = {}

        def understand(instruction: str) -> str:
            record.said = told['said'] = said or instruction
            told['understood'] = task = understanding().understand(told['said']).task
            try:  # a policy that names no tasks still has its words
                policy.transform.check_instruction(task)
            except UserError as error:
                raise NotUnderstood(str(error)) from None
            return task

        try:
            result = episode.run_episode(
                env, infer, task, seed, replan, options.scene.max_steps, record.on_decision,
                after_success=options.after_success,
                understand=understand if said or 'language' in env.active else None)
        except NotUnderstood as error:
            result = EpisodeResult(task, seed, False, 0, refused=str(error))
        return replace(result, **told), record.close(result.success)

    return run


def make_replay_worker(scene: SceneSetup) -> Callable[[Job], EpisodeResult]:
    """Return what replays one undisturbed demonstration of a task, from a training seed."""
    from dtvla_sim.experts import make_expert
    from dtvla_sim.perturbation import PerturbedEnv

    env = scene.make()
    calm = env.env if isinstance(env, PerturbedEnv) else env

    @functools.cache
    def demonstration(task: str) -> NDArray[np.float32]:
        """Return the actions [N, 7] of the expert's first success."""
        for seed in range(DEMONSTRATION_TRIES):
            result, actions = episode.run_expert_episode(calm, make_expert(calm), task, seed)
            if result.success:
                return actions
        raise RuntimeError(f'the expert failed {task} on {DEMONSTRATION_TRIES} training seeds')

    return lambda job: episode.run_replay_episode(
        env, demonstration(job[0]), *job, scene.max_steps)


def make_expert_worker(scene: SceneSetup, noise: bool) -> Callable[[Job], EpisodeResult]:
    """Return what runs the scripted expert, disturbed as in collection if ``noise``."""
    from dtvla_sim.experts import make_expert
    from dtvla_sim.experts.noise import Disturber

    env = scene.make()
    expert = make_expert(env)

    def run(job: Job) -> EpisodeResult:
        disturb = Disturber('noisy', np.random.default_rng(job[1])) if noise else None
        return episode.run_expert_episode(env, expert, *job, disturb=disturb)[0]

    return run
