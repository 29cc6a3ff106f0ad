"""Checks whether the numbers and images of a dataset mean what this package takes them to mean.

Of the images only motion is used, which is compared with where the gripper goes: which camera is
which, whether one is stuck, and whether an image is rotated or mirrored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from dtvla_ros.actions import osc
from dtvla_ros.data import layout
from dtvla_ros.data.channels import EndEffector, are_joints
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.issues import HINT, OK, WARNING, Issue

FINGER = 0.15  # farthest coordinate of a finger [m]
GRIPPER_SECONDS = 0.5  # after a toggle, in which the fingers have moved
LAGS = range(-2, 3)  # frames by which action and motion may be shifted
FOLLOWS = 0.3  # correlation from which on a motion follows an action
FAR = 2.0  # times the span from 1 % to 99 %, away from the median: an outlier
JUMP = 8.0  # times the 99 % step between two frames: the state jumped
LONG = 3.0  # times the median length of an episode

SIDE = 64  # images are shrunk to this [px]
RATE = 5.0  # images used in a second
CHANGED = 10.0  # of 255, from which on a pixel has changed
MOVING = 0.008  # of the gripper between two images [m]
TRAVELLED = 0.05  # of the gripper in an episode that says something [m]
BLANK = 3.0  # of 255: standard deviation of an image without content
STILL = 4.0  # of 255: largest change that a codec makes of the same image twice
CLEAR = 0.03  # of the pixels, by which one camera must stand stiller than the other
RESPONSE = 0.12  # of a phase correlation that found the shift
RESAMPLES = 200  # of the bootstrap
SURE, LIKELY = 0.97, 0.85  # share of them that agree
SHORT = 4  # images up to which an episode shows no motion
FEW = 40  # pairs of images below which nothing is concluded

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Numbers:
    """State [N, S] and action [N, A] of all frames, with episode [N] and frame [N] numbers.

    ``channels``: which of the state's are the end effector's. Of the action's channels
    ``gripper`` commands the gripper, None where that is not known; ``joints``: they are joints',
    or else nothing that the state's end effector shows. Actions that are poses are read as the
    offsets to them from the state; ``poses`` says so.
    """

    state: Array
    action: Array
    episode: NDArray[np.int64]
    frame: NDArray[np.int64]
    fps: float
    channels: EndEffector
    gripper: int | None
    joints: bool
    poses: bool = False

    @classmethod
    def of(cls, reader: DatasetReader) -> Numbers:
        """Read them. Raises ``UserError`` when the dataset lacks one."""
        lengths, channels, are_poses = reader.lengths, reader.end_effector, reader.contract.is_pose
        poses = are_poses and bool(channels.position and channels.rotation)
        state, action = reader.rows(layout.STATE), reader.rows(layout.ACTION)
        return cls(state, _offsets(state, action, channels) if poses else action,
                   np.repeat(np.arange(len(lengths)), lengths),
                   np.concatenate([np.arange(n) for n in lengths]), float(reader.fps),
                   channels, reader.gripper,
                   are_joints(reader.channels(layout.ACTION)) or are_poses != poses, poses)

    def at_end_effector(self, part: str, rows: Any = slice(None)) -> Array:
        """Return its position [N, 3] m or rotation [N, 3] rad; 0 where the state has none."""
        channels = getattr(self.channels, part)
        state = self.state[rows]
        return state[:, channels] if channels else np.zeros((len(state), 3))

    def at(self, rows: Iterable[Any]) -> tuple[str, ...]:
        """Name the places of rows."""
        return tuple(f'episode {self.episode[k]}, frame {self.frame[k]}' for k in rows)

    def within(self) -> NDArray[np.bool_]:
        """Return for each row but the last whether the next is of the same episode."""
        return self.episode[1:] == self.episode[:-1]


def _offsets(state: Array, action: Array, channels: EndEffector) -> Array:
    """Return poses [N, 7] as the offsets to them from the state [N, S]."""
    turned = Rotation.from_rotvec(state[:, channels.rotation]).as_quat()
    away = osc.action_towards(state[:, channels.position], turned, *osc.pose_of(action))
    return np.hstack([away, action[:, 6:]])


def _issue(check: str, level: str, problem: str, certainty: str = 'unclear',
           where: Iterable[str] = ()) -> Issue:
    return Issue(problem, check=check, level=level, certainty=certainty, where=tuple(where))


def _certainty(share: float, sure: float = SURE, likely: float = LIKELY) -> str:
    return 'certain' if share > sure else 'likely' if share > likely else 'unclear'


def check_numbers(numbers: Numbers) -> list[Issue]:
    """Return what every check of state and action says, passed ones included.

    Where something is not finite nothing else is checked.
    """
    first = list(_unusable(numbers))
    if not np.isfinite(numbers.state).all() or not np.isfinite(numbers.action).all():
        return first
    return [*first, _gripper(numbers), *_motion(numbers), *_outliers(numbers),
            *_jumps(numbers), *_lengths(numbers)]


def _unusable(numbers: Numbers) -> Iterator[Issue]:
    """Find channels that never change, and what is no number."""
    for name, values in (('state', numbers.state), ('action', numbers.action)):
        still = np.flatnonzero(np.ptp(np.nan_to_num(values), 0) < 1e-6)
        yield _issue('constant channels', WARNING if len(still) else OK, f'channels '
                     f'{_listed(still)} of {name} never change: nothing can be learnt from them, '
                     'and their quantiles coincide' if len(still) else
                     f'every channel of {name} moves', 'certain')
    bad = np.flatnonzero(~np.isfinite(np.hstack([numbers.state, numbers.action])).all(1))
    if len(bad):
        yield _issue('not finite', WARNING, f'{len(bad)} frames hold NaN or infinity', 'certain',
                     numbers.at(bad[:10]))


def gripper_opening(state: Array, channels: EndEffector) -> Array | None:
    """Return how open the gripper is [N], larger is wider; None when nothing tells.

    Two fingers, which LIBERO gives opposite signs, are added; else the last channel counts.
    """
    fingers = np.abs(state[:, channels.fingers or [-1]])
    are_two = bool(channels.fingers) and fingers.max() < FINGER
    wide = fingers.sum(1) if are_two else state[:, -1]
    return wide if np.ptp(wide) > 1e-6 else None


def _gripper(numbers: Numbers) -> Issue:
    """Compare what the fingers do after a toggle with the command: here +1 closes."""
    issue = partial(_issue, 'gripper sign')
    wide = gripper_opening(numbers.state, numbers.channels)
    if wide is None:
        return issue(HINT, 'the state does not show the fingers')
    if numbers.gripper is None:
        return issue(HINT, 'no channel of the action is called gripper: not checked')
    command = numbers.action[:, numbers.gripper]
    zero_one = command.min() >= 0.0 and command.max() > 0.5
    high = command > (0.5 if zero_one else 0.0)
    toggles = 1 + np.flatnonzero(numbers.within() & (high[1:] != high[:-1]))
    ends = np.searchsorted(numbers.episode, numbers.episode[toggles], 'right') - 1
    after = np.minimum(toggles + max(1, round(GRIPPER_SECONDS * numbers.fps)), ends)
    change = wide[after] - wide[toggles]
    moved = (ends > toggles) & (np.abs(change) > 0.05 * np.ptp(wide))
    toggles, closing = toggles[moved], high[toggles[moved]] == (change[moved] < 0)
    if len(toggles) < 3:
        return issue(HINT, f'only {len(toggles)} toggles move the fingers')
    closes = closing.mean() > 0.5
    share = (closing == closes).mean()
    text = (f'the {"larger" if zero_one else "positive"} command {"closes" if closes else "opens"}'
            f' the fingers after {share:.0%} of {len(toggles)} toggles')
    level = HINT if share <= 0.8 else WARNING if zero_one or not closes else OK
    if level == WARNING:
        text += '; here +1 closes and -1 opens: the last channel of action ' + ' and '.join(
            [*(['is coded 0 and 1'] if zero_one else []),
             *([] if closes else ['has the opposite sign'])])
    return issue(level, text,
                 _certainty(share if len(toggles) >= 10 else min(share, 0.95), 0.95, 0.8),
                 numbers.at(toggles[closing != closes][:5]))


def _motion(numbers: Numbers) -> Iterator[Issue]:
    """Compare what the actions ask for with what the state does next."""
    if not (numbers.channels.position and numbers.channels.rotation) or (
            numbers.action.shape[1] < 7) or numbers.joints:
        yield _issue('action and next state', HINT, 'no pose of six numbers in the state, or no '
                     'seven actions that move it: not checked')
        return
    position = numbers.at_end_effector('position')
    turns = Rotation.from_rotvec(numbers.at_end_effector('rotation'))
    yield from _agreement(numbers, 'position', 0, np.diff(position, axis=0), 'm')
    yield from _agreement(
        numbers, 'rotation', 3, (turns[1:] * turns[:-1].inv()).as_rotvec(), 'rad')
    if np.abs(numbers.action[:, :3] - position).max(1).mean() < 0.1 * np.ptp(position, 0).max():
        yield _issue('absolute actions', WARNING, 'the actions follow the position itself: they '
                     'look like absolute targets, this package learns changes (OSC_POSE)',
                     'likely')


def _pairs(numbers: Numbers, change: Array, first: int, lag: int) -> tuple[Array, Array]:
    """Pair action t [P, 3] with the change [P, 3] from t + lag to t + lag + 1 of its episode."""
    episode = numbers.episode
    row = np.arange(max(0, -lag), len(episode) - 1 - max(0, lag))
    row = row[(episode[row] == episode[row + lag]) & (episode[row] == episode[row + lag + 1])]
    return numbers.action[row, first:first + 3], change[row + lag]


def _correlation(action: Array, change: Array) -> Array:
    """Return [3, 3]: of each action channel (row) with each axis of motion (column)."""
    a, d = action - action.mean(0), change - change.mean(0)
    scale = np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(d, axis=0))
    return a.T @ d / np.maximum(scale, 1e-12)


def _agreement(numbers: Numbers, what: str, first: int, change: Array, unit: str,
               ) -> Iterator[Issue]:
    """Check axes, signs, scale and delay of three action channels from ``first`` on."""
    issue = partial(_issue, f'action and next {what}')
    if min(numbers.action[:, first:first + 3].std(0).max(), change.std(0).max()) < 1e-4:
        yield issue(HINT, f'the {what} is hardly commanded, or never changes: not checked')
        return
    by_lag = {lag: float(np.diag(_correlation(*_pairs(numbers, change, first, lag))).mean())
              for lag in LAGS}
    action, motion = _pairs(numbers, change, first, 0)
    moved = _correlation(action, motion)
    factor = (action * motion).sum(0) / np.maximum((action ** 2).sum(0), 1e-12)
    rest = ((motion - factor * action) ** 2).sum(0)
    explained = np.maximum(1 - rest / np.maximum((motion ** 2).sum(0), 1e-12), 0)
    best, strong = np.abs(moved).argmax(0), np.abs(moved).max(0) > FOLLOWS
    text = (f'correlation {_listed(np.diag(moved).round(2))}; a unit moves the gripper '
            f'{_listed((factor * numbers.fps).round(3))} {unit}/s and explains '
            f'{", ".join(f"{share:.0%}" for share in explained)} of it')
    if what == 'position':
        text += f' (OSC_POSE settles at {osc.METRES_PER_SECOND_PER_UNIT} m/s)'
    wrong = [f'axis {"xyz"[k]} follows action channel {first + best[k]}, not {first + k}: axes '
             'are exchanged, or actions are in another frame'
             for k in range(3) if strong[k] and best[k] != k]
    wrong += [f'axis {"xyz"[k]} moves against action channel {first + k}'
              for k in range(3) if strong[k] and moved[k, k] < 0]
    if wrong:
        yield issue(WARNING, f'{wrong[0]}; {text}', 'likely')
    elif not strong.any():
        yield issue(HINT, f'the {what} does not follow the actions; {text}')
    else:
        yield issue(OK, text, 'certain' if strong.all() else 'likely')
    lag = max(by_lag, key=lambda k: by_lag[k])
    if lag != 0 and by_lag[lag] > max(by_lag[0] + 0.1, FOLLOWS):
        when, why = ('before', 'actions are stored too late') if lag < 0 else (
            'after', 'the arm is slow, or actions are stored too early')
        yield _issue(f'delay of the {what}', WARNING if lag < 0 else HINT, 'the gripper moves '
                     f'{abs(lag)} frames {when} the action that asks for it (correlation '
                     f'{by_lag[lag]:.2f} against {by_lag[0]:.2f}): {why}', 'likely')


def _unwound(numbers: Numbers) -> Array:
    """Tell turns from their mean: rotation vectors of half a turn jump between two signs."""
    state = numbers.state.copy()
    if numbers.channels.rotation:
        turns = Rotation.from_rotvec(numbers.at_end_effector('rotation'))
        state[:, numbers.channels.rotation] = (turns * turns.mean().inv()).as_rotvec()
    return state


def _outliers(numbers: Numbers) -> Iterator[Issue]:
    for name, values in (('state', _unwound(numbers)), ('action', numbers.action)):
        low, middle, high = np.nanquantile(values, (0.01, 0.5, 0.99), axis=0)
        away = np.abs(values - middle) / np.where(high - low < 1e-6, np.inf, high - low)
        found = np.flatnonzero((away > FAR).any(1))
        worst = [max(rows, key=lambda row: away[row].max())
                 for _, rows in groupby(found, lambda row: numbers.episode[row])]
        if worst:
            channels = [away[row].argmax() for row in worst]
            yield _issue(f'outliers of {name}', WARNING, f'{len(found)} frames in {len(worst)} '
                         'episodes lie far outside the rest', 'likely', [
                             f'{place}: channel {channel} is {values[row, channel]:.4g}' for
                             place, row, channel in zip(numbers.at(worst[:8]), worst, channels)])
        else:
            yield _issue(f'outliers of {name}', OK, f'no frame is more than {FAR:g} times the '
                         'span from 1 % to 99 % away from the median', 'certain')
    beyond = np.flatnonzero((np.abs(numbers.action) > 1.001).any(1) & (not numbers.joints))
    if len(beyond):
        yield _issue('range of action', HINT, f'{len(beyond)} frames hold ' + (
            f'poses more than {osc.METRES_PER_UNIT:g} m or {osc.RADIANS_PER_UNIT:g} rad away '
            'from the state, where one row does not lead' if numbers.poses else
            'actions outside -1..1, which OSC_POSE clips'), 'certain', numbers.at(beyond[:5]))


def _jumps(numbers: Numbers) -> Iterator[Issue]:
    position = numbers.at_end_effector('position')
    step = np.linalg.norm(np.diff(position, axis=0), axis=1) * numbers.within()
    if not len(step):
        return
    jumps = np.flatnonzero(step > JUMP * max(np.quantile(step, 0.99), 1e-6))
    if len(jumps):
        yield _issue('jumps', WARNING, f'the gripper jumps between {len(jumps)} pairs of frames: '
                     'some are missing, or two episodes are one', 'likely', [
                         f'{place}: {step[k]:.3g} m'
                         for place, k in zip(numbers.at(jumps[:8] + 1), jumps)])


def _lengths(numbers: Numbers) -> Iterator[Issue]:
    lengths = np.bincount(numbers.episode)
    single = lengths == 1
    if single.any():
        yield _issue('episode lengths', OK, f'{single.sum()} of {len(lengths)} episodes are a '
                     'single frame: nothing moves in them', 'certain')
    middle = np.median(lengths[~single]) if not single.all() else 1.0
    odd = np.flatnonzero(~single & ((lengths > LONG * middle) | (lengths < middle / LONG)))
    if len(odd):
        yield _issue('episode lengths', HINT, f'{len(odd)} of {len(lengths)} episodes are much '
                     f'longer or shorter than {middle:g} frames', 'certain',
                     [f'episode {k}: {lengths[k]} frames' for k in odd[:8]])


def _listed(values: Sequence[Any] | NDArray[Any]) -> str:
    return ', '.join(f'{value:g}' if isinstance(value, float) else str(value)
                     for value in np.asarray(values).tolist())


@dataclass(frozen=True, slots=True)
class Sample:
    """Images of one episode: grey [T, 64, 64] by camera; position [T, 3], turn [T, 3]."""

    number: int
    grey: dict[str, NDArray[np.float32]]
    position: Array
    turn: Array
    frames: NDArray[np.int64]

    @property
    def steps(self) -> Array:
        """How far the gripper moves between two images [T - 1] m."""
        return np.linalg.norm(np.diff(self.position, axis=0), axis=1)


def sample_images(reader: DatasetReader, numbers: Numbers, episodes: int) -> list[Sample]:
    """Decode episodes spread among those in which something can move. Raises ``UserError``."""
    stride = max(1, round(reader.fps / RATE))
    lengths = np.bincount(numbers.episode)
    moving = np.flatnonzero(lengths > SHORT * stride)
    if not len(moving):
        moving = np.arange(len(lengths))
    samples = []
    for number in tqdm(spread(moving, episodes), desc='images', unit='ep'):
        frames = np.arange(0, lengths[number], stride)
        grey = {key: np.array([
            cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE),
                       interpolation=cv2.INTER_AREA)
            for image in islice(reader.frames(number, key), 0, None, stride)], np.float32).reshape(
                -1, SIDE, SIDE) for key in reader.camera_keys}
        count = min([len(frames), *map(len, grey.values())])
        rows = reader.span(number).start + frames[:count]
        samples.append(Sample(
            number, {key: part[:count] for key, part in grey.items()},
            numbers.at_end_effector('position', rows), numbers.at_end_effector('rotation', rows),
            frames[:count]))
    return samples


def spread(numbers: Sequence[int] | NDArray[np.int64], count: int) -> list[int]:
    """Return ``count`` of some numbers, evenly spread among them; all of them if they are less."""
    places = np.linspace(0, len(numbers) - 1, min(count, len(numbers))).astype(int)
    return np.asarray(numbers)[np.unique(places)].tolist()


def check_images(samples: list[Sample]) -> list[Issue]:
    """Return what every check of the images says."""
    cameras = list(samples[0].grey) if samples else []
    named = {layout.CAMERAS.get(key): key for key in cameras}
    primary, wrist = named.get('primary'), named.get('wrist')
    return [
        *(issue for key in cameras for issue in _dead(samples, key)),
        _swapped(samples, primary, wrist) if primary and wrist else _issue(
            'swapped cameras', HINT, 'the dataset does not name a primary and a wrist camera '
            f'({", ".join(cameras) or "none"})'),
        *([_upright(samples, primary)] if primary else []),
        *([_wrist_mirrored(samples, wrist)] if wrist else [])]


def _dead(samples: list[Sample], key: str) -> Iterator[Issue]:
    """Check for images that are blank, or still while the gripper moves."""
    issue = partial(_issue, f'image of {key}')
    found: dict[str, list[str]] = {}
    for sample in samples:
        grey = sample.grey[key]
        empty = grey.std((1, 2)) < BLANK
        still = np.abs(np.diff(grey, axis=0)).max((1, 2), initial=0.0) < STILL
        first, last = max((run[1:] for run in runs(still & (sample.steps > MOVING)) if run[0]),
                          key=lambda run: run[1] - run[0], default=(0, 0))
        if empty.any():
            found.setdefault('is dark or blank', []).append(
                f'episode {sample.number}, from frame {sample.frames[int(empty.argmax())]}: '
                f'{empty.sum()} of {len(grey)}')
        elif last - first >= 3:
            found.setdefault('shows a still image while the gripper moves', []).append(
                f'episode {sample.number}, from frame {sample.frames[first]}: '
                f'{last - first + 1} images')
    for what, where in found.items():
        yield issue(WARNING, f'the camera {what} in {len(where)} of {len(samples)} episodes',
                    'certain', where[:8])
    text = f'shows something in {len(samples)} episodes'
    if not found and any((sample.steps > MOVING).any() for sample in samples):
        yield issue(OK, f'{text}, and changes while the gripper moves', 'certain')
    elif not found:
        yield issue(HINT, f'{text}; the gripper never moves in them')


def runs(values: Sequence[Any] | NDArray[Any]) -> Iterator[tuple[Any, int, int]]:
    """Yield (value, first, last + 1) of what stays the same from frame to frame."""
    for value, group in groupby(range(len(values)), key=lambda k: values[k]):
        part = list(group)
        yield value, part[0], part[-1] + 1


def _swapped(samples: list[Sample], primary: str, wrist: str) -> Issue:
    """Compare what never changes: the background of a camera that stands, not on the gripper."""
    issue = partial(_issue, 'swapped cameras')
    table = np.array([
        [(np.ptp(sample.grey[key], axis=0) < CHANGED).mean() for key in (primary, wrist)]
        for sample in samples if np.ptp(sample.position, axis=0).max() > TRAVELLED]).reshape(-1, 2)
    table = table[np.abs(table[:, 0] - table[:, 1]) > CLEAR]
    if len(table) < 3:
        return issue(HINT, 'too few episodes in which the two differ')
    first, second = np.median(table, 0)
    right = float((table[:, 0] > table[:, 1]).mean())
    share = max(right, 1 - right) if len(table) >= 8 else min(max(right, 1 - right), 0.9)
    text = (f'{first:.0%} of the primary camera and {second:.0%} of the wrist camera never change '
            f'in an episode; the primary camera stands stiller in {right:.0%} of {len(table)} '
            'episodes')
    if right < 0.25:
        text += ': they look exchanged (dtvla data convert --rename names them)'
    return issue(OK if right > 0.75 else WARNING if right < 0.25 else HINT, text,
                 _certainty(share, 0.9, 0.75))


def _upright(samples: list[Sample], key: str) -> Issue:
    """Compare where the motion is in the image with where the gripper is.

    Seen from above, the ground's x and y axes turn as in the world, whatever the camera's
    bearing: a mirrored image turns them the other way. What rises, rises in the image.
    """
    issue = partial(_issue, 'orientation of primary')
    parts = []
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    for sample in samples:
        change = np.abs(np.diff(sample.grey[key], axis=0))
        change[change < CHANGED] = 0.0
        mass = change.sum((1, 2))
        good = (sample.steps > MOVING) & (mass > CHANGED * 8)
        if good.sum() >= 4:
            centre = np.stack([(change[good] * axis).sum((1, 2)) / mass[good]
                               for axis in (columns, rows)], 1)
            middle = (sample.position[1:] + sample.position[:-1])[good] / 2
            parts.append(np.hstack([middle - middle.mean(0), centre - centre.mean(0)]))
    if sum(map(len, parts)) < FEW:
        return issue(HINT, 'too little motion to tell')
    fit, agree = _bootstrap(parts, _orientation)
    slopes = _slopes(np.vstack(parts))
    x, y, z = map(_direction, slopes)
    text = (f'{fit}: what moves goes {x} with +x of the gripper, {y} with +y and {z} with +z, in '
            f'{len(parts)} episodes')
    if fit != 'upright':
        return issue(WARNING if agree > LIKELY else HINT, f'{text}. This holds for a camera that '
                     'looks at the arm from above at a slant', _certainty(agree))
    facing = slopes[1, 0] > 0 and slopes[0, 1] > 0
    text += ('; the camera faces the robot, as the one of LIBERO does' if facing else
             '; not as in LIBERO, whose camera faces the robot (+y right, +x down)')
    return issue(OK if facing else HINT, text, _certainty(agree))


def _slopes(rows: Array) -> NDArray[np.floating]:
    """Return [3, 2]: across and down of the motion per metre of the gripper's x, y and z."""
    return np.linalg.lstsq(rows[:, :3], rows[:, 3:5], rcond=None)[0]


