"""``dtvla eval --via ros``: episodes through the three real nodes, heard over topics."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dtvla_ros.errors import NodeDied
from dtvla_ros.evaluation.workers import Job, PolicySetup
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import EpisodeResult
from dtvla_ros.ros.graph import Run, frame_interval, start_nodes, watch
from dtvla_ros.ros.processes import NodeProcesses
from dtvla_ros.ros.run import joined

from .ros_listener import Listener

LOCKSTEP, REALTIME = 'config/sim.yaml', 'config/sim_realtime.yaml'


def run_over_ros(
    setup: PolicySetup, realtime: bool, jobs: Sequence[Job],
) -> Generator[tuple[Job, EpisodeResult], None, None]:
    """Yield ``(job, result)`` as episodes end.

    In lock-step a result holds the hash of the commands that moved the arm, as in process.

    Raises
    ------
    UserError
        If a node refuses its input.
    NodeDied
        If a node dies or nothing moves any more; the logs are kept.

    """
    if not jobs:
        return
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.SystemRandom().randint(1, 100)))
    logs = Path(tempfile.mkdtemp(prefix='dtvla-eval-'))
    telling = False
    try:
        for number, (tasks, seeds) in enumerate(blocks(jobs)):
            yield from _block(setup, realtime, tasks, seeds, logs / str(number))
    except NodeDied:
        telling = True
        raise
    finally:
        if not telling:
            shutil.rmtree(logs, ignore_errors=True)


def blocks(jobs: Iterable[Job]) -> list[tuple[list[str], range]]:
    """Return jobs as few (tasks, seeds), every task with every seed: what `sim_bridge` runs."""
    by_task: dict[str, list[int]] = {}
    for task, seed in jobs:
        by_task.setdefault(task, []).append(seed)
    together: dict[tuple[int, int], list[str]] = {}
    for task, seeds in by_task.items():
        # Consecutive seeds minus their positions are one number.
        for _, group in itertools.groupby(enumerate(sorted(seeds)), lambda at: at[1] - at[0]):
            run = [seed for _, seed in group]
            together.setdefault((run[0], run[-1] + 1), []).append(task)
    return [(tasks, range(*ends)) for ends, tasks in together.items()]


def parameters(scene: SceneSetup) -> dict[str, str]:
    """Return what `sim_bridge` is told of a scene, as parameters are written."""
    chosen: dict[str, Any] = {
        'starts': scene.starts, 'image_size': scene.image_size, 'max_steps': scene.max_steps,
        # Quoted: a bare colon in a list is more YAML than rcl reads.
        'perturb': str(list(scene.perturb)) if scene.perturb else None}
    return {**{name: str(value) for name, value in chosen.items() if value},
            **{name: str(value).lower() for name, value in scene.fast_rendering.items()}}


def _block(
    setup: PolicySetup, realtime: bool, tasks: Sequence[str], seeds: range, logs: Path,
) -> Iterator[tuple[Job, EpisodeResult]]:
    manifest = PolicyManifest.read(Path(setup.policy))
    every = 1 if realtime else frame_interval(
        setup.replan_steps or manifest.action.replan_steps)
    rate = manifest.action.rate_hz / every
    with joined(lambda: Listener(setup, rate, exact=not realtime)) as (listener, executor), \
            NodeProcesses(logs) as nodes:
        start_nodes(nodes, REALTIME if realtime else LOCKSTEP, Run(
            Path(setup.policy), setup.scene.suite, tasks, len(seeds), seeds.start, setup.mode,
            setup.engine, every, setup.replan_steps or 0, setup.device, setup.threads,
            parameters(setup.scene)))
        for _ in watch(executor, listener, nodes):
            yield from listener.ended()
        while listener.waits():
            executor.spin_once(timeout_sec=0.05)
            yield from listener.ended()
