"""Whether a policy is better than another one on the very same start states."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

from rich.table import Table

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.report import RateTable
from dtvla_ros.evaluation.results import Rate, plain_table

COLUMNS = {'full': 'thinks', 'masked': 'empty thought', 'random': 'random thought',
           'swapped': "another task's thought", 'frozen': 'thought kept',
           'replay': 'open-loop replay'}
Results = dict[str, dict[str, Any]]  # by mode
Row = tuple[str, str]  # suite and start distribution

Outcomes = list[tuple[bool, bool]]  # success now and before, by episode
_HEADING = ('suite, starts', 'mode')
_COLUMNS = ('before', 'now', 'won', 'lost', 'sign test p')


class Paired(NamedTuple):
    """What became of the same start states under two policies.

    ``won``: of those that failed before, how many succeed now; ``lost``: the other way round.
    """

    before: Rate
    now: Rate
    won: int
    lost: int

    @classmethod
    def of(cls, outcomes: Outcomes) -> Paired:
        return cls(Rate.of(before for _, before in outcomes), Rate.of(now for now, _ in outcomes),
                   sum(now and not before for now, before in outcomes),
                   sum(before and not now for now, before in outcomes))

    @property
    def p(self) -> float:
        """Two-sided sign test of won against lost (McNemar's, exact); 1 where nothing differs."""
        from scipy.stats import binomtest

        differ = self.won + self.lost
        return float(binomtest(self.won, differ).pvalue) if differ else 1.0

    def cells(self) -> tuple[str, ...]:
        """Return what stands under `_COLUMNS`."""
        return (*(f'{rate.successes}/{rate.n}' for rate in (self.before, self.now)),
                str(self.won), str(self.lost), f'{self.p:.1g}')


def pair(now: Mapping[Row, Results],
         before: Mapping[Row, Results]) -> dict[tuple[str, str], Outcomes]:
    """Return the outcomes that both have of one start state, by suite with starts, and mode.

    Raises UserError where they have none in common, or were not measured in the same way.
    """
    found: dict[tuple[str, str], Outcomes] = {}
    for row, results in now.items():
        for mode, result in results.items():
            if (other := before.get(row, {}).get(mode)) is None:
                continue
            key = ', '.join(filter(None, row)), COLUMNS[mode]
            for what in ('flags', 'perturb', 'wordings'):
                if result.get(what) != other.get(what):
                    raise UserError(f'--against: {key[0]}, mode {mode}: the results differ in '
                                    f'{what}; evaluate both policies in the same way')
            mine, theirs = ({(e['task'], e['seed']): bool(e['success']) for e in r['episodes']}
                            for r in (result, other))
            if outcomes := [(mine[k], theirs[k]) for k in mine if k in theirs]:
                found[key] = outcomes
    if not found:
        raise UserError('--against: no episode of the same suite, starts, mode, task and seed is '
                        'in both; evaluate both policies with the same --starts and --seed')
    return found


def table(found: Mapping[tuple[str, str], Outcomes]) -> Table:
    """Return the pairs as rich prints them, and all together where there are several kinds."""
    everything = Paired.of(list(chain.from_iterable(found.values())))
    return plain_table(
        'The same start states, before and now', _HEADING + _COLUMNS,
        [(*key, *Paired.of(outcomes).cells()) for key, outcomes in found.items()],
        ('all', '', *everything.cells()) if len(found) > 1 else (), names=2)


def rates(found: Mapping[tuple[str, str], Outcomes]) -> RateTable:
    """Return how many were won, of the start states whose outcome differs."""
    paired = {key: Paired.of(outcomes) for key, outcomes in found.items()}
    return RateTable('Won, of the start states whose outcome differs', _HEADING, [
        (key, Rate(p.won, p.won + p.lost).to_dict()) for key, p in paired.items()])
