"""``dtvla data from-bag``: recorded runs as a LeRobot v3.0 dataset that can be trained on."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtvla_ros.actions.contract import ActionContract, differences
from dtvla_ros.data import layout
from dtvla_ros.data.bag import Bag, Told, open_bag, read_bag
from dtvla_ros.data.bag_commands import NEVER
from dtvla_ros.data.layout import Episode
from dtvla_ros.data.track import ANOTHER, BREAK, SLACK, Track
from dtvla_ros.data.writer import merge_shards, write_shard
from dtvla_ros.errors import UserError

GAP = 1.5  # control periods between two commands from which on one is missing
NEAR_BREAK = 3  # commands: how far messages of several topics may be out of order
BACK = 100_000_000  # by which stamps go back that were not only received out of order [ns]
PAUSE = 10**9  # without a command, after which a new episode begins where nothing tells [ns]
FASTEST, SLOWEST = 1000, 0.1  # commands and frames a second that are believed
REGULAR = 0.1  # control periods by which images that come every k-th step may miss it
WHOLE = 2  # pieces an episode, on average, from which on something is wrong with the bag
COMMAND = 'command'
FAR = 0.25  # distance from its command at which an image shows another moment [s]


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How bags become episodes.

    ``rate`` [Hz] of the commands, ``camera_every`` (control steps per frame): None: as the bag
    shows. ``tolerance`` [s] of the stamps to the command's; None: half of what lies between two
    images, or measurements, or commands. ``chunk``: actions kept with each frame.
    ``instruction``: the task, instead of what the bag says. ``told``: what else is not in the bag.
    """

    rate: int | None = None
    camera_every: int | None = None
    tolerance: float | None = None
    chunk: int = 8
    successful: bool = False
    instruction: str = ''
    told: Told = field(default_factory=Told)
    robot: str = 'panda'


@dataclass(slots=True)
class Report:
    """What became of the bags.

    ``gaps``: frames missing, by what was missing; ``nearest`` [s]: how far away what was missing
    lay at most, in nine of ten cases. ``left_out``: messages that say nothing, by why.
    ``clipped``: commands beyond what an action can say. ``contract``: what the actions are,
    ``commands``: the topics they were made of.
    """

    episodes: int = 0
    pieces: int = 0
    frames: int = 0
    unthought: int = 0
    failed: int = 0
    clipped: int = 0
    gaps: Counter[str] = field(default_factory=Counter)
    nearest: dict[str, float] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    contract: ActionContract = ActionContract()
    commands: set[str] = field(default_factory=set)

    def left_out_lines(self) -> list[str]:
        """Return what was left out, and how often, as texts."""
        return [f'{count} messages on {why}' for why, count in self.left_out.items()]

    def trouble(self) -> str:
        """Return what is wrong with episodes in many pieces, and what to do; '' if nothing is."""
        if self.pieces <= WHOLE * self.episodes:
            return ''
        name, count = self.gaps.most_common(1)[0]
        near = [away for away in self.nearest.values() if away < FAR]
        cure = (f'--tolerance {np.ceil(max(near) * 1e3 + 1) / 1e3:g} takes what is nearest, so '
                'many seconds away' if self.nearest.get(name, np.inf) < FAR else
                f'record again, and see that {name} comes without pauses')
        return (f'{self.episodes} episodes fell into {self.pieces} pieces, mostly for want of '
                f'{name} ({count} frames): {cure}. What is written can be used; dtvla data '
                'validate finds pieces shorter than a chunk')


