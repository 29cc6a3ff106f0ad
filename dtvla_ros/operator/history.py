"""What happened, as the page lists it: thoughts, tasks and episodes, motion, decisions' time."""

from __future__ import annotations

import difflib
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.thought import without_told

LISTED = 10  # thoughts and episodes
WINDOW = 10.0  # of motion that is shown [s]
SAMPLE = 0.045  # least time between two samples of motion [s]; a pose may come at 1 kHz
FRESH = 0.25  # age at which a command no longer counts [s]
Part = tuple[str, bool]
"""Words, and whether they differ from those before."""


def changes(before: str, after: str) -> list[Part]:
    """Return a sentence in parts: which of its words are not in the sentence before it."""
    old, new = before.split(), after.split()
    parts: list[Part] = []
    for kind, _, _, begin, end in difflib.SequenceMatcher(
            None, old, new, autojunk=False).get_opcodes():
        if end > begin:
            parts.append((' '.join(new[begin:end]), kind != 'equal'))
    return parts


class Thoughts:
    """The last thoughts, with what changed in each; one that is repeated is counted."""

    def __init__(self) -> None:
        self._rows: deque[dict[str, Any]] = deque(maxlen=LISTED)
        self._whole = self.last = ''

    def add(self, sentence: str, at: str) -> None:
        """Take a complete thought and the time of day."""
        last, (self.last, told) = self.last, without_told(sentence)
        if self._rows and sentence == self._whole:
            self._rows[-1] = self._rows[-1] | {'times': self._rows[-1]['times'] + 1}
        else:
            self._rows.append(
                {'at': at, 'parts': changes(last, self.last), 'times': 1, 'told': told})
        self._whole = sentence

    def rows(self) -> list[dict[str, Any]]:
        """Return ``at``, ``parts``, ``times`` and what was ``told`` of each, the newest first."""
        return list(reversed(self._rows))


class Episodes:
    """Tasks that the policy was told, and how they ended.

    A simulator's judgement counts more, a person's mark most.
    """

    def __init__(self) -> None:
        self._rows: deque[dict[str, Any]] = deque(maxlen=LISTED)
        self._open: dict[str, Any] | None = None
        self._task: str | None = None
        self._judged = self._playing = False
        self._mark: bool | None = None  # of the episode that goes on

    def policy(self, task: str, asked: str, state: str, reason: str, step: int,
               now: float) -> None:
        """Take the policy's state: number of its task, what was asked, decisions so far."""
        if self._task is not None and task != self._task and asked:
            self._end('told otherwise', now, step)
            self._open = {'asked': asked, 'since': now, 'step': step}
        self._task = task
        if state == 'DONE':
            self._end('done, says the policy', now, step)
        elif state in ('STOPPED', 'FAULT'):
            self._end(f'stopped: {reason}', now, step)

    def gate(self, stopped: str, now: float, step: int) -> None:
        """Take why the gate ended the task, '' where it has not."""
        if stopped:
            self._end(f'stopped: {stopped}', now, step)

    def judged(self, done: str, now: float, step: int) -> None:
        """Take which task an endless scene's simulator calls done, '' for none."""
        if done:
            self._end('done, judges the simulator', now, step)

    def simulated(self, row: dict[str, Any]) -> None:
        """Take a row of ``sim/episode``; one that is done is listed in place of the task."""
        if not self._judged and row:
            self._judged = True
            self._rows.clear()
        self._playing = bool(row) and not row.get('done')
        if row.get('done'):
            good = bool(row.get('success'))
            self._add({
                'asked': row.get('instruction', ''), 'good': good,
                'outcome': 'success' if good else f'failed: {row.get("reason", "")}',
                'length': f'{row.get("step", "?")} steps'})

    def mark(self, good: bool) -> None:
        """Take a person's mark of the episode that goes on, else of the last one."""
        if self._playing if self._judged else self._open is not None:
            self._mark = good
        elif self._rows:
            self._rows[-1] = _marked(self._rows[-1], good)

    def _end(self, outcome: str, now: float, step: int) -> None:
        row, self._open = self._open, None
        if row is not None and not self._judged:
            self._add({
                'asked': row['asked'], 'outcome': outcome, 'good': outcome.startswith('done'),
                'length': f'{now - row["since"]:.0f} s, {step - row["step"]} thoughts'})

    def _add(self, row: dict[str, Any]) -> None:
        self._rows.append(row if self._mark is None else _marked(row, self._mark))
        self._mark = None

    def rows(self) -> list[dict[str, Any]]:
        """Return ``asked``, ``outcome``, ``good`` and ``length`` of each, the newest first."""
        return list(reversed(self._rows))


def _marked(row: dict[str, Any], good: bool) -> dict[str, Any]:
    return row | {'good': good, 'outcome': f'{"success" if good else "failure"}, says a person'}


class Motion:
    """Velocity of the end effector, commanded and measured, in the base frame [m/s].

    Times are stamps [s]; a clock that goes back begins anew.
    """

    def __init__(self) -> None:
        self._rows: deque[list[float]] = deque()
        self._commanded: tuple[float, NDArray[np.float64]] = -np.inf, np.zeros(3)
        self._last: tuple[float, NDArray[np.float64]] | None = None

    def command(self, stamp: float, velocity: NDArray[np.float64]) -> None:
        """Take a commanded velocity [3] m/s."""
        self._commanded = stamp, velocity

    def measure(self, stamp: float, position: NDArray[np.float64]) -> None:
        """Take a measured position [3] m."""
        before = self._last
        if before is not None and stamp < before[0]:
            self._rows.clear()
            before = None
        if before is None:
            self._last = stamp, position
            return
        if (passed := stamp - before[0]) < SAMPLE:
            return
        self._last = stamp, position
        if passed > FRESH:
            return
        when, velocity = self._commanded
        commanded = velocity if abs(stamp - when) <= FRESH else np.zeros(3)
        measured = (position - before[1]) / passed
        self._rows.append([round(float(value), 3) for value in (stamp, *commanded, *measured)])
        while self._rows[0][0] < stamp - WINDOW:
            self._rows.popleft()

    def rows(self) -> list[list[float]]:
        """Return [stamp, commanded x, y, z, measured x, y, z] of each sample."""
        return list(self._rows)


class Budget:
    """How long a decision may take so that the arm has rows until then."""

    def __init__(self) -> None:
        self._end = -np.inf

    def add(self, stamp: float, length: float) -> float | None:
        """Take a chunk's stamp and length [s]; return the budget that its decision had [s].

        None where there was none: the first chunk, one after a stillness, or time that waits.
        """
        budget, self._end = self._end - stamp, stamp + length
        return budget if 1e-3 < budget < length else None
