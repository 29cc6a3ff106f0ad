"""``dtvla data from-bag``: recorded runs as a LeRobot v3.0 dataset that can be trained on."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.rosbag2 import Reader
from scipy.spatial.transform import Rotation

from dtvla_ros import conventions as topics
from dtvla_ros.data import layout
from dtvla_ros.data.bag import NEVER, Timeline, Track, open_bag, read_images, read_timeline
from dtvla_ros.data.layout import Episode
from dtvla_ros.data.writer import merge_shards, write_shard
from dtvla_ros.errors import UserError

GAP = 1.5  # control periods between two commands from which on one is missing
BREAK = 4.0  # control periods that only a new episode leaves out
NEAR_BREAK = 3  # commands: how far messages of several topics may be out of order
SLACK = 500_000_000  # the same in time [ns]


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How bags become episodes.

    ``rate`` [Hz] of the commands and ``camera_every`` (control steps per frame): None: as the
    bag shows. ``tolerance`` [s]: largest difference of an image's or measurement's stamp from
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

    def why_empty(self) -> str:
        """Return why no frame was kept."""
        reasons = [f'{count} frames without {name}' for name, count in self.gaps.items()]
        if self.failed:
            reasons.append(f'{self.failed} episodes without success')
        return ', '.join(reasons) or 'no command during a task'


@dataclass(frozen=True, slots=True)
class Segment:
    """Commands ``first`` to ``last`` (excluded) of one episode.

    Its messages were received from ``since`` on and before ``until`` [ns]. ``success``: None
    where nothing told.
    """

    first: int
    last: int
    since: int
    until: int
    task: str
    metadata: Mapping[str, Any]
    success: bool | None


@dataclass(frozen=True, slots=True)
class Timing:
    """Control ``period`` and ``tolerance`` [ns] of a bag, control steps per frame."""

    period: int
    tolerance: int
    every: int
    fps: int

    @classmethod
    def of(cls, line: Timeline, options: ConvertOptions) -> Timing:
        """Take them from the options, else from the stamps. Raises ``UserError``."""
        rate = options.rate or round(1e9 / _spacing(line.commands, line, 'commands'))
        period = round(1e9 / rate)
        divisors = [k for k in range(1, rate + 1) if rate % k == 0]
        every = options.camera_every
        if every is None:
            topic = topics.IMAGES['primary']
            spacing = _spacing(line.tracks[topic], line, f'images on {topic}')
            every = next((k for k in divisors if k * period >= 0.9 * spacing), rate)
        if every not in divisors:
            raise UserError(f'--camera-every {every}: {rate} commands a second leave no whole '
                            f'frame rate; use {", ".join(map(str, divisors))}')
        tolerance = period // 2 if options.tolerance is None else round(options.tolerance * 1e9)
        return cls(period, tolerance, every, rate // every)


def _spacing(track: Track, line: Timeline, what: str) -> float:
    steps = np.diff(np.unique(track.stamps))
    if not len(steps):
        raise UserError(f'{line.path}: fewer than two {what}')
    return float(np.median(steps))


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
        for path in bags:
            with open_bag(path) as reader:
                line = read_timeline(reader, path, options.command)
                bag = _Bag(reader, line, Timing.of(line, options), options, report)
                rates[path] = bag.timing.fps
                if len(set(rates.values())) > 1:
                    raise UserError(f'{path}: {bag.timing.fps} frames a second, the bags before '
                                    f'it {rates[bags[0]]}; convert them apart')
                for segment in split(line, bag.timing.period):
                    bag.write(segment, out)
        if not report.frames:
            raise UserError(f'{", ".join(map(str, bags))}: no frame to keep '
                            f'({report.why_empty()})')
        merge_shards(out, options.robot)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return report


def split(line: Timeline, period: int) -> list[Segment]:
    """Return a bag's episodes: the simulator's where it tells, else one for each instruction."""
    begun: list[tuple[int, str, dict[str, Any]]] = []
    success: dict[int, bool] = {}
    reports, instructions = line.tracks[topics.EPISODE], line.tracks[topics.INSTRUCTION]
    for at, row in zip(reports.received, reports.values):
        metadata = {name: row.get(name) for name in ('task', 'seed', 'episode')}
        if not begun or metadata != begun[-1][2]:
            begun.append((at, row['instruction'], metadata))
        if row['done']:
            success[len(begun) - 1] = bool(row['success'])
    if not begun:
        for at, text in zip(instructions.received, instructions.values):
            if not begun or text != begun[-1][1]:
                begun.append((at, text, {}))
    if not begun:
        raise UserError(f'{line.path}: it does not say what the task was; record '
                        f'{topics.INSTRUCTION} too')
    stamps, received = np.asarray(line.commands.stamps), np.asarray(line.commands.received)
    edges = [0, *(_snap(int(np.searchsorted(received, at)), stamps, period)
                  for at, _, _ in begun[1:]), len(stamps)]
    times = [0, *(at for at, _, _ in begun[1:]), NEVER]
    return [Segment(edges[k], edges[k + 1], times[k], times[k + 1], task, meta, success.get(k))
            for k, (_, task, meta) in enumerate(begun) if edges[k + 1] > edges[k]]


def _snap(edge: int, stamps: NDArray[np.int64], period: int) -> int:
    """Return the nearest command before which time jumped, ``edge`` itself where it did not."""
    near = [k for k in range(max(1, edge - NEAR_BREAK), min(len(stamps), edge + NEAR_BREAK + 1))
            if not 0 <= stamps[k] - stamps[k - 1] <= BREAK * period]
    return min(near, key=lambda k: abs(k - edge), default=edge)


@dataclass(frozen=True, slots=True)
class _Bag:
    """An open bag and how it is converted."""

    reader: Reader
    line: Timeline
    timing: Timing
    options: ConvertOptions
    report: Report

    def write(self, segment: Segment, out: Path) -> None:
        """Write what is good of an episode as one shard."""
        report = self.report
        if self.options.successful and not self.line.tracks[topics.EPISODE].values:
            raise UserError(f'--successful: {self.line.path} has no {topics.EPISODE} to tell')
        if self.options.successful and not segment.success:
            report.failed += 1
            return
        pieces = list(self._pieces(segment))
        if pieces:
            write_shard(out, report.episodes, pieces, self.timing.fps)
            report.episodes += 1
            report.pieces += len(pieces)
            report.frames += sum(map(len, pieces))

    def _pieces(self, segment: Segment) -> Iterator[Episode]:
        """Yield the parts of an episode in which no frame is missing."""
        line = self.line
        stamps = np.asarray(line.commands.stamps[segment.first:segment.last])
        late = np.flatnonzero(np.abs(np.diff(stamps)) > GAP * self.timing.period) + 1
        self.report.gaps['command'] += len(late)
        thoughts = _thoughts(line, segment)
        # What was received at another time may bear the same stamp: simulated clocks start anew.
        around = segment.since - SLACK, segment.until + SLACK
        tracks = {topic: line.tracks[topic].during(*around) for topic in (
            *topics.IMAGES.values(), topics.EE_POSE, topics.JOINT_STATES)}
        for first, last in zip([0, *late], [*late, len(stamps)]):
            actions = np.stack(line.commands.values[segment.first + first:segment.first + last])
            rows = self._rows(tracks, stamps[first:last])
            for run in _runs(list(rows), self.timing.every):
                texts = [_thought_at(thoughts, stamps[first + step]) for step in run]
                self.report.unthought += texts.count('')
                yield self._episode(segment, [rows[step] for step in run], np.array(run), actions,
                                    texts)

    def _rows(self, tracks: Mapping[str, Track], stamps: NDArray[np.int64],
              ) -> dict[int, dict[str, Any]]:
        """Return, by control step, images, pose and joints of the frames that lack nothing."""
        frames: dict[int, dict[str, int]] = {}  # indices in the tracks, by topic
        tolerance, cameras = self.timing.tolerance, topics.IMAGES.values()
        first = tracks[topics.IMAGES['primary']]
        phase = next((k for k, stamp in enumerate(stamps)
                      if first.nearest(stamp, tolerance) is not None), 0)
        for step in range(phase, len(stamps), self.timing.every):
            found = {topic: k for topic, track in tracks.items()
                     if (k := track.nearest(stamps[step], tolerance)) is not None}
            missing = next((topic for topic in tracks if topic not in found), None)
            if missing is None:
                frames[step] = found
            else:
                self.report.gaps[missing] += 1
        images = {topic: self._images(topic, tracks[topic], [f[topic] for f in frames.values()])
                  for topic in cameras}
        rows = {}
        for step, found in frames.items():
            row = {topic: images[topic].get(k) if topic in cameras else tracks[topic].values[k]
                   for topic, k in found.items()}
            if any(value is None for value in row.values()):
                self.report.gaps['an image that can be decoded'] += 1
            else:
                rows[step] = row
        return rows

    def _images(self, topic: str, track: Track, used: Sequence[int],
                ) -> dict[int, NDArray[np.uint8]]:
        """Return images of a camera by their index in its track, if they can be decoded."""
        if not used:
            return {}
        seen = read_images(self.reader, topic, {track.stamps[k] for k in used},
                           (track.received[min(used)], track.received[max(used)]))
        return {k: seen[track.stamps[k]] for k in used if track.stamps[k] in seen}

    def _episode(self, segment: Segment, rows: Sequence[Mapping[str, Any]],
                 starts: NDArray[np.int64], actions: NDArray[np.float32], thoughts: list[str],
                 ) -> Episode:
        """Return frames without a gap; a row holds a frame's images, pose and joints."""
        options = self.options
        chunk, padding = layout.action_chunks(actions, starts, options.chunk)
        arm = [name for name in rows[0][topics.JOINT_STATES] if name not in options.fingers]
        return Episode(
            task=segment.task,
            images={key: self._stack([row[topics.IMAGES[camera]] for row in rows])
                    for key, camera in layout.CAMERAS.items()},
            columns={
                layout.STATE: np.stack([_state(
                    row[topics.EE_POSE], self._joints(row, options.fingers)) for row in rows]),
                layout.JOINTS: np.array([self._joints(row, arm) for row in rows], np.float32),
                layout.REASONING: thoughts,
                layout.ACTION: actions[starts], layout.ACTION_CHUNK: chunk,
                layout.ACTION_IS_PAD: padding},
            metadata={**segment.metadata, 'kind': 'bag', 'bag': self.line.path.name,
                      'index': self.report.episodes, 'steps': len(actions),
                      'success': segment.success},
            names={layout.STATE: layout.STATE_NAMES, layout.JOINTS: arm})

    def _stack(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise UserError(f'{self.line.path}: images of several sizes, {sorted(shapes)}; a '
                            'dataset has one')
        return np.stack(images)

    def _joints(self, row: Mapping[str, Any], names: Sequence[str]) -> list[float]:
        joints = row[topics.JOINT_STATES]
        absent = [name for name in names if name not in joints]
        if absent:
            raise UserError(f'{self.line.path}: {topics.JOINT_STATES} lacks {absent[0]} (it has '
                            f'{", ".join(joints)}); name the gripper joints with --fingers')
        return [joints[name] for name in names]


def _runs(steps: Sequence[int], every: int) -> Iterator[list[int]]:
    """Yield the longest runs of steps without a missing frame."""
    breaks = np.flatnonzero(np.diff(steps) != every) + 1
    for part in np.split(np.asarray(steps, int), breaks) if len(steps) else ():
        yield part.tolist()


def _thoughts(line: Timeline, segment: Segment) -> list[tuple[int, str]]:
    """Return (stamp of the observation, thought) of an episode's decisions.

    A thought carries no stamp; it is published just before its chunk, which does. Where both are
    as many they are paired in order, else each chunk with the thought received nearest to it.
    """
    chunks, thoughts = (line.tracks[topic].during(segment.since, segment.until)
                        for topic in (topics.ACTION_CHUNK, topics.REASONING))
    texts = thoughts.values
    if texts and len(texts) != len(chunks.stamps):
        texts = [min(zip(thoughts.received, texts), key=lambda pair: abs(pair[0] - t))[1]
                 for t in chunks.received]
    return sorted(zip(chunks.stamps, texts))


def _thought_at(thoughts: Sequence[tuple[int, str]], stamp: int) -> str:
    before = [text for at, text in thoughts if at <= stamp]
    return before[-1] if before else ''


def _state(pose: tuple[NDArray[np.float64], NDArray[np.float64]], fingers: Sequence[float],
           ) -> NDArray[np.float32]:
    """Return [8] as ``dtvla collect`` writes it: LIBERO signs its two fingers."""
    opening = float(np.abs(fingers).sum())
    position, quaternion = pose
    return np.concatenate([
        position, Rotation.from_quat(quaternion).as_rotvec(), [opening / 2, -opening / 2],
    ]).astype(np.float32)
