"""Whether the numbers of a dataset mean what this package takes them to mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtvla_ros.actions.osc import METRES_PER_SECOND_PER_UNIT
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader

OK, HINT, WARNING = 'ok', 'hint', 'warning'
FINGER = 0.15  # farthest coordinate of a finger [m]
GRIPPER_SECONDS = 0.5  # after a toggle, in which the fingers have moved
LAGS = range(-2, 3)  # frames by which action and motion may be shifted
FOLLOWS = 0.3  # correlation from which on a motion follows an action
FAR = 2.0  # times the span from 1 % to 99 %, away from the median: an outlier
JUMP = 8.0  # times the 99 % step between two frames: the state jumped
LONG = 3.0  # times the median length of an episode


@dataclass(frozen=True, slots=True)
class Note:
    """One check: what was found, how grave it is, how sure that is, where it shows."""

    check: str
    level: str
    text: str
    certainty: str = ''
    where: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Numbers:
    """State [N, S] and action [N, A] of all frames, with episode [N] and frame [N] numbers."""

    state: NDArray[np.float64]
    action: NDArray[np.float64]
    episode: NDArray[np.int64]
    frame: NDArray[np.int64]
    fps: float

    @classmethod
    def of(cls, reader: DatasetReader) -> Numbers:
        """Read them. Raises ``UserError`` when the dataset lacks one."""
        lengths = [row['length'] for row in reader.episodes]
        state, action = (np.asarray(reader.column(name), np.float64)
                         for name in (layout.STATE, layout.ACTION))
        return cls(state.reshape(len(state), -1), action.reshape(len(action), -1),
                   np.repeat(np.arange(len(lengths)), lengths),
                   np.concatenate([np.arange(n) for n in lengths]), float(reader.fps))

    def at(self, row: int) -> str:
        """Name the place of a row."""
        return f'episode {self.episode[row]}, frame {self.frame[row]}'


def check_numbers(numbers: Numbers) -> list[Note]:
    """Return what every check of state and action says, the good news included."""
    return [*_constant(numbers), *_not_finite(numbers), _gripper(numbers), *_motion(numbers),
            *_outliers(numbers), *_lengths(numbers)]


def _constant(numbers: Numbers) -> Iterator[Note]:
    for name, values in (('state', numbers.state), ('action', numbers.action)):
        still = np.flatnonzero(np.ptp(np.nan_to_num(values), 0) < 1e-6)
        if len(still):
            yield Note('constant channels', WARNING, f'channels {_list(still)} of {name} never '
                       'change: nothing can be learnt from them, and their quantiles coincide',
                       'certain')
        else:
            yield Note('constant channels', OK, f'every channel of {name} moves', 'certain')


def _not_finite(numbers: Numbers) -> Iterator[Note]:
    bad = np.flatnonzero(~np.isfinite(np.hstack([numbers.state, numbers.action])).all(1))
    if len(bad):
        yield Note('not finite', WARNING, f'{len(bad)} frames hold NaN or infinity', 'certain',
                   [numbers.at(k) for k in bad[:10]])


def opening(state: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return how open the gripper is [N], larger is wider; None when nothing tells.

    The coordinates of two fingers, which LIBERO gives opposite signs, are added; of anything else
    the last channel counts.
    """
    fingers = np.abs(state[:, -2:])
    if state.shape[1] >= 8 and fingers.max() < FINGER:
        wide = fingers.sum(1)
    else:
        wide = state[:, -1]
    return wide if np.ptp(wide) > 1e-6 else None


def _gripper(numbers: Numbers) -> Note:
    check = 'gripper sign'
    command, wide = numbers.action[:, -1], opening(numbers.state)
    if wide is None:
        return Note(check, HINT, 'the state does not show the fingers', 'unclear')
    zero_one = command.min() >= 0.0 and command.max() > 0.5
    high = command > (0.5 if zero_one else 0.0)
    after = max(1, round(GRIPPER_SECONDS * numbers.fps))
    toggles = 1 + np.flatnonzero(
        (numbers.episode[1:] == numbers.episode[:-1]) & (high[1:] != high[:-1]))
    ends = np.searchsorted(numbers.episode, numbers.episode[toggles], 'right') - 1
    toggles, ends = toggles[ends > toggles], ends[ends > toggles]
    change = wide[np.minimum(toggles + after, ends)] - wide[toggles]
    moved = np.abs(change) > 0.05 * np.ptp(wide)
    toggles, change = toggles[moved], change[moved]
    if len(toggles) < 3:
        return Note(check, HINT, f'only {len(toggles)} toggles move the fingers', 'unclear')
    closes = (high[toggles] == (change < 0)).mean()
    share = max(closes, 1 - closes)
    certainty = 'certain' if share > 0.95 and len(toggles) >= 10 else (
        'likely' if share > 0.8 else 'unclear')
    odd = toggles[(high[toggles] == (change < 0)) != (closes > 0.5)]
    text = (f'the {"larger" if zero_one else "positive"} command '
            f'{"closes" if closes > 0.5 else "opens"} the fingers after {share:.0%} of '
            f'{len(toggles)} toggles')
    where = [numbers.at(k) for k in odd[:5]]
    if share <= 0.8:
        return Note(check, HINT, text, certainty, where)
    if closes > 0.5 and not zero_one:
        return Note(check, OK, text, certainty, where)
    faults = [fault for fault, there in (('is coded 0 and 1', zero_one),
                                         ('has the opposite sign', closes <= 0.5)) if there]
    return Note(check, WARNING, f'{text}; here +1 closes and -1 opens: the last channel of '
                f'action {" and ".join(faults)}', certainty, where)


