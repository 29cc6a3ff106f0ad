"""``dtvla run``: the processes of a launch file, without launch; their lines on one terminal."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.text import Text

from dtvla_ros.errors import NodeDied, UserError
from dtvla_ros.ros import bringup
from dtvla_ros.ros.environment import DISCOVERY, prepare
from dtvla_ros.ros.params_file import ParameterFile
from dtvla_ros.ros.processes import NodeProcesses

PERIOD = 0.1  # between two looks at processes and their lines [s]
RECORD_TIMEOUT = 20.0  # longest wait for a bag to be finished [s]
LOG_LINE = re.compile(r'\[(?P<level>[A-Z]+)\] \[[\d.]+\] \[[^]]*\]: (?P<text>.*)')  # rcl's
STYLES = {'WARN': 'yellow', 'ERROR': 'red', 'FATAL': 'bold red'}
COLORS = ('cyan', 'magenta', 'green', 'blue')


def plan(file: ParameterFile, given: Mapping[str, str]) -> dict[str, bringup.NodeProcess]:
    """Return the nodes of a configuration by name, as the launch files start them.

    ``given``: arguments of `bringup` as text; the file's own, below `bringup.SECTION`, count where
    none is given. A simulator is among the nodes where the file names it; an arm's controller has
    the usual topic of the preset. Raises UserError where file and arguments do not fit each other.
    """
    given, simulated = dict(given), bool(file.named('sim_bridge'))
    wrong = set(bringup.COMMAND if simulated else bringup.SIMULATION)
    for name in sorted(wrong & given.keys()):
        raise UserError(f'--{name.replace("_", "-")} is for {"an" if simulated else "a simulated"}'
                        f' arm; {file.path} {"has" if simulated else "starts no"} sim_bridge')
    given = bringup.told_by(file) | given
    policies = file.named('vla_node')
    given.setdefault('namespace', (policies[0] if policies else '/vla/').split('/')[1])
    policy = f'/{given["namespace"]}/vla_node'
    for node in (policy, '/command_gate'):
        if not file.of(node):
            named = [pattern for pattern, _ in file.sections if pattern != bringup.SECTION]
            raise UserError(f'{file.path}: no parameters for {node}, only for '
                            f'{", ".join(named)}; rename a '
                            'section, or choose another file')
    if not simulated and (usual := bringup.COMMAND_TOPICS.get(
            str(file.of('/command_gate').get('preset')))):
        given.setdefault('command_topic', usual)
    given.setdefault('params_file', str(file.path.resolve()))
    given.setdefault('transport', str(file.of(policy).get('transport', 'raw')))
    return bringup.node_processes(given, simulated)


def run_graph(file: ParameterFile, given: Mapping[str, str], console: Console) -> None:
    """Start the processes and print their lines until KeyboardInterrupt, or all episodes ran.

    Raises UserError where a node refuses its input, NodeDied where one ends that should not;
    logs are kept then.
    """
    nodes = plan(file, given)
    viewers = bringup.viewer_commands(given, nodes, str(file.path.resolve()))
    prepare()
    logs = Path(tempfile.mkdtemp(prefix='dtvla-run-'))
    processes = NodeProcesses(logs)
    lines = Lines(console, [*viewers, *nodes], processes)
    console.print(f'{file.path}: {", ".join([*nodes, *viewers])}; ROS_DOMAIN_ID '
                  f'{os.environ.get("ROS_DOMAIN_ID", "0")}, discovery '
                  f'{os.environ.get(DISCOVERY) or "as set"}; Ctrl-C stops them', style='bold')
    console.print(f'in another terminal: {_next(file, nodes)}', style='dim')
    try:
        for name, words in viewers.items():  # first: a bag should hold how it begins
            processes.start(name, 'dtvla_ros.cli', words)
        for name, node in nodes.items():
            # A node refuses a file without a section for it; some need none.
            known = str(file.path.resolve()) if file.of(node.full_name) else ''
            processes.start(name, f'dtvla_ros.nodes.{name}', node.ros_arguments(known))
        _follow(processes, lines, {*viewers, *bringup.OPTIONAL}, console)
        console.print('all episodes ran', style='bold')
    except KeyboardInterrupt:
        console.print('stopping: policy and gate first (Ctrl-C again: at once)', style='bold')
    finally:
        try:
            recording = [*viewers, 'record_server']
            processes.stop([name for name in nodes if name not in recording])
            processes.stop(recording, RECORD_TIMEOUT)
        finally:
            processes.stop(timeout=0.0)
            lines.show()
    shutil.rmtree(logs, ignore_errors=True)


def _next(file: ParameterFile, nodes: Collection[str]) -> str:
    """Return what a person does beside it."""
    if 'sim_bridge' in nodes:
        return 'dtvla watch'
    started = file.of('/command_gate').get('auto_start')
    return ('dtvla doctor says what is missing; dtvla tell TASK'
            + ('' if started else '; nothing moves before dtvla topic call /start'))


def _follow(processes: NodeProcesses, lines: Lines, optional: set[str], console: Console) -> None:
    """Print lines until the simulator ends well."""
    over: set[str] = set()
    while True:
        time.sleep(PERIOD)
        lines.show()
        for name, code, how in processes.ended():
            if name == 'sim_bridge' and code == 0:
                return
            if name not in optional:
                lines.show()
                raise (UserError if code == 2 else NodeDied)(
                    f'{name} ended with {how} ({processes.log(name)})')
            if name not in over:
                over.add(name)
                console.print(f'{name} ended with {how}; the rest goes on', style='yellow')


class Lines:
    """What processes print, as it comes, each line behind its process' name."""

    def __init__(self, console: Console, names: list[str], processes: NodeProcesses) -> None:
        self._console, self._processes = console, processes
        self._width = max(map(len, names))
        self._styles = {name: COLORS[k % len(COLORS)] for k, name in enumerate(names)}
        self._files: dict[str, IO[str]] = {}
        self._begun = dict.fromkeys(names, '')  # of a line that is not complete

    def show(self) -> None:
        """Print the lines that have been completed since."""
        for name in self._begun:
            with suppress(FileNotFoundError):
                file = self._files.get(name) or self._processes.log(name).open(errors='replace')
                self._files[name] = file
                *whole, self._begun[name] = (self._begun[name] + file.read()).split('\n')
                for line in whole:
                    self._print(name, line.rpartition('\r')[2])

    def _print(self, name: str, line: str) -> None:
        told = LOG_LINE.fullmatch(line)
        level = told['level'] if told else ''
        text = Text(f'{name:{self._width}} ', self._styles[name])
        if level in STYLES:
            text.append(f'{level} ', STYLES[level])
        self._console.print(text.append(told['text'] if told else line, 'default'),
                            soft_wrap=True)
