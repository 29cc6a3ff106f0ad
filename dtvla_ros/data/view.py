"""``dtvla data view``: episodes along a timeline, as an HTML page or a contact sheet."""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dtvla_ros.data import layout
from dtvla_ros.data.checks import gripper_opening, runs, spread
from dtvla_ros.data.reader import DatasetReader, open_dataset
from dtvla_ros.errors import UserError
from dtvla_ros.files import require_writable, written_whole
from dtvla_ros.report import write_page
from dtvla_ros.thought import as_sentence

SHOWN = 6  # episodes without --episodes
SIDE = 160  # longer side of an embedded image, at most [px]
MOST_FRAMES = 160  # of an episode that are embedded
THUMBNAILS = 12  # images along the time on a page
QUALITY = 82
PAGE, SHEET = '.html', '.png'

COLUMNS = 10  # images along the time on a contact sheet
WIDTH = 15.0  # of the sheet [inch]
LETTERS = 23  # in a line under an image
COLOURS = ('#7aa6c2', '#e0a458', '#8fb573', '#c98a9b', '#9d8ec7', '#c7b78e', '#6fb7a8', '#b0b0b0',
           '#d98f6a', '#88a0d8')
AXES = (('x', '#c0392b'), ('y', '#2e8b57'), ('z', '#2f5fa8'))
CLOSED = '#e8b26a'


@dataclass(frozen=True, slots=True)
class EpisodeView:
    """One episode to draw, N frames long.

    ``caption``: length and metadata. ``images``: uint8 [M, H, W, 3] by camera, of the ``frames``
    [M]. ``action`` [N, A]; ``opening`` [N] of the gripper, 0..1, or None. ``thoughts``, in
    sentences, and ``phases``: N texts, none where the dataset has none.
    """

    number: int
    task: str
    caption: str
    fps: float
    images: dict[str, NDArray[np.uint8]]
    frames: NDArray[np.int64]
    action: NDArray[np.float64]
    opening: NDArray[np.float64] | None
    thoughts: list[str]
    phases: list[str]

    def __len__(self) -> int:
        return len(self.action)

    @classmethod
    def read(cls, reader: DatasetReader, number: int, thoughts: list[str]) -> EpisodeView:
        """Read an episode. ``thoughts``: those of the whole dataset, or none."""
        length, features = reader.lengths[number], reader.info['features']
        part, stride = reader.span(number), -(-length // MOST_FRAMES)
        images = {key: np.stack([_shrunk(image) for image in islice(
            reader.frames(number, key), 0, None, stride)]) for key in reader.camera_keys}
        count = min((len(p) for p in images.values()), default=0)
        opening = (gripper_opening(reader.rows(layout.STATE)[part], reader.end_effector)
                   if layout.STATE in features else None)
        if opening is not None:
            opening = (opening - opening.min()) / max(float(np.ptp(opening)), 1e-9)
        kept = ''.join(f', {name} {value}' for name, value in reader.metadata(number).items())
        return cls(
            number, reader.task(number), f'{length} frames, {length / reader.fps:.1f} s{kept}',
            float(reader.fps), {key: p[:count] for key, p in images.items()},
            np.arange(0, length, stride)[:count], _drawn(reader)[part],
            opening, thoughts[part],
            list(reader.column(layout.PHASE, number)) if layout.PHASE in features else [])

    def shown(self, count: int) -> list[int]:
        """Return which images stand in the middle of ``count`` equal parts of the time."""
        if not len(self.frames):
            return []
        middles = (np.arange(count) + 0.5) * len(self) / count
        return [int(np.abs(self.frames + 0.5 - middle).argmin()) for middle in middles]


def _drawn(reader: DatasetReader) -> NDArray[np.float64]:
    """Return the actions [N, A], the gripper last; of what is no offset on axes only that."""
    action, contract = reader.rows(layout.ACTION), reader.contract
    if contract.is_normalised:
        return action
    k = contract.gripper_index
    return np.zeros((len(action), 1)) if k is None else contract.switch(action[:, [k]])


def _shrunk(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    small = Image.fromarray(image)
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)  # never makes it larger
    return np.asarray(small)


def view(root: Path, out: Path, episodes: Sequence[int] = (), tokenizer: Path | None = None,
         ) -> int:
    """Write a page (.html) or contact sheet (.png); return its episodes. Raises ``UserError``."""
    if out.suffix not in (PAGE, SHEET):
        raise UserError(f'--out {out}: give a name that ends in {PAGE} or {SHEET}')
    require_writable(out)
    reader = open_dataset(root)
    last = len(reader.episodes) - 1
    if beyond := [k for k in episodes if not 0 <= k <= last]:
        raise UserError(f'--episodes {beyond[0]}: {root} has the episodes 0 to {last}')
    ids = reader.thoughts_are_ids and tokenizer is None
    thoughts = [] if ids else [as_sentence(text) for text in reader.thoughts(tokenizer)]
    views = [EpisodeView.read(reader, k, thoughts)
             for k in tqdm(list(episodes) or _some(reader), desc='read', unit='ep')]
    names = dict.fromkeys(phase for shown in views for phase in shown.phases)
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}
    if out.suffix == PAGE:
        info = reader.info
        write_page(
            out, 'episodes.html', title=root.resolve().name, thumbnails=THUMBNAILS, axes=AXES,
            closed=CLOSED, views=[_page_values(shown, colours) for shown in views],
            summary=f'{len(views)} of {last + 1} episodes, {info["fps"]} frames a '
                    f'second, {info.get("robot_type") or "unknown robot"}, LeRobot '
                    f'{info["codebase_version"]}.')
    else:
        _write_sheet(out, views, colours)
    return len(views)


