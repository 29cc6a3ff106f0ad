"""A result as one HTML file that needs nothing else: no script, no other file, no network."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from dtvla_ros.files import write_text

_PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1e23; background: #fff }
table { border-collapse: collapse; margin: 0 0 1.5rem }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #dde1e6 }
th { white-space: nowrap }
th:first-child, td:first-child, .facts td { text-align: left }
.facts td + td { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere }
tr.total td { font-weight: 600; border-top: 2px solid #1b1e23 }
.bar { position: relative; width: 12rem; height: .8rem; background: #eef0f3 }
.bar i { position: absolute; top: .25rem; height: .3rem; background: #7c93b5 }
.bar b { position: absolute; top: 0; width: 3px; height: .8rem; background: #16407a }
figure { margin: 0 0 1.2rem } figure img { width: 100% } figcaption { color: #545b66 }
</style></head><body>
<h1>$title</h1>
<p>$summary</p>
<h2>Success</h2>
$success
<h2>Latency of a decision</h2>
$latency
<h2>Failures</h2>
$failures
<h2>How it was measured</h2>
$settings
<h2>Versions</h2>
$versions
</body></html>
""")
_RESULTS = ('tasks', 'total', 'latency', 'episodes', 'versions', 'decisions', 'cut_thoughts',
            'refused')


def write_html(
    path: Path, title: str, summary: Mapping[str, Any], stills: Path | None,
    films: Path | None = None,
) -> None:
    """Write the report of ``dtvla eval``.

    ``stills`` holds ``<task>-<seed>.jpg`` of failures, which become part of the page, ``films``
    the same as ``.mp4``, which it links to.
    """
    total = summary['total']
    low, high = total['wilson95']
    write_text(path, _PAGE.substitute(
        title=escape(title),
        summary=escape(
            f'{total["successes"]} of {total["n"]} episodes succeeded: {total["rate"]:.1%}, '
            f'95 % Wilson interval {low:.1%} to {high:.1%}. Seeds {summary["seeds"][0]} to '
            f'{summary["seeds"][1]} of every task.' + _mishaps(summary)),
        success=_success(summary),
        latency=_table(
            ('phase', 'median [ms]', 'p95 [ms]', 'p99 [ms]', 'n'),
            ([phase, *(f'{row[k]:.1f}' for k in ('p50_ms', 'p95_ms', 'p99_ms')), str(row['n'])]
             for phase, row in summary['latency'].items())),
        failures=_failures(summary['episodes'], stills, films, path.parent),
        settings=_facts(_flat({k: v for k, v in summary.items() if k not in _RESULTS})),
        versions=_facts(summary['versions'].items())))


def _success(summary: Mapping[str, Any]) -> str:
    rows = []
    for name, row in [*summary['tasks'].items(), ('all', summary['total'])]:
        low, high = (100 * edge for edge in row['wilson95'])
        steps = row.get('mean_steps_of_successes')
        bar = (f'<div class="bar"><i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
               f'<b style="left:{100 * row["rate"]:.1f}%"></b></div>')
        cells = (escape(name.replace('_', ' ')), f'{row["successes"]}/{row["n"]}',
                 f'{row["rate"]:.0%}', f'{low:.0f} - {high:.0f} %', bar,
                 f'{steps:.0f}' if steps else '')
        rows.append(f'<tr{" class=total" if name == "all" else ""}>'
                    + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>')
    head = ('task', 'successes', 'rate', 'Wilson 95 %', '', 'steps of a success')
    return _wrap(head, rows)


def _mishaps(summary: Mapping[str, Any]) -> str:
    text = ''
    if summary['refused']:
        text += f' {summary["refused"]} failed because the policy refused the sentence.'
    if summary['cut_thoughts']:
        text += (f' {summary["cut_thoughts"]} of {summary["decisions"]} thoughts were cut at the '
                 'longest length.')
    return text


def _failures(
    episodes: Sequence[Mapping[str, Any]], stills: Path | None, films: Path | None, beside: Path,
) -> str:
    failed = [e for e in episodes if not e['success']]
    if not failed:
        return '<p>None.</p>'
    figures = []
    for episode in failed:
        name = f'{episode["task"]}-{episode["seed"]}'
        caption = escape(f'{episode["task"].replace("_", " ")}, seed {episode["seed"]}, '
                         f'{episode["steps"]} steps')
        still = stills / f'{name}.jpg' if stills else None
        picture = ''
        if still is not None and still.exists():
            data = base64.b64encode(still.read_bytes()).decode()
            picture = f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{data}">'
            caption += '; the last look and the thought it led to'
        film = films / f'{name}.mp4' if films else None
        if film is not None and film.exists():
            link = quote(os.path.relpath(film, beside))
            caption += f'; <a href="{escape(link)}">film</a>'
        figures.append(f'<figure>{picture}<figcaption>{caption}</figcaption></figure>')
    return '\n'.join(figures)


def _flat(values: Mapping[str, Any], before: str = '') -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f'{before}{key}: ')
        else:
            several = value if isinstance(value, (list, tuple)) else [value]
            text = ', '.join({True: 'yes', False: 'no'}[v] if isinstance(v, bool) else str(v)
                             for v in several)
            yield f'{before}{key}', text or '-'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _wrap(head, [_row(row) for row in rows])


def _facts(rows: Iterable[Sequence[str]]) -> str:
    return '<table class="facts">' + '\n'.join(map(_row, rows)) + '</table>'


def _row(cells: Sequence[str]) -> str:
    return '<tr>' + ''.join(f'<td>{escape(cell)}</td>' for cell in cells) + '</tr>'


def _wrap(head: Sequence[str], rows: Sequence[str]) -> str:
    if not rows:
        return '<p>None.</p>'
    top = ''.join(f'<th>{escape(cell)}</th>' for cell in head)
    return f'<table><tr>{top}</tr>\n' + '\n'.join(rows) + '\n</table>'
