"""Answers questions by rules, from an earlier run's answers, or by an endpoint within a budget."""

from __future__ import annotations

import base64
import fcntl
import ipaddress
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

import httpx

from dtvla_ros.annotation.question import Question
from dtvla_ros.annotation.rules import label_frames
from dtvla_ros.errors import UserError
from dtvla_ros.files import JsonLines, whole_lines

ANSWERS = 'answers.jsonl'
CHARACTERS_PER_TOKEN = 4
FORMATS = ('json_schema', 'json_object', 'none')
BUSY = frozenset((408, 409, 425, 429))


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's text, and how many tokens it took."""

    text: str
    tokens_read: int = 0
    tokens_written: int = 0


class Provider(Protocol):
    """Answers questions; may be called from several threads at once.

    ``name`` tells answers of different providers apart in the cache; ``needs_images``: its
    questions hold images; ``parallel``: how many questions it can work on at once.
    """

    name: str
    needs_images: bool
    parallel: int

    def ask(self, question: Question) -> Answer:
        """Return an answer, which need not be valid.

        Raises ``UserError`` when there is none to be had.
        """
        ...


class RuleProvider:
    """Labels by `label_frames`: deterministic, offline, without images."""

    name = 'rules'
    needs_images = False
    parallel = 1

    def ask(self, question: Question) -> Answer:
        labels = label_frames(question.motion, question.goal)
        return Answer(json.dumps(
            {'frames': [labels[frame].model_dump() for frame in question.frames]}))


class ReplayProvider:
    """Gives the answers that an earlier run kept, by the hash of the question."""

    name = 'replay'
    parallel = 1

    def __init__(self, path: Path):
        rows = read_answers(path)
        if not rows:
            raise UserError(f'{path}: holds no answers; give the {ANSWERS} of an earlier run')
        self.needs_images = any(row['pictures'] for row in rows)
        self._path = path
        self._answers = {row['key']: row for row in rows}

    def ask(self, question: Question) -> Answer:
        row = self._answers.get(question.key)
        if row is None:
            raise UserError(f'{self._path}: nobody answered this question about frames '
                            f'{list(question.frames)}; use the data set, key frames and options '
                            'of the run that is replayed')
        return Answer(row['text'], row['tokens_read'], row['tokens_written'])


def read_answers(path: Path) -> list[dict]:
    """Return the rows of an answer file, in order.

    Raises ``UserError`` when it is no such file.
    """
    try:
        rows = [json.loads(line) for line in whole_lines(path)]
        for row in rows:
            row['key'], row['provider'], row['text'], row['round'], row['pictures']
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not a file of answers ({error}); delete it') from error
    return rows