def _some(reader: DatasetReader) -> list[int]:
    """Return an episode of each task, then others; of a single frame only if there are none."""
    every = range(len(reader.episodes))
    long = [k for k in every if reader.lengths[k] > 1] or every
    first = {reader.task(number): number for number in reversed(long)}
    return sorted(list(dict.fromkeys([*sorted(first.values()), *spread(long, SHOWN)]))[:SHOWN])


def _page_values(shown: EpisodeView, colours: Mapping[str, str]) -> dict[str, Any]:
    """Return what the template needs of an episode; of each camera one image holds all frames."""
    columns = max(1, math.ceil(math.sqrt(len(shown.frames))))
    rows = max(1, -(-len(shown.frames) // columns))
    said = list(runs(shown.thoughts))
    data = {
        'length': len(shown), 'fps': shown.fps, 'images': len(shown.frames),
        'stride': int(shown.frames[1]) if len(shown.frames) > 1 else 1,
        'columns': columns, 'rows': rows, 'phases': shown.phases,
        'runs': [[first, last, text] for text, first, last in said]}
    thoughts = [{'begin': first / shown.fps, 'end': last / shown.fps,
                 'phase': shown.phases[first] if shown.phases else '',
                 'parts': list(_changes(before.split(), text.split()))}
                for (before, _, _), (text, first, last) in zip([('', 0, 0), *said], said)]
    return {
        'number': shown.number, 'task': shown.task, 'caption': shown.caption,
        'data': json.dumps(data), 'columns': columns, 'rows': rows,
        'sheets': [{'camera': layout.CAMERAS.get(key, key), 'width': images.shape[2],
                    'height': images.shape[1], 'jpeg': _tiled(images, columns, rows)}
                   for key, images in shown.images.items()],
        'shown': shown.shown(THUMBNAILS), 'thoughts': thoughts, 'curves': _curves_svg(shown),
        'opening': shown.opening is not None,
        'phases': [{'name': name, 'colour': colours[name], 'begin': first / len(shown),
                    'width': (last - first) / len(shown)}
                   for name, first, last in runs(shown.phases)]}


def _tiled(images: NDArray[np.uint8], columns: int, rows: int) -> bytes:
    """Return a JPEG of images [M, H, W, 3] in rows and columns."""
    height, width = images.shape[1:3]
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:len(images)] = images
    sheet = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    data = io.BytesIO()
    Image.fromarray(sheet.reshape(rows * height, columns * width, 3)).save(
        data, 'jpeg', quality=QUALITY)
    return data.getvalue()


def _changes(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield runs of a thought's words, and whether they are new against the one before."""
    for what, _, _, first, last in SequenceMatcher(None, old, new, False).get_opcodes():
        if last > first:
            yield ' '.join(new[first:last]), what != 'equal' and bool(old)


def _draw_commands(axes: Any, shown: EpisodeView) -> None:
    """Draw translation commands, and where the gripper is told to close, over the frames."""
    steps = np.arange(len(shown) + 1)
    action = np.vstack([shown.action, shown.action[-1:]])
    close = action[:, -1] > (0.5 if action[:, -1].min() >= 0 else 0.0)
    axes.fill_between(steps, -1.25, 1.25, where=close, step='post', color=CLOSED, alpha=0.35,
                      linewidth=0, label='told to close')
    axes.axhline(0.0, color='#c8ccd2', linewidth=0.8)
    for k, (name, colour) in enumerate(AXES[:action.shape[1] - 1]):
        axes.step(steps, action[:, k], where='post', color=colour, linewidth=1.3, label=name)
    if shown.opening is not None:
        axes.plot(steps[:-1] + 0.5, 2.0 * shown.opening - 1.0, color='#333333', linewidth=1.1,
                  linestyle=(0, (3, 2)), label='opening')
    axes.set(xlim=(0, len(shown)), ylim=(-1.25, 1.25))
    axes.axis('off')


def _curves_svg(shown: EpisodeView) -> bytes:
    """Return the commands as an SVG image as wide as the time, without margins."""
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'dtvla'}):
        figure, text = Figure(figsize=(11, 1.25)), io.StringIO()
        _draw_commands(figure.add_axes((0, 0, 1, 1)), shown)
        figure.savefig(text, format='svg', transparent=True, metadata={'Date': None})
    return text.getvalue().replace('<svg ', '<svg preserveAspectRatio="none" ', 1).encode()


