"""``dtvla eval --via ros``: episodes through the three real nodes, heard over topics."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

import dtvla_sim
from dtvla_ros import conventions as names
from dtvla_ros.errors import NodeDied, UserError
from dtvla_ros.evaluation.video import FailureRecord
from dtvla_ros.evaluation.wordings import Meaning
from dtvla_ros.evaluation.workers import EvalOptions, Job, keep
from dtvla_ros.files import find_shared
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.rollout.env import SceneSetup, require_square
from dtvla_ros.rollout.episode import EpisodeResult, commands_hash
from dtvla_ros.ros import bringup, qos
from dtvla_ros.ros.environment import take_domain
from dtvla_ros.ros.graph import SILENCE, Seen, Watcher, frame_interval, start_nodes, watch
from dtvla_ros.ros.guest import visit
from dtvla_ros.ros.processes import NodeProcesses
from dtvla_ros.ros.run import joined
from dtvla_ros.ros.talk import Robot
from dtvla_ros.thought import as_compact

LOCKSTEP, REALTIME = 'config/sim.yaml', 'config/sim_realtime.yaml'
JOINTS = 'config/sim_joints.yaml'  # in lock-step, of scenes whose arm is commanded by its joints
BETWEEN = 500_000_000  # simulated time without a command that parts two episodes [ns]
LATE_COMMANDS = 1.0  # longest wait for them when their episode has ended, wall time [s]


def run_over_ros(setup: EvalOptions,
                 jobs: Sequence[Job]) -> Generator[tuple[Job, EpisodeResult], None, None]:
    """Yield ``(job, result)`` as episodes end.

    In lock-step a result holds the hash of the commands that moved the arm, as in process. Raises
    UserError if a node refuses its input, NodeDied if one dies or nothing moves any more; the
    logs are kept then.
    """
    take_domain()
    logs = Path(tempfile.mkdtemp(prefix='dtvla-eval-'))
    with ExitStack() as stack:
        stack.push(lambda kind, *_: None if kind is NodeDied else shutil.rmtree(logs, True))
        for number, (tasks, seeds) in enumerate(blocks(jobs)):
            yield from _block(setup, tasks, seeds, logs / str(number))


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


def parameters(scene: SceneSetup) -> dict[str, Any]:
    """Return a scene as parameters of `sim_bridge`, without what is left to the suite."""
    chosen = {'starts': scene.starts, 'image_size': scene.image_size,
              'max_steps': scene.max_steps, 'perturb': list(scene.perturb)}
    return {**{name: value for name, value in chosen.items() if value}, **scene.fast_rendering}


def _block(setup: EvalOptions, tasks: Sequence[str], seeds: range,
           logs: Path) -> Iterator[tuple[Job, EpisodeResult]]:
    manifest = PolicyManifest.read(setup.policy)
    every = 1 if setup.realtime else frame_interval(
        setup.replan_steps or manifest.action.replan_steps)
    rate = manifest.action.rate_hz / every
    if (space := manifest.action.controller) != (taken := dtvla_sim.controller(setup.scene.suite)):
        raise UserError(f'{setup.policy}: its actions are {space}, the arm of '
                        f'{setup.scene.suite} takes {taken}; choose another --suite')
    require_square(manifest.images.sizes, str(setup.policy), setup.scene.suite)
    if manifest.action.is_joints and setup.realtime:
        raise UserError(f'{setup.policy}: its actions are {space}, for which there are no nodes '
                        'in real time; leave out --realtime')
    config = JOINTS if manifest.action.is_joints else REALTIME if setup.realtime else LOCKSTEP
    with joined(lambda: Listener(setup, rate, exact=not setup.realtime,
                                 cameras=manifest.config.vision.cameras)) as (
                                     listener, executor), \
            NodeProcesses(logs) as nodes:
        start_nodes(nodes, config, {
            'policy': str(setup.policy), 'engine': setup.engine, 'mode': setup.mode,
            'device': setup.device, 'threads': setup.threads, 'action_space': space,
            'replan_steps': setup.replan_steps or 0,
            # Without wordings, what it makes of other tasks is what is measured.
            'on_unlisted': 'reject' if setup.said else 'warn',
        }, {'suite': setup.scene.suite, 'tasks': list(tasks), 'episodes': len(seeds),
            'seed': seeds.start, 'camera_every': every,
            'after_success': setup.after_success, **parameters(setup.scene),
            **({'instructions': [setup.said[task, seed] for task in tasks for seed in seeds]}
               if setup.said else {})})
        for _ in watch(executor, listener, nodes):
            if listener.seen.gate_state == 'FAULT':
                raise NodeDied(f'the gate is in FAULT: {listener.seen.gate_reason}; repeat the '
                               'command (--resume keeps the episodes before)')
            yield from listener.ended()
        while listener.waiting:
            executor.spin_once(timeout_sec=0.05)
            yield from listener.ended()


def meanings(setup: EvalOptions, texts: Sequence[str]) -> Iterator[Meaning]:
    """Yield the task that a policy node understands by each sentence, or '' and why it refuses.

    Raises UserError if the node refuses its input, NodeDied if it dies or does not answer.
    """
    if not texts:
        return
    take_domain()
    action = PolicyManifest.read(setup.policy).action
    policy = bringup.node_processes(simulated=True)['vla_node'].given({
        'policy': str(setup.policy), 'engine': setup.engine, 'device': setup.device,
        'threads': setup.threads, 'action_space': action.controller})
    with tempfile.TemporaryDirectory(prefix='dtvla-eval-') as logs, visit() as guest, \
            NodeProcesses(Path(logs)) as nodes:
        file = str(find_shared(JOINTS if action.is_joints else LOCKSTEP))
        nodes.start('vla_node', 'dtvla_ros.nodes.vla_node', policy.ros_arguments(file))
        robot, said = Robot(guest), guest.node.create_publisher(
            String, names.INSTRUCTION, qos.LATCHED)

        def until(condition: Callable[[], object], what: str) -> None:
            begun = time.monotonic()
            while not guest.until(condition, 0.5):
                nodes.require_running()
                if time.monotonic() - begun > SILENCE:
                    raise NodeDied(f'vla_node, {SILENCE:.0f} s: {what}')

        def ask(text: str) -> Meaning:
            refused = robot.answer()
            said.publish(String(data=text))
            until(lambda: refused() is not None, f'no answer to "{text}"')
            answer = robot.policy
            return ('', answer['rejected']) if refused() else (answer['understood'], '')

        until(lambda: robot.policy.get('state') == 'IDLE', 'it does not become IDLE')
        yield from map(ask, texts)


class Listener(Watcher):
    """Builds an `EpisodeResult` of every episode on the topics, handed out by `ended`.

    ``exact``: with the hash of an episode's commands. Topics are not ordered among each other: a
    result waits for as many commands as the episode had steps; if some never come it has none.
    """

    def __init__(self, setup: EvalOptions, frame_rate: float, exact: bool,
                 cameras: Sequence[str] = names.CAMERAS):
        super().__init__(self._film, self._end, cameras)
        self._setup, self._frame_rate, self._exact = setup, frame_rate, exact
        self._record: FailureRecord | None = None
        self._thoughts: list[str] = []
        self._commands: dict[int, NDArray[np.float64]] = {}  # by stamp [ns]
        # Not handed out yet: since when, how many commands there were, and the result.
        self.waiting: list[tuple[float, int, EpisodeResult]] = []

    def ended(self) -> Iterator[tuple[Job, EpisodeResult]]:
        """Yield what has finished since."""
        while self.waiting:
            since, count, result = self.waiting[0]
            if self._exact and count:
                mine = self._first_episode()
                if len(mine) < count and time.monotonic() - since < LATE_COMMANDS:
                    return
                if len(mine) == count:
                    result = replace(result, commands=commands_hash(
                        [self._commands[stamp] for stamp in mine[:result.steps]]))
                for stamp in mine:
                    del self._commands[stamp]
            self.waiting.pop(0)
            yield (result.task, result.seed), result

    def _first_episode(self) -> list[int]:
        stamps = sorted(self._commands)
        ends = (k for k, (a, b) in enumerate(itertools.pairwise(stamps), 1) if b - a > BETWEEN)
        return stamps[:next(ends, len(stamps))]

    def _action(self, message: JointTrajectory) -> None:
        super()._action(message)
        if self._exact:
            at = message.header.stamp
            self._commands.setdefault(
                at.sec * 10**9 + at.nanosec, np.array(message.points[0].positions))

    def _reasoning(self, message: String) -> None:
        super()._reasoning(message)
        self._thoughts.append(as_compact(message.data))

    def _film(self, images: dict[str, NDArray[np.uint8]], seen: Seen) -> None:
        row = seen.episode
        if 'task' not in row:
            return
        if self._record is None:
            self._record = FailureRecord(
                self._setup.videos, self._setup.stills, f'{row["task"]}-{row["seed"]}',
                self._frame_rate)
        self._record.add(images, row['instruction'], seen.thought, row['step'], seen.meaning)

    def _end(self, row: dict[str, Any]) -> None:
        success = bool(row['success'])
        latency = {phase: [round(seconds, 6) for seconds in values]
                   for phase, values in self.seen.latency.items()}
        self.seen.latency.clear()
        thoughts, self._thoughts = tuple(self._thoughts), []
        result = EpisodeResult(
            row['task'], row['seed'], success, row['solved'] or row['step'], len(thoughts),
            latency=latency, thoughts=thoughts, said_done=row.get('said_done'),
            too_early=row.get('too_early', False))
        if self._setup.said:
            result = replace(
                result, said=row['instruction'], understood=row['understood'],
                refused='' if row['understood'] else row['reason'].removeprefix('refused: '))
        if self._record is not None:
            keep(self._setup, result, self._record.close(success))
            self._record = None
        self.waiting.append((time.monotonic(), row['step'], result))
