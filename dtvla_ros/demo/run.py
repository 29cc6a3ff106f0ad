"""``dtvla demo``: simulator, policy and command gate as three processes, watched over topics."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from std_msgs.msg import String

import dtvla_sim
from dtvla_ros.actions.contract import require_offsets
from dtvla_ros.caption import Caption
from dtvla_ros.conventions import ACTION, INSTRUCTION
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import results
from dtvla_ros.evaluation.results import Rate, evaluation_seed, latency_summary
from dtvla_ros.files import find_shared, write_json
from dtvla_ros.policy.completion import after_success
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.rollout.env import require_square
from dtvla_ros.ros import qos
from dtvla_ros.ros.environment import take_domain
from dtvla_ros.ros.estop import EStop
from dtvla_ros.ros.graph import Seen, Watcher, frame_interval, start_nodes, watch
from dtvla_ros.ros.processes import NodeProcesses
from dtvla_ros.ros.run import joined

from .display import SAID, Recorder, Screen, program
from .keyboard import STOP_KEYS, Keyboard
from .stopping import SceneHalt

CONFIG = 'config/sim.yaml'
VIEWER_TIMEOUT = 20.0  # longest wait for it [s]
UNATTENDED = 60.0  # longest stop where nobody can press a key [s]
SAY_EVERY = 20  # between two sentences [control steps]


class Show(Watcher):
    """Prints and films what it sees; the person stops and clears it.

    Simulated time stands still while the gate is in FAULT; then the episode begins anew.
    ``ended``: why nobody will go on, '' while somebody may. ``say``: what the policy is told in
    the last episode.
    """

    def __init__(self, screen: Screen, recorder: Recorder, say: Sequence[str] = ()) -> None:
        super().__init__(self._film, self._end)
        self._screen, self._recorder = screen, recorder
        self._estop, self._halt = EStop(self), SceneHalt(self)
        self.fault = self.ended = self._stopped = ''
        self._since = 0.0
        self._say, self._said, self._told = say, 0, ('', '')
        self._instruction = self.create_publisher(String, INSTRUCTION, qos.LATCHED)
        self._stops: list[str] = []  # of the running episode

    def on_key(self, key: str) -> None:
        """Take a key of the terminal, from any thread."""
        if key in STOP_KEYS:
            self._estop.press(STOP_KEYS[key])
        elif key == 'c':
            self._estop.clear()

    def tick(self, keyboard: bool) -> None:
        """Say what stopped or goes on; ``keyboard``: whether somebody can press a key."""
        before, self.fault = self.fault, self._estop.tick(self.seen)
        self._halt.tick(self.fault, self.seen)
        if self.fault and self.fault != before:
            self._since = time.monotonic()
            self._stops += [self.fault] if self.seen.episode else []
            self._recorder.stop(self.fault)
            clear = 'c' if keyboard else (
                f'ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]} {program()} stop --clear')
            self._screen.say(f'STOPPED: {self.fault}; clear with {clear}', 'bold red')
        elif before and not self.fault:
            self._screen.say('cleared: the episode begins anew', 'green')
        elif self.fault and not keyboard and time.monotonic() - self._since > UNATTENDED:
            self.ended = f'{self.fault}, not cleared within {UNATTENDED:.0f} s'
        if unsaid := self._estop.take_unsaid():
            self._screen.say(unsaid, 'red')
        if self._told != (told := (self.seen.told, self.seen.meaning)):
            self._told = told
            if self.seen.meaning:
                self._screen.say('you said: {} -> {}'.format(*told), 'bold')
        row = self.seen.episode
        if (self._said < len(self._say) and row.get('episode', 0) + 1 == row.get('episodes')
                and row['step'] >= SAY_EVERY * (self._said + 1)):
            self._instruction.publish(String(data=self._say[self._said]))
            self._said += 1
        stopped = '' if self.fault else self.seen.stopped_task
        if stopped and stopped != self._stopped:
            self._screen.say(f'stopped: {stopped}; it moves again in the next episode', 'red')
        self._stopped = stopped

    def rows(self) -> list[dict[str, Any]]:
        """Return the episodes; one that was stopped for good is among them."""
        rows, running = self.seen.episodes, self.seen.episode
        return rows if not (self.fault and running) else [
            *rows, {**running, 'reason': f'stopped: {self.fault}', 'stops': self._stops}]

    def _film(self, images: dict[str, Any], seen: Seen) -> None:
        footer = f'refused: {seen.refused}' if seen.refused else (
            f'episode {len(seen.episodes) + 1}   step {seen.episode.get("step", 0)}   '
            f'gate {seen.gate_state}')
        self._recorder.add(images, Caption(
            seen.told or seen.episode.get('instruction', ''), seen.thought, footer,
            stopped=self.fault or seen.stopped_task, meaning=seen.meaning))

    def _end(self, row: dict[str, Any]) -> None:
        if self._stops:
            row['stops'], self._stops = self._stops, []
        self._recorder.end_episode(row['task'], bool(row['success']), row.get('reason') or (
            SAID if 'said_done' in row else ''))
        self._screen.episode_ended(row, self.seen)


def run_demo(policy: Path, tasks: Sequence[str], episodes: int, seed: int | None, out: Path,
             mode: str = 'full', engine: str = 'onnx', suite: str = 'tabletop',
             viz: str = '', say: Sequence[str] = ()) -> dict[str, Any]:
    """Run the episodes, write ``demo.mp4``, ``demo.png`` and ``demo.json``; return the latter.

    In the last episode the policy is told ``say``, a sentence every `SAY_EVERY` control steps.
    Its ``ended`` says why not all episodes ran, '' if they did; Ctrl-C before the first has ended
    raises KeyboardInterrupt. ``viz``: ``'rerun'`` also writes
    ``demo.rrd``, from a process of its own. Raises UserError if a node refuses its input or
    ``viz`` is not known, NodeDied if a node dies or the simulation makes no step for
    `graph.SILENCE` seconds.
    """
    if viz not in ('', 'rerun'):
        raise UserError(f'--viz {viz}: choose rerun')
    seed, folder = evaluation_seed(seed), find_shared(policy)
    manifest = PolicyManifest.read(folder)
    require_offsets(manifest.action, str(policy), 'dtvla demo')
    dtvla_sim.require_offsets(suite, 'dtvla demo')
    require_square(manifest.images.sizes, str(policy), suite)
    camera_every = frame_interval(manifest.action.replan_steps)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {out}: {error.strerror}; choose another --out') from error
    take_domain()
    screen, started = Screen(), time.monotonic()
    show: Show | None = None
    recorder = Recorder(out / 'demo.mp4', out / 'demo.png', manifest.action.rate_hz / camera_every)
    screen.say(f'Watch along: ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]} {program()} watch; '
               'tasks, tell and stop talk to it', 'dim')
    try:
        with joined(lambda: Show(screen, recorder, say)) as (show, executor), \
                Keyboard(show.on_key) as keyboard, screen.live, \
                NodeProcesses(out / 'logs') as nodes:
            if keyboard.present:
                screen.say('SPACE stops the arm at once; c clears the stop', 'bold')
            if viz:
                nodes.start('view', 'dtvla_ros.cli', ['view', '--save', str(out / 'demo.rrd')])
                until = time.monotonic() + VIEWER_TIMEOUT
                # Let it join first, or it misses how the first episode begins.
                while show.count_subscribers(ACTION) < 2 and time.monotonic() < until:
                    executor.spin_once(timeout_sec=0.1)
                    nodes.require_running()
            start_nodes(nodes, CONFIG, {'policy': folder, 'engine': engine, 'mode': mode}, {
                'suite': suite, 'tasks': list(tasks), 'episodes': episodes, 'seed': seed,
                'camera_every': camera_every,
                'after_success': after_success(manifest, mode)})
            shown = time.monotonic()
            for _ in watch(executor, show, nodes):
                show.tick(keyboard.present)
                if show.ended:
                    break
                if time.monotonic() - shown > 0.05:
                    screen.update(show.seen, show.fault)
                    shown = time.monotonic()
    except KeyboardInterrupt:
        if show is None or not show.rows():
            raise KeyboardInterrupt('interrupted before an episode ended' + (
                f'; the film so far: {recorder.path}' if recorder.written else '')) from None
        show.ended = f'{show.fault}, then Ctrl-C' if show.fault else 'Ctrl-C'
    finally:
        recorder.close()
    result = {
        **_result(show.rows(), show.seen), 'ended': show.ended,
        'seconds': round(time.monotonic() - started, 1),
        'policy': {'path': str(policy), 'files': dict(manifest.files)},
        'versions': results.versions(), 'suite': suite, 'mode': mode, 'engine': engine}
    write_json(out / 'demo.json', result)
    if show.ended:
        screen.say(f'ended: {show.ended}; {len(show.seen.episodes)} of '
                   f'{show.seen.episode.get("episodes", 0)} episodes ran', 'bold red')
    screen.say(f'{result["successes"]} of {result["n"]} succeeded in {result["seconds"]:.0f} s; '
               f'{result["commands"]} commands and {result["thoughts"]} thoughts over topics')
    for end in (*(['mp4', 'png'] if recorder.written else []), 'json', *(['rrd'] if viz else [])):
        screen.say(f'  {out / f"demo.{end}"}')
    return result


def _result(rows: Sequence[dict[str, Any]], seen: Seen) -> dict[str, Any]:
    won: dict[str, list[bool]] = {}
    for row in rows:
        won.setdefault(row['task'], []).append(bool(row['success']))
    rate = Rate.of(itertools.chain(*won.values())).to_dict()
    return {
        'success': rate['rate'], **rate,
        'tasks': {task: Rate.of(outcomes).to_dict() for task, outcomes in won.items()},
        'seeds': sorted({row['seed'] for row in rows}),
        'episodes': [
            {k: row[k] for k in (
                'task', 'seed', 'success', 'step', 'said_done', 'too_early', 'reason', 'stops')
             if k in row} for row in rows],
        'latency': latency_summary(seen.latency),
        'thoughts': seen.thoughts, 'commands': seen.commands}
