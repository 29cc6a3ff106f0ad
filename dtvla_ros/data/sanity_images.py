"""Whether the pictures of a dataset fit its numbers: hints, with how sure they are.

Nothing but motion is looked at. Where the hand goes is in the state; the pictures say where
things move. Which camera is which, whether one is stuck, and whether a picture is rotated or
mirrored follows from comparing the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.sanity import HINT, OK, WARNING, Note, Numbers

SIDE = 64  # pictures are shrunk to this [px]
RATE = 5.0  # pictures looked at in a second
CHANGED = 10.0  # of 255, from which on a pixel has changed
MOVING = 0.008  # of the hand between two pictures [m]
TRAVELLED = 0.05  # of the hand in an episode that says something [m]
BLANK = 3.0  # of 255: standard deviation of a picture without content
STILL = 4.0  # of 255: largest change that a codec makes of the same picture twice
CLEAR = 0.03  # of the pixels, by which one camera must stand stiller than the other
RESPONSE = 0.12  # of a phase correlation that found the shift
DRAWS = 200  # bootstrap samples
SURE, LIKELY = 0.97, 0.85  # share of them that agree
SHORT = 4  # pictures up to which an episode shows no motion
FEW = 40  # pairs of pictures below which nothing is concluded


@dataclass(frozen=True, slots=True)
class Watched:
    """Pictures of one episode: grey [T, 64, 64] by camera; position [T, 3], turn [T, 3]."""

    number: int
    grey: dict[str, NDArray[np.float32]]
    position: NDArray[np.float64]
    turn: NDArray[np.float64]
    frames: NDArray[np.int64]

    @property
    def steps(self) -> NDArray[np.float64]:
        """How far the hand moves between two pictures [T - 1] m."""
        return np.linalg.norm(np.diff(self.position, axis=0), axis=1)


def watch(reader: DatasetReader, numbers: Numbers, episodes: int) -> list[Watched]:
    """Decode some episodes, evenly spread among those in which something can move.

    Raises ``UserError`` for a video that cannot be decoded.
    """
    stride = max(1, round(reader.fps / RATE))
    lengths = np.bincount(numbers.episode)
    moving = np.flatnonzero(lengths > SHORT * stride)
    if not len(moving):
        moving = np.arange(len(lengths))
    chosen = moving[np.unique(np.linspace(
        0, len(moving) - 1, min(episodes, len(moving))).astype(int))]
    seen = []
    for number in tqdm(chosen.tolist(), desc='look', unit='ep'):
        begin, length = (reader.episodes[number][key] for key in ('dataset_from_index', 'length'))
        frames = np.arange(0, length, stride)
        grey = {key: _grey(reader, number, key, stride) for key in reader.camera_keys}
        count = min([len(frames), *map(len, grey.values())])
        state = numbers.state[begin + frames[:count]]
        seen.append(Watched(number, {key: part[:count] for key, part in grey.items()},
                            state[:, :3], state[:, 3:6], frames[:count]))
    return seen


def _grey(reader: DatasetReader, number: int, key: str, stride: int) -> NDArray[np.float32]:
    small = [cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE),
                        interpolation=cv2.INTER_AREA)
             for k, image in enumerate(reader.frames(number, key)) if k % stride == 0]
    return np.asarray(small, np.float32).reshape(-1, SIDE, SIDE)


def check_pictures(seen: list[Watched]) -> list[Note]:
    """Return what every check of the pictures says."""
    cameras = list(seen[0].grey) if seen else []
    notes = [note for key in cameras for note in _dead(seen, key)]
    named = {layout.CAMERAS.get(key): key for key in cameras}
    primary, wrist = named.get('primary'), named.get('wrist')
    if primary and wrist:
        notes.append(_swapped(seen, primary, wrist))
    else:
        notes.append(Note('swapped cameras', HINT, 'the dataset does not name a primary and a '
                          f'wrist camera ({", ".join(cameras) or "none"})', 'unclear'))
    if primary:
        notes.append(_upright(seen, primary))
    if wrist:
        notes.append(_wrist_mirrored(seen, wrist))
    return notes


def _dead(seen: list[Watched], key: str) -> Iterator[Note]:
    check = f'picture of {key}'
    blank, frozen = [], []
    moving = sum(int((episode.steps > MOVING).sum()) for episode in seen)
    for episode in seen:
        grey = episode.grey[key]
        empty = grey.std((1, 2)) < BLANK
        if empty.any():
            blank.append(f'episode {episode.number}, from frame '
                         f'{episode.frames[int(empty.argmax())]}: {empty.sum()} of {len(grey)}')
            continue
        still = np.abs(np.diff(grey, axis=0)).max((1, 2), initial=0.0) < STILL
        run = _longest_run(still & (episode.steps > MOVING))
        if run[1] >= 3:
            frozen.append(f'episode {episode.number}, from frame {episode.frames[run[0]]}: '
                          f'{run[1] + 1} pictures')
    for where, what in ((blank, 'is dark or blank'),
                        (frozen, 'shows a still picture while the hand moves')):
        if where:
            yield Note(check, WARNING, f'the camera {what} in {len(where)} of {len(seen)} '
                       'episodes', 'certain', where[:8])
    if not (blank or frozen):
        yield Note(check, OK if moving else HINT, f'shows something in {len(seen)} episodes'
                   + (', and changes while the hand moves' if moving else
                      '; the hand never moves in them'), 'certain' if moving else 'unclear')


def _longest_run(flags: NDArray[np.bool_]) -> tuple[int, int]:
    best, begin, length = (0, 0), 0, 0
    for k, flag in enumerate(flags):
        length = length + 1 if flag else 0
        begin = k + 1 - length
        if length > best[1]:
            best = begin, length
    return best


def _swapped(seen: list[Watched], primary: str, wrist: str) -> Note:
    """Compare what never changes: the background of a camera that stands, not on the hand."""
    check = 'swapped cameras'
    table = np.array([
        [(np.ptp(episode.grey[key], axis=0) < CHANGED).mean() for key in (primary, wrist)]
        for episode in seen if np.ptp(episode.position, axis=0).max() > TRAVELLED]).reshape(-1, 2)
    table = table[np.abs(table[:, 0] - table[:, 1]) > CLEAR]
    if len(table) < 3:
        return Note(check, HINT, 'too few episodes in which the two differ', 'unclear')
    first, second = np.median(table, 0)
    right = float((table[:, 0] > table[:, 1]).mean())
    share = max(right, 1 - right)
    certainty = 'certain' if share > 0.9 and len(table) >= 8 else (
        'likely' if share > 0.75 else 'unclear')
    text = (f'{first:.0%} of the primary camera and {second:.0%} of the wrist camera never change '
            f'in an episode; the primary camera stands stiller in {right:.0%} of {len(table)} '
            'episodes')
    if right < 0.25:
        return Note(check, WARNING, f'{text}: they look exchanged (dtvla data convert --rename '
                    'names them)', certainty)
    return Note(check, OK if right > 0.75 else HINT, text, certainty)


def _upright(seen: list[Watched], key: str) -> Note:
    """Compare where the motion is in the picture with where the hand is.

    Seen from above, the ground's x and y axes turn as in the world, whatever the camera's
    bearing: a mirrored picture turns them the other way. What rises, rises in the picture.
    """
    check = 'orientation of primary'
    parts = []
    for episode in seen:
        change = np.abs(np.diff(episode.grey[key], axis=0))
        change[change < CHANGED] = 0.0
        mass = change.sum((1, 2))
        good = (episode.steps > MOVING) & (mass > CHANGED * 8)
        if good.sum() < 4:
            continue
        rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
        place = np.stack([(change[good] * axis).sum((1, 2)) / mass[good]
                          for axis in (columns, rows)], 1)
        middle = (episode.position[1:] + episode.position[:-1])[good] / 2
        parts.append(np.hstack([middle - middle.mean(0), place - place.mean(0)]))
    if sum(map(len, parts)) < FEW:
        return Note(check, HINT, 'too little motion to tell', 'unclear')
    fit, agree = _bootstrap(parts, _orientation)
    slopes = _slopes(np.vstack(parts))
    text = (f'{fit}: what moves goes {_way(slopes[0])} with +x of the hand, '
            f'{_way(slopes[1])} with +y and {_way(slopes[2])} with +z, in {len(parts)} episodes')
    certainty = 'certain' if agree > SURE else 'likely' if agree > LIKELY else 'unclear'
    if fit == 'upright':
        facing = slopes[1, 0] > 0 and slopes[0, 1] > 0
        text += ('; the camera faces the robot, as the one of LIBERO does' if facing else
                 '; not as in LIBERO, whose camera faces the robot (+y right, +x down)')
        return Note(check, OK if facing else HINT, text, certainty)
    return Note(check, WARNING if agree > LIKELY else HINT,
                f'{text}. This holds for a camera that looks at the arm from above at a slant',
                certainty)


def _slopes(rows: NDArray[np.float64]) -> NDArray[np.floating]:
    """Return [3, 2]: across and down of the motion per metre of the hand's x, y and z."""
    return np.linalg.lstsq(rows[:, :3], rows[:, 3:5], rcond=None)[0]


