"""``dtvla seam``: whether the arm feels where one chunk of actions gives way to the next."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from rich.console import Console
from rich.table import Table
from std_msgs.msg import String
from tqdm import tqdm

from dtvla_ros import share
from dtvla_ros.conventions import EPISODE, GATE_STATE
from dtvla_ros.errors import UserError
from dtvla_ros.files import write_json
from dtvla_ros.measure.domain import use_own_domain
from dtvla_ros.ros import qos
from dtvla_ros.ros.graph import VLA_NAMES
from dtvla_ros.ros.processes import NodeProcesses
from dtvla_ros.ros.run import joined

CONFIG = 'config/sim_realtime.yaml'
ACCOUNT = ('seam_jump', 'inside_jump', 'seams', 'insides', 'backward_seams', 'backward_insides')
TARGET = 1.2  # median jump at a seam over median jump inside chunks
SUITE_EPISODES = 1000  # more than there is time for


class Watch(Node):
    """Keeps the gate's own account of its seams, and counts episodes."""

    def __init__(self) -> None:
        super().__init__('seam')
        self.account: dict[str, float] = {}
        self.episodes: list[bool] = []
        self.create_subscription(DiagnosticStatus, GATE_STATE, self._on_gate, qos.LATCHED_10)
        self.create_subscription(String, EPISODE, self._on_episode, qos.LATCHED_10)

    def _on_gate(self, message: DiagnosticStatus) -> None:
        self.account = {pair.key: float(pair.value) for pair in message.values
                        if pair.key in ACCOUNT}

    def _on_episode(self, message: String) -> None:
        row = json.loads(message.data)
        if row['done']:
            self.episodes.append(bool(row['success']))


def _measure(policy: Path, blend: int, seconds: float) -> Watch:
    use_own_domain()
    params = ['--ros-args', '--params-file', str(share.find(Path(CONFIG)))]
    with tempfile.TemporaryDirectory() as logs, joined(Watch) as (watch, executor), \
            NodeProcesses(Path(logs)) as nodes:
        nodes.start('vla_node', 'dtvla_ros.nodes.vla_node', [
            *params, *VLA_NAMES, '-p', f'policy:={policy}'])
        nodes.start('command_gate', 'dtvla_ros.nodes.command_gate', [
            *params, '-p', f'blend_steps:={blend}'])
        nodes.start('sim_bridge', 'dtvla_ros.nodes.sim_bridge', [
            *params, '-p', f'episodes:={SUITE_EPISODES}'])
        begun = time.monotonic()
        with tqdm(total=round(seconds), unit='s', desc=f'blend {blend}', leave=False,
                  disable=None) as bar:
            while time.monotonic() - begun < seconds:
                executor.spin_once(timeout_sec=0.1)
                bar.update(int(time.monotonic() - begun) - bar.n)
            nodes.require_running()
    if not watch.account:
        raise UserError(f'no chunk took over from another within {seconds:g} s: give --seconds '
                        'more')
    return watch


def run_seam(policy: Path, blends: Sequence[int], seconds: float, json_file: Path | None
             ) -> dict[str, Any]:
    """Drive the simulated arm in real time with each ``blend_steps``; return what was seen."""
    folder = share.find(policy)
    rows = []
    for blend in blends:
        watch = _measure(folder, blend, seconds)
        account = watch.account
        ratio = account['seam_jump'] / account['inside_jump']
        rows.append({
            'blend_steps': blend, **account, 'ratio': round(ratio, 2), 'met': ratio <= TARGET,
            'episodes': len(watch.episodes), 'successes': sum(watch.episodes)})
    result = {'target_ratio': TARGET, 'load_average': round(os.getloadavg()[0], 2), 'rows': rows}
    _show(result)
    if json_file is not None:
        write_json(json_file, result)
    return result


def _show(result: dict[str, Any]) -> None:
    table = Table('rows faded', title='median change of commanded velocity between commands')
    for name in ('seams', 'at a seam [m/s]', 'inside [m/s]', 'ratio', 'backward at / inside',
                 'episodes won'):
        table.add_column(name, justify='right')
    for row in result['rows']:
        table.add_row(
            str(row['blend_steps']), f'{row["seams"]:.0f}', f'{row["seam_jump"]:.4f}',
            f'{row["inside_jump"]:.4f}',
            f'{row["ratio"]:.2f} {"met" if row["met"] else "missed"}',
            f'{row["backward_seams"] / row["seams"]:.1%} / '
            f'{row["backward_insides"] / row["insides"]:.1%}',
            f'{row["successes"]}/{row["episodes"]}')
    Console().print(table)
