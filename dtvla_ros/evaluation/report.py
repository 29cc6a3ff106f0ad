"""Writes a result as one HTML file that needs no script, no other file and no network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from dtvla_ros.report import write_page

_RESULTS = ('tasks', 'total', 'latency', 'episodes', 'versions', 'decisions', 'cut_thoughts',
            'refused')
MISHEARD = ('refused', 'another task')  # what became of wordings that were not understood


def write_html(path: Path, title: str, summary: Mapping[str, Any], stills: Path | None,
               films: Path | None = None) -> None:
    """Write the report; ``stills`` (``<task>-<seed>.jpg``) become part of it, ``films`` links."""
    refuse = summary.get('refuse')
    write_page(
        path, 'evaluation.html', title=title, success=[*summary['tasks'].items(), (
            'all', summary['total'] | {'mean_steps_of_successes': None})],
        latency_rows=[
            [phase, *(f'{row[k]:.1f}' for k in ('p50_ms', 'p95_ms', 'p99_ms')), row['n']]
            for phase, row in summary['latency'].items()],
        failures=[_failure(episode, stills, films, path.parent)
                  for episode in summary['episodes'] if not episode['success']],
        refuse=[*refuse['groups'].items(), ('all', refuse['total'])] if refuse else (),
        said=[*_said(summary)] if refuse else (),
        misheard=MISHEARD if refuse else (),
        done=summary.get('done'), settings=list(_flat({
            k: v for k, v in summary.items() if k not in (*_RESULTS, 'refuse', 'done')})),
        **{key: summary[key] for key in (*_RESULTS, 'seeds') if key not in ('tasks', 'latency')})


class RateTable(NamedTuple):
    """Rates as ``Rate.to_dict`` gives them, each with its names, one for every column."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[tuple[Sequence[str], Mapping[str, Any]]]


def write_rates(path: Path | None, title: str, sentence: str, tables: Sequence[RateTable],
                settings: Mapping[str, Any], texts: Sequence[tuple[str, str]] = ()) -> None:
    """Write a page of rates, if a path is given; ``texts``: headings and what stands there.

    ``sentence`` says the result. ``settings``: how it was measured, and the ``versions``.
    """
    if path is not None:
        write_page(path, 'rates.html', title=title, sentence=sentence, tables=tables, texts=texts,
                   settings=list(_flat({k: v for k, v in settings.items() if k != 'versions'})),
                   versions=settings['versions'])


def _failure(episode: Mapping[str, Any], stills: Path | None, films: Path | None,
             beside: Path) -> dict[str, Any]:
    """Return what is shown of a failed episode; None for a file that is not there."""
    name = f'{episode["task"]}-{episode["seed"]}'
    still, film = (
        folder / f'{name}.{end}' if folder and (folder / f'{name}.{end}').exists() else None
        for folder, end in ((stills, 'jpg'), (films, 'mp4')))
    return {'name': name, 'still': still, 'film': film and quote(os.path.relpath(film, beside)),
            'caption': f'{episode["task"].replace("_", " ")}, seed {episode["seed"]}, '
                       f'{episode["steps"]} steps' + (
                           f': "{episode["said"]}", {episode["outcome"]}'
                           if 'said' in episode else '')}


def _said(summary: Mapping[str, Any]) -> Iterable[tuple[str, str, str, str]]:
    """Yield what was said: what it should be, the sentence, what it was taken for, the outcome."""
    for row in summary['episodes']:
        yield (row['task'].replace('_', ' '), row['said'], row['understood'] or row['refused'],
               row['outcome'])
    for row in summary['refuse']['sentences']:
        group = '' if row['group'] == 'refuse' else f': {row["group"]}'
        yield (f'refuse{group}', row['said'], row['understood'] or row['refused'],
               'taken' if row['understood'] else 'refused')


def _flat(values: Mapping[str, Any], before: str = '') -> Iterable[tuple[str, str]]:
    """Yield the settings as names and texts, nested ones with their path."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f'{before}{key}: ')
        else:
            several = value if isinstance(value, (list, tuple)) else [value]
            text = ', '.join({True: 'yes', False: 'no'}[v] if isinstance(v, bool) else str(v)
                             for v in several)
            yield f'{before}{key}', text or '-'
