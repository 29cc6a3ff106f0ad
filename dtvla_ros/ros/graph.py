"""Simulator, policy and command gate started together, and watched until the last episode."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rclpy.executors import Executor

from dtvla_ros import share
from dtvla_ros.conventions import (
    EE_POSE,
    ESTOP,
    GATE_STATE,
    IMAGES,
    INSTRUCTION,
    JOINT_STATES,
    relative,
)
from dtvla_ros.errors import NodeDied
from dtvla_ros.ros.processes import NodeProcesses

SILENCE = 90.0  # longest wait for the next step of the simulation [s]
# Arguments that put vla_node into its namespace, with the topics it shares with others outside.
VLA_NAMES = ('-r', '__ns:=/vla', *(word for topic in (
    *IMAGES.values(), JOINT_STATES, EE_POSE, INSTRUCTION, ESTOP, GATE_STATE)
    for word in ('-r', f'{relative(topic)}:={topic}')))


@dataclass(frozen=True, slots=True)
class Run:
    """What the nodes are to do. 0: as the policy, or the bridge, does by itself."""

    policy: Path
    suite: str
    tasks: Sequence[str]
    episodes: int
    seed: int
    mode: str
    engine: str
    camera_every: int
    replan_steps: int = 0
    device: str = 'cpu'
    threads: int = 1
    scene: Mapping[str, str] = field(default_factory=dict)  # further parameters of sim_bridge


def frame_interval(replan_steps: int) -> int:
    """Return control steps per frame: few enough for a film, and the policy's look among them."""
    return next(k for k in (3, 2, 4, 5, replan_steps) if replan_steps % k == 0)


def start_nodes(nodes: NodeProcesses, config: str, run: Run) -> None:
    """Start the three nodes with a parameter file of the package."""
    params = ['--params-file', str(share.find(config))]
    quiet = {'OMP_NUM_THREADS': '1'}
    nodes.start('vla_node', 'dtvla_ros.nodes.vla_node', [
        '--ros-args', *VLA_NAMES, *params, '-p', f'policy:={run.policy}',
        '-p', f'engine:={run.engine}', '-p', f'mode:={run.mode}',
        '-p', f'device:={run.device}', '-p', f'threads:={run.threads}',
        '-p', f'replan_steps:={run.replan_steps}'], {'OMP_NUM_THREADS': str(run.threads)})
    nodes.start('command_gate', 'dtvla_ros.nodes.command_gate', ['--ros-args', *params], quiet)
    scene = [word for name, value in run.scene.items() for word in ('-p', f'{name}:={value}')]
    nodes.start('sim_bridge', 'dtvla_ros.nodes.sim_bridge', [
        '--ros-args', *params, '-p', f'suite:={run.suite}',
        '-p', f'tasks:=[{", ".join(run.tasks)}]', '-p', f'episodes:={run.episodes}',
        '-p', f'seed:={run.seed}', '-p', f'camera_every:={run.camera_every}',
        *scene], quiet)


def watch(executor: Executor, watcher: Any, nodes: NodeProcesses) -> Iterator[None]:
    """Let the watcher hear until the last episode is over; yields many times a second.

    Raises
    ------
    UserError
        If a node refuses its input.
    NodeDied
        If a node dies, or the simulation makes no step for `SILENCE` seconds.

    """
    seen = watcher.seen
    progress: tuple[Any, ...] = ()
    moved = checked = time.monotonic()
    while not seen.finished:
        executor.spin_once(timeout_sec=0.1)
        yield
        now = time.monotonic()
        if now - checked < 0.2:
            continue
        checked = now
        nodes.require_running(may_end=('sim_bridge',))
        if nodes.exit_code('sim_bridge') == 0 and not seen.finished and now - moved > 3.0:
            raise NodeDied(
                f'sim_bridge ended after {len(seen.episodes)} episodes without its summary')
        latest = (len(seen.episodes), seen.episode.get('step'), seen.thoughts)
        if latest != progress:
            progress, moved = latest, now
        elif now - moved > SILENCE:
            raise NodeDied(
                f'no step for {SILENCE:.0f} s (policy {seen.vla_state}, gate {seen.gate_state} '
                f'{seen.gate_reason}); see {nodes.log("sim_bridge").parent}')
