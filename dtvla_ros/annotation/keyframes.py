"""Finds key frames, at which the motion changes, so that one label can stand for what follows.

They are the first and last frame, the gripper's toggles (with hysteresis), the end effector's
velocity minima, and enough frames in between that no gap is longer than allowed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.signal import find_peaks
from tqdm import tqdm

from dtvla_ros.annotation.source import Motion, Source
from dtvla_ros.errors import UserError
from dtvla_ros.files import Journal, written_whole

FILE, MAKER = 'keyframes.jsonl', 'dtvla annotate keyframes'
EDGE, TOGGLE, PAUSE, GAP = 'edge', 'gripper', 'pause', 'gap'
COLOURS = {EDGE: '#545b66', TOGGLE: '#b3261e', PAUSE: '#1b7f4b', GAP: '#9aa3af'}


@dataclass(frozen=True, slots=True)
class KeyframeOptions:
    """``min_gap``, ``max_gap`` [s] between key frames; ``prominence`` of a minimum [m/s]."""

    min_gap: float = 0.4
    max_gap: float = 1.0
    prominence: float = 0.04

    def __post_init__(self) -> None:
        if not 0 <= self.min_gap < self.max_gap:
            raise UserError(f'--min-gap {self.min_gap}: give 0 to below --max-gap {self.max_gap}')


def find_keyframes(motion: Motion, options: KeyframeOptions) -> dict[int, str]:
    """Return key frames in order, and why: toggles win over edges, edges over minima."""
    count = len(motion)
    closest = max(1, round(options.min_gap * motion.fps))
    chosen = {0: EDGE, count - 1: EDGE} | {int(k): TOGGLE for k in motion.toggles}
    speed = motion.speed
    minima, _ = find_peaks(-speed, prominence=options.prominence)
    for frame in sorted(map(int, minima), key=speed.__getitem__):
        if min(abs(frame - k) for k in chosen) >= closest:
            chosen[frame] = PAUSE
    longest = max(1, round(options.max_gap * motion.fps))
    for before, after in pairwise(sorted(chosen)):
        for k in np.linspace(before, after, -(-(after - before) // longest) + 1)[1:-1]:
            chosen.setdefault(int(round(k)), GAP)
    return dict(sorted(chosen.items()))


def write_keyframes(source: Source, out: Path, options: KeyframeOptions,
                    episodes: int | None = None) -> None:
    """Write ``out``/keyframes.jsonl, one line per episode; go on where an earlier run stopped.

    Prints counts by reason. Raises ``UserError`` for a file of other settings or data.
    """
    header = {'kind': 'keyframes', 'dataset': source.fingerprint, **asdict(options)}
    counts, wanted = Counter(dict.fromkeys(COLOURS, 0)), range(len(source))[:episodes]
    with Journal(out / FILE, header) as journal:
        for episode in tqdm(wanted, desc='key frames', unit='episode', disable=None):
            if episode not in journal.done:
                motion = source.motion(episode)
                found = find_keyframes(motion, options).items()
                journal.add({'episode': episode, 'length': len(motion),
                             'keyframes': [{'frame': frame, 'why': why} for frame, why in found]})
            row = source.checked(out / FILE, journal.done[episode], MAKER)
            counts.update(part['why'] for part in row['keyframes'])
    why = ', '.join(f'{count} {name}' for name, count in counts.items())
    print(f'{out / FILE}: {counts.total()} key frames of {len(wanted)} episodes ({why})')


def read_keyframes(folder: Path, source: Source) -> dict[int, list[int]]:
    """Return the key frames of each episode; ``UserError`` when there are none of this dataset."""
    _, rows = source.read(folder / FILE, 'keyframes', MAKER)
    return {episode: [k['frame'] for k in row['keyframes']] for episode, row in rows.items()}


def plot_keyframes(source: Source, episode: int, options: KeyframeOptions, plot: Path) -> None:
    """Draw speed, gripper and key frames of one episode as a PNG."""
    if not 0 <= episode < len(source):
        raise UserError(f'{source.root}: no episode {episode}; there are {len(source)}')
    from matplotlib.figure import Figure

    motion = source.motion(episode)
    time = np.arange(len(motion)) / motion.fps
    figure = Figure(figsize=(9, 4.8), layout='constrained')
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    top.set_title(f'{source.reader.task(episode)} (episode {episode})', loc='left', fontsize=10)
    top.set_ylabel('end effector speed [m/s]')
    top.plot(time, motion.speed, color='#16407a')
    bottom.set(xlabel='time [s]', ylabel='gripper\n0 open, 1 shut')
    bottom.plot(time, source.level[source.reader.span(episode)], color='#7c93b5', label='command')
    bottom.step(time, motion.closing, where='post', color='#1b1e23', linewidth=1,
                label='with hysteresis')
    if motion.opening is not None and motion.widest > 0:
        bottom.plot(time, 1.0 - motion.opening / motion.widest, color='#c07a1e', label='fingers')
    bottom.legend(loc='upper left', fontsize=8)
    keyframes = find_keyframes(motion, options)
    for why in sorted(set(keyframes.values())):
        times = [frame / motion.fps for frame, reason in keyframes.items() if reason == why]
        for axes in (top, bottom):
            axes.vlines(times, 0, 1, COLOURS[why], '--', linewidth=1, label=why,
                        transform=axes.get_xaxis_transform())
    top.legend(loc='upper left', fontsize=8)
    with written_whole(plot) as part:
        figure.savefig(part, dpi=110)
