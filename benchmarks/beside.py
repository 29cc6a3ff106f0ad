"""Latency and CPU time of this checkout beside another one, in turns, with ratios.

    git worktree add ../former REVISION && make -C ../former .venv/.installed-dev
    python benchmarks/beside.py ../former --rounds 5 --priority 20

Both checkouts have a virtual environment of their own in ``.venv``. Every round runs
``dtvla latency`` and ``dtvla demo --episodes 2`` in one and then in the other, and the next round
in the other order. A ratio is that of the medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dtvla_ros.files import write_json
from dtvla_ros.measure.scheduling import SchedulingDelay

HERE = Path(__file__).resolve().parents[1]
# What is compared, its percentile, and the ratio it may reach at most.
LIMITS = {
    ('picture 640x480', 'p50'): 1.0, ('picture 640x480', 'p99'): 1.15,
    ('chunk to command', 'p99'): 1.15, ('off its period at 20', 'p99'): 1.15,
    ('off its period at 100', 'p99'): 1.15, ('CPU seconds of the demo', ''): 1.10}


def run(checkout: Path, *words: str) -> None:
    """Run ``dtvla`` of a checkout in a ROS domain of its own; raise if it fails."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(('PYTHON', 'VIRTUAL_ENV', '_ROS', 'LD_LIBRARY'))}
    done = subprocess.run(
        [checkout / '.venv/bin/dtvla', *words], cwd=checkout, capture_output=True, text=True,
        env={**environment, 'ROS_DOMAIN_ID': str(random.SystemRandom().randint(1, 100)),
             'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'})
    if done.returncode:
        sys.exit(f'error: dtvla {" ".join(words)} in {checkout}: {done.stderr[-2000:]}')


def latency(checkout: Path, priority: int, folder: Path) -> dict[tuple[str, str], float]:
    """Return milliseconds by what is measured and percentile."""
    file = folder / 'latency.json'
    run(checkout, 'latency', '--json', str(file), '--priority', str(priority))
    rows = json.loads(file.read_text())['rows']
    return {(name, percentile): row[f'{percentile}_ms'] for name, percentile in LIMITS
            for row in rows if percentile and name in row['what']}


def demo(checkout: Path, folder: Path) -> tuple[float, list[str]]:
    """Return the CPU seconds of all processes of a demonstration, and what its episodes were."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(checkout, 'demo', '--episodes', '2', '--out', str(folder / 'demo'))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads((folder / 'demo/demo.json').read_text())
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            [f'{e["task"]} {e["seed"]}: {e["success"]} after {e["step"]}'
             for e in result['episodes']])


def compare(other: Path, rounds: int, priority: int) -> dict[str, Any]:
    """Measure both checkouts in turns."""
    checkouts = {'new': HERE, 'former': other}
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    episodes: dict[str, list[str]] = {}
    with SchedulingDelay() as delays, tempfile.TemporaryDirectory() as folder:
        for number in tqdm(range(rounds), desc='rounds', disable=None):
            for side in sorted(checkouts, reverse=bool(number % 2)):
                for key, value in latency(checkouts[side], priority, Path(folder)).items():
                    values[key][side].append(value)
                seconds, episodes[side] = demo(checkouts[side], Path(folder))
                values['CPU seconds of the demo', ''][side].append(seconds)
    rows = []
    for (name, percentile), limit in LIMITS.items():
        new, former = (statistics.median(values[name, percentile][side])
                       for side in ('new', 'former'))
        rows.append({'what': f'{name} {percentile}'.strip(), 'new': new, 'former': former,
                     'ratio': new / former, 'limit': limit, 'met': new / former <= limit,
                     'rounds': {side: values[name, percentile][side] for side in checkouts}})
    return {'rows': rows, 'rounds': rounds, 'priority': priority,
            'scheduling_ms': delays.summary(), 'load_average': os.getloadavg()[0],
            'same_episodes': episodes['new'] == episodes['former']}


def main() -> None:
    """Run the comparison, print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('other', type=Path, help='checkout to compare with')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--priority', type=int, default=0,
                        help='SCHED_FIFO priority of what dtvla latency measures; 0: none')
    parser.add_argument('--json', type=Path, help='file for the result')
    options = parser.parse_args()
    result = compare(options.other.resolve(), options.rounds, options.priority)
    table = Table('median of the rounds [ms, s]', 'new', 'former', 'new ÷ former', 'at most')
    for row in result['rows']:
        table.add_row(row['what'], f'{row["new"]:.3f}', f'{row["former"]:.3f}',
                      f'{row["ratio"]:.2f} {"met" if row["met"] else "missed"}',
                      f'{row["limit"]:.2f}')
    console = Console()
    console.print(table)
    late = result['scheduling_ms']
    console.print(
        f'{result["rounds"]} rounds, priority {result["priority"]}, {os.cpu_count()} cores, load '
        f'average {result["load_average"]:.2f}; a thread that sleeps 1 ms woke late by p50 '
        f'{late["p50"]:.2f}, p99 {late["p99"]:.2f} ms; the demos\' episodes are '
        f'{"the same" if result["same_episodes"] else "DIFFERENT"}')
    if options.json is not None:
        write_json(options.json, result)


if __name__ == '__main__':
    main()
