"""``dtvla data inspect`` and ``stats``: what a dataset is, its statistics, and their tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.data import layout, metadata
from dtvla_ros.data.checks import Numbers, check_images, check_numbers, sample_images, spread
from dtvla_ros.data.reader import DatasetReader, open_dataset, unpadded
from dtvla_ros.data.writer import image_statistics, vector_statistics
from dtvla_ros.files import write_json
from dtvla_ros.issues import OK, Issue

NOT_DATA = ('.frames', '.shards')  # what can be made again, and hard links to what is there
PUBLISHED = ('mean', 'std', 'q01', 'q99', 'min', 'max')
IMAGES = 200  # of a camera that make its statistics
SHOWN = 8  # names in a list before the rest is counted
EXAMPLE = 400  # letters of the longest thought
FORMER_IMAGE = 'picture of'  # as JSON files have always called the check of a camera's images
_COLOURS = {'ok': 'green', 'hint': 'yellow', 'warning': 'red'}


def inspect_dataset(root: Path, tokenizer: Path | None = None) -> dict[str, Any]:
    """Return what a dataset says about itself, JSON-ready. Raises ``UserError``.

    Thoughts kept as ids are decoded where a ``tokenizer`` is given; else their lengths are told.
    """
    reader = open_dataset(root)
    info = reader.info
    lengths = np.array(reader.lengths or [0])
    said = Counter(task for row in reader.episodes for task in row['tasks'])
    return {
        'path': str(root), 'version': info['codebase_version'],
        'robot': info.get('robot_type'), 'fps': info['fps'],
        'episodes': len(reader.episodes), 'frames': int(lengths.sum()),
        'seconds': round(float(lengths.sum()) / info['fps'], 1),
        'episode_length': {'shortest': int(lengths.min()), 'median': float(np.median(lengths)),
                           'longest': int(lengths.max())},
        'tasks': {task: said[task] for task in dict.fromkeys([*reader.tasks, *said])},
        'features': {name: {'dtype': feature['dtype'], 'shape': list(feature['shape']),
                            'names': feature.get('names')}
                     for name, feature in info['features'].items()
                     if feature['dtype'] not in metadata.IMAGES},
        'cameras': {key: _camera(key, info['features'][key]) for key in reader.camera_keys} | {
            key: {'left_out': why} for key, why in reader.left_out.items()},
        layout.METADATA: _metadata(reader), 'thoughts': _thoughts(reader, tokenizer),
        'phases': dict(Counter(reader.column(layout.PHASE)).most_common()
                       ) if layout.PHASE in info['features'] else {},
        'bytes': _bytes(root)}


def _camera(key: str, feature: Mapping[str, Any]) -> dict[str, Any]:
    video = next((told for told in (feature.get('info'), feature.get('video_info'))
                  if isinstance(told, Mapping)), {})
    return {'policy_camera': layout.CAMERAS.get(key), 'stored_as': feature['dtype'],
            'shape': list(feature['shape']),
            **{name: video.get(f'video.{name}') for name in ('codec', 'pix_fmt', 'fps')}}


def _metadata(reader: DatasetReader) -> dict[str, Any]:
    """Return, for each scalar kept with episodes, its values counted, or its range."""
    rows = [reader.metadata(number) for number in range(len(reader.episodes))]
    told: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        counts = Counter(map(json.dumps, values))
        if len(counts) <= SHOWN:
            told[name] = {key.strip('"'): count for key, count in counts.most_common()}
        elif all(isinstance(value, (int, float)) for value in values):
            told[name] = {'lowest': min(values), 'highest': max(values)}
        else:
            told[name] = {'different': len(counts)}
    return told


def _thoughts(reader: DatasetReader, tokenizer: Path | None) -> dict[str, Any] | None:
    if layout.REASONING not in reader.info['features']:
        return None
    ids = reader.thoughts_are_ids
    undecoded = ids and tokenizer is None
    texts = reader.thoughts(tokenizer) if not undecoded else [
        ' '.join(map(str, row)) for row in unpadded(
            reader.rows(layout.REASONING).astype(np.int64))]
    lengths = [len(text.split()) for text in texts]
    there = np.array([length for length in lengths if length] or [0])
    quantiles = {'shortest': 0.0, 'median': 0.5, 'p99': 0.99, 'longest': 1.0}
    return {
        'stored_as': 'token ids' if ids else 'text', 'unit': 'token ids' if undecoded else 'words',
        'share': np.count_nonzero(lengths) / max(len(texts), 1), 'different': len(set(texts)),
        'length': {name: float(np.quantile(there, share)) for name, share in quantiles.items()},
        'longest': max(texts, key=lambda text: len(text.split()), default='')}


def _bytes(root: Path) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for path in root.rglob('*'):
        parts = path.relative_to(root).parts
        if path.is_file() and parts[0] not in NOT_DATA:
            sizes[parts[0] if len(parts) > 1 else 'other'] += path.stat().st_size
    return dict(sizes.most_common())


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics and ``channels``' names by feature as in ``meta/stats.json``; what checks say.

    ``action``: those by which a policy normalises, None where an action is not finite.
    """

    path: Path
    stats: dict[str, Any]
    channels: dict[str, Sequence[str]]
    issues: list[Issue]
    action: ActionStatistics | None

    @property
    def norm_stats(self) -> dict[str, Any]:
        """Statistics as a policy reads them: of ``state`` and ``action``."""
        made = {name: {kind: self.stats[feature][kind] for kind in PUBLISHED}
                for name, feature in (('state', layout.STATE), ('action', layout.ACTION))}
        return made if self.action is None else {**made, 'action': {
            **made['action'], **self.action.to_dict()}}

    def to_dict(self) -> dict[str, Any]:
        return {'path': str(self.path), 'norm_stats': self.norm_stats, 'checks': [
            {'check': issue.check.replace('image of', FORMER_IMAGE), 'level': issue.level,
             'text': issue.problem, 'certainty': issue.certainty, 'where': issue.where}
            for issue in self.issues]}

    def write(self, folder: Path) -> None:
        """Write ``stats.json`` and ``norm_stats.json`` into a folder. Raises ``UserError``."""
        write_json(folder / Path(layout.STATS).name, self.stats)
        write_json(folder / Path(layout.NORM_STATS).name, self.norm_stats)


