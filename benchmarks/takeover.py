"""Jumps of the commanded velocity where a person takes over and hands back, in real time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool

from benchmarks.common import Graph, load_average, own_graph, progress, show
from dtvla_ros.cli import main
from dtvla_ros.cli.arguments import NANO, Json, Policy, group
from dtvla_ros.conventions import GATE_STATE, HUMAN_TWIST, PERSON, POLICY
from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared
from dtvla_ros.ros import qos
from dtvla_ros.ros.conversions import status_values
from dtvla_ros.ros.run import STEADY

CONFIG = Path('config/sim_realtime.yaml')
TARGET = 1.2  # largest jump of a handover over the median jump inside chunks
SPEED = 0.1  # of the person, to the left and to the right in turn [m/s]
RATE = 20.0  # of their twists [Hz]
DRIVEN, LEFT_ALONE = 1.5, 3.0  # time for which person and policy drive [s]
app = group()


class Driver(Node):
    """A person at a teleoperation node, who keeps the gate's state and account."""

    def __init__(self) -> None:
        super().__init__('takeover', parameter_overrides=[Parameter('use_sim_time', value=True)])
        self.speed = 0.0  # to the left [m/s]
        self.gate, self.account = '', dict[str, str]()
        self._twist = self.create_publisher(TwistStamped, HUMAN_TWIST, qos.LATEST)
        self._takeover = self.create_client(SetBool, 'takeover')
        self.create_subscription(DiagnosticStatus, GATE_STATE, self._on_gate, qos.LATCHED)
        self.create_timer(1.0 / RATE, self._drive, clock=STEADY)

    def order(self, on: bool) -> Any:
        """Take over, or hand back."""
        return self._takeover.call_async(SetBool.Request(data=on))

    def _on_gate(self, message: DiagnosticStatus) -> None:
        self.gate, self.account = message.message, status_values(message)

    def _drive(self) -> None:
        message = TwistStamped()
        message.header.stamp = self.get_clock().now().to_msg()
        message.twist.linear.y = self.speed
        self._twist.publish(message)


def _hand_over(graph: Graph, on: bool) -> None:
    """Order it; raise UserError if the gate refuses."""
    driver: Driver = graph.node
    answer = driver.order(on)
    graph.spin_until(answer.done, 'the answer of takeover')
    if not answer.result().success:
        raise UserError(f'takeover refused: {answer.result().message}')
    graph.spin_until(lambda: driver.account.get('driver') == (PERSON if on else POLICY),
                     'the other driver')


def _measure(policy: Path, rounds: int) -> dict[str, Any]:
    settings = ('--params-file', str(find_shared(CONFIG)))
    with own_graph(Driver) as graph:
        driver: Driver = graph.node
        graph.start('vla_node', *settings, '-p', f'policy:={policy}')
        graph.start('command_gate', *settings)
        graph.start('sim_bridge', *settings, '-p', 'episodes:=1000')
        graph.spin_until(lambda: 'inside_jump' in driver.account, 'a chunk that takes over from '
                         'another', 120.0)
        for k in progress(range(rounds), desc='takeovers'):
            graph.spin_until(lambda: driver.gate == 'RUN', 'motion by the policy', 60.0)
            driver.speed = SPEED * (-1) ** k
            _hand_over(graph, on=True)
            graph.spin(DRIVEN)
            _hand_over(graph, on=False)
            graph.spin(LEFT_ALONE)
        jump, inside = (float(driver.account[key]) for key in ('handover_jump', 'inside_jump'))
    return {'takeovers': rounds, 'handover_jump': jump, 'inside_jump': inside,
            'ratio': round(jump / inside, 2), 'met': jump <= TARGET * inside}


@app.command()
def takeover(
    policy: Policy = NANO,
    rounds: Annotated[int, typer.Option(min=1, help='How often a person takes over and hands '
        'back, in motion.')] = 10,
    json_file: Json = None,
) -> None:
    """Measure the largest jump of the commanded velocity where the driver changes.

    The simulated arm runs on the wall clock. A person takes over while the policy moves the arm,
    drives sideways, and hands back while it moves. No jump of a handover should be more than 1.2
    times the median jump inside the policy's chunks.

    **Example**

    `python -m benchmarks.takeover --rounds 20`
    """
    row, load = _measure(find_shared(policy), rounds), load_average()
    show(('takeovers', 'largest jump of a handover [m/s]', 'median inside chunks [m/s]', 'ratio'),
         [(row['takeovers'], f'{row["handover_jump"]:.4f}', f'{row["inside_jump"]:.4f}',
           f'{row["ratio"]:.2f} {"met" if row["met"] else "missed"}')],
         f'change of commanded velocity between commands; load average {load}',
         json_file, {'target_ratio': TARGET, 'load_average': load, **row})


if __name__ == '__main__':
    main(app)
