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
    """What one request gets: ``text`` of the answer, or a raw ``body``; ``wait`` [s] before."""

    status: int = 200
    text: str | None = None
    body: bytes | None = None
    wait: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


def wanted(request: dict) -> int:
    """Return how many key frames a request asks about."""
    schema = request['response_format']['json_schema']['schema']
    return schema['properties']['frames']['minItems']


class Endpoint:
    """``behave(number, request)`` gives the reply of the n-th request; None answers rightly."""

    def __init__(self, behave: Callable[[int, dict], Reply | None] = lambda n, r: None):
        self.requests: list[dict] = []
        self.hashes: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.finished: list[str] = []
        self.arrived = threading.Event()
        lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_POST(self):
                raw = self.rfile.read(int(self.headers['Content-Length']))
                request = json.loads(raw)
                digest = hashlib.sha256(raw).hexdigest()
                with lock:
                    number = len(endpoint.requests)
                    endpoint.requests.append(request)
                    endpoint.hashes.append(digest)
                    endpoint.headers.append(dict(self.headers) | {'path': self.path})
                    endpoint.times.append(time.monotonic())
                endpoint.arrived.set()
                reply = behave(number, request) or Reply()
                time.sleep(reply.wait)
                text = reply.text
                if text is None:
                    text = json.dumps(answer_frames(wanted(request)))
                body = reply.body
                if body is None:
                    body = json.dumps({
                        'choices': [{'message': {'role': 'assistant', 'content': text}}],
                        'usage': USAGE}).encode()
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header('Content-Length', str(len(body) + 10 * reply.cut))
                    self.end_headers()
                    self.wfile.write(body)
                    if reply.cut:
                        self.close_connection = True
                    with lock:
                        endpoint.finished.append(digest)
                except OSError:  # the client has gone
                    self.close_connection = True

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self._server.server_address[1]}/v1'

    def __enter__(self) -> Endpoint:
        self._thread.start()
        return self

    def __exit__(self, *args) -> None:
        self._server.shutdown()
        self._server.server_close()
