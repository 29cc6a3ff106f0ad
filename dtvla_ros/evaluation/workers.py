"""What one evaluation process does with one (task, seed)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtvla_ros.engine.engine import Decision
from dtvla_ros.policy.observation import Observation

from .protocol import EpisodeResult, run_episode, run_expert_episode, run_replay_episode

Job = tuple[str, int]


@dataclass(frozen=True, slots=True)
class PolicySetup:
    """How a policy is run; ``replan_steps`` None: as its manifest says."""

    suite: str
    policy: str
    engine: str
    mode: str
    replan_steps: int | None = None
    video: str | None = None


def make_policy_worker(setup: PolicySetup) -> Callable[[Job], EpisodeResult]:
    """Build simulator and policy once; serve episodes."""
    import dtvla_sim
    from dtvla_ros.engine.load import load_policy
    from dtvla_ros.engine.think_act import ThinkAct

    engine, transform, manifest = load_policy(setup.policy, engine=setup.engine, threads=1)
    env = dtvla_sim.make(setup.suite)
    replan = setup.replan_steps or manifest.action.replan_steps

    def serve(job: Job) -> EpisodeResult:
        task, seed = job
        thinker = ThinkAct(engine, transform, setup.mode, manifest.max_thought_tokens, seed=seed)
        film = FailureFilm(setup.video, task, seed, env.control_rate / replan)
        result = run_episode(
            env, thinker.decide, task, seed, replan, on_decision=film.on_decision)
        film.close(result.success)
        return result

    return serve


def make_replay_worker(suite: str) -> Callable[[Job], EpisodeResult]:
    """Record one demonstration of a task on the first training seed that works; repeat it."""
    import dtvla_sim

    env = dtvla_sim.make(suite)
    recorded: dict[str, Any] = {}

    def serve(job: Job) -> EpisodeResult:
        task, seed = job
        if task not in recorded:
            recorded[task] = _record(env, task)
        return run_replay_episode(env, recorded[task], task, seed)

    return serve


def _record(env: Any, task: str, tries: int = 20) -> Any:
    from dtvla_sim.experts import make_expert

    for seed in range(tries):
        expert = make_expert(env)
        result, actions = run_expert_episode(env, expert, task, seed)
        if result.success:
            return actions
    raise RuntimeError(f'the expert failed {task} on {tries} training seeds')


def make_expert_worker(suite: str, noise: bool) -> Callable[[Job], EpisodeResult]:
    """Serve the scripted expert, its executed actions disturbed as in collection if ``noise``."""
    import dtvla_sim
    from dtvla_sim.experts import make_expert
    from dtvla_sim.experts.noise import Disturber

    env = dtvla_sim.make(suite)
    expert = make_expert(env)

    def serve(job: Job) -> EpisodeResult:
        task, seed = job
        disturb = Disturber('noisy', np.random.default_rng(seed)) if noise else None
        result, _ = run_expert_episode(env, expert, task, seed, disturb=disturb)
        return result

    return serve


class FailureFilm:
    """A film of one episode that is kept only if the episode failed."""

    def __init__(self, folder: str | None, task: str, seed: int, rate: float):
        self._film: Any = None
        self._task = task
        if folder is not None:
            from .video import Film

            self._film = Film(Path(folder) / f'{task}-{seed}.mp4', rate)

    def on_decision(self, observation: Observation, decision: Decision, step: int) -> None:
        if self._film is None:
            return
        from .video import Caption, draw_frame

        self._film.add(draw_frame(observation.images, Caption(
            observation.instruction, decision.reasoning, f'{self._task}   step {step}')))

    def close(self, success: bool) -> None:
        if self._film is not None:
            self._film.close()
            if success:
                self._film.path.unlink(missing_ok=True)
