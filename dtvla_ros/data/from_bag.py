"""``dtvla data from-bag``: recorded runs as a LeRobot v3.0 dataset that can be trained on."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.rosbag2 import Reader
from scipy.spatial.transform import Rotation

from dtvla_ros import conventions as topics
from dtvla_ros.data import layout
from dtvla_ros.data.layout import Episode
from dtvla_ros.data.record import JOINTS, STATE_NAMES, chunks_of
from dtvla_ros.data.timeline import AGES, Nearest, Timeline, Track, pictures, read_timeline
from dtvla_ros.data.writer import merge_shards, write_shard
from dtvla_ros.errors import UserError
from dtvla_ros.recording.bag import open_bag

GAP = 1.5  # control periods between two commands from which on one is missing
BREAK = 4.0  # control periods that only a new episode leaves out
NEAR_BREAK = 3  # commands: how far messages of several topics may be out of order
SLACK = 500_000_000  # the same in time [ns]


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How bags become episodes.

    ``rate`` [Hz] of the commands and ``camera_every`` (control steps per frame): None: as the
    bag shows. ``tolerance`` [s]: largest difference of a picture's or measurement's stamp from
    the command's; None: half a control period. ``chunk``: actions kept with each frame.
    ``command``: which topic commanded, where a bag has several. ``fingers``: joints whose
    absolute positions add up to the gripper opening.
    """

    rate: int | None = None
    camera_every: int | None = None
    tolerance: float | None = None
    chunk: int = 8
    successful: bool = False
    command: str | None = None
    fingers: tuple[str, ...] = topics.FINGER_JOINTS
    robot: str = 'panda'