def _orientation(rows: NDArray[np.float64]) -> str:
    slopes = _slopes(rows)
    mirrored = np.linalg.det(slopes[:2]) > 0
    across, down = slopes[2]
    if abs(down) >= abs(across):
        turn = 'upright' if down < 0 else 'upside down'
    else:
        turn = 'a quarter turn to the right' if across > 0 else 'a quarter turn to the left'
    if not mirrored:
        return 'rotated by 180 degrees' if turn == 'upside down' else turn
    return {'upright': 'mirrored left to right',
            'upside down': 'mirrored top to bottom'}.get(turn, f'mirrored and {turn}')


def _wrist_mirrored(seen: list[Watched], key: str) -> Note:
    """Compare how the picture shifts with how the hand moves in its own frame."""
    check = 'mirroring of wrist'
    window = cv2.createHanningWindow((SIDE, SIDE), cv2.CV_32F)
    parts = []
    for episode in seen:
        grey, turn = episode.grey[key], Rotation.from_rotvec(episode.turn)
        moved = turn[:-1].inv().apply(np.diff(episode.position, axis=0))
        rows = []
        for k in np.flatnonzero(episode.steps > MOVING / 2):
            (across, down), response = cv2.phaseCorrelate(grey[k], grey[k + 1], window)
            if response > RESPONSE and max(abs(across), abs(down)) < SIDE / 4:
                rows.append([*moved[k], across, down])
        if len(rows) >= 3:
            parts.append(np.asarray(rows))
    if sum(map(len, parts)) < FEW:
        return Note(check, HINT, 'too few pictures in which the shift can be measured',
                    'unclear')
    fit, agree = _bootstrap(parts, lambda rows: 'mirrored' if np.linalg.det(
        _slopes(rows)[:2]) < 0 else 'not mirrored')
    pairs = sum(map(len, parts))
    text = f'the picture looks {fit}, from its shifts in {pairs} pairs of pictures'
    certainty = 'certain' if agree > SURE else 'likely' if agree > LIKELY else 'unclear'
    if fit == 'not mirrored' or agree <= LIKELY:
        return Note(check, OK if agree > LIKELY else HINT, text, certainty)
    return Note(check, WARNING, text, certainty)


def _bootstrap(parts: list[NDArray[np.float64]], decide: Callable[[NDArray[np.float64]], str],
               ) -> tuple[str, float]:
    """Return a decision, and in how many draws of episodes it is the same."""
    rng = np.random.default_rng(0)
    fit = decide(np.vstack(parts))
    draws = [decide(np.vstack([parts[k] for k in rng.integers(0, len(parts), len(parts))]))
             for _ in range(DRAWS)]
    return fit, sum(draw == fit for draw in draws) / DRAWS


def _way(slope: NDArray[np.floating]) -> str:
    across, down = slope
    ways = [('right' if across > 0 else 'left', abs(across)), ('down' if down > 0 else 'up',
                                                               abs(down))]
    ways.sort(key=lambda pair: -pair[1])
    return ways[0][0] if ways[1][1] < 0.4 * ways[0][1] else f'{ways[0][0]} and {ways[1][0]}'
