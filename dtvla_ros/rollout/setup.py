"""What a process is told before its first episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dtvla_ros.errors import UserError

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

    None: the suite's own; so is ``max_steps``, the control steps after which an episode has
    failed. ``antialiasing`` and ``shadows``: as LIBERO draws, or without.
    """

    suite: str
    starts: str | None = None
    perturb: tuple[str, ...] = ()
    image_size: int | None = None
    antialiasing: bool = True
    shadows: bool = True
    max_steps: int | None = None

    @property
    def lean(self) -> dict[str, bool]:
        """What is to be left out of the pictures, as arguments of ``dtvla_sim.make``."""
        return {name: False for name in ('antialiasing', 'shadows') if not getattr(self, name)}

    def make(self) -> Any:
        """Build the environment.

        Raises
        ------
        UserError
            If the suite does not have what is asked for.

        """
        import dtvla_sim

        if self.lean and self.suite not in dtvla_sim.LIBERO_SUITES:
            raise UserError(f'--no-{next(iter(self.lean))} is for LIBERO; {self.suite} is drawn '
                            'without antialiasing and shadows')
        chosen = {'starts': self.starts, 'image_size': self.image_size}
        return dtvla_sim.make(
            self.suite, self.perturb, **{k: v for k, v in chosen.items() if v}, **self.lean)


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
