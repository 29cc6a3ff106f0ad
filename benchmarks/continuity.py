"""Continuity of the commanded velocity at chunk boundaries, in real time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from std_msgs.msg import String

from benchmarks.common import load_average, own_graph, progress, show
from dtvla_ros.cli import main
from dtvla_ros.cli.arguments import NANO, Json, Policy, group
from dtvla_ros.conventions import EPISODE, GATE_STATE
from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared
from dtvla_ros.ros import qos
from dtvla_ros.ros.conversions import status_values

CONFIG = Path('config/sim_realtime.yaml')
ACCOUNT = ('seam_jump', 'inside_jump', 'seams', 'insides', 'backward_seams', 'backward_insides')
TARGET = 1.2  # median jump at a chunk boundary over median jump inside chunks
app = group()


class Watch(Node):
    """Keeps the gate's own account of chunk boundaries, and counts episodes."""

    def __init__(self) -> None:
        super().__init__('continuity')
        self.account: dict[str, float] = {}
        self.episodes: list[bool] = []
        self.create_subscription(DiagnosticStatus, GATE_STATE, self._on_gate, qos.LATCHED_100)
        self.create_subscription(String, EPISODE, self._on_episode, qos.LATCHED_100)

    def _on_gate(self, message: DiagnosticStatus) -> None:
        self.account = {key: float(value) for key, value in status_values(message).items()
                        if key in ACCOUNT}

    def _on_episode(self, message: String) -> None:
        if (row := json.loads(message.data))['done']:
            self.episodes.append(bool(row['success']))


def _measure(policy: Path, blend: int, seconds: float) -> dict[str, Any]:
    """Return the gate's account of ``seconds`` in real time, and the episodes won."""
    settings = ('--params-file', str(find_shared(CONFIG)))
    with own_graph(Watch) as graph:
        graph.start('vla_node', *settings, '-p', f'policy:={policy}')
        graph.start('command_gate', *settings, '-p', f'blend_steps:={blend}')
        graph.start('sim_bridge', *settings, '-p', 'episodes:=1000')
        for _ in progress(range(round(seconds)), unit='s', desc=f'blend {blend}'):
            graph.spin(1.0)
        account, episodes = graph.node.account, graph.node.episodes
    if not account:
        raise UserError(f'no chunk took over from another within {seconds:g} s: give --seconds '
                        'more')
    ratio = account['seam_jump'] / account['inside_jump']
    return {'blend_steps': blend, **account, 'ratio': round(ratio, 2), 'met': ratio <= TARGET,
            'episodes': len(episodes), 'successes': sum(episodes)}


@app.command()
def continuity(
    policy: Policy = NANO,
    blend: Annotated[list[int] | None, typer.Option(min=0, help="The gate's blend_steps; repeat "
        'for several. [default: 0 and 6]')] = None,
    seconds: Annotated[float, typer.Option(min=5.0, help='How long each is watched.')] = 60.0,
    json_file: Json = None,
) -> None:
    """Measure the jump of the commanded velocity where one chunk gives way to the next.

    The simulated arm runs on the wall clock and the policy thinks meanwhile, as on a robot. The
    jump at a boundary should be at most 1.2 times the median jump inside chunks.

    **Example**

    `python -m benchmarks.continuity --blend 0 --blend 4 --blend 6 --seconds 120`
    """
    rows = [_measure(find_shared(policy), steps, seconds) for steps in blend or (0, 6)]
    load = load_average()
    show(('rows blended', 'boundaries', 'at a boundary [m/s]', 'inside [m/s]', 'ratio',
          'backward at / inside', 'episodes won'), (
        (row['blend_steps'], f'{row["seams"]:.0f}', f'{row["seam_jump"]:.4f}',
         f'{row["inside_jump"]:.4f}', f'{row["ratio"]:.2f} {"met" if row["met"] else "missed"}',
         f'{row["backward_seams"] / row["seams"]:.1%} / '
         f'{row["backward_insides"] / row["insides"]:.1%}',
         f'{row["successes"]}/{row["episodes"]}') for row in rows),
        f'medians of the change of commanded velocity between commands; load average {load}',
        json_file, {'target_ratio': TARGET, 'load_average': load, 'rows': rows})


if __name__ == '__main__':
    main(app)
