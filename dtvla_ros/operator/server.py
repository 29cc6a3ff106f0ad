"""Serves the page in a thread of its own: state and images out, orders in, by one WebSocket."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from dtvla_ros.errors import UserError
from dtvla_ros.operator.access import Access

PAGE = Path(__file__).parent / 'page'
FILES = ('page.css', 'page.js')
LONGEST = 2 ** 14  # bytes of an order
CLOSING = 2.0  # longest wait for the thread to end [s]
REFUSED = 1008  # WebSocket's code for a policy that was violated
HEADERS = {
    'Content-Security-Policy': "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    'Cache-Control': 'no-store', 'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff'}
State = Mapping[str, Any]
"""What the page shows, JSON by key; a key is sent when its value differs from the last one."""


class PageServer:
    """Serves one page to any number of browsers.

    ``on_order(order, value, socket)`` is called in the server's thread for what a page orders,
    value a text or bool, over the socket of that number; ``on_gone(socket)`` when that is closed.
    `start` and `close` frame all else.
    """

    def __init__(self, access: Access, port: int, on_order: Callable[[str, str | bool, int], None],
                 on_gone: Callable[[int], None] = lambda _: None) -> None:
        self._access, self._port, self._on_order = access, port, on_order
        self._on_gone, self._sockets = on_gone, itertools.count(1)
        self._clients: set[_Client] = set()
        app = Starlette(routes=[
            Route('/', self._page), WebSocketRoute('/live', self._live),
            *(Route(f'/{name}', self._file) for name in FILES)])
        self._config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan='off', ws='websockets-sansio',
            ws_max_size=LONGEST, timeout_graceful_shutdown=1)
        self._config.load()  # here and not in the thread, where a package is missing
        self._server = uvicorn.Server(self._config)
        self._thread = threading.Thread(target=self._run, name='page', daemon=True)
        self._socket: socket.socket | None = None

    def start(self) -> str:
        """Serve from now on; return the address. Raises UserError where that is taken."""
        host = self._access.host
        try:
            self._socket = socket.create_server(
                (host, self._port), family=socket.AF_INET6 if ':' in host else socket.AF_INET)
        except OSError as error:
            why = str(error.strerror or error).partition(' (while')[0]
            raise UserError(f'the page cannot be served on {host} port {self._port}: {why}; '
                            'choose another port, 0 for a free one, or a host of this machine'
                            ) from error
        self._thread.start()
        shown = f'[{host}]' if ':' in host else host
        token = f'?token={self._access.token}' if self._access.token else ''
        return f'http://{shown}:{self._socket.getsockname()[1]}/{token}'

    def close(self) -> None:
        """End the thread; what a page shows from then on is that it lost its server."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(CLOSING)
        if self._socket is not None:
            self._socket.close()

    @property
    def watched(self) -> bool:
        """Whether a browser has the page open."""
        return bool(self._clients)

    def publish(self, state: State, images: Mapping[str, bytes]) -> None:
        """Show a state and a JPEG of each camera, b'' without; from any thread, returns at once.

        A browser that is slow gets the newest only. Nothing of what is given may change later.
        """
        for client in list(self._clients):
            client.offer(state, images)

    def _run(self) -> None:
        assert self._socket is not None
        self._server.run([self._socket])

    async def _page(self, request: Request) -> Response:
        if why := self._access.refuse_page(request.query_params.get('token', '')):
            return PlainTextResponse(why, 403, HEADERS)
        return FileResponse(PAGE / 'index.html', headers=HEADERS)

    async def _file(self, request: Request) -> Response:
        return FileResponse(PAGE / request.url.path[1:], headers=HEADERS)

    async def _live(self, websocket: WebSocket) -> None:
        headers = websocket.headers
        if why := self._access.refuse_socket(headers.get('host', ''), headers.get('origin', ''),
                                             websocket.query_params.get('token', '')):
            return await websocket.close(REFUSED, why)
        await websocket.accept()
        client, number = _Client(websocket), next(self._sockets)
        self._clients.add(client)
        sending = asyncio.create_task(client.send_on())
        try:
            while True:
                self._on_order(*read_order(await websocket.receive_text()), number)
        except (ValueError, KeyError, RecursionError) as error:  # KeyError: bytes, not text
            with suppress(RuntimeError):
                await websocket.close(REFUSED, f'no order: {error!s:.80}')
        except (WebSocketDisconnect, RuntimeError):  # it is gone
            pass
        finally:
            self._clients.discard(client)
            self._on_gone(number)
            sending.cancel()
        return None


class _Client:
    """One browser: what it has, and what is to be sent next."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket, self._loop = websocket, asyncio.get_running_loop()
        self._fresh = asyncio.Event()
        self._state: State = {}
        self._images: Mapping[str, bytes] = {}

    def offer(self, state: State, images: Mapping[str, bytes]) -> None:
        """Take what is newest, from any thread."""
        self._state, self._images = state, images
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._fresh.set)

    async def send_on(self) -> None:
        """Send what is new until the browser is gone; an image follows its state."""
        sent: State = {}
        shown: dict[str, bytes] = {}
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._fresh.wait()
                self._fresh.clear()
                state, images = self._state, self._images
                if changed := {key: value for key, value in state.items()
                               if key not in sent or sent[key] != value}:
                    await self._websocket.send_text(json.dumps(changed))
                sent = state
                for number, (name, jpeg) in enumerate(images.items()):
                    if jpeg and shown.get(name) is not jpeg:
                        shown[name] = jpeg
                        await self._websocket.send_bytes(bytes([number]) + jpeg)


def read_order(text: str) -> tuple[str, str | bool]:
    """Return order and value of what a page sent. Raises ValueError for anything else."""
    message = json.loads(text)
    order, value = ((message.get('order'), message.get('value', ''))
                    if isinstance(message, dict) else (None, None))
    if not isinstance(order, str) or not isinstance(value, str | bool):
        raise ValueError('{"order": name, "value": text or bool} expected')
    for said in (order, str(value)):
        said.encode()  # lone surrogates are a ValueError, too
    return order, value
