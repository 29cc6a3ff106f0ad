"""``dtvla demo``: simulator, policy and command gate as three processes, watched over topics."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rclpy.executors import Executor

from dtvla_ros.caption import Caption
from dtvla_ros.conventions import ACTION
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import results
from dtvla_ros.evaluation.results import Rate, evaluation_seed, latency_summary
from dtvla_ros.files import find_shared, write_json
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.ros.graph import Seen, Watcher, frame_interval, start_nodes, watch
from dtvla_ros.ros.processes import NodeProcesses
from dtvla_ros.ros.run import joined

from .display import Recorder, Screen

CONFIG = 'config/sim.yaml'
VIEWS = ('', 'rerun')
VIEWER_TIMEOUT = 20.0  # longest wait for it [s]


def run_demo(
    policy: Path, tasks: Sequence[str], episodes: int, seed: int | None, out: Path,
    mode: str = 'full', engine: str = 'onnx', suite: str = 'tabletop', viz: str = '',
) -> dict[str, Any]:
    """Run the episodes, write ``demo.mp4``, ``demo.png`` and ``demo.json``; return the latter.

    ``viz``: ``'rerun'`` also writes ``demo.rrd``, from a process of its own.

    Raises
    ------
    UserError
        If a node refuses its input, or ``viz`` is not known.
    NodeDied
        If a node dies, or the simulation makes no step for `graph.SILENCE` seconds.

    """
    if viz not in VIEWS:
        raise UserError(f'--viz {viz}: choose from {", ".join(filter(None, VIEWS))}')
    seed = evaluation_seed(seed)
    folder = find_shared(policy)
    manifest = PolicyManifest.read(folder)
    camera_every = frame_interval(manifest.action.replan_steps)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {out}: {error.strerror}; choose another --out') from error
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.SystemRandom().randint(1, 100)))

    screen = Screen()
    recorder = Recorder(out / 'demo.mp4', out / 'demo.png', manifest.action.rate_hz / camera_every)

    def on_frame(images: dict[str, Any], seen: Seen) -> None:
        row = seen.episode
        recorder.add(images, Caption(
            row.get('instruction', ''), seen.thought,
            f'episode {len(seen.episodes) + 1}   step {row.get("step", 0)}   '
            f'gate {seen.gate_state}'))

    def on_episode(row: dict[str, Any]) -> None:
        recorder.end_episode(row['task'], bool(row['success']))
        screen.episode_ended(row, watcher.seen)

    started = time.monotonic()
    screen.console.print(
        f'Watch along: ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]} dtvla topic echo '
        '/vla/reasoning', style='dim', highlight=False)
    try:
        with joined(lambda: Watcher(on_frame, on_episode)) as (watcher, executor), screen, \
                NodeProcesses(out / 'logs') as nodes:
            if viz:
                nodes.start('view', 'dtvla_ros.cli', ['view', '--save', str(out / 'demo.rrd')])
                _wait_for_viewer(executor, watcher, nodes)
            start_nodes(nodes, CONFIG, {'policy': folder, 'engine': engine, 'mode': mode}, {
                'suite': suite, 'tasks': list(tasks), 'episodes': episodes, 'seed': seed,
                'camera_every': camera_every})
            shown = time.monotonic()
            for _ in watch(executor, watcher, nodes):
                if time.monotonic() - shown > 0.05:
                    screen.update(watcher.seen)
                    shown = time.monotonic()
    finally:
        recorder.close()
    result = _result(watcher.seen, manifest, policy, time.monotonic() - started)
    result |= {'suite': suite, 'mode': mode, 'engine': engine}
    write_json(out / 'demo.json', result)
    _print_end(screen, result, out, ['demo.rrd'] if viz else [])
    return result


def _wait_for_viewer(executor: Executor, watcher: Watcher, nodes: NodeProcesses) -> None:
    """Let the viewer join first, or it misses how the first episode begins."""
    until = time.monotonic() + VIEWER_TIMEOUT
    while watcher.count_subscribers(ACTION) < 2 and time.monotonic() < until:
        executor.spin_once(timeout_sec=0.1)
        nodes.require_running()


def _result(seen: Seen, manifest: PolicyManifest, policy: Path, seconds: float) -> dict[str, Any]:
    tasks = list(dict.fromkeys(row['task'] for row in seen.episodes))
    rate = Rate.of(bool(row['success']) for row in seen.episodes).to_dict()
    return {
        'success': rate['rate'], 'n': rate['n'], **rate,
        'tasks': {
            task: Rate.of(bool(r['success']) for r in seen.episodes if r['task'] == task).to_dict()
            for task in tasks
        },
        'seeds': sorted({row['seed'] for row in seen.episodes}),
        'episodes': [
            {k: row[k] for k in ('task', 'seed', 'success', 'step')} for row in seen.episodes],
        'latency': latency_summary(seen.latency),
        'thoughts': seen.thoughts, 'commands': seen.commands,
        'seconds': round(seconds, 1),
        'policy': {'path': str(policy), 'files': dict(manifest.files)},
        'versions': results.versions(),
    }


def _print_end(screen: Screen, result: dict[str, Any], out: Path, more: Sequence[str]) -> None:
    rate = Rate(result['successes'], result['n'])
    screen.console.print(
        f'[bold]{rate}[/bold] in {result["seconds"]:.0f} s; {result["commands"]} commands and '
        f'{result["thoughts"]} thoughts over topics', highlight=False)
    for name in ('demo.mp4', 'demo.png', 'demo.json', *more):
        screen.console.print(f'  {out / name}', highlight=False)
