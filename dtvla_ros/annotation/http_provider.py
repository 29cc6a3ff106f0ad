"""Any endpoint that speaks OpenAI's chat completions: vLLM on a machine of one's own, or a cloud.

The key is read from the environment by the caller, sent as a header and never written anywhere.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    wait_random_exponential,
)

from dtvla_ros.annotation.budget import Ledger
from dtvla_ros.annotation.providers import Answer
from dtvla_ros.annotation.question import Question
from dtvla_ros.errors import UserError

FORMATS = ('json_schema', 'json_object', 'none')
BUSY = frozenset((408, 409, 425, 429))


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Where to ask and how patiently.

    ``timeout`` [s] of one request; ``tries`` of one question; ``longest_wait`` [s] between them;
    ``first_wait`` [s]: what the random wait begins to double from.
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


def _is_here(host: str) -> bool:
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HttpProvider:
    """Asks an OpenAI-compatible endpoint; ``stop`` ends waiting when the run is over.

    Raises
    ------
    UserError
        If the URL is none, or a key would travel unencrypted to another machine.

    """

    looks = True

    def __init__(self, options: HttpOptions, key: str | None, ledger: Ledger,
                 stop: threading.Event | None = None):
        try:
            url = httpx.URL(options.url)
        except httpx.InvalidURL as error:
            raise UserError(f'--url {options.url!r}: {error}') from error
        if url.scheme not in ('http', 'https') or not url.host:
            raise UserError(f'--url {options.url!r} is no address; give one such as '
                            'http://127.0.0.1:8000/v1')
        here = _is_here(url.host)
        if key and url.scheme == 'http' and not here:
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
        self._client = httpx.Client(headers=headers, timeout=options.timeout, trust_env=not here)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, question: Question) -> Answer:
        retrying = Retrying(
            stop=stop_after_attempt(self._options.tries), wait=self._wait,
            retry=retry_if_exception_type(_Busy), sleep=sleep_using_event(self._stop),
            reraise=True)
        try:
            return retrying(self._once, question)
        except _Busy as error:
            raise UserError(f'{self._address}: {error}, {self._options.tries} times; what is '
                            'labelled is kept, repeat the command later') from None

    def _wait(self, state: RetryCallState) -> float:
        assert state.outcome is not None
        error = state.outcome.exception()
        if isinstance(error, _Busy) and error.after is not None:
            if error.after > self._options.longest_wait:
                raise UserError(f'{self._address}: asks to wait {error.after:.0f} s; repeat the '
                                'command then, what is labelled is kept')
            return error.after
        return wait_random_exponential(
            multiplier=self._options.first_wait, max=self._options.longest_wait)(state)

    def _once(self, question: Question) -> Answer:
        if self._stop.is_set():
            raise UserError('stopped')
        prices = self._ledger.prices
        estimated = prices.tokens(question.characters, question.pictures)
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
        if response.status_code in BUSY or response.status_code >= 500:
            settle(0, 0)
            raise _Busy(f'answered {response.status_code}', _retry_after(response))
        if response.status_code != 200:
            settle(0, 0)
            raise UserError(f'{self._address}: answered {response.status_code}: '
                            f'{self._scrub(response.text)[:300]}')
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

    def _scrub(self, text: str) -> str:
        return text.replace(self._key, '***') if self._key else text

    def _body(self, question: Question) -> dict[str, Any]:
        options = self._options
        system = question.system
        if options.response_format != 'json_schema':
            system = f'{system}\nThe JSON schema of the answer:\n{json.dumps(question.schema)}'
        messages: list[dict[str, Any]] = [{'role': 'system', 'content': system}]
        for role, parts in question.turns:
            if role == 'assistant':
                messages.append({'role': role, 'content': ''.join(map(str, parts))})
            else:
                messages.append({'role': role, 'content': [_part(part) for part in parts]})
        body: dict[str, Any] = {
            'model': options.model, 'messages': messages, 'temperature': options.temperature,
            'max_tokens': options.max_tokens}
        if options.response_format == 'json_schema':
            body['response_format'] = {'type': 'json_schema', 'json_schema': {
                'name': 'labels', 'strict': True, 'schema': question.schema}}
        elif options.response_format == 'json_object':
            body['response_format'] = {'type': 'json_object'}
        return body


def _part(part: str | bytes) -> dict[str, Any]:
    if isinstance(part, str):
        return {'type': 'text', 'text': part}
    data = base64.b64encode(part).decode()
    return {'type': 'image_url', 'image_url': {'url': f'data:image/jpeg;base64,{data}'}}


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds or the date of a Retry-After header as seconds from now."""
    value = response.headers.get('retry-after', '').strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