def dataset_statistics(root: Path, episodes: int = 24, whole: bool = True) -> Statistics:
    """Compute statistics and checks, the images from some ``episodes`` (0: none).

    ``whole``: statistics of every feature, not only of state and action. Raises ``UserError``
    when the dataset cannot be read or has no state or action.
    """
    reader = open_dataset(root)
    numbers = Numbers.of(reader)
    if whole:
        reader.require_finite(layout.STATE, layout.ACTION)
    features = [name for name, feature in reader.info['features'].items()
                if feature['dtype'] not in ('video', 'image', 'string', 'bool')]
    stats = {name: vector_statistics(np.asarray(reader.column(name)))
             for name in (features if whole else (layout.STATE, layout.ACTION))}
    issues = [*_outcomes(reader), *check_numbers(numbers)]
    finite = np.isfinite(numbers.state).all() and np.isfinite(numbers.action).all()
    if episodes and reader.camera_keys and finite:
        issues += check_images(sample_images(reader, numbers, episodes))
    if whole:
        stats |= {key: image_statistics(_images(reader, key)) for key in reader.camera_keys}
    channels: dict[str, Sequence[str]] = {}
    for name in (layout.STATE, layout.ACTION):
        named, numbered = reader.channels(name), list(map(str, range(len(stats[name]['min']))))
        channels[name] = named if len(named) == len(numbered) else numbered
    return Statistics(root, stats, channels, issues,
                      ActionStatistics.of(numbers.action) if finite else None)


