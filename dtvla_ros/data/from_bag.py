"""``dtvla data from-bag``: recorded runs as a LeRobot v3.0 dataset that can be trained on."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtvla_ros import conventions as topics
from dtvla_ros.data import layout
from dtvla_ros.data.bag import NEVER, Bag, Track, open_bag, read_bag
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

    ``rate`` [Hz] of the commands, ``camera_every`` (control steps per frame): None: as the bag
    shows. ``tolerance`` [s] of the stamps to the command's; None: half a control period.
    ``chunk``: actions kept with each frame. ``command``: its topic, where there are several.
    ``fingers``: joints whose absolute positions add up to the gripper opening.
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


class Segment(NamedTuple):
    """Commands ``first`` to ``last`` (excluded) of one episode.

    Received from ``since`` on, before ``until`` [ns]. ``success``: None where nothing told.
    """

    first: int
    last: int
    since: int
    until: int
    task: str
    metadata: Mapping[str, Any]
    success: bool | None


def convert(bags: Sequence[Path], out: Path, options: ConvertOptions) -> Report:
    """Write a dataset from bags, every episode a shard. Raises ``UserError``, nothing is left."""
    if out.exists():
        raise UserError(f'{out} exists already; choose another --out')
    report, fps = Report(), 0
    try:
        for path in bags:
            with open_bag(path) as reader:
                converter = _Converter(read_bag(reader, path, options.command), options, report)
                fps = fps or converter.fps
                if converter.fps != fps:
                    raise UserError(f'{path}: {converter.fps} frames a second, the bags before it '
                                    f'{fps}; convert them apart')
                for segment in split(converter.bag, converter.period):
                    converter.write(segment, out)
        if not report.frames:
            why = [f'{count} frames without {name}' for name, count in report.gaps.items()]
            raise UserError(f'{", ".join(map(str, bags))}: no frame to keep ({", ".join(why)}; '
                            f'{report.failed} episodes without success)')
        merge_shards(out, options.robot)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return report


def split(bag: Bag, period: int) -> list[Segment]:
    """Return a bag's episodes: the simulator's where it tells, else one for each instruction."""
    begun: list[tuple[int, str, dict[str, Any]]] = []
    success: dict[int, bool] = {}
    reports, instructions = bag.tracks[topics.EPISODE], bag.tracks[topics.INSTRUCTION]
    told = reports if reports.values else instructions
    for at, row in zip(told.received, told.values):
        task, metadata = (row, {}) if told is instructions else (
            row['instruction'], {name: row.get(name) for name in ('task', 'seed', 'episode')})
        if not begun or (metadata or task) != (begun[-1][2] or begun[-1][1]):
            begun.append((at, task, metadata))
        if metadata and row['done']:
            success[len(begun) - 1] = bool(row['success'])
    if not begun:
        raise UserError(f'{bag.path}: it does not say what the task was; record '
                        f'{topics.INSTRUCTION} too')
    stamps, times = bag.commands.stamps, [0, *(at for at, _, _ in begun[1:]), NEVER]
    # A command received late, or early, belongs where its stamp does.
    jumps = np.flatnonzero((np.diff(stamps) < 0) | (np.diff(stamps) > BREAK * period)) + 1
    edges = [0, *(min([int(k) for k in jumps if abs(k - edge) <= NEAR_BREAK],
                      key=lambda k: abs(k - edge), default=edge)
                  for edge in np.searchsorted(bag.commands.received, times[1:-1]).tolist()),
             len(stamps)]
    return [Segment(edges[k], edges[k + 1], times[k], times[k + 1], task, meta, success.get(k))
            for k, (_, task, meta) in enumerate(begun) if edges[k + 1] > edges[k]]


class _Converter:
    """Converts the episodes of one bag.

    Control ``period`` and ``tolerance`` [ns], control steps per frame (``every``) and ``fps`` are
    those of the options, else of the stamps. Raises ``UserError``.
    """

    def __init__(self, bag: Bag, options: ConvertOptions, report: Report) -> None:
        self.bag, self.options, self.report = bag, options, report
        rate = options.rate or round(1e9 / self._spacing(bag.commands, 'commands'))
        self.period = round(1e9 / rate)
        divisors = [k for k in range(1, rate + 1) if rate % k == 0]
        every, topic = options.camera_every, topics.IMAGES['primary']
        if every is None:
            spacing = self._spacing(bag.tracks[topic], f'images on {topic}')
            every = next((k for k in divisors if k * self.period >= 0.9 * spacing), rate)
        if every not in divisors:
            raise UserError(f'--camera-every {every}: {rate} commands a second leave no whole '
                            f'frame rate; use {", ".join(map(str, divisors))}')
        self.every, self.fps = every, rate // every
        self.tolerance = (self.period // 2 if options.tolerance is None
                          else round(options.tolerance * 1e9))
        if options.successful and not bag.tracks[topics.EPISODE].values:
            raise UserError(f'--successful: {bag.path} has no {topics.EPISODE} to tell')

    def _spacing(self, track: Track, what: str) -> float:
        steps = np.diff(np.unique(track.stamps))
        if not len(steps):
            raise UserError(f'{self.bag.path}: fewer than two {what}')
        return float(np.median(steps))

    def write(self, segment: Segment, out: Path) -> None:
        """Write what is good of an episode as one shard."""
        report = self.report
        if self.options.successful and not segment.success:
            report.failed += 1
        elif pieces := list(self._pieces(segment)):
            write_shard(out, report.episodes, pieces, self.fps)
            report.episodes += 1
            report.pieces += len(pieces)
            report.frames += sum(map(len, pieces))

    def _pieces(self, segment: Segment) -> Iterator[Episode]:
        """Yield the parts of an episode in which no frame is missing."""
        bag, own = self.bag, slice(segment.first, segment.last)
        stamps, actions = bag.commands.stamps[own], np.stack(bag.commands.values[own])
        late = np.flatnonzero(np.abs(np.diff(stamps)) > GAP * self.period) + 1
        self.report.gaps += Counter(command=len(late))
        decided, thoughts = _thoughts(bag, segment)
        # What was received at another time may bear the same stamp: simulated clocks start anew.
        tracks = {topic: bag.tracks[topic].during(segment.since - SLACK, segment.until + SLACK)
                  for topic in (*topics.IMAGES.values(), topics.EE_POSE, topics.JOINT_STATES)}
        for first, last in zip([0, *late], [*late, len(stamps)]):
            steps, values = self._frames(tracks, stamps[first:last])
            breaks = np.flatnonzero(np.diff(steps) != self.every) + 1
            for part in np.split(np.arange(len(steps)), breaks) if len(steps) else ():
                texts = [thoughts[k] for k in np.searchsorted(
                    decided, stamps[first + steps[part]], side='right')]
                self.report.unthought += texts.count('')
                seen = {topic: [found[k] for k in part] for topic, found in values.items()}
                yield self._episode(segment, seen, steps[part], actions[first:last], texts)

    def _frames(self, tracks: Mapping[str, Track], stamps: NDArray[np.int64],
                ) -> tuple[NDArray[np.int64], dict[str, list[Any]]]:
        """Return the control steps [K] that lack nothing; K images, poses and joints by topic."""
        cameras = topics.IMAGES.values()
        seen = tracks[topics.IMAGES['primary']].nearest(stamps, self.tolerance) >= 0
        steps = np.arange(int(seen.argmax()), len(stamps), self.every)
        found = {topic: track.nearest(stamps[steps], self.tolerance)
                 for topic, track in tracks.items()}
        there = np.ones(len(steps), bool)
        for topic, places in found.items():
            self.report.gaps += Counter({topic: int((there & (places < 0)).sum())})
            there &= places >= 0
        values = {topic: self.bag.images(topic, places[there], tracks[topic])
                  if topic in cameras else dict(enumerate(tracks[topic].values))
                  for topic, places in found.items()}
        kept = [k for k in np.flatnonzero(there) if all(
            places[k] in values[topic] for topic, places in found.items())]
        self.report.gaps += Counter({'an image that can be decoded': int(there.sum()) - len(kept)})
        return steps[np.array(kept, int)], {
            topic: [values[topic][places[k]] for k in kept] for topic, places in found.items()}

    def _episode(self, segment: Segment, values: Mapping[str, Sequence[Any]],
                 starts: NDArray[np.int64], actions: NDArray[np.float32], thoughts: list[str],
                 ) -> Episode:
        """Return frames without a gap, of their images, poses and joints by topic."""
        options, path, joints = self.options, self.bag.path, values[topics.JOINT_STATES]
        arm = [name for name in joints[0] if name not in options.fingers]
        if absent := next((name for seen in joints for name in (*options.fingers, *arm)
                           if name not in seen), None):
            raise UserError(f'{path}: {topics.JOINT_STATES} lacks {absent} (it has '
                            f'{", ".join(joints[0])}); name the gripper joints with --fingers')
        images = {key: values[topics.IMAGES[camera]] for key, camera in layout.CAMERAS.items()}
        if any(image.shape != seen[0].shape for seen in images.values() for image in seen):
            raise UserError(f'{path}: images of several sizes; a dataset has one')
        return Episode(
            task=segment.task, images={key: np.stack(seen) for key, seen in images.items()},
            columns={
                layout.STATE: np.stack([
                    _state(pose, [seen[name] for name in options.fingers])
                    for pose, seen in zip(values[topics.EE_POSE], joints, strict=True)]),
                layout.JOINTS: np.array([[seen[name] for name in arm] for seen in joints],
                                        np.float32),
                layout.REASONING: thoughts, layout.ACTION: actions[starts],
                **layout.action_chunks(actions, starts, options.chunk)},
            metadata={**segment.metadata, 'kind': 'bag', 'bag': path.name,
                      'index': self.report.episodes, 'steps': len(actions),
                      'success': segment.success},
            names={layout.STATE: layout.STATE_NAMES, layout.JOINTS: arm})


def _thoughts(bag: Bag, segment: Segment) -> tuple[NDArray[np.int64], list[str]]:
    """Return when the decisions of an episode were observed [D], and D + 1 thoughts.

    Thought k is the one after k decisions, the first one ''. Thoughts carry no stamp, their chunks
    do: as many are paired in order, else each chunk with the thought received nearest to it.
    """
    chunks, thoughts = (bag.tracks[topic].during(segment.since, segment.until)
                        for topic in (topics.ACTION_CHUNK, topics.REASONING))
    texts = thoughts.values
    if not texts:
        return np.zeros(0, np.int64), ['']
    if len(texts) != len(chunks.values):
        texts = [texts[int(np.abs(thoughts.received - t).argmin())] for t in chunks.received]
    order = np.lexsort((texts, chunks.stamps))
    return chunks.stamps[order], ['', *(texts[k] for k in order)]


def _state(pose: tuple[NDArray[np.float64], NDArray[np.float64]], fingers: Sequence[float],
           ) -> NDArray[np.float32]:
    """Return [8] as ``dtvla collect`` writes it: LIBERO signs its two fingers."""
    half = float(np.abs(fingers).sum()) / 2
    return np.concatenate([
        pose[0], Rotation.from_quat(pose[1]).as_rotvec(), [half, -half]]).astype(np.float32)
