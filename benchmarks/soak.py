"""Policy and gate under two cameras for a long time: late commands, stops and memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import typer
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import Trigger

from benchmarks.common import load_average, own_graph, progress, show
from dtvla_ros.cli import main
from dtvla_ros.cli.arguments import NANO, Json, Policy, group
from dtvla_ros.conventions import GATE_STATE, INSTRUCTION, TWIST, VLA_STATE
from dtvla_ros.files import find_shared
from dtvla_ros.ros import qos
from dtvla_ros.ros.conversions import seconds as seconds_of
from dtvla_ros.ros.conversions import status_values
from dtvla_ros.ros.processes import resident_memory
from dtvla_ros.ros.run import STEADY

TASK = 'put the lemon in the blue bin'
PERIOD = 0.05  # s, of the commands
LATE = 0.05  # s beyond the period: a missed deadline
GROWTH = 5.0  # MB after the warm-up
TIMEOUT = 60.0  # s until the arm must move
NODES = ('vla_node', 'command_gate')
app = group()


class Watch(Node):
    """Keeps the arm in motion and notes when commands were made."""

    def __init__(self) -> None:
        super().__init__('soak')
        self.stamps: list[float] = []
        self.gate, self.policy = '', ''
        self.stops: list[str] = []
        self._instruction = self.create_publisher(String, INSTRUCTION, qos.LATCHED)
        self._start = self.create_client(Trigger, '/start')
        self.create_subscription(TwistStamped, TWIST, lambda message: self.stamps.append(
            seconds_of(message.header.stamp)), 50)
        self.create_subscription(DiagnosticStatus, GATE_STATE, self._on_gate, qos.LATCHED)
        self.create_subscription(DiagnosticStatus, VLA_STATE, lambda message: setattr(
            self, 'policy', message.message), qos.LATCHED)
        self.create_timer(0.5, self._keep_moving, clock=STEADY)

    def _on_gate(self, message: DiagnosticStatus) -> None:
        if message.message == 'STOP' and self.gate in ('RUN', 'HOLD'):
            self.stops.append(status_values(message).get('reason', ''))
        self.gate = message.message

    def _keep_moving(self) -> None:
        if self.policy in ('IDLE', 'STOPPED'):
            self._instruction.publish(String(data=TASK))
        elif self.gate == 'STOP' and self.policy in ('ACTING', 'THINKING'):
            self._start.call_async(Trigger.Request())


def judge(stamps: list[float], stops: list[str], memory: Mapping[str, list[float]]
          ) -> dict[str, Any]:
    """Return late commands, stops and growth of memory [MB], and whether all are allowed."""
    beyond = np.diff(stamps) - PERIOD
    late = int((beyond > LATE).sum())
    tenth = max(1, len(next(iter(memory.values()))) // 10)
    growth = {name: round(statistics.median(values[-tenth:]) - statistics.median(values[:tenth]),
                          2) for name, values in memory.items()}
    return {
        'commands': len(stamps), 'missed_deadlines': late,
        'latest_ms': round(1e3 * float(beyond.max()), 1), 'stops': stops,
        'memory_mb': {name: round(values[-1], 1) for name, values in memory.items()},
        'growth_mb': growth, 'load_average': load_average(),
        'passed': not late and not stops and max(growth.values()) < GROWTH}


@app.command()
def soak(
    policy: Policy = NANO,
    minutes: Annotated[float, typer.Option(min=0.1, help='How long.')] = 10.0,
    warm_up: Annotated[float, typer.Option(
        min=0.0, help='Seconds before anything counts.')] = 60.0,
    json_file: Json = None,
) -> None:
    """Keep a kinematic arm moving under two 640x480 cameras at 30 Hz, and watch the nodes.

    The real policy and command gate run at 20 Hz as on a robot. Exit code 1 if a command came
    more than 50 ms late, the gate stopped, or a process grew by 5 MB after the warm-up.

    **Examples**

    `python -m benchmarks.soak`

    `python -m benchmarks.soak --minutes 1 --warm-up 20 --json out/soak.json`
    """
    memory: dict[str, list[float]] = {name: [] for name in NODES}
    with own_graph(Watch) as graph:
        watch = graph.node
        graph.processes.start('arm', 'benchmarks.arm', ['--ros-args'])
        graph.start('vla_node', '-p', 'autostart:=true', '-p',
                    f'policy:={find_shared(policy)}')
        graph.start('command_gate', '-p', 'preset:=servo', '-p', 'blend_steps:=4', '-p',
                    'priority:=20')
        graph.spin_until(lambda: watch.gate == 'RUN', 'motion of the arm', TIMEOUT)
        graph.spin(warm_up)
        watch.stamps.clear()
        watch.stops.clear()
        for _ in progress(range(round(60 * minutes)), unit='s', desc='soak'):
            graph.spin(1.0)
            for name in NODES:
                memory[name].append(resident_memory(graph.processes.pid(name)))
    result = {'minutes': minutes, **judge(watch.stamps, watch.stops, memory)}
    show(('soak', 'measured', 'allowed'), [
        ('commands', result['commands'], ''),
        (f'later than {1e3 * LATE:.0f} ms', result['missed_deadlines'], 0),
        ('latest command [ms]', result['latest_ms'], f'{1e3 * LATE:.0f}'),
        ('stops', '; '.join(result['stops']) or 'none', 'none'),
        *((f'growth of {name} [MB]', f'{growth:+.2f}', f'{GROWTH:g}')
          for name, growth in result['growth_mb'].items())],
        f'{minutes:g} minutes, two cameras 640x480 at 30 Hz, load average '
        f'{result["load_average"]}: {"passed" if result["passed"] else "FAILED"}',
        json_file, result)
    if not result['passed']:
        raise typer.Exit(1)


if __name__ == '__main__':
    main(app)
