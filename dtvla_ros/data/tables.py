"""What the dataset commands find, as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from dtvla_ros.data import layout
from dtvla_ros.data.report import Report
from dtvla_ros.data.sanity import Note
from dtvla_ros.data.validate import Finding

_COLOURS = {'ok': 'green', 'hint': 'yellow', 'warning': 'red'}
SHOWN = 8  # names in a list before the rest is counted


def table(title: str, *columns: str, header: bool = True) -> Table:
    """Return an empty table; columns that begin with ``>`` are numbers."""
    made = Table(title=title, title_justify='left', show_header=header, title_style='bold')
    for column in columns:
        made.add_column(column.lstrip('>'), overflow='fold',
                        justify='right' if column.startswith('>') else 'left')
    return made


def facts(title: str, rows: Iterable[tuple[str, Any]]) -> Table:
    """Return a table of two columns without those that have no value."""
    made = table(title, '', '', header=False)
    for name, value in rows:
        if value not in (None, '', {}, []):
            made.add_row(name, escape(str(value)))
    return made


def some(values: Sequence[Any]) -> str:
    """Return a list's first values and how many more there are."""
    rest = len(values) - SHOWN
    return ', '.join(map(str, values[:SHOWN])) + (f' and {rest} more' if rest > 0 else '')


def show_inspection(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what ``inspect_dataset`` found."""
    length = found['episode_length']
    parts: list[Any] = [facts('', [
        ('path', found['path']), ('version', f'LeRobot {found["version"]}'),
        ('robot', found['robot']), ('frames a second', found['fps']),
        ('episodes', found['episodes']),
        ('frames', f'{found["frames"]} ({found["seconds"] / 60:.1f} minutes)'),
        ('frames an episode', f'{length["shortest"]} to {length["longest"]}, median '
                              f'{length["median"]:g}'),
        ('size', ', '.join(f'{name} {decimal(size)}' for name, size in found['bytes'].items())),
    ])]
    tasks = table('Tasks', 'instruction', '>episodes')
    for task, count in found['tasks'].items():
        tasks.add_row(escape(task), str(count))
    parts.append(tasks)
    cameras = table('Cameras', 'feature', 'policy camera', '>size', 'stored as')
    for key, camera in found['cameras'].items():
        how = ' '.join(str(camera[name]) for name in ('stored_as', 'codec', 'pix_fmt')
                       if camera[name])
        cameras.add_row(key, camera['policy_camera'] or '-',
                        'x'.join(map(str, camera['shape'])), how)
    parts.append(cameras)
    features = table('Features', 'feature', 'type', '>shape', 'channels')
    for name, feature in found['features'].items():
        features.add_row(name, feature['dtype'], 'x'.join(map(str, feature['shape'])),
                         escape(some(layout.flat_names(feature['names']))))
    parts.append(features)
    parts.append(facts('Facts kept with episodes', (
        (name, ', '.join(f'{key} {count}' for key, count in values.items()))
        for name, values in found['facts'].items())))
    parts.append(_thoughts(found))
    (console or Console()).print(Group(*parts))


def _thoughts(found: Mapping[str, Any]) -> Table:
    thoughts = found['thoughts']
    if thoughts is None:
        return facts('Thoughts', [('', 'none: the dataset has no feature reasoning')])
    length = thoughts['length']
    example = thoughts['longest']
    if len(example) > 400:
        example = f'{example[:400]} ...'
    return facts('Thoughts', [
        ('stored as', thoughts['stored_as']), ('frames with one', f'{thoughts["share"]:.1%}'),
        ('different', thoughts['different']),
        (thoughts['unit'], f'{length["shortest"]:g} to {length["longest"]:g}, median '
                           f'{length["median"]:g}, 99 % up to {length["p99"]:g}'),
        ('longest', example),
        ('phases', ', '.join(f'{name} {count}' for name, count in found['phases'].items()))])


def show_findings(dataset: Path, findings: Sequence[Finding], console: Console | None = None,
                  ) -> None:
    """Print what ``validate`` found, one finding after the other."""
    console = console or Console()
    for finding in findings:
        console.print(f'[red]{escape(finding.file)}[/red]\n  {escape(finding.problem)}\n'
                      f'  [green]{escape(finding.remedy)}[/green]', highlight=False,
                      soft_wrap=True)
    console.print(f'{escape(str(dataset))}: {len(findings) or "no"} '
                  f'finding{"" if len(findings) == 1 else "s"}', highlight=False)


def show_report(report: Report, console: Console | None = None) -> None:
    """Print statistics of state and action, then what every check says."""
    parts: list[Any] = []
    for name in (layout.STATE, layout.ACTION):
        stats = report.stats[name]
        kinds = ('min', 'q01', 'mean', 'std', 'q99', 'max')
        made = table(name, 'channel', *(f'>{kind}' for kind in kinds))
        for k, channel in enumerate(report.channels[name]):
            made.add_row(escape(channel), *(f'{stats[kind][k]:.4f}' for kind in kinds))
        parts.append(made)
    checks = table('Checks', 'check', '', 'what was found')
    for note in report.notes:
        checks.add_row(note.check, f'[{_COLOURS[note.level]}]{note.level}[/]', _told(note))
    parts.append(checks)
    (console or Console()).print(Group(*parts))


def _told(note: Note) -> str:
    sure = f' ({note.certainty})' if note.level != 'ok' or note.certainty != 'certain' else ''
    where = ''.join(f'\n  {escape(place)}' for place in note.where)
    return escape(note.text) + sure + where
