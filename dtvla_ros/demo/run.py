"""``dtvla demo``: simulator, policy and command gate as three processes, watched over topics."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dtvla_ros import share
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import report
from dtvla_ros.evaluation.seeds import evaluation_seed
from dtvla_ros.evaluation.statistics import Rate, latency_summary
from dtvla_ros.evaluation.video import Caption
from dtvla_ros.files import write_json
from dtvla_ros.policy.manifest import PolicyManifest

from .processes import NodeDied, NodeProcesses
from .recorder import Recorder
from .screen import Screen

CONFIG = 'config/sim.yaml'
VIEWS = ('', 'rerun')
SILENCE = 90.0  # longest wait for the next step of the simulation [s]
VLA_REMAPS = ('image_primary', 'image_wrist', 'joint_states', 'ee_pose', 'instruction', 'estop',
              'gate_state')


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
        If a node dies, or the simulation makes no step for `SILENCE` seconds.

    """
    if viz not in VIEWS:
        raise UserError(f'--viz {viz}: choose from {", ".join(filter(None, VIEWS))}')
    seed = evaluation_seed(seed)
    folder = share.find(policy)
    manifest = PolicyManifest.read(folder)
    camera_every = frame_interval(manifest.action.replan_steps)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {out}: {error.strerror}; choose another --out') from error
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.SystemRandom().randint(1, 100)))

    from dtvla_ros.middleware import ros

    from .watcher import Watcher

    screen = Screen()
    recorder = Recorder(out / 'demo.mp4', out / 'demo.png', manifest.action.rate_hz / camera_every)

    def on_frame(pictures: dict[str, Any], seen: Any) -> None:
        row = seen.episode
        recorder.add(pictures, Caption(
            row.get('instruction', ''), seen.thought,
            f'episode {len(seen.episodes) + 1}   step {row.get("step", 0)}   '
            f'gate {seen.gate_state}'))

    def on_episode(row: dict[str, Any]) -> None:
        recorder.end_episode(row['task'], bool(row['success']))
        screen.episode_ended(row, watcher.seen)

    ros.init(args=[])
    watcher = Watcher(on_frame, on_episode)
    started = time.monotonic()
    screen.console.print(
        f'Watch along: ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]} dtvla topic echo '
        '/vla/reasoning', style='dim', highlight=False)
    try:
        with screen, NodeProcesses(out / 'logs') as nodes:
            if viz:
                nodes.start('view', 'dtvla_ros.cli', ['view', '--save', str(out / 'demo.rrd')])
            _start(nodes, folder, suite, tasks, episodes, seed, mode, engine, camera_every)
            _watch(ros, watcher, nodes, screen)
    except ros.ExternalShutdownException:  # SIGTERM ends like Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        watcher.destroy_node()
        ros.try_shutdown()
        recorder.close()
    result = _result(watcher.seen, manifest, policy, time.monotonic() - started)
    result |= {'suite': suite, 'mode': mode, 'engine': engine}
    write_json(out / 'demo.json', result)
    _print_end(screen, result, out, ['demo.rrd'] if viz else [])
    return result


def frame_interval(replan_steps: int) -> int:
    """Return control steps per frame: few enough for a film, and the policy's look among them."""
    return next(k for k in (3, 2, 4, 5, replan_steps) if replan_steps % k == 0)


def _start(
    nodes: NodeProcesses, folder: Path, suite: str, tasks: Sequence[str], episodes: int, seed: int,
    mode: str, engine: str, camera_every: int,
) -> None:
    config = ['--params-file', str(share.find(CONFIG))]
    quiet = {'OMP_NUM_THREADS': '1'}
    remaps = [word for name in VLA_REMAPS for word in ('-r', f'{name}:=/{name}')]
    nodes.start('vla_node', 'dtvla_ros.nodes.vla_node', [
        '--ros-args', '-r', '__ns:=/vla', *remaps, *config, '-p', f'policy:={folder}',
        '-p', f'engine:={engine}', '-p', f'mode:={mode}', '-p', 'lockstep:=true'], quiet)
    nodes.start('command_gate', 'dtvla_ros.nodes.command_gate', ['--ros-args', *config], quiet)
    nodes.start('sim_bridge', 'dtvla_ros.nodes.sim_bridge', [
        '--ros-args', *config, '-p', f'suite:={suite}', '-p', f'tasks:=[{", ".join(tasks)}]',
        '-p', f'episodes:={episodes}', '-p', f'seed:={seed}', '-p', 'lockstep:=true',
        '-p', f'camera_every:={camera_every}'], quiet)


def _watch(ros: Any, watcher: Any, nodes: NodeProcesses, screen: Screen) -> None:
    seen = watcher.seen
    progress: tuple[Any, ...] = ()
    moved = checked = shown = time.monotonic()
    while not seen.finished:
        ros.spin_once(watcher, timeout_sec=0.1)
        now = time.monotonic()
        if now - shown > 0.05:
            screen.update(seen)
            shown = now
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


def _result(seen: Any, manifest: PolicyManifest, policy: Path, seconds: float) -> dict[str, Any]:
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
        'versions': report.versions(),
    }


def _print_end(screen: Screen, result: dict[str, Any], out: Path, more: Sequence[str]) -> None:
    rate = Rate(result['successes'], result['n'])
    screen.console.print(
        f'[bold]{rate}[/bold] in {result["seconds"]:.0f} s; {result["commands"]} commands and '
        f'{result["thoughts"]} thoughts over topics', highlight=False)
    for name in ('demo.mp4', 'demo.png', 'demo.json', *more):
        screen.console.print(f'  {out / name}', highlight=False)
