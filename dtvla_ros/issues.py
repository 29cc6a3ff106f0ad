"""What the checks of datasets, policies and annotations report."""

from __future__ import annotations

from dataclasses import dataclass

from dtvla_ros.errors import UserError

OK, HINT, WARNING = 'ok', 'hint', 'warning'


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing a check has found.

    ``problem``: what was found. ``remedy``: what to do about it. ``check``: name of the check.
    ``file``, ``frame``: the file, and the frame of an episode, that it concerns. ``level``:
    ``OK`` where the check passes. ``certainty``: 'certain', 'likely' or 'unclear', where the
    check is statistical. ``where``: the first places it shows at.
    """

    problem: str
    remedy: str = ''
    check: str = ''
    file: str = ''
    frame: int | None = None
    level: str = WARNING
    certainty: str = ''
    where: tuple[str, ...] = ()

    @classmethod
    def from_error(cls, error: UserError, remedy: str = '') -> Issue:
        """Take the message ``file: problem; remedy`` of an error apart."""
        file, _, rest = str(error).partition(': ')
        problem, _, given = rest.rpartition('; ')
        return cls(problem or rest, given if problem else remedy, file=file)
