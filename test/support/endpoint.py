"""A chat completions endpoint on this machine that behaves as badly as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support.picks import answer_frames

USAGE = {'prompt_tokens': 1000, 'completion_tokens': 200}


@dataclass
class Reply:
    """What one request gets: ``text`` of the answer, or a raw ``body``; ``wait`` [s] before.

    ``truncated``: the connection breaks before the body is whole.
    """

    status: int = 200
    text: str | None = None
    body: bytes | None = None
    wait: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    truncated: bool = False


def wanted(request: dict) -> int:
    """Return how many key frames a request asks about."""
    schema = request['response_format']['json_schema']['schema']
    return schema['properties']['frames']['minItems']


class Endpoint(ThreadingHTTPServer):
    """Keeps the requests, their headers and when they came [s].

    ``behave``: replies by number of the request, or a function of number and request that gives
    them; where there is none the answer is right.
    """

    daemon_threads = True

    def __init__(
            self, behave: Callable[[int, dict], Reply | None] | Mapping[int, Reply] | None = None):
        self.behave = behave if callable(behave) else lambda n, request: (behave or {}).get(n)
        self.requests, self.headers, self.times, self.lock = [], [], [], threading.Lock()
        super().__init__(('127.0.0.1', 0), _Handler)
        self.url = f'http://127.0.0.1:{self.server_address[1]}/v1'
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(request)
            self.server.headers.append(dict(self.headers) | {'path': self.path})
            self.server.times.append(time.monotonic())
        reply = self.server.behave(number, request) or Reply()
        time.sleep(reply.wait)
        text = reply.text or json.dumps(answer_frames(wanted(request)))
        body = reply.body or json.dumps({
            'choices': [{'message': {'role': 'assistant', 'content': text}}],
            'usage': USAGE}).encode()
        self.close_connection = reply.truncated
        with suppress(OSError):  # the client has gone
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header('Content-Length', str(len(body) + 10 * reply.truncated))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args):
        pass
