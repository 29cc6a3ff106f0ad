"""Answers questions by rules, from an earlier run's answers, or by an endpoint within a budget."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import random
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from dtvla_ros.annotation.question import SYSTEM, Question
from dtvla_ros.annotation.rules import label_frames
from dtvla_ros.errors import UserError
from dtvla_ros.files import JsonLines, read_lines
from dtvla_ros.report import data_uri

ANSWERS = 'answers.jsonl'
# Of a row of answers.
ROW = {'key': str, 'provider': str, 'text': str, 'round': int, 'pictures': int,
       'tokens_read': int, 'tokens_written': int}
CHARACTERS_PER_TOKEN = 4
FORMATS = ('json_schema', 'json_object', 'none')
MOST_TOKENS = 2 ** 40  # that an answer is believed to have taken
BUSY = frozenset((408, 409, 425, 429))
UNKNOWN = frozenset((401, 403, 404, 405))  # who asks, or what
# What some models refuse, and what they take instead, if anything; of FORMATS the next one.
REFUSED = {'max_tokens': 'max_completion_tokens', 'temperature': None}


class Answer(NamedTuple):
    """An answer's text, and how many tokens it took."""

    text: str
    tokens_read: int = 0
    tokens_written: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Answer:
        """Return the answer in a row of an answer file."""
        return cls(row['text'], row['tokens_read'], row['tokens_written'])


class Provider:
    """Answers questions; may be called from several threads at once.

    ``name`` tells answers of different providers apart in the cache; ``needs_images``: its
    questions hold images; ``parallel``: how many questions it can work on at once.
    """

    name: str
    needs_images = False
    parallel = 1

    def ask(self, question: Question) -> Answer:
        """Return an answer, which need not be valid; raises ``UserError`` when there is none."""
        raise NotImplementedError

    def stop(self) -> None:
        """Answer nothing more: the run is over."""

    def close(self) -> None:
        """Free what it holds."""


class RuleProvider(Provider):
    """Labels by `label_frames`: deterministic, offline, without images."""

    name = 'rules'

    def ask(self, question: Question) -> Answer:
        labels = label_frames(question.motion, question.goal)
        return Answer(json.dumps(
            {'frames': [labels[frame].model_dump() for frame in question.frames]}))


class ReplayProvider(Provider):
    """Gives the answers that an earlier run kept, by the hash of the question."""

    name = 'replay'

    def __init__(self, path: Path):
        self._path, self._rows = path, {row['key']: row for row in read_answers(path)}
        if not self._rows:
            raise UserError(f'{path}: holds no answers; give the {ANSWERS} of an earlier run')
        self.needs_images = any(row['pictures'] for row in self._rows.values())

    def ask(self, question: Question) -> Answer:
        if question.key not in self._rows:
            raise UserError(f'{self._path}: nobody answered this about frames {question.frames}; '
                            'use data, key frames and options of the run that is replayed')
        return Answer.of(self._rows[question.key])