@dataclass(frozen=True, slots=True)
class _Motion:
    """Pairs of one action [P, 3] and the change [P, 3] of the state in the frame after it."""

    action: NDArray[np.float64]
    change: NDArray[np.float64]

    def correlation(self) -> NDArray[np.float64]:
        """Return [3, 3]: of each action channel (row) with each axis of motion (column)."""
        a, d = (x - x.mean(0) for x in (self.action, self.change))
        scale = np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(d, axis=0))
        return a.T @ d / np.maximum(scale, 1e-12)

    def scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return motion per unit and the share of the motion [3] it explains, by channel."""
        power = np.maximum((self.action ** 2).sum(0), 1e-12)
        factor = (self.action * self.change).sum(0) / power
        rest = ((self.change - factor * self.action) ** 2).sum(0)
        return factor, 1 - rest / np.maximum((self.change ** 2).sum(0), 1e-12)


def _pairs(numbers: Numbers, change: NDArray[np.float64], channels: slice, lag: int) -> _Motion:
    """Pair action t with the change from t + lag to t + lag + 1 of the same episode."""
    first = np.arange(len(numbers.episode))
    begin, end = first + lag, first + lag + 1
    inside = (begin >= 0) & (end < len(first))
    first, begin = first[inside], begin[inside]
    same = (numbers.episode[first] == numbers.episode[begin]) & (
        numbers.episode[first] == numbers.episode[begin + 1])
    return _Motion(numbers.action[first[same], channels], change[begin[same]])


def _motion(numbers: Numbers) -> Iterator[Note]:
    """Compare what the actions ask for with what the state does next."""
    if numbers.state.shape[1] < 6 or numbers.action.shape[1] < 7:
        yield Note('action and next state', HINT, 'no pose of six numbers in the state, or no '
                   'seven actions: not checked', 'unclear')
        return
    position = numbers.state[:, :3]
    turns = Rotation.from_rotvec(numbers.state[:, 3:6])
    turn = (turns[1:] * turns[:-1].inv()).as_rotvec()
    for what, channels, change, unit in (
            ('position', slice(0, 3), np.diff(position, axis=0), 'm'),
            ('rotation', slice(3, 6), turn, 'rad')):
        yield from _agreement(numbers, what, channels, change, unit)
    asked = numbers.action[:, :3]
    if np.abs(asked - position).max(1).mean() < 0.1 * np.ptp(position, 0).max():
        yield Note('absolute actions', WARNING, 'the actions follow the position itself: they '
                   'look like absolute targets, this package learns changes (OSC_POSE)', 'likely')


def _agreement(numbers: Numbers, what: str, channels: slice, change: NDArray[np.float64],
               unit: str) -> Iterator[Note]:
    check = f'action and next {what}'
    if min(numbers.action[:, channels].std(0).max(), change.std(0).max()) < 1e-4:
        yield Note(check, HINT, f'the {what} is hardly commanded, or never changes: not checked',
                   'unclear')
        return
    # The change after the last frame of all does not exist.
    padded = np.vstack([change, np.zeros((1, 3))])
    by_lag = {lag: float(np.diag(_pairs(numbers, padded, channels, lag).correlation()).mean())
              for lag in LAGS}
    motion = _pairs(numbers, padded, channels, 0)
    moved = motion.correlation()
    factor, explained = motion.scale()
    first = channels.start
    best = np.abs(moved).argmax(0)
    strong = np.abs(moved).max(0) > FOLLOWS
    crossed = [k for k in range(3) if strong[k] and best[k] != k]
    turned = [k for k in range(3) if strong[k] and best[k] == k and moved[k, k] < 0]
    per_second = factor * numbers.fps
    text = (f'correlation {_list(np.diag(moved).round(2))}; a unit moves the hand '
            f'{_list(per_second.round(3))} {unit}/s and explains '
            f'{", ".join(f"{share:.0%}" for share in np.maximum(explained, 0))} of it')
    if what == 'position':
        text += f' (OSC_POSE settles at {METRES_PER_SECOND_PER_UNIT} m/s)'
    if crossed:
        yield Note(check, WARNING, f'axis {"xyz"[crossed[0]]} follows action channel '
                   f'{first + best[crossed[0]]}, not {first + crossed[0]}: axes are exchanged, or '
                   f'actions are in another frame; {text}', 'likely')
    elif turned:
        yield Note(check, WARNING, f'axis {"xyz"[turned[0]]} moves against action channel '
                   f'{first + turned[0]}; {text}', 'likely')
    elif not strong.any():
        yield Note(check, HINT, f'the {what} does not follow the actions; {text}', 'unclear')
    else:
        yield Note(check, OK, text, 'certain' if strong.all() else 'likely')
    lag = max(by_lag, key=lambda k: by_lag[k])
    if lag != 0 and by_lag[lag] > max(by_lag[0] + 0.1, FOLLOWS):
        yield Note(f'delay of the {what}', WARNING if lag < 0 else HINT, f'the hand moves '
                   f'{abs(lag)} frames {"before" if lag < 0 else "after"} the action that asks '
                   f'for it (correlation {by_lag[lag]:.2f} against {by_lag[0]:.2f}): '
                   + ('actions are stored too late' if lag < 0 else
                      'the arm is slow, or actions are stored too early'), 'likely')


def _unwound(state: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tell turns from their mean: rotation vectors of half a turn jump between two signs."""
    if state.shape[1] < 6 or not np.isfinite(state).all():
        return state
    turns = Rotation.from_rotvec(state[:, 3:6])
    return np.hstack([state[:, :3], (turns * turns.mean().inv()).as_rotvec(), state[:, 6:]])