def _orientation(rows: Array) -> str:
    slopes = _slopes(rows)
    mirrored = np.linalg.det(slopes[:2]) > 0
    across, down = slopes[2]
    if abs(down) >= abs(across):
        if mirrored:
            return 'mirrored left to right' if down < 0 else 'mirrored top to bottom'
        return 'upright' if down < 0 else 'rotated by 180 degrees'
    turn = f'a quarter turn to the {"right" if across > 0 else "left"}'
    return f'mirrored and {turn}' if mirrored else turn


def _wrist_mirrored(samples: list[Sample], key: str) -> Issue:
    """Compare how the image shifts with how the gripper moves in its own frame."""
    issue = partial(_issue, 'mirroring of wrist')
    window = cv2.createHanningWindow((SIDE, SIDE), cv2.CV_32F)
    parts = []
    for sample in samples:
        grey, turn = sample.grey[key], Rotation.from_rotvec(sample.turn)
        moved = turn[:-1].inv().apply(np.diff(sample.position, axis=0))
        rows = []
        for k in np.flatnonzero(sample.steps > MOVING / 2):
            (across, down), response = cv2.phaseCorrelate(grey[k], grey[k + 1], window)
            if response > RESPONSE and max(abs(across), abs(down)) < SIDE / 4:
                rows.append([*moved[k], across, down])
        if len(rows) >= 3:
            parts.append(np.asarray(rows))
    pairs = sum(map(len, parts))
    if pairs < FEW:
        return issue(HINT, 'too few images in which the shift can be measured')
    fit, agree = _bootstrap(parts, lambda rows: 'mirrored' if np.linalg.det(
        _slopes(rows)[:2]) < 0 else 'not mirrored')
    return issue(HINT if agree <= LIKELY else WARNING if fit == 'mirrored' else OK,
                 f'the image looks {fit}, from its shifts in {pairs} pairs of images',
                 _certainty(agree))


def _bootstrap(parts: list[Array], decide: Callable[[Array], str]) -> tuple[str, float]:
    """Return a decision, and in what share of the resampled episodes it is the same."""
    rng = np.random.default_rng(0)
    fit = decide(np.vstack(parts))
    same = [decide(np.vstack([parts[k] for k in rng.integers(0, len(parts), len(parts))])) == fit
            for _ in range(RESAMPLES)]
    return fit, sum(same) / RESAMPLES


def _direction(slope: NDArray[np.floating]) -> str:
    across, down = slope
    ways = sorted([(abs(across), 'right' if across > 0 else 'left'),
                   (abs(down), 'down' if down > 0 else 'up')], reverse=True)
    return ' and '.join(way for amount, way in ways if amount >= 0.4 * ways[0][0])
