"""A rig per module, and the table that ``make faults`` writes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.beside import fresh_domain
from support.graph import ROOT, policy  # noqa: F401

from dtvla_ros.files import write_between
from dtvla_ros.policy.manifest import MANIFEST, PROOF
from test.faults.rig import PRIORITY, Rig, T

BEGIN = '<!-- fault table, written by make faults -->'
SHOWN = '<!-- rows of the fault table, written by make faults -->'
END = '<!-- end of fault table -->'
# What is injected, what must happen and within which time: the page's table holds the tests to it.
HEAD, RULE, *LINES = re.findall(
    r'^\|.*\|$', (ROOT / 'docs/faults.md').read_text().split(BEGIN)[1].split(END)[0], re.MULTILINE)
ROWS = {int(cells[0]): cells[1:4] for cells in (
    [cell.strip() for cell in line.strip('|').split('|')] for line in LINES)}
BOUNDS = {'T': T, '1 chunk': 0.5, 'deadline + T': T, '0.15 s + T': 0.15 + T}  # beside 'n ms' [s]
# In a process of its own: in ours the delay would be the interpreter's lock.
DELAYS = """
import json, sys
from benchmarks.common import scheduling_delay
with scheduling_delay() as delays:
    sys.stdin.read()
print(json.dumps(delays))
"""
_measured: dict[int, list[float | str]] = defaultdict(list)
_machine: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--fault-table', metavar='FILE',
                     help='write the fault table with measured times into this file')
    parser.addoption('--flood-seconds', type=float, default=8, help='length of the image flood')


@pytest.fixture(scope='session')
def strict(request: pytest.FixtureRequest) -> bool:
    """Whether measured times are held against their bounds: by ``make faults`` only."""
    return request.config.getoption('--fault-table', default=None) is not None


@pytest.fixture(scope='session', autouse=True)
def machine(strict: bool) -> Iterator[None]:
    """Measure meanwhile how late the machine itself is, where times are."""
    if not strict:
        yield
        return
    process = subprocess.Popen([sys.executable, '-c', DELAYS], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield
    late = json.loads(process.communicate()[0])
    # Asked of a process that ends: this one's priority would be inherited by all nodes.
    code = f'import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param({PRIORITY}))'
    allowed = subprocess.run([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    usual = f'nice {os.nice(0)}' if os.nice(0) else 'the ordinary one'
    of_all = (f'{usual} of all' if allowed.returncode else
              f'{PRIORITY} (real-time) of the gate, {usual} of all else')
    _machine.append(f'A thread that sleeps 1 ms woke late by p50 {late["p50"]:.2f}, p99 '
                    f'{late["p99"]:.2f} ms while this was measured; priority: {of_all}.')


def never_done(original: Path, copy: Path) -> Path:
    """Copy a policy that then never says that it is done, which noise may look like."""
    shutil.copytree(original, copy)
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest['files'][PROOF]  # of thoughts, some of which say it
    (copy / MANIFEST).write_text(json.dumps(manifest | {'done_margin': 1000.0}))
    return copy


@pytest.fixture(scope='module')
def rig(tmp_path_factory: Any, policy: Any, strict: bool) -> Iterator[Rig]:  # noqa: F811
    """Policy and gate, running; a test breaks something and `Rig.ready` heals it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_DOMAIN_ID', fresh_domain())
        folder = tmp_path_factory.mktemp('rig')
        made = Rig(folder, (never_done(policy[0], folder / 'policy'), policy[1]), strict)
        yield made
        made.close()


@pytest.fixture
def moving(running: Rig) -> Rig:
    """The arm of a module's ``running`` rig in motion, nothing spoiled."""
    return running.ready()


@pytest.fixture
def check(strict: bool) -> Callable[..., None]:
    """Return a function that keeps what a row's reaction took; if `strict`, within its bound."""
    def hold(number: int, measured: float | None = None, said: str = '') -> None:
        limit = ROWS[number][2]
        if measured is not None and strict:
            found = re.match(r'\d+(?= ms)', limit)
            bound = int(found[0]) / 1e3 if found else BOUNDS[limit]
            assert measured <= bound, f'row {number}: {1e3 * measured:.0f} ms, at most {limit}'
        _measured[number].append(said if measured is None else measured)
    return hold


def _cell(results: list[float | str]) -> str:
    """Return a table's cell: the worst of the times, then what was said."""
    times = [r for r in results if isinstance(r, float)]
    words = list(dict.fromkeys(r for r in results if isinstance(r, str) and r))
    worst = 1e3 * max(times, default=0.0)
    return '; '.join(([f'{worst:.{0 if worst >= 10 else 1}f} ms'] if times else []) + words)


def update_readme(rows: list[str], readme: Path = ROOT / 'README.md') -> None:
    """Write those rows of the table anew that the README shows, too."""
    _, _, rest = readme.read_text().partition(SHOWN)
    shown = re.findall(r'^\| \d+ \|', rest.partition(END)[0], re.MULTILINE)
    chosen = [row for row in rows if row.startswith(tuple(shown))]
    write_between(readme, SHOWN, END, '\n'.join([HEAD, RULE, *chosen]))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    path = config.getoption('--fault-table', default=None)
    if not _measured or path is None:
        return
    rows = [f'| {" | ".join((str(n), *ROWS[n], _cell(results)))} |'
            for n, results in sorted(_measured.items())]
    table = '\n'.join([HEAD, RULE, *rows, '', *_machine])
    terminalreporter.write_line(table)
    missing = sorted(ROWS.keys() - _measured.keys())
    if missing:
        terminalreporter.write_line(f'rows not tested or failed, {path} unchanged: {missing}')
    else:
        write_between(Path(path), BEGIN, END, table)
        update_readme(rows)
