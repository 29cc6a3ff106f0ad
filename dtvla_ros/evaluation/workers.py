"""Runs one evaluation job, in a process that holds simulator and policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import (
    EpisodeResult,
    run_episode,
    run_expert_episode,
    run_replay_episode,
)

from .failures import FailureRecord

if TYPE_CHECKING:
    from dtvla_ros.engine.policy import Policy

Job = tuple[str, int]  # task and seed


def task_of(job: tuple[Any, ...]) -> str:
    """Return the task of a job, whatever stands before task and seed.

    A LIBERO environment builds another scene for another task, which takes longer than some
    episodes: jobs of one task should be consecutive, and run in the same process.
    """
    task: str = job[-2]
    return task


@dataclass(frozen=True, slots=True)
class PolicySetup:
    """How a policy is run; ``replan_steps`` None: as its manifest says.

    ``device`` is one of the engine loader's, ``threads`` are those of an engine on the CPU.
    ``videos`` and ``stills`` are folders for what is kept of failures.
    """

    scene: SceneSetup
    policy: str
    engine: str
    mode: str
    replan_steps: int | None = None
    device: str = 'cpu'
    threads: int = 1
    videos: str | None = None
    stills: str | None = None



def load(setup: PolicySetup) -> tuple[Policy, int]:
    """Return the policy, thinking for itself, and how many actions are executed per decision.

    Raises
    ------
    UserError
        If the policy does not load, or runs on the CPU though another device was asked for.

    """
    from dtvla_ros.engine.load import load_policy

    policy, manifest = load_policy(setup.policy, setup.engine, setup.threads, setup.device)
    if setup.device != 'cpu' and getattr(policy.engine, 'device', None) == 'cpu':
        raise UserError(f'--device {setup.device}: the engine {setup.engine} fell back to the '
                        'CPU (the log says why); mend that, or use --device cpu')
    return policy, setup.replan_steps or manifest.action.replan_steps


def make_policy_worker(setup: PolicySetup) -> Callable[[Job], EpisodeResult]:
    """Build simulator and policy once; serve episodes."""
    return _policy_episodes(setup, setup.scene.make())


def make_robustness_worker(
    setup: PolicySetup,
) -> Callable[[tuple[str, str, int]], EpisodeResult]:
    """Serve episodes (perturbation, or '' for none, task, seed)."""
    from dtvla_sim.perturbation import PerturbedEnv

    env = PerturbedEnv(setup.scene.make())
    episode = _policy_episodes(setup, env)

    def serve(job: tuple[str, str, int]) -> EpisodeResult:
        perturbation, task, seed = job
        env.use([perturbation] if perturbation else [])
        return episode((task, seed))

    return serve


def _policy_episodes(setup: PolicySetup, env: Any) -> Callable[[Job], EpisodeResult]:
    from .ablations import ablated, other_sentence

    policy, replan = load(setup)

    def serve(job: Job) -> EpisodeResult:
        task, seed = job
        infer = ablated(policy, setup.mode, seed, lambda: other_sentence(env, seed))
        record = FailureRecord(
            setup.videos, setup.stills, f'{task}-{seed}', env.control_rate / replan)
        try:
            result = run_episode(
                env, infer, task, seed, replan, setup.scene.max_steps,
                record.on_decision)
        except UserError:
            if 'language' not in getattr(env, 'active', ()):
                raise
            # A policy with a closed vocabulary refuses other words: the arm stays where it is.
            result = EpisodeResult(task, seed, False, 0)
        record.close(result.success)
        return result

    return serve


def make_replay_worker(scene: SceneSetup) -> Callable[[Job], EpisodeResult]:
    """Record one undisturbed demonstration of a task from a training seed; repeat it."""
    from dtvla_sim.perturbation import PerturbedEnv

    env = scene.make()
    quiet = env.env if isinstance(env, PerturbedEnv) else env
    recorded: dict[str, Any] = {}

    def serve(job: Job) -> EpisodeResult:
        task, seed = job
        if task not in recorded:
            recorded[task] = _record(quiet, task)
        return run_replay_episode(env, recorded[task], task, seed, scene.max_steps)

    return serve


def _record(env: Any, task: str, tries: int = 20) -> Any:
    from dtvla_sim.experts import make_expert

    for seed in range(tries):
        expert = make_expert(env)
        result, actions = run_expert_episode(env, expert, task, seed)
        if result.success:
            return actions
    raise RuntimeError(f'the expert failed {task} on {tries} training seeds')


def make_expert_worker(scene: SceneSetup, noise: bool) -> Callable[[Job], EpisodeResult]:
    """Serve the scripted expert, its executed actions disturbed as in collection if ``noise``."""
    from dtvla_sim.experts import make_expert
    from dtvla_sim.experts.noise import Disturber

    env = scene.make()
    expert = make_expert(env)

    def serve(job: Job) -> EpisodeResult:
        task, seed = job
        disturb = Disturber('noisy', np.random.default_rng(seed)) if noise else None
        result, _ = run_expert_episode(env, expert, task, seed, disturb=disturb)
        return result

    return serve