class BudgetReached(UserError):
    """The next request could exceed what may be spent."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Per million tokens read and written, in whatever currency; tokens of one image."""

    read: float = 0.0
    written: float = 0.0
    image_tokens: int = 260

    def cost(self, read: int, written: int) -> float:
        """Return the price of so many tokens."""
        return (read * self.read + written * self.written) / 1e6

    def tokens(self, characters: int, images: int) -> int:
        """Return about how many tokens a question has."""
        return -(-characters // CHARACTERS_PER_TOKEN) + images * self.image_tokens


class Ledger:
    """Keeps count of requests and their cost over all runs that share a file.

    A request is written down before it is sent, at the most it can cost, so that a killed run
    has been counted too; what it did cost replaces that. One run at a time.

    Raises
    ------
    UserError
        If a cost is limited without prices, the file is no ledger, or another run uses it.

    """

    def __init__(self, path: Path, prices: Prices, max_requests: int | None = None,
                 max_cost: float | None = None):
        if max_cost is not None and not (prices.read or prices.written):
            raise UserError('--max-cost needs --price-in and --price-out to know what is spent')
        self.prices = prices
        self._max_requests, self._max_cost = max_requests, max_cost
        self._lock = threading.Lock()
        self._factor = 1.0  # largest ratio of a question's tokens to their estimate so far
        try:
            rows = [json.loads(line) for line in whole_lines(path)]
            self._costs: dict[int, float] = {row['request']: row['cost'] for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path} is not a ledger ({error}); choose another folder') from error
        self._file = JsonLines(path)
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
        """Their cost."""
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


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Where to ask, and how often and long.

    ``timeout`` [s] of one request; ``tries`` of one question; ``longest_wait`` [s] between them;
    ``first_wait`` [s]: the random wait's first limit, which doubles.
    """

    url: str
    model: str
    timeout: float = 120.0
    tries: int = 6
    longest_wait: float = 120.0
    first_wait: float = 1.0
    max_tokens: int = 4096
    temperature: float = 0.0
    response_format: str = 'json_schema'
    parallel: int = 4


class _Busy(Exception):
    """Worth another try; ``after`` [s]: how long the server asks to wait."""

    def __init__(self, text: str, after: float | None = None):
        super().__init__(text)
        self.after = after


class HttpProvider:
    """Asks an endpoint with OpenAI's chat completions; ``stop`` ends waiting when the run is over.

    It is plain HTTP and not the openai client, which repeats requests past the ledger, sleeps
    past ``stop``, ignores a long Retry-After, and sends the headers that its environment
    variables name (OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS) to any server. The key is sent as a
    header and never written anywhere.

    Raises
    ------
    UserError
        If the URL is none, or a key would travel unencrypted to another machine.

    """

    needs_images = True

    def __init__(self, options: HttpOptions, key: str | None, ledger: Ledger,
                 stop: threading.Event | None = None):
        try:
            url = httpx.URL(options.url)
        except httpx.InvalidURL as error:
            raise UserError(f'--url {options.url!r}: {error}') from error
        if url.scheme not in ('http', 'https') or not url.host:
            raise UserError(f'--url {options.url!r} is no address; give one such as '
                            'http://127.0.0.1:8000/v1')
        local = _is_local(url.host)
        if key and url.scheme == 'http' and not local:
            raise UserError(f'--url {options.url}: a key is not sent unencrypted to another '
                            'machine; use https, or a tunnel to 127.0.0.1')
        if options.response_format not in FORMATS:
            raise UserError(f'--response-format {options.response_format!r}; there is: '
                            f'{", ".join(FORMATS)}')
        self.name = f'http:{options.model}'
        self.parallel = options.parallel
        self._options, self._key, self._ledger = options, key, ledger
        self._stop = stop or threading.Event()
        self._address = f'{options.url.rstrip("/")}/chat/completions'
        headers = {'Authorization': f'Bearer {key}'} if key else {}
        # A proxy from the environment has no business between this process and this machine.
        self._client = httpx.Client(headers=headers, timeout=options.timeout, trust_env=not local)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, question: Question) -> Answer:
        longest = self._options.longest_wait
        problem: _Busy | None = None
        for number in range(self._options.tries):
            if problem is not None:
                wait = problem.after
                if wait is None:
                    limit = self._options.first_wait * 2 ** (number - 1)
                    wait = random.uniform(0, min(longest, limit))
                if wait > longest:
                    raise UserError(f'{self._address}: asks to wait {wait:.0f} s; repeat the '
                                    'command then, what is labelled is kept')
                self._stop.wait(wait)
            if self._stop.is_set():
                raise UserError('stopped')
            try:
                return self._once(question)
            except _Busy as error:
                problem = error
        raise UserError(f'{self._address}: {problem}, {self._options.tries} times; what is '
                        'labelled is kept, repeat the command later')

    def _once(self, question: Question) -> Answer:
        prices = self._ledger.prices
        estimated = prices.tokens(question.characters, question.images)
        number = self._ledger.reserve(estimated, self._options.max_tokens)
        settle: Callable[[int, int], None] = lambda read, written: self._ledger.settle(  # noqa: E731
            number, estimated, read, written)
        try:
            response = self._client.post(self._address, json=self._body(question))
        except httpx.ConnectError as error:
            settle(0, 0)
            raise _Busy(f'no connection ({error})') from error
        except httpx.TimeoutException as error:  # it may have been worked on and be billed
            raise _Busy(f'no answer in {self._options.timeout:g} s') from error
        except httpx.HTTPError as error:
            raise _Busy(f'the connection broke ({error or type(error).__name__})') from error
        if response.status_code != 200:
            settle(0, 0)
            if response.status_code in BUSY or response.status_code >= 500:
                raise _Busy(f'answered {response.status_code}', _retry_after(response))
            body = response.text.replace(self._key, '***') if self._key else response.text
            raise UserError(f'{self._address}: answered {response.status_code}: {body[:300]}')
        try:
            data = response.json()
            message = data['choices'][0]['message']
        except (ValueError, LookupError, TypeError):
            raise _Busy('answered something else than a chat completion') from None
        usage = data.get('usage') or {}
        text = str(message.get('content') or message.get('refusal') or '')
        answer = Answer(text, int(usage.get('prompt_tokens') or estimated),
                        int(usage.get('completion_tokens') or prices.tokens(len(text), 0)))
        settle(answer.tokens_read, answer.tokens_written)
        return answer

    def _body(self, question: Question) -> dict[str, Any]:
        options, form = self._options, self._options.response_format
        system = question.system if form == 'json_schema' else question.system_with_schema
        messages: list[dict[str, Any]] = [{'role': 'system', 'content': system}]
        for role, parts in question.turns:
            content = ''.join(map(str, parts)) if role == 'assistant' else [*map(_part, parts)]
            messages.append({'role': role, 'content': content})
        body: dict[str, Any] = {
            'model': options.model, 'messages': messages, 'temperature': options.temperature,
            'max_tokens': options.max_tokens}
        if form != 'none':
            body['response_format'] = {'type': form}
        if form == 'json_schema':
            body['response_format']['json_schema'] = {
                'name': 'labels', 'strict': True, 'schema': question.schema}
        return body


def _is_local(host: str) -> bool:
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _part(part: str | bytes) -> dict[str, Any]:
    if isinstance(part, str):
        return {'type': 'text', 'text': part}
    data = base64.b64encode(part).decode()
    return {'type': 'image_url', 'image_url': {'url': f'data:image/jpeg;base64,{data}'}}


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds or the date of a Retry-After header as seconds from now."""
    value = response.headers.get('retry-after', '').strip()
    for read in (float, lambda date: parsedate_to_datetime(date).timestamp() - time.time()):
        try:
            return max(0.0, read(value))
        except ValueError:
            pass
    return None
