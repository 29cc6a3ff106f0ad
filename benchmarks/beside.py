"""Latency and CPU time of this checkout beside another one, in turns, with ratios."""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.common import DELAY, load_average, progress, scheduling_delay, show
from dtvla_ros.cli import main
from dtvla_ros.cli.arguments import Json, group
from dtvla_ros.errors import UserError

HERE = Path(__file__).resolve().parents[1]
# What is compared, its percentile, and the ratio it may reach at most.
LIMITS = {
    ('640x480', 'p50'): 1.0, ('640x480', 'p99'): 1.15, ('chunk to command', 'p99'): 1.15,
    ('off its period at 20', 'p99'): 1.15, ('off its period at 100', 'p99'): 1.15,
    ('CPU seconds of the demo', ''): 1.10}
app = group()


def run(checkout: Path, *words: str) -> None:
    """Run a command of a checkout in a ROS domain of its own; raise if it fails."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(('PYTHON', 'VIRTUAL_ENV', '_ROS', 'LD_LIBRARY'))}
    environment |= {'ROS_DOMAIN_ID': str(random.SystemRandom().randint(1, 100)),
                    'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    done = subprocess.run([checkout / '.venv/bin' / words[0], *words[1:]], cwd=checkout,
                          capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f'{" ".join(words)} in {checkout}: {done.stderr[-2000:]}')


def latency(checkout: Path, priority: int, folder: Path) -> dict[tuple[str, str], float]:
    """Return milliseconds by what is measured and percentile."""
    command = (['python', '-m', 'benchmarks.latency']
               if (checkout / 'benchmarks/latency.py').exists() else ['dtvla', 'latency'])
    file = folder / 'latency.json'
    run(checkout, *command, '--json', str(file), '--priority', str(priority))
    rows = json.loads(file.read_text())['rows']
    return {(name, percentile): row[f'{percentile}_ms'] for name, percentile in LIMITS
            for row in rows if percentile and name in row['what']}


def demo(checkout: Path, folder: Path) -> tuple[float, list[str]]:
    """Return the CPU seconds of all processes of a demonstration, and what its episodes were."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(checkout, 'dtvla', 'demo', '--episodes', '2', '--out', str(folder / 'demo'))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads((folder / 'demo/demo.json').read_text())
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            [f'{e["task"]} {e["seed"]}: {e["success"]} after {e["step"]}'
             for e in result['episodes']])


@app.command()
def beside(
    other: Annotated[Path, typer.Argument(help='Checkout to compare with.', file_okay=False)],
    rounds: Annotated[int, typer.Option(min=1, help='Turns of each checkout.')] = 5,
    priority: Annotated[int, typer.Option(
        help='SCHED_FIFO priority of what the latency is measured of; 0: none.')] = 0,
    json_file: Json = None,
) -> None:
    """Compare this checkout's latency and CPU time with another one's.

    Both have a virtual environment in `.venv`. Every round runs `benchmarks.latency` and
    `dtvla demo --episodes 2` in one and then in the other, the next round in the other order. A
    ratio is that of the medians over the rounds.

    **Example**

    `git worktree add ../former REVISION && make -C ../former .venv/.installed-dev`

    `python -m benchmarks.beside ../former --rounds 5 --priority 20`
    """
    checkouts = {'new': HERE, 'former': other.resolve()}
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    episodes: dict[str, list[str]] = {}
    with scheduling_delay() as delays, tempfile.TemporaryDirectory() as folder:
        for number in progress(range(rounds), desc='rounds'):
            for side in sorted(checkouts, reverse=bool(number % 2)):
                for key, value in latency(checkouts[side], priority, Path(folder)).items():
                    values[key][side].append(value)
                seconds, episodes[side] = demo(checkouts[side], Path(folder))
                values['CPU seconds of the demo', ''][side].append(seconds)
    rows = []
    for key, limit in LIMITS.items():
        new, former = (statistics.median(values[key][side]) for side in checkouts)
        rows.append({'what': ' '.join(key).strip(), 'new': new, 'former': former,
                     'ratio': new / former, 'limit': limit, 'met': new / former <= limit,
                     'rounds': values[key]})
    same, load = episodes['new'] == episodes['former'], load_average()
    show(('median of the rounds [ms, s]', 'new', 'former', 'new ÷ former', 'at most'), (
        (row['what'], f'{row["new"]:.3f}', f'{row["former"]:.3f}',
         f'{row["ratio"]:.2f} {"met" if row["met"] else "missed"}', f'{row["limit"]:.2f}')
        for row in rows),
        f'{rounds} rounds, priority {priority}, {os.cpu_count()} cores, load average {load}; '
        f"{DELAY.format_map(delays)}; the demos' episodes are "
        f'{"the same" if same else "DIFFERENT"}', json_file, {
            'rows': rows, 'rounds': rounds, 'priority': priority, 'scheduling_ms': delays,
            'load_average': load, 'same_episodes': same})


if __name__ == '__main__':
    main(app)
