"""``dtvla data stats``: statistics of a dataset, and whether they make sense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtvla_ros.data import layout, v21
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.sanity import Note, Numbers, check_numbers
from dtvla_ros.data.sanity_images import check_pictures, watch
from dtvla_ros.data.statistics import image_statistics, vector_statistics
from dtvla_ros.errors import UserError
from dtvla_ros.files import write_json

PUBLISHED = ('mean', 'std', 'q01', 'q99', 'min', 'max')
PICTURES = 200  # of a camera that make its statistics


@dataclass(frozen=True, slots=True)
class Report:
    """Statistics by feature as in ``meta/stats.json``, and what the checks say."""

    path: Path
    stats: dict[str, Any]
    channels: dict[str, Sequence[str]]
    notes: list[Note]

    @property
    def norm_stats(self) -> dict[str, Any]:
        """Statistics as a policy reads them: of ``state`` and ``action``."""
        return {name: {kind: self.stats[feature][kind] for kind in PUBLISHED}
                for name, feature in (('state', layout.STATE), ('action', layout.ACTION))}

    def to_dict(self) -> dict[str, Any]:
        """Return everything JSON-ready."""
        return {'path': str(self.path), 'norm_stats': self.norm_stats,
                'checks': [note.to_dict() for note in self.notes]}

    def write(self, folder: Path) -> None:
        """Write ``stats.json`` and ``norm_stats.json`` into a folder. Raises ``UserError``."""
        write_json(folder / Path(layout.STATS).name, self.stats)
        write_json(folder / Path(v21.NORM_STATS).name, self.norm_stats)


def report(root: Path, episodes: int = 24, whole: bool = True) -> Report:
    """Compute statistics and checks, the pictures from some ``episodes`` (0: none).

    ``whole``: statistics of every feature, not only of state and action. Raises ``UserError``
    when the dataset cannot be read or has no state or action.
    """
    reader = v21.open_dataset(root)
    if not reader.episodes:
        raise UserError(f'{root}: no episode in it; collect or download it again')
    numbers = Numbers.of(reader)
    stats = {name: vector_statistics(np.asarray(reader.column(name)))
             for name in _features(reader, whole)}
    notes = check_numbers(numbers)
    if episodes and reader.camera_keys:
        notes += check_pictures(watch(reader, numbers, episodes))
    if whole:
        stats |= {key: image_statistics(_pictures(reader, key)) for key in reader.camera_keys}
    return Report(root, stats, {name: _channels(reader, name)
                                for name in (layout.STATE, layout.ACTION)}, notes)


def _features(reader: DatasetReader, whole: bool) -> list[str]:
    if not whole:
        return [layout.STATE, layout.ACTION]
    return [name for name, feature in reader.info['features'].items()
            if feature['dtype'] not in ('video', 'image', 'string', 'bool')]


def _channels(reader: DatasetReader, name: str) -> list[str]:
    feature = reader.info['features'][name]
    names = layout.flat_names(feature.get('names'))
    count = int(np.prod(feature['shape']))
    return names if len(names) == count else [str(k) for k in range(count)]


def _pictures(reader: DatasetReader, key: str) -> np.ndarray:
    """Return pictures [N, H, W, 3] from all over the dataset: one of each of some episodes."""
    numbers = np.unique(np.linspace(
        0, len(reader.episodes) - 1, min(PICTURES, len(reader.episodes))).astype(int))
    rng = np.random.default_rng(0)
    return np.stack([reader.image(k, int(rng.integers(reader.episodes[k]['length'])), key)
                     for k in numbers.tolist()])
