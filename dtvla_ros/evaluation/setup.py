"""What a process is told before its first episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Job = tuple[str, int]  # task and seed


def task_of(job: tuple[Any, ...]) -> str:
    """Return the task of a job, whatever stands before task and seed.

    A LIBERO environment builds another scene for another task, which takes longer than some
    episodes: who orders or hands out jobs keeps those of a task together.
    """
    task: str = job[-2]
    return task


@dataclass(frozen=True, slots=True)
class SceneSetup:
    """Suite, start distribution, what disturbs it, side of the pictures [px].

    None: the suite's own.
    """

    suite: str
    starts: str | None = None
    perturb: tuple[str, ...] = ()
    image_size: int | None = None

    def make(self) -> Any:
        """Build the environment."""
        import dtvla_sim

        chosen = {'starts': self.starts, 'image_size': self.image_size}
        env = dtvla_sim.make(self.suite, **{k: v for k, v in chosen.items() if v})
        if not self.perturb:
            return env
        from dtvla_sim.perturbation import PerturbedEnv

        return PerturbedEnv(env, self.perturb)


@dataclass(frozen=True, slots=True)
class PolicySetup:
    """How a policy is run; ``replan_steps`` None: as its manifest says.

    ``videos`` and ``stills`` are folders for what is kept of failures.
    """

    scene: SceneSetup
    policy: str
    engine: str
    mode: str
    replan_steps: int | None = None
    videos: str | None = None
    stills: str | None = None
