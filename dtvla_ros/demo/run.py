"""``dtvla demo``: simulator, policy and command gate as three processes, watched over topics."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
VIEWER_TIMEOUT = 20.0  # longest wait for it [s]


def run_demo(policy: Path, tasks: Sequence[str], episodes: int, seed: int | None, out: Path,
             mode: str = 'full', engine: str = 'onnx', suite: str = 'tabletop',
             viz: str = '') -> dict[str, Any]:
    """Run the episodes, write ``demo.mp4``, ``demo.png`` and ``demo.json``; return the latter.

    ``viz``: ``'rerun'`` also writes ``demo.rrd``, from a process of its own. Raises UserError if
    a node refuses its input or ``viz`` is not known, NodeDied if a node dies or the simulation
    makes no step for `graph.SILENCE` seconds.
    """
    if viz not in ('', 'rerun'):
        raise UserError(f'--viz {viz}: choose rerun')
    seed, folder = evaluation_seed(seed), find_shared(policy)
    manifest = PolicyManifest.read(folder)
    camera_every = frame_interval(manifest.action.replan_steps)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {out}: {error.strerror}; choose another --out') from error
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.SystemRandom().randint(1, 100)))
    screen, started = Screen(), time.monotonic()
    recorder = Recorder(out / 'demo.mp4', out / 'demo.png', manifest.action.rate_hz / camera_every)

    def on_frame(images: dict[str, Any], seen: Seen) -> None:
        recorder.add(images, Caption(
            seen.episode.get('instruction', ''), seen.thought,
            f'episode {len(seen.episodes) + 1}   step {seen.episode.get("step", 0)}   '
            f'gate {seen.gate_state}'))

    def on_episode(row: dict[str, Any]) -> None:
        recorder.end_episode(row['task'], bool(row['success']))
        screen.episode_ended(row, watcher.seen)

    screen.console.print(
        f'Watch along: ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]} dtvla topic echo '
        '/vla/reasoning', style='dim', highlight=False)
    try:
        with joined(lambda: Watcher(on_frame, on_episode)) as (watcher, executor), screen.live, \
                NodeProcesses(out / 'logs') as nodes:
            if viz:
                nodes.start('view', 'dtvla_ros.cli', ['view', '--save', str(out / 'demo.rrd')])
                until = time.monotonic() + VIEWER_TIMEOUT
                # Let it join first, or it misses how the first episode begins.
                while watcher.count_subscribers(ACTION) < 2 and time.monotonic() < until:
                    executor.spin_once(timeout_sec=0.1)
                    nodes.require_running()
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
    result = {
        **_result(watcher.seen), 'seconds': round(time.monotonic() - started, 1),
        'policy': {'path': str(policy), 'files': dict(manifest.files)},
        'versions': results.versions(), 'suite': suite, 'mode': mode, 'engine': engine}
    write_json(out / 'demo.json', result)
    screen.console.print(
        f'[bold]{Rate(result["successes"], result["n"])}[/bold] in {result["seconds"]:.0f} s; '
        f'{result["commands"]} commands and {result["thoughts"]} thoughts over topics',
        highlight=False)
    for end in ('mp4', 'png', 'json', *(['rrd'] if viz else [])):
        screen.console.print(f'  {out / f"demo.{end}"}', highlight=False)
    return result


def _result(seen: Seen) -> dict[str, Any]:
    won: dict[str, list[bool]] = {}
    for row in seen.episodes:
        won.setdefault(row['task'], []).append(bool(row['success']))
    rate = Rate.of(itertools.chain(*won.values())).to_dict()
    return {
        'success': rate['rate'], **rate,
        'tasks': {task: Rate.of(outcomes).to_dict() for task, outcomes in won.items()},
        'seeds': sorted({row['seed'] for row in seen.episodes}),
        'episodes': [
            {k: row[k] for k in ('task', 'seed', 'success', 'step')} for row in seen.episodes],
        'latency': latency_summary(seen.latency),
        'thoughts': seen.thoughts, 'commands': seen.commands}
