"""What questions cost: an estimate before, and a ledger that stops before it is too much."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dtvla_ros.annotation.journal import Appender, whole_lines
from dtvla_ros.errors import UserError

CHARACTERS_PER_TOKEN = 4
FRAME_TOKENS = 80  # of a key frame's label in an answer


class BudgetReached(UserError):
    """The next request could exceed what may be spent."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Per million tokens read and written, in whatever currency; tokens of one picture."""

    read: float = 0.0
    written: float = 0.0
    picture_tokens: int = 260

    def cost(self, read: int, written: int) -> float:
        """Return the price of so many tokens."""
        return (read * self.read + written * self.written) / 1e6

    def tokens(self, characters: int, pictures: int) -> int:
        """Return about how many tokens a question has."""
        return -(-characters // CHARACTERS_PER_TOKEN) + pictures * self.picture_tokens


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would ask for, if no answer had to be corrected."""

    episodes: int
    requests: int
    pictures: int
    tokens_read: int
    tokens_written: int
    cost: float

    @classmethod
    def of(cls, episodes: int, questions: Iterable[tuple[int, int, int]],
           prices: Prices) -> Estimate:
        """Add up questions given as (characters, pictures, key frames)."""
        rows = list(questions)
        read = sum(prices.tokens(characters, pictures) for characters, pictures, _ in rows)
        written = sum(frames * FRAME_TOKENS for _, _, frames in rows)
        return cls(episodes, len(rows), sum(row[1] for row in rows), read, written,
                   prices.cost(read, written))


class Ledger:
    """Keeps count of requests and their cost over all runs that share a file.

    A request is written down before it is sent, at the most it can cost, so that a killed run
    has been counted too; what it did cost replaces that. One run at a time.
    """

    def __init__(self, path: Path, prices: Prices, max_requests: int | None = None,
                 max_cost: float | None = None):
        if max_cost is not None and not (prices.read or prices.written):
            raise UserError('--max-cost needs --price-in and --price-out to know what is spent')
        self.prices = prices
        self._max_requests, self._max_cost = max_requests, max_cost
        self._lock = threading.Lock()
        self._costs: dict[int, float] = {}
        self._factor = 1.0  # how many times the estimate a question has turned out to be
        try:
            rows = [json.loads(line) for line in whole_lines(path)]
            self._costs = {row['request']: row['cost'] for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path} is not a ledger ({error}); choose another folder') from error
        self._file = Appender(path)
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f'{path}: another run is spending from it; wait for its end') from None

    @property
    def requests(self) -> int:
        """Requests sent, over all runs."""
        return len(self._costs)

    @property
    def cost(self) -> float:
        """What they cost."""
        return sum(self._costs.values())

    def reserve(self, read: int, written: int) -> int:
        """Return the number of a request of about ``read``, at most ``written`` tokens.

        It is counted from now on. Raises ``BudgetReached``, and nothing may be sent, if it could
        exceed what may be spent.
        """
        with self._lock:
            cost = self.prices.cost(int(read * self._factor), written)
            if self._max_requests is not None and self.requests + 1 > self._max_requests:
                raise BudgetReached(
                    f'budget: {self.requests} requests are sent and --max-requests is '
                    f'{self._max_requests}; raise it to go on')
            if self._max_cost is not None and self.cost + cost > self._max_cost:
                raise BudgetReached(
                    f'budget: {self.cost:.4f} is spent, the next request may cost {cost:.4f} and '
                    f'--max-cost is {self._max_cost}; raise it to go on')
            number = max(self._costs, default=-1) + 1
            self._keep(number, cost)
            return number

    def settle(self, number: int, estimated: int, read: int, written: int) -> None:
        """Write down what an answered request did cost; 0 tokens for one that was turned away."""
        with self._lock:
            if estimated:
                self._factor = max(self._factor, read / estimated)
            self._keep(number, self.prices.cost(read, written))

    def _keep(self, number: int, cost: float) -> None:
        self._costs[number] = cost
        self._file.write({'request': number, 'cost': cost})

    def close(self) -> None:
        """Let another run spend."""
        self._file.close()