@dataclass(slots=True)
class Report:
    """What became of the bags. ``gaps``: frames missing, by what was missing."""

    episodes: int = 0
    pieces: int = 0
    frames: int = 0
    unthought: int = 0
    failed: int = 0
    gaps: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Commands ``first`` to ``last`` (excluded) of one episode.

    Its messages were received from ``since`` on and before ``until`` [ns]. ``success``: None
    where nothing told.
    """

    first: int
    last: int
    since: int
    until: int
    task: str
    facts: dict[str, Any]
    success: bool | None


def convert(bags: Sequence[Path], out: Path, options: ConvertOptions) -> Report:
    """Write a new dataset ``out`` from bags, every episode a shard.

    Raises
    ------
    UserError
        If ``out`` exists, a bag cannot be used, or nothing of it is worth keeping.

    """
    if out.exists():
        raise UserError(f'{out} exists already; choose another --out')
    report = Report()
    rates: dict[Path, int] = {}
    try:
        for bag in bags:
            with open_bag(bag) as reader:
                line = read_timeline(reader, bag, options.command)
                grid = _grid(line, options)
                rates[bag] = grid.fps
                if len(set(rates.values())) > 1:
                    raise UserError(f'{bag}: {grid.fps} frames a second, the bags before it '
                                    f'{rates[bags[0]]}; convert them apart')
                for stretch in split(line, grid.period):
                    _keep(reader, line, grid, stretch, options, report, out)
        if not report.frames:
            raise UserError(f'{", ".join(map(str, bags))}: no frame to keep ({_why(report)})')
        merge_shards(out, options.robot)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return report


def _why(report: Report) -> str:
    reasons = [f'{count} frames without {name}' for name, count in report.gaps.items()]
    if report.failed:
        reasons.append(f'{report.failed} episodes without success')
    return ', '.join(reasons) or 'no command during a task'


@dataclass(frozen=True, slots=True)
class Grid:
    """Times of a bag: control ``period`` and ``tolerance`` [ns], control steps per frame."""

    period: int
    tolerance: int
    every: int
    fps: int


def _grid(line: Timeline, options: ConvertOptions) -> Grid:
    rate = options.rate or round(1e9 / _spacing(line.commands, line, 'commands'))
    period = round(1e9 / rate)
    divisors = [k for k in range(1, rate + 1) if rate % k == 0]
    every = options.camera_every
    if every is None:
        spacing = _spacing(line.cameras['primary'], line, 'pictures on image_primary')
        every = next((k for k in divisors if k * period >= 0.9 * spacing), rate)
    if every not in divisors:
        raise UserError(f'--camera-every {every}: {rate} commands a second leave no whole frame '
                        f'rate; use {", ".join(map(str, divisors))}')
    tolerance = period // 2 if options.tolerance is None else round(options.tolerance * 1e9)
    return Grid(period, tolerance, every, rate // every)


def _spacing(track: Track, line: Timeline, what: str) -> float:
    steps = np.diff(np.unique(track.stamps))
    if not len(steps):
        raise UserError(f'{line.path}: fewer than two {what}')
    return float(np.median(steps))


def split(line: Timeline, period: int) -> list[Stretch]:
    """Return a bag's episodes: the simulator's where it tells, else one for each instruction."""
    begun: list[tuple[int, str, dict[str, Any]]] = []
    success: dict[int, bool] = {}
    for at, row in zip(line.reports.received, line.reports.values):
        facts = {name: row.get(name) for name in ('task', 'seed', 'episode')}
        if not begun or facts != begun[-1][2]:
            begun.append((at, row['instruction'], facts))
        if row['done']:
            success[len(begun) - 1] = bool(row['success'])
    if not begun:
        for at, text in zip(line.instructions.received, line.instructions.values):
            if not begun or text != begun[-1][1]:
                begun.append((at, text, {}))
    if not begun:
        raise UserError(f'{line.path}: it does not say what the task was; record '
                        f'{topics.INSTRUCTION} too')
    stamps, received = np.asarray(line.commands.stamps), np.asarray(line.commands.received)
    edges = [0, *(_snap(int(np.searchsorted(received, at)), stamps, period)
                  for at, _, _ in begun[1:]), len(stamps)]
    times = [0, *(at for at, _, _ in begun[1:]), AGES]
    return [Stretch(edges[k], edges[k + 1], times[k], times[k + 1], task, facts, success.get(k))
            for k, (_, task, facts) in enumerate(begun) if edges[k + 1] > edges[k]]


def _snap(edge: int, stamps: NDArray[np.int64], period: int) -> int:
    """Return the nearest command before which time jumped, ``edge`` itself where it did not."""
    near = [k for k in range(max(1, edge - NEAR_BREAK), min(len(stamps), edge + NEAR_BREAK + 1))
            if not 0 <= stamps[k] - stamps[k - 1] <= BREAK * period]
    return min(near, key=lambda k: abs(k - edge), default=edge)


def _keep(reader: Reader, line: Timeline, grid: Grid, stretch: Stretch, options: ConvertOptions,
          report: Report, out: Path) -> None:
    """Write what is good of an episode as one shard."""
    if options.successful and stretch.success is None and not line.reports.values:
        raise UserError(f'--successful: {line.path} has no {topics.EPISODE} to tell')
    if options.successful and not stretch.success:
        report.failed += 1
        return
    pieces = list(_pieces(reader, line, grid, stretch, options, report))
    if pieces:
        write_shard(out, report.episodes, pieces, grid.fps)
        report.episodes += 1
        report.pieces += len(pieces)
        report.frames += sum(map(len, pieces))


def _pieces(reader: Reader, line: Timeline, grid: Grid, stretch: Stretch,
            options: ConvertOptions, report: Report) -> Iterator[Episode]:
    """Yield the parts of an episode in which no frame is missing."""
    stamps = np.asarray(line.commands.stamps[stretch.first:stretch.last])
    late = np.flatnonzero(np.abs(np.diff(stamps)) > GAP * grid.period) + 1
    report.gaps['command'] += len(late)
    thoughts = _thoughts(line, stretch)
    # What was received at another time may bear the same stamp: simulated clocks start anew.
    around = stretch.since - SLACK, stretch.until + SLACK
    tracks = {name: Nearest(track.during(*around)) for name, track in (
        *line.cameras.items(), (topics.EE_POSE, line.poses), (topics.JOINT_STATES, line.joints))}
    for first, last in zip([0, *late], [*late, len(stamps)]):
        actions = np.stack(line.commands.values[stretch.first + first:stretch.first + last])
        frames = _frames(tracks, grid, stamps[first:last], report)
        seen = _look(reader, tracks, frames)
        for step, parts in list(frames.items()):
            if any(tracks[c].track.stamps[parts[c]] not in seen[c] for c in topics.CAMERAS):
                report.gaps['a picture that can be decoded'] += 1
                del frames[step]
        for run in _runs(list(frames), grid.every):
            told = [_thought_at(thoughts, stamps[first + step]) for step in run]
            report.unthought += told.count('')
            rows = [{name: tracks[name].track.values[k] for name, k in frames[step].items()}
                    for step in run]
            images = {c: _stack(line, [
                seen[c][tracks[c].track.stamps[frames[step][c]]] for step in run])
                for c in topics.IMAGES}
            yield _episode(line, stretch, options, report.episodes, images, rows, np.array(run),
                           actions, told)


def _frames(tracks: dict[str, Nearest], grid: Grid, stamps: NDArray[np.int64], report: Report,
            ) -> dict[int, dict[str, int]]:
    """Return, by control step, the place in every track of what makes up its frame."""
    frames = {}
    phase = next((k for k, stamp in enumerate(stamps)
                  if tracks['primary'](stamp, grid.tolerance) is not None), 0)
    for step in range(phase, len(stamps), grid.every):
        found = {name: find(stamps[step], grid.tolerance) for name, find in tracks.items()}
        missing = [name for name, k in found.items() if k is None]
        if missing:
            report.gaps[topics.IMAGES.get(missing[0], missing[0])] += 1
        else:
            frames[step] = {name: k for name, k in found.items() if k is not None}
    return frames


def _look(reader: Reader, tracks: dict[str, Nearest], frames: dict[int, dict[str, int]],
          ) -> dict[str, dict[int, NDArray[np.uint8]]]:
    """Return the pictures of frames by camera and stamp."""
    seen = {}
    for camera, topic in topics.IMAGES.items():
        track = tracks[camera].track
        places = sorted({parts[camera] for parts in frames.values()})
        seen[camera] = pictures(
            reader, topic, {track.stamps[k] for k in places},
            (track.received[places[0]], track.received[places[-1]])) if places else {}
    return seen


def _runs(steps: Sequence[int], every: int) -> Iterator[list[int]]:
    """Yield the longest stretches without a missing frame."""
    run: list[int] = []
    for step in steps:
        if run and step != run[-1] + every:
            yield run
            run = []
        run.append(step)
    if run:
        yield run


def _thoughts(line: Timeline, stretch: Stretch) -> list[tuple[int, str]]:
    """Return (stamp of the look, thought) of an episode's decisions.

    A thought carries no stamp; it is published just before its chunk, which does. Where both are
    as many they are paired in order, else each chunk with the thought received nearest to it.
    """
    chunks = line.chunks.during(stretch.since, stretch.until)
    thoughts = line.thoughts.during(stretch.since, stretch.until)
    texts = thoughts.values
    if texts and len(texts) != len(chunks.stamps):
        texts = [min(zip(thoughts.received, texts), key=lambda pair: abs(pair[0] - t))[1]
                 for t in chunks.received]
    return sorted(zip(chunks.stamps, texts))


def _thought_at(thoughts: Sequence[tuple[int, str]], stamp: int) -> str:
    before = [text for at, text in thoughts if at <= stamp]
    return before[-1] if before else ''


def _episode(line: Timeline, stretch: Stretch, options: ConvertOptions, index: int,
             images: dict[str, NDArray[np.uint8]], rows: Sequence[dict[str, Any]],
             starts: NDArray[np.int64], actions: NDArray[np.float32], thoughts: list[str],
             ) -> Episode:
    chunk, padding = chunks_of(actions, starts, options.chunk, [])
    joints = [row[topics.JOINT_STATES] for row in rows]
    arm = [name for name in joints[0] if name not in options.fingers]
    return Episode(
        task=stretch.task,
        images={key: images[camera] for key, camera in layout.CAMERAS.items()},
        columns={
            layout.STATE: np.stack([
                _state(row[topics.EE_POSE],
                       _joints(line, row[topics.JOINT_STATES], options.fingers))
                for row in rows]),
            JOINTS: np.array([_joints(line, row, arm) for row in joints], np.float32),
            layout.REASONING: thoughts,
            layout.ACTION: actions[starts], layout.ACTION_CHUNK: chunk,
            layout.ACTION_IS_PAD: padding},
        facts={**stretch.facts, 'kind': 'bag', 'bag': line.path.name, 'index': index,
               'steps': len(actions), 'success': stretch.success},
        names={layout.STATE: STATE_NAMES, JOINTS: arm})


def _stack(line: Timeline, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    shapes = {image.shape for image in pixels}
    if len(shapes) > 1:
        raise UserError(f'{line.path}: pictures of several sizes, {sorted(shapes)}; a dataset '
                        'has one')
    return np.stack(pixels)


def _joints(line: Timeline, joints: dict[str, float], names: Sequence[str]) -> list[float]:
    absent = [name for name in names if name not in joints]
    if absent:
        raise UserError(f'{line.path}: {topics.JOINT_STATES} lacks {absent[0]} (it has '
                        f'{", ".join(joints)}); name the gripper joints with --fingers')
    return [joints[name] for name in names]


def _state(pose: tuple[NDArray[np.float64], NDArray[np.float64]], fingers: Sequence[float],
           ) -> NDArray[np.float32]:
    """Return [8] as ``dtvla collect`` writes it: LIBERO signs its two fingers."""
    opening = float(np.abs(fingers).sum())
    position, quaternion = pose
    return np.concatenate([
        position, Rotation.from_quat(quaternion).as_rotvec(), [opening / 2, -opening / 2],
    ]).astype(np.float32)