def _outcomes(reader: DatasetReader) -> Iterator[Issue]:
    """Say how many episodes succeeded, where any of them tells."""
    told = Counter(reader.success(k) for k in range(len(reader.episodes)))
    if told[True] or told[False]:
        silent = f'; {told[None]} do not tell' if told[None] else ''
        yield Issue(f'{told[True]} episodes succeeded, {told[False]} failed{silent}',
                    check='success', level=OK, certainty='certain')


def _images(reader: DatasetReader, key: str) -> np.ndarray:
    """Return images [N, H, W, 3] from all over the dataset: one of each of some episodes."""
    rng = np.random.default_rng(0)
    return np.stack([reader.image(k, int(rng.integers(reader.lengths[k])), key)
                     for k in spread(range(len(reader.episodes)), IMAGES)])


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    made = Table(*columns, title=title, title_justify='left', show_header=any(columns),
                 title_style='bold')
    for column in made.columns:
        column.overflow = 'fold'
    made.columns[0].no_wrap = len(columns) > 2  # a feature's name stays whole
    for row in rows:
        made.add_row(*(escape(_text(cell)) for cell in row))
    return made


def _text(value: Any) -> str:
    """Return a value of a result as text: counts in a line, of a list only the first values."""
    if isinstance(value, Mapping):
        return ', '.join(f'{name} {_text(count)}' for name, count in value.items()
                         if count is not None)
    if isinstance(value, (list, tuple)):
        rest, comma = len(value) - SHOWN, 'x' if all(isinstance(v, int) for v in value) else ', '
        return comma.join(map(_text, value[:SHOWN])) + (f' and {rest} more' if rest > 0 else '')
    text = '-' if value is None else f'{value:g}' if isinstance(value, float) else str(value)
    return text if len(text) <= EXAMPLE else f'{text[:EXAMPLE]} ...'


def show_inspection(found: Mapping[str, Any]) -> None:
    """Print what ``inspect_dataset`` found: a table of each part, and one of the rest."""
    parts = {name: found[name] for name in ('tasks', 'cameras', 'features', layout.METADATA,
                                            'thoughts')}
    tables = [_table(f'LeRobot {found["version"]}', ('', ''), [
        (name.replace('_', ' '), value) for name, value in found.items() if name not in parts])]
    parts['kept with episodes'] = parts.pop(layout.METADATA)
    for name, part in parts.items():
        if name == 'features':
            tables.append(_table(name, ('feature', 'type', 'shape', 'channels'), [
                (key, *row.values()) for key, row in part.items()]))
        else:
            tables.append(_table(name, ('', ''), (part or {'': 'none'}).items()))
    Console().print(*tables)


def show_issues(dataset: Path, issues: Sequence[Issue]) -> None:
    """Print what ``validate`` found, one after the other."""
    console = Console(highlight=False, soft_wrap=True)
    for issue in issues:
        console.print(f'[red]{escape(issue.file)}[/red]\n  {escape(issue.problem)}\n'
                      f'  [green]{escape(issue.remedy)}[/green]')
    console.print(f'{escape(str(dataset))}: {len(issues) or "no"} '
                  f'finding{"" if len(issues) == 1 else "s"}')


def show_statistics(found: Statistics) -> None:
    """Print statistics of state and action, then what every check says."""
    kinds = ('min', 'q01', 'mean', 'std', 'q99', 'max')
    checks = _table('Checks', ('check', '', 'what was found'), ())
    for issue in found.issues:
        sure = '' if (issue.level, issue.certainty) == ('ok', 'certain') else (
            f' ({issue.certainty})')
        checks.add_row(issue.check, f'[{_COLOURS[issue.level]}]{issue.level}[/]',
                       escape('\n  '.join([f'{issue.problem}{sure}', *issue.where])))
    Console().print(*(
        _table(name, ('channel', *kinds), [
            (channel, *(f'{found.stats[name][kind][k]:.4f}' for kind in kinds))
            for k, channel in enumerate(channels)]) for name, channels in found.channels.items()),
        checks)