def read_answers(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an answer file, in order; ``UserError`` when it is no such file."""
    rows = read_lines(path, *ROW)
    if wrong := next((row for row in rows if not all(
            isinstance(row[name], kind) for name, kind in ROW.items())), None):
        raise UserError(f'{path}: an answer is {wrong!r:.80}; delete it or choose another')
    return rows


@dataclass(frozen=True, slots=True)
class Budget:
    """What tokens cost, and what may be spent.

    ``price_in``, ``price_out``: of a million tokens read, written, in whatever currency;
    ``picture_tokens`` of one image. ``max_requests``, ``max_cost``: over all runs in a folder,
    None: no limit. Raises ``UserError`` if a cost is limited without prices.
    """

    price_in: float = 0.0
    price_out: float = 0.0
    picture_tokens: int = 260
    max_requests: int | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise UserError('--max-cost needs --price-in and --price-out to know what is spent')

    def price(self, read: int, written: int) -> float:
        return (read * self.price_in + written * self.price_out) / 1e6

    def tokens(self, characters: int, images: int = 0) -> int:
        """Return about how many tokens a question has."""
        return -(-characters // CHARACTERS_PER_TOKEN) + images * self.picture_tokens


class Ledger(JsonLines):
    """Keeps count of requests and their cost over all runs that share a file.

    A request is written down before it is sent, at the most it can cost; what it did cost replaces
    that. Raises ``UserError`` if another run uses the file, or it is no ledger.
    """

    def __init__(self, path: Path, budget: Budget):
        self.budget, self._lock = budget, threading.Lock()
        self._factor = 1.0  # largest ratio of a question's tokens to their estimate so far
        rows = read_lines(path, 'request', 'cost')
        if wrong := next((row for row in rows if not (
                isinstance(row['request'], int) and isinstance(row['cost'], int | float))), None):
            raise UserError(f'{path}: {wrong!r:.80} is no request and its cost; choose another '
                            'folder')
        self._costs: dict[int, float] = {row['request']: row['cost'] for row in rows}
        super().__init__(path)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise UserError(f'{path}: another run is spending from it; wait for its end') from None

    @property
    def spent(self) -> tuple[int, float]:
        """Requests sent over all runs, and their cost."""
        return len(self._costs), sum(self._costs.values())

    def reserve(self, read: int, written: int) -> int:
        """Count a request of ``read``, at most ``written`` tokens, from now on; return its number.

        Raises ``UserError``, and nothing may be sent, if it could exceed what may be spent.
        """
        with self._lock:
            limit, (requests, spent) = self.budget, self.spent
            cost = limit.price(int(read * self._factor), written)
            if limit.max_requests is not None and requests + 1 > limit.max_requests:
                raise UserError(f'budget: {requests} requests are sent and --max-requests is '
                                f'{limit.max_requests}; raise it to go on')
            if limit.max_cost is not None and spent + cost > limit.max_cost:
                raise UserError(
                    f'budget: {spent:.4f} is spent, the next request may cost {cost:.4f} and '
                    f'--max-cost is {limit.max_cost}; raise it to go on')
            number = max(self._costs, default=-1) + 1
            self._keep(number, cost)
            return number

    def settle(self, number: int, estimated: int, read: int, written: int) -> None:
        """Write down what an answered request did cost; 0 tokens for one that was turned away."""
        with self._lock:
            self._factor = max(self._factor, read / max(estimated, 1))
            self._keep(number, self.budget.price(read, written))

    def _keep(self, number: int, cost: float) -> None:
        self._costs[number] = cost
        self.write({'request': number, 'cost': cost})


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Where to ask, and how often and long.

    ``key``: sent as a header and never written anywhere; ``timeout`` [s] of one request;
    ``tries`` of one question; ``longest_wait`` [s] between them; ``first_wait`` [s]: the random
    wait's first limit, which doubles; ``concurrency``: requests at once.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    tries: int = 6
    longest_wait: float = 120.0
    first_wait: float = 1.0
    max_tokens: int = 4096
    response_format: str = 'json_schema'
    concurrency: int = 4


class _Busy(Exception):
    """Worth another try; its second argument [s]: how long the server asks to wait, or None."""


class HttpProvider(Provider):
    """Asks an endpoint with OpenAI's chat completions, as far as the ledger's budget allows.

    Not the openai client, which repeats requests past the ledger, sleeps past ``stop``, ignores a
    long Retry-After and sends headers of its environment variables to any server. Raises
    ``UserError`` if the URL is none, or a key would travel unencrypted to another machine.
    """

    needs_images = True

    def __init__(self, options: HttpOptions, ledger: Ledger):
        try:
            url = httpx.URL(options.url)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ('http', 'https') or not url.host:
            raise UserError(f'--url {options.url!r} is no address; give one such as '
                            'http://127.0.0.1:8000/v1')
        local = url.host == 'localhost'
        with suppress(ValueError):
            local = local or ipaddress.ip_address(url.host).is_loopback
        if options.key and url.scheme == 'http' and not local:
            raise UserError(f'--url {options.url}: a key is not sent unencrypted to another '
                            'machine; use https, or a tunnel to 127.0.0.1')
        if options.response_format not in FORMATS:
            raise UserError(f'--response-format {options.response_format!r}; there is: '
                            f'{", ".join(FORMATS)}')
        self.name, self.parallel = f'http:{options.model}', options.concurrency
        self._options, self._ledger, self._stopped = options, ledger, threading.Event()
        self._refused: set[str] = set()  # of REFUSED, by this model
        self._form = options.response_format
        end = '/chat/completions'
        self._address = str(url.copy_with(path=url.path.rstrip('/').removesuffix(end) + end))
        # A proxy from the environment has no business between this process and this machine.
        self._client = httpx.Client(timeout=options.timeout, trust_env=not local, headers={
            'Authorization': f'Bearer {options.key}'} if options.key else {})

    def stop(self) -> None:
        """End waiting for another try."""
        self._stopped.set()

    def close(self) -> None:
        """Close the connections and the ledger; print what was spent."""
        self._client.close()
        print('sent in all: {} requests, cost {:.4f}'.format(*self._ledger.spent))
        self._ledger.file.close()

    def ask(self, question: Question) -> Answer:
        options, wait = self._options, 0.0
        for number in range(options.tries):
            if wait > options.longest_wait:
                raise UserError(f'{self._address}: asks to wait {wait:.0f} s; repeat it then')
            if self._stopped.wait(wait):
                raise UserError('stopped')
            try:
                return self._once(question)
            except _Busy as error:
                problem, after = error.args
                limit = min(options.longest_wait, options.first_wait * 2 ** number)
                wait = random.uniform(0, limit) if after is None else after
        raise UserError(f'{self._address}: {problem}, {options.tries} times; repeat it later')

    def _once(self, question: Question) -> Answer:
        options, ledger, budget = self._options, self._ledger, self._ledger.budget
        form = self._form
        estimated = budget.tokens(question.characters, question.images)
        number = ledger.reserve(estimated, options.max_tokens)
        try:
            response = self._client.post(self._address, json=self._body(question, form))
        except httpx.ConnectError as error:
            ledger.settle(number, estimated, 0, 0)
            raise _Busy(f'no connection ({error})', None) from error
        except httpx.HTTPError as error:  # it may have been worked on and be billed
            raise _Busy(f'no answer in {options.timeout:g} s, or a broken one '
                        f'({error or type(error).__name__})', None) from error
        if response.status_code != 200:
            ledger.settle(number, estimated, 0, 0)
            if response.status_code in BUSY or response.status_code >= 500:
                raise _Busy(f'answered {response.status_code}', _retry_after(response))
            refused = {name for name in REFUSED.keys() - self._refused if name in response.text}
            simpler = FORMATS[FORMATS.index(form) + 1:]
            if response.status_code in (400, 422) and (refused or simpler and any(
                    word in response.text for word in ('response_format', form))):
                self._refused |= refused
                self._form = form if refused else simpler[0]
                return self._once(question)
            if response.has_redirect_location:
                where = response.headers['location']
                raise UserError(f'{self._address}: sends on to {where:.200}; give the --url that '
                                'it means')
            raise UserError(
                f'{self._address}: answered {response.status_code}: {self._shown(response)}'
                + '; correct --url, --model or the key' * (response.status_code in UNKNOWN))
        try:
            data = response.json()
            text = _text_of(data['choices'][0]['message'])
            usage = data.get('usage')
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _Busy('answered something else than a chat completion '
                        f'({self._shown(response)})', None) from None
        answer = Answer(text, _count(usage, 'prompt_tokens', estimated),
                        _count(usage, 'completion_tokens', budget.tokens(len(text))))
        ledger.settle(number, estimated, answer.tokens_read, answer.tokens_written)
        return answer

    def _shown(self, response: httpx.Response) -> str:
        """Return the beginning of an answer, without the key."""
        key = self._options.key
        return (response.text.replace(key, '***') if key else response.text)[:300]

    def _body(self, question: Question, form: str) -> dict[str, Any]:
        options = self._options
        system = SYSTEM if form == 'json_schema' else question.system_with_schema
        messages: list[dict[str, Any]] = [{'role': 'system', 'content': system}]
        for role, parts in question.turns:
            content = [
                {'type': 'text', 'text': part} if isinstance(part, str) else
                {'type': 'image_url', 'image_url': {'url': data_uri(part)}} for part in parts]
            messages.append({'role': role, 'content': (
                ''.join(map(str, parts)) if role == 'assistant' else content)})
        body: dict[str, Any] = {
            'model': options.model, 'messages': messages, 'temperature': 0.0,
            'max_tokens': options.max_tokens}
        for name in self._refused:
            value, other = body.pop(name), REFUSED[name]
            if other:
                body[other] = value
        if form != 'none':
            body['response_format'] = {'type': form}
        if form == 'json_schema':
            body['response_format']['json_schema'] = {
                'name': 'labels', 'strict': True, 'schema': question.schema}
        return body


def _text_of(message: Mapping[str, Any]) -> str:
    """Return the text of an answer, wherever servers put it; the first with an object in it."""
    texts, calls = [], [{'function': message.get('function_call')},
                        *(message.get('tool_calls') or ())]
    values = [*map(message.get, ('content', 'reasoning_content', 'reasoning', 'refusal')), *(
        (call.get('function') or {}).get('arguments') for call in calls)]
    for value in values:
        value = value or ''
        if isinstance(value, list):  # of parts
            value = ''.join(str(part.get('text') or '') if isinstance(part, Mapping) else str(part)
                            for part in value)
        text = json.dumps(value) if isinstance(value, Mapping) else str(value)
        texts.append(text.encode(errors='replace').decode())  # half a surrogate pair
    return next((text for text in texts if '{' in text), next(filter(None, texts), ''))


def _count(usage: Any, name: str, estimated: int) -> int:
    """Return how many tokens an answer says it took, or the estimate where it says none."""
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return int(value) if isinstance(value, int | float) and 0 < value < MOST_TOKENS else estimated


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds or the date of a Retry-After header as seconds from now."""
    value = response.headers.get('retry-after', '').strip()
    for read in (float, lambda date: parsedate_to_datetime(date).timestamp() - time.time()):
        with suppress(ValueError):
            return max(0.0, read(value))
    return None
