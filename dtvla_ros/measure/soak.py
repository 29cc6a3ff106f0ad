"""``dtvla soak``: policy and gate under two cameras for a long time; late commands and memory."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from rich.console import Console
from rich.table import Table
from std_msgs.msg import String
from std_srvs.srv import Trigger
from tqdm import tqdm

from dtvla_ros import share
from dtvla_ros.conventions import GATE_STATE, INSTRUCTION, TWIST, VLA_STATE
from dtvla_ros.errors import UserError
from dtvla_ros.files import write_json
from dtvla_ros.measure.domain import use_own_domain
from dtvla_ros.ros import qos
from dtvla_ros.ros.graph import VLA_NAMES
from dtvla_ros.ros.processes import NodeProcesses, resident_memory
from dtvla_ros.ros.run import STEADY, joined

TASK = 'put the lemon in the blue bin'
PERIOD = 0.05  # s, of the commands
LATE = 0.05  # s beyond the period: a missed deadline
GROWTH = 5.0  # MB after the warm-up
PATIENCE = 60.0  # s until the arm must move
NODES = ('vla_node', 'command_gate')


class Watch(Node):
    """Keeps the arm in motion and notes when commands were made."""

    def __init__(self) -> None:
        super().__init__('soak')
        self.stamps: list[float] = []
        self.gate, self.policy = '', ''
        self.stops: list[str] = []
        self._instruction = self.create_publisher(String, INSTRUCTION, qos.LATCHED)
        self._start = self.create_client(Trigger, '/start')
        self.create_subscription(TwistStamped, TWIST, self._on_command, 50)
        self.create_subscription(DiagnosticStatus, GATE_STATE, self._on_gate, qos.LATCHED)
        self.create_subscription(DiagnosticStatus, VLA_STATE, self._on_policy, qos.LATCHED)
        self.create_timer(0.5, self._push, clock=STEADY)

    def _on_command(self, message: TwistStamped) -> None:
        self.stamps.append(message.header.stamp.sec + message.header.stamp.nanosec * 1e-9)

    def _on_gate(self, message: DiagnosticStatus) -> None:
        reason = next((p.value for p in message.values if p.key == 'reason'), '')
        if message.message == 'STOP' and self.gate in ('RUN', 'HOLD'):
            self.stops.append(reason)
        self.gate = message.message

    def _on_policy(self, message: DiagnosticStatus) -> None:
        self.policy = message.message

    def _push(self) -> None:
        if self.policy in ('IDLE', 'STOPPED'):
            self._instruction.publish(String(data=TASK))
        elif self.gate == 'STOP' and self.policy in ('ACTING', 'THINKING'):
            self._start.call_async(Trigger.Request())


def _start(processes: NodeProcesses, policy: Path) -> None:
    processes.start('robot', 'dtvla_ros.measure.robot', ['--ros-args'])
    processes.start('vla_node', 'dtvla_ros.nodes.vla_node', [
        '--ros-args', *VLA_NAMES, '-p', f'policy:={policy}',
        '-p', 'autostart:=true'])
    processes.start('command_gate', 'dtvla_ros.nodes.command_gate', [
        '--ros-args', '-p', 'preset:=servo', '-p', 'blend_steps:=4', '-p', 'priority:=20'])


def run_soak(policy: Path, minutes: float, warm_up: float, json_file: Path | None
             ) -> dict[str, Any]:
    """Run for some minutes after ``warm_up`` seconds; print, write and return the result.

    Raises
    ------
    UserError
        If the arm does not move within a minute.
    NodeDied
        If a process ends.

    """
    folder = share.find(policy)
    use_own_domain()
    memory: dict[str, list[float]] = {name: [] for name in NODES}
    with tempfile.TemporaryDirectory() as logs, joined(Watch) as (watch, executor), \
            NodeProcesses(Path(logs)) as processes:
        def spin(seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                executor.spin_once(timeout_sec=0.1)
            processes.require_running()
        _start(processes, folder)
        begun = time.monotonic()
        while watch.gate != 'RUN':
            spin(0.2)
            if time.monotonic() - begun > PATIENCE:
                raise UserError(f'the arm did not move within {PATIENCE:g} s: gate '
                                f'{watch.gate}, policy {watch.policy}')
        spin(warm_up)
        watch.stamps.clear()
        watch.stops.clear()
        for _ in tqdm(range(round(60 * minutes)), unit='s', desc='soak',
                      disable=None):
            spin(1.0)
            for name in NODES:
                memory[name].append(resident_memory(processes.pid(name)))
    result = _judge(watch, memory, minutes)
    _show(result)
    if json_file is not None:
        write_json(json_file, result)
    return result


def _judge(watch: Watch, memory: Mapping[str, list[float]], minutes: float) -> dict[str, Any]:
    gaps = [later - earlier for earlier, later in zip(watch.stamps, watch.stamps[1:])]
    late = [gap - PERIOD for gap in gaps if gap - PERIOD > LATE]
    share_of = max(1, len(next(iter(memory.values()))) // 10)
    growth = {name: statistics.median(values[-share_of:]) - statistics.median(values[:share_of])
              for name, values in memory.items()}
    return {
        'minutes': minutes, 'commands': len(watch.stamps), 'missed_deadlines': len(late),
        'latest_ms': round(1e3 * (max(gaps) - PERIOD), 1), 'stops': watch.stops,
        'memory_mb': {name: round(values[-1], 1) for name, values in memory.items()},
        'growth_mb': {name: round(value, 2) for name, value in growth.items()},
        'load_average': round(os.getloadavg()[0], 2),
        'passed': not late and not watch.stops and max(growth.values()) < GROWTH}


def _show(result: Mapping[str, Any]) -> None:
    table = Table('soak', 'measured', 'allowed')
    table.add_row('commands', str(result['commands']), '')
    table.add_row(f'later than {1e3 * LATE:.0f} ms', str(result['missed_deadlines']), '0')
    table.add_row('latest command [ms]', str(result['latest_ms']), f'{1e3 * LATE:.0f}')
    table.add_row('stops', '; '.join(result['stops']) or 'none', 'none')
    for name, growth in result['growth_mb'].items():
        table.add_row(f'growth of {name} [MB]', f'{growth:+.2f}', f'{GROWTH:g}')
    console = Console()
    console.print(table)
    console.print(f'{result["minutes"]:g} minutes, two cameras 640x480 at 30 Hz, load average '
                  f'{result["load_average"]}: {"passed" if result["passed"] else "FAILED"}')