class Segment(NamedTuple):
    """Commands ``first`` to ``last`` (excluded) of one episode.

    Received from ``since`` on, before ``until`` [ns]. ``success``: as the last mark of a person
    says, else the simulator; None where neither does.
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
    report, fps = Report(), 0.0
    try:
        for path in bags:
            with open_bag(path) as reader:
                told = replace(options.told, rate=options.rate)
                converter = _Converter(read_bag(reader, path, told), options, report)
                fps = fps or converter.fps
                if converter.fps != fps:
                    raise UserError(f'{path}: {converter.fps:g} frames a second, the bags before '
                                    f'it {fps:g}; convert them apart')
                if report.commands and (other := differences(
                        report.contract, converter.contract)):
                    raise UserError(f'{path}: {other[0]}, as in the bags before it; convert them '
                                    'apart')
                report.contract = converter.contract
                report.commands.add(converter.bag.command)
                for segment in split(converter.bag, converter.period, options.instruction):
                    converter.write(segment, out)
        if not report.frames:
            why = [*(f'{count} frames without {name}' for name, count in report.gaps.items()),
                   *report.left_out_lines(), f'{report.failed} episodes without success']
            raise UserError(f'{", ".join(map(str, bags))}: no frame to keep '
                            f'({"; ".join(why):.400}); record a run in which all of it comes')
        merge_shards(out, options.robot, report.contract)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return report


def split(bag: Bag, period: int, instruction: str = '') -> list[Segment]:
    """Return a bag's episodes: the simulator's where it tells, else one for each instruction.

    Where neither is told and ``instruction`` says the task, one between two pauses.
    """
    begun: list[tuple[int, str, dict[str, Any]]] = []
    success: dict[int, bool] = {}
    reports, instructions = bag.tracks['sim/episode'], bag.tracks['instruction']
    told = reports if reports.values else instructions
    for at, row in zip(told.received, told.values):
        task, metadata = (row, {}) if told is instructions else (
            row['instruction'], {name: row.get(name) for name in ('task', 'seed', 'episode')})
        if not begun or (metadata or task) != (begun[-1][2] or begun[-1][1]):
            begun.append((at, task, metadata))
        if metadata and row['done']:
            success[len(begun) - 1] = bool(row['success'])
    if not begun and instruction:
        pauses = np.flatnonzero(np.diff(bag.commands.received) > PAUSE) + 1
        begun = [(0, instruction, {}), *((at, instruction, {})
                                         for at in bag.commands.received[pauses])]
    if not begun:
        raise UserError(f'{bag.path}: it does not say what the task was; give --instruction TEXT'
                        ', or --topic instruction=/TOPIC if one says it')
    stamps, times = bag.commands.stamps, [0, *(at for at, _, _ in begun[1:]), NEVER]
    marks = bag.tracks['episode_mark']
    success |= zip((np.searchsorted(times, marks.received, side='right') - 1).tolist(),
                   marks.values)
    # A command received late, or early, belongs where its stamp does.
    jumps = np.flatnonzero((np.diff(stamps) < 0) | (np.diff(stamps) > BREAK * period)) + 1
    edges = [0, *(min([int(k) for k in jumps if abs(k - edge) <= NEAR_BREAK],
                      key=lambda k: abs(k - edge), default=edge)
                  for edge in np.searchsorted(bag.commands.received, times[1:-1]).tolist()),
             len(stamps)]
    return [Segment(edges[k], edges[k + 1], times[k], times[k + 1],
                    instruction or task, meta, success.get(k))
            for k, (_, task, meta) in enumerate(begun) if edges[k + 1] > edges[k]]


class _Converter:
    """Converts the episodes of one bag.

    Control ``period`` [ns], control steps per frame (``every``), ``fps`` and ``tolerances`` [ns]
    by topic name are those of the options, else of the stamps; ``contract``: what the actions
    are. Raises ``UserError``.
    """

    def __init__(self, bag: Bag, options: ConvertOptions, report: Report) -> None:
        self.bag, self.options, self.report = bag, options, report
        report.left_out += bag.left_out
        report.clipped += bag.clipped
        stamped = 1e9 / self._spacing(bag.commands, 'commands')
        rate = options.rate or max(1, round(stamped))
        if not 1 / ANOTHER < rate / stamped < ANOTHER:
            raise UserError(f'--rate {rate}: {bag.path} has {stamped:.3g} commands a second by '
                            'their stamps; leave it away, or give --stamps received')
        if rate > FASTEST:
            raise UserError(f'{bag.path}: {rate} commands a second by their stamps; give --rate, '
                            'or --stamps received')
        self.period = round(1e9 / rate)
        self.contract = replace(bag.contract, rate_hz=float(rate))
        images = max(self._spacing(bag.tracks[name], f'images on {bag.sources[name]}')
                     for name in bag.cameras)
        self.every = options.camera_every or _steps(images, rate)
        if rate < SLOWEST * self.every:
            raise UserError(f'{bag.path}: an image every {images / 1e9:.0f} s by their stamps; '
                            'give --stamps received, or record cameras that are faster')
        whole, rest = divmod(rate, self.every)
        self.fps = rate / self.every if rest else whole
        self.tolerances = {
            name: self._tolerance(name) if options.tolerance is None
            else round(options.tolerance * 1e9) for name in bag.stated}
        if options.successful and not (
                bag.tracks['episode_mark'].values or bag.tracks['sim/episode'].values):
            raise UserError(f'--successful: {bag.path} has no /episode_mark and no /sim/episode '
                            'to tell; leave it away, and choose episodes by dtvla data view')

    def _spacing(self, track: Track, what: str) -> float:
        spacing = track.spacing()
        if not spacing > 0:
            left_out = '; '.join(self.report.left_out_lines())
            raise UserError(f'{self.bag.path}: fewer than two {what}'
                            + (f' that can be used ({left_out:.300})' if left_out else '')
                            + '; record for longer')
        return spacing

    def _tolerance(self, name: str) -> float:
        """Return half of what lies between two messages; a slow measurement is no frame's."""
        spacing = np.nan_to_num(self.bag.tracks[name].spacing())
        return max(self.period, spacing if name in self.bag.cameras else min(
            spacing, self.every * self.period)) / 2

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
        received, steps_on = bag.commands.received[own], np.diff(stamps)
        late = np.flatnonzero((steps_on > GAP * self.period) | (steps_on < 0)) + 1
        self.report.gaps += Counter({COMMAND: len(late)})
        decided, thoughts, forced = _thoughts(bag, segment)
        driven = _driven(bag, bag.commands.received[own])
        for first, last in zip([0, *late], [*late, len(stamps)]):
            # What was received at another time may bear the same stamp: clocks start anew.
            since = max(segment.since, int(received[first])) - SLACK
            until = min(segment.until, int(received[last - 1])) + SLACK
            tracks = {name: bag.tracks[name].during(since, until) for name in bag.stated}
            self._require_forward(tracks, since + 2 * SLACK, until - 2 * SLACK)
            steps, values = self._frames(tracks, stamps[first:last])
            breaks = np.flatnonzero(np.diff(steps) != self.every) + 1
            for part in np.split(np.arange(len(steps)), breaks) if len(steps) else ():
                thought = np.searchsorted(decided, stamps[first + steps[part]], side='right')
                texts = [thoughts[k] for k in thought]
                self.report.unthought += texts.count('')
                seen = {name: [found[k] for k in part] for name, found in values.items()}
                yield self._episode(segment, seen, steps[part], actions[first:last], {
                    layout.REASONING: texts, layout.FORCED: forced[thought],
                    layout.INTERVENTION: driven[first + steps[part]]})

    def _require_forward(self, tracks: Mapping[str, Track], since: int, until: int) -> None:
        """Refuse a topic whose stamps go back while those of the commands go on."""
        for name, track in tracks.items():
            back = -np.diff(track.during(since, until).stamps).min(initial=0)
            if back > BACK:
                raise UserError(
                    f'{self.bag.path}: {self.bag.sources[name]}: header.stamp goes back by '
                    f'{back / 1e9:.2f} s within an episode: two publishers, or a clock that was '
                    'set; --stamps received takes the times the messages were received')

    def _frames(self, tracks: Mapping[str, Track], stamps: NDArray[np.int64],
                ) -> tuple[NDArray[np.int64], dict[str, list[Any]]]:
        """Return the control steps [K] that lack nothing; K images, poses and joints by name."""
        steps = self._steps(tracks[self.bag.cameras[0]], stamps)
        found = {name: track.nearest(stamps[steps], self.tolerances[name])
                 for name, track in tracks.items()}
        there = np.ones(len(steps), bool)
        for name, places in found.items():
            self._note(name, tracks[name], stamps[steps[there & (places < 0)]])
            there &= places >= 0
        values = {name: self.bag.images(name, places[there], tracks[name])
                  if name in self.bag.cameras else dict(enumerate(tracks[name].values))
                  for name, places in found.items()}
        kept = [k for k in np.flatnonzero(there) if all(
            places[k] in values[name] for name, places in found.items())]
        self.report.gaps += Counter({'an image that can be decoded': int(there.sum()) - len(kept)})
        return steps[np.array(kept, int)], {
            name: [values[name][places[k]] for k in kept] for name, places in found.items()}

    def _steps(self, images: Track, stamps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the control steps of a frame: those at which the images were taken."""
        tolerance = self.tolerances[self.bag.cameras[0]]
        first = int((images.nearest(stamps, tolerance) >= 0).argmax())
        near = np.sort(images.stamps)
        starts = [np.arange(k, len(stamps), self.every)
                  for k in range(first, min(first + self.every, len(stamps)))]
        return min(starts, key=lambda steps: np.median(_away(near, stamps[steps])))

    def _note(self, name: str, track: Track, missing: NDArray[np.int64]) -> None:
        """Note which frames lack a topic, and how far away its nearest message lies."""
        if len(missing):
            topic, report = self.bag.sources[name], self.report
            report.gaps[topic] += len(missing)
            away = float(np.quantile(_away(np.sort(track.stamps), missing), 0.9)) * 1e-9
            report.nearest[topic] = max(away, report.nearest.get(topic, 0.0))

    def _episode(self, segment: Segment, values: Mapping[str, Sequence[Any]],
                 starts: NDArray[np.int64], actions: NDArray[np.float32],
                 columns: Mapping[str, Any]) -> Episode:
        """Return frames without a gap, of their images, poses and joints by name."""
        options, path, joints = self.options, self.bag.path, values['joint_states']
        fingers = self.bag.fingers
        arm = [name for name in joints[0] if name not in fingers]
        images = {layout.camera_key(name.removeprefix('image_')): values[name]
                  for name in self.bag.cameras}
        if any(image.shape != seen[0].shape for seen in images.values() for image in seen):
            raise UserError(f'{path}: images of several sizes; a dataset has one: convert '
                            'what was recorded of each size apart')
        return Episode(
            task=segment.task, images={key: np.stack(seen) for key, seen in images.items()},
            columns={
                layout.STATE: np.stack([
                    _state(pose, [seen[name] for name in fingers])
                    for pose, seen in zip(values['ee_pose'], joints, strict=True)]),
                layout.JOINTS: np.array([[seen[name] for name in arm] for seen in joints],
                                        np.float32),
                **columns, layout.ACTION: actions[starts],
                **layout.action_chunks(
                    actions, starts, options.chunk, contract=self.contract)},
            metadata={**segment.metadata, 'kind': 'bag', 'bag': path.name,
                      'index': self.report.episodes, 'steps': len(actions),
                      layout.SUCCESS: segment.success},
            names={layout.STATE: layout.STATE_NAMES, layout.JOINTS: arm, **(
                {} if self.contract.is_normalised else {layout.ACTION: self.contract.channels})})


def _driven(bag: Bag, received: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether a person drove when commands were received [N] ns, as the gate had said."""
    states = bag.tracks['gate_state']
    before = np.searchsorted(states.received, received, side='right')
    return np.array([False, *states.values], bool)[before]


def _thoughts(bag: Bag, segment: Segment,
              ) -> tuple[NDArray[np.int64], list[str], NDArray[np.bool_]]:
    """Return when the decisions of an episode were observed [D], D + 1 thoughts, which are forced.

    Thought k is the one after k decisions, the first one ''. Thoughts carry no stamp, their chunks
    do: as many are paired in order, else each chunk with the thought received nearest to it.
    """
    chunks, thoughts = (bag.tracks[topic].during(segment.since, segment.until)
                        for topic in ('vla/action_chunk', 'vla/reasoning'))
    texts = thoughts.values
    if not texts:
        return np.zeros(0, np.int64), [''], np.zeros(1, bool)
    if len(texts) != len(chunks.values):
        texts = [texts[int(np.abs(thoughts.received - t).argmin())] for t in chunks.received]
    order = np.lexsort((texts, chunks.stamps))
    forced = np.isin(np.array(chunks.values, np.int64)[order], bag.tracks['vla/state'].values)
    return (chunks.stamps[order], ['', *(texts[k] for k in order)],
            np.concatenate(([False], forced)))


def _state(pose: tuple[NDArray[np.float64], NDArray[np.float64]], fingers: Sequence[float],
           ) -> NDArray[np.float32]:
    """Return [8] as ``dtvla collect`` writes it: LIBERO signs its two fingers."""
    half = float(np.abs(fingers).sum()) / 2
    return np.concatenate([
        pose[0], Rotation.from_quat(pose[1]).as_rotvec(), [half, -half]]).astype(np.float32)


def _steps(spacing: float, rate: int) -> int:
    """Return the control steps per frame of images that come every ``spacing`` ns.

    As they come where that is every k-th step; else as few as leave a whole frame rate and have
    an image each.
    """
    every = spacing * rate / 1e9
    if every >= 1 - REGULAR and abs(every - round(every)) < REGULAR:
        return round(every)
    return next((k for k in range(1, rate + 1) if rate % k == 0 and k >= 0.9 * every), rate)


def _away(stamps: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how far the nearest of sorted stamps is from each of some times [ns]."""
    if not len(stamps):
        return np.full(len(wanted), NEVER)
    after = np.searchsorted(stamps, wanted)
    return np.minimum(np.abs(wanted - stamps[np.maximum(after - 1, 0)]),
                      np.abs(stamps[np.minimum(after, len(stamps) - 1)] - wanted))
