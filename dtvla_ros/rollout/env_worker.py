"""What a simulator process does: it plays episodes and asks outside for every decision.

Nothing of torch is imported here, so that a process is small and begins soon.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.engine.engine import Decision
from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import Observation
from dtvla_ros.rollout.episode import Box, Decide, EpisodeResult, run_episode
from dtvla_ros.rollout.setup import SceneSetup

Images = dict[str, NDArray[np.uint8]]


class Result(Protocol):
    """What every kind of episode comes to: whether it succeeded, control steps taken."""

    @property
    def success(self) -> bool:
        ...

    @property
    def steps(self) -> int:
        ...


class Job(Protocol):
    """Something to play in a simulator's process; it asks ``decide`` for chunks [T, D]."""

    def play(self, env: Any, decide: Decide) -> Result:
        ...


@dataclass(frozen=True, slots=True)
class EpisodeJob:
    """One episode to play: a task, the seed of its start, and how often the policy looks.

    ``max_steps`` None: the task's own limit; ``workspace`` as of ``execute``.
    """

    task: str
    seed: int
    replan_steps: int
    max_steps: int | None = None
    workspace: Box | None = None

    def play(self, env: Any, decide: Decide) -> EpisodeResult:
        return run_episode(env, decide, self.task, self.seed, self.replan_steps, self.max_steps,
                           workspace=self.workspace)


@dataclass(frozen=True, slots=True)
class Ready:
    """A simulator's first word: its tasks, the side of its pictures [px], control rate [Hz].

    ``one_scene``: all tasks share a scene; otherwise changing the task builds another.
    """

    tasks: tuple[str, ...]
    image_size: int
    control_rate: float
    max_steps: int
    one_scene: bool


@dataclass(frozen=True, slots=True)
class Look:
    """A decision is asked for. ``stepping`` and ``drawing``: seconds since the last one.

    ``frames``: the pictures, where they do not travel through shared memory.
    """

    observation: Observation
    stepping: float
    drawing: float
    frames: Images | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The episode is over; ``stepping``: seconds since the last look."""

    result: Result
    stepping: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The simulator raised; ``refused``: the request was bad, and repeating it is no use."""

    text: str
    refused: bool = False

    def error(self) -> Exception:
        """Return it as what it would have been in this process."""
        return UserError(self.text) if self.refused else RuntimeError(self.text)


class _Stopwatch:
    """Counts the seconds spent in an environment's ``reset`` and ``step``."""

    def __init__(self, env: Any):
        self._seconds = 0.0
        for name in ('reset', 'step'):
            setattr(env, name, self._timed(getattr(env, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            result = call(*arguments, **options)
            self._seconds += time.perf_counter() - begun
            return result

        return timed

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def serve(receive: Callable[[], Any], send: Callable[[Any], None], scene: SceneSetup,
          show: Callable[[Images], Images | None]) -> None:
    """Play the jobs that ``receive`` returns, until it returns None.

    To a job and to every chunk [T, D] the answer is a ``Look``, an ``End`` or a ``Failed``,
    through ``send``; its first call is a ``Ready``. ``show`` puts pictures where the other side
    finds them and returns what has to travel with the message.
    """
    try:
        env = scene.make()
        watch = _Stopwatch(env)
        send(Ready(tuple(env.tasks), env.image_size, env.control_rate, env.max_steps,
                   env.one_scene))
    except UserError as error:
        send(Failed(str(error), refused=True))
        return
    except Exception:
        send(Failed(traceback.format_exc()))
        return
    while (job := receive()) is not None:
        try:
            answer: End | Failed = _play(env, watch, job, receive, send, show)
        except UserError as error:
            answer = Failed(str(error), refused=True)
        except Exception:
            answer = Failed(traceback.format_exc())
        send(answer)


def _play(env: Any, watch: _Stopwatch, job: Job, receive: Callable[[], Any],
          send: Callable[[Any], None], show: Callable[[Images], Images | None]) -> End:
    nothing = np.zeros(0, np.int64)
    begun = time.perf_counter()
    watch.lap()

    def decide(observation: Observation) -> Decision:
        nonlocal begun
        frames = show(dict(observation.images))
        stepping = watch.lap()
        send(Look(replace(observation, images={}), stepping,
                  time.perf_counter() - begun - stepping, frames))
        chunk = receive()
        begun = time.perf_counter()
        return Decision('', 'complete', chunk, (), nothing)

    return End(job.play(env, decide), watch.lap())