def _outliers(numbers: Numbers) -> Iterator[Note]:
    for name, values in (('state', _unwound(numbers.state)), ('action', numbers.action)):
        low, middle, high = np.nanquantile(values, (0.01, 0.5, 0.99), axis=0)
        away = np.abs(values - middle) / np.maximum(high - low, 1e-9)
        away[:, high - low < 1e-6] = 0.0
        found = np.flatnonzero((away > FAR).any(1))
        if len(found):
            episodes = np.unique(numbers.episode[found])
            yield Note(f'outliers of {name}', WARNING, f'{len(found)} frames in {len(episodes)} '
                       'episodes lie far outside the rest', 'likely',
                       [_worst(numbers, values, away, found[numbers.episode[found] == k])
                        for k in episodes[:8]])
        else:
            yield Note(f'outliers of {name}', OK, f'no frame is more than {FAR:g} times the span '
                       'from 1 % to 99 % away from the median', 'certain')
    beyond = np.flatnonzero((np.abs(numbers.action) > 1.001).any(1))
    if len(beyond):
        yield Note('range of action', HINT, f'{len(beyond)} frames hold actions outside -1..1, '
                   'which OSC_POSE cuts off', 'certain', [numbers.at(k) for k in beyond[:5]])
    step = np.linalg.norm(np.diff(numbers.state[:, :3], axis=0), axis=1)
    step[numbers.episode[1:] != numbers.episode[:-1]] = 0.0
    usual = np.quantile(step, 0.99)
    jumps = np.flatnonzero(step > JUMP * max(usual, 1e-6))
    if len(jumps):
        yield Note('jumps', WARNING, f'the hand jumps between {len(jumps)} pairs of frames: some '
                   'are missing, or two episodes are one', 'likely',
                   [f'{numbers.at(k + 1)}: {step[k]:.3g} m' for k in jumps[:8]])


def _worst(numbers: Numbers, values: NDArray[np.float64], away: NDArray[np.float64],
           rows: NDArray[np.int64]) -> str:
    """Name the worst of some frames of one episode."""
    row = rows[int(away[rows].max(1).argmax())]
    channel = int(away[row].argmax())
    return (f'{numbers.at(row)}: channel {channel} is {values[row, channel]:.4g}'
            + (f', and {len(rows) - 1} frames more' if len(rows) > 1 else ''))


def _lengths(numbers: Numbers) -> Iterator[Note]:
    lengths = np.bincount(numbers.episode)
    single = lengths == 1
    if single.any():
        yield Note('episode lengths', OK, f'{single.sum()} of {len(lengths)} episodes are a '
                   'single frame: nothing moves in them', 'certain')
    middle = np.median(lengths[~single]) if not single.all() else 1.0
    odd = np.flatnonzero(~single & ((lengths > LONG * middle) | (lengths < middle / LONG)))
    if len(odd):
        yield Note('episode lengths', HINT, f'{len(odd)} of {len(lengths)} episodes are much '
                   f'longer or shorter than {middle:g} frames', 'certain',
                   [f'episode {k}: {lengths[k]} frames' for k in odd[:8]])


def _list(values: Sequence[Any] | NDArray[Any]) -> str:
    return ', '.join(f'{value:g}' if isinstance(value, float) else str(value)
                     for value in np.asarray(values).tolist())
