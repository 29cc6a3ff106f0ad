"""A chat completions endpoint on this machine that behaves as badly as a test wants."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
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


class Endpoint:
    """``behave(number, request)`` gives the reply of the n-th request; None answers rightly.

    It keeps the requests, their hashes, their headers and when they came [s].
    """

    def __init__(self, behave: Callable[[int, dict], Reply | None] = lambda n, r: None):
        self.requests, self.hashes, self.headers, self.times = [], [], [], []
        lock, endpoint = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_POST(self):
                raw = self.rfile.read(int(self.headers['Content-Length']))
                request = json.loads(raw)
                with lock:
                    number = len(endpoint.requests)
                    endpoint.requests.append(request)
                    endpoint.hashes.append(hashlib.sha256(raw).hexdigest())
                    endpoint.headers.append(dict(self.headers) | {'path': self.path})
                    endpoint.times.append(time.monotonic())
                reply = behave(number, request) or Reply()
                time.sleep(reply.wait)
                text = reply.text or json.dumps(answer_frames(wanted(request)))
                body = reply.body or json.dumps({
                    'choices': [{'message': {'role': 'assistant', 'content': text}}],
                    'usage': USAGE}).encode()
                self.close_connection = reply.truncated
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header('Content-Length', str(len(body) + 10 * reply.truncated))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # the client has gone
                    self.close_connection = True

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self._server.daemon_threads = True
        self.url = f'http://127.0.0.1:{self._server.server_address[1]}/v1'

    def __enter__(self) -> Endpoint:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args) -> None:
        self._server.shutdown()
        self._server.server_close()