def _write_sheet(path: Path, views: Sequence[EpisodeView], colours: Mapping[str, str]) -> None:
    cell = WIDTH / COLUMNS
    heights = [cell * len(shown.images) + (1.25 if shown.thoughts else 0.25) + 1.6
               for shown in views]
    figure = Figure(figsize=(WIDTH, sum(heights)))
    parts = figure.subfigures(len(views), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, shown, height in zip(parts, views, heights, strict=True):
        _draw_episode(part, shown, height, cell, colours)
    with written_whole(path) as made:
        figure.savefig(made, dpi=100, facecolor='white')


def _draw_episode(part: Any, shown: EpisodeView, height: float, cell: float,
                  colours: Mapping[str, str]) -> None:
    """Draw one episode: from the top a title, images, phases, thoughts, commands [inch]."""
    def add_axes(left: float, top: float, width: float, high: float) -> Any:
        axes = part.add_axes((left, 1 - (top + high) / height, width, high / height))
        axes.axis('off')
        return axes
    part.text(0.004, 1 - 0.16 / height, f'episode {shown.number}: {shown.task}', fontsize=11,
              fontweight='bold', va='center')
    part.text(0.996, 1 - 0.16 / height, shown.caption, fontsize=7.5, va='center', ha='right',
              color='#555555')
    chosen, top = shown.shown(COLUMNS), 0.32
    for images in shown.images.values():
        for column, index in enumerate(chosen):
            add_axes(column / COLUMNS + 0.001, top, 1 / COLUMNS - 0.002, cell).imshow(
                images[index], aspect='auto')
        top += cell
    axes = add_axes(0, top + 0.03, 1, 0.17)
    axes.set(xlim=(0, len(shown)), ylim=(0, 1))
    for name, first, last in runs(shown.phases):
        axes.axvspan(first, last, color=colours[name], linewidth=0)
        if last - first > len(shown) * 0.04:
            axes.text((first + last) / 2, 0.45, name, ha='center', va='center', fontsize=7.5)
    top += 0.25
    if shown.thoughts:
        for column, index in enumerate(chosen):
            thought = shown.thoughts[int(shown.frames[index])]
            lines = textwrap.fill(thought, LETTERS, max_lines=8, placeholder=' ...')
            part.text((column + 0.05) / COLUMNS, 1 - (top + 0.04) / height, lines, fontsize=7,
                      va='top', linespacing=1.15)
        top += 1.0
    axes = add_axes(0, top + 0.05, 1, 0.9)
    _draw_commands(axes, shown)
    axes.legend(loc='upper right', bbox_to_anchor=(1.0, -0.02), fontsize=7, ncols=5,
                frameon=False, borderpad=0.2, handlelength=1.6)
