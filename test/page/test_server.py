"""Who may open the page, and what goes over its WebSocket."""

from __future__ import annotations

import json
import re
import socket
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
from support.beside import wait_for

from dtvla_ros.errors import UserError
from dtvla_ros.operator.access import Access

pytest.importorskip('uvicorn', reason="the page needs pip install 'dtvla_ros[operator]'")
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from dtvla_ros.operator.server import PageServer, read_order  # noqa: E402

TOKEN = 'a-secret-of-some-length'
HERE, THERE = 'localhost:8088', 'robot.lan:8088'


@pytest.mark.parametrize('host, header, origin, token, refused', [
    ('127.0.0.1', HERE, f'http://{HERE}', '', ''),
    ('127.0.0.1', 'localhost:9000', 'http://localhost:9000', '', ''),  # a tunnel of ssh
    ('::1', '[::1]:8088', 'http://[::1]:8088', '', ''),
    ('127.0.0.1', HERE, '', '', 'Origin ""'),
    ('127.0.0.1', HERE, 'null', '', 'Origin "null"'),
    ('127.0.0.1', HERE, 'http://evil.example', '', 'Origin "http://evil.example"'),
    ('127.0.0.1', HERE, 'http://localhost:3000', '', 'Origin "http://localhost:3000"'),
    ('127.0.0.1', 'evil.example', 'http://evil.example', '', 'is not this machine'),
    ('0.0.0.0', THERE, f'http://{THERE}', TOKEN, ''),
    ('0.0.0.0', THERE, f'http://{THERE}', '', 'needs its token'),
    ('0.0.0.0', THERE, f'http://{THERE}', TOKEN[:-1], 'needs its token'),
    ('0.0.0.0', THERE, f'http://{THERE}', 'caf\u00e9', 'needs its token'),
    ('0.0.0.0', THERE, 'http://evil.example', TOKEN, 'Origin')])
def test_a_socket_is_opened_by_the_pages_own_origin(host, header, origin, token, refused):
    access = Access(host, TOKEN if host == '0.0.0.0' else '')
    said = access.refuse_socket(header, origin, token)
    assert refused in said and bool(refused) == bool(said)


@pytest.mark.parametrize('host, token, words', [
    ('0.0.0.0', '', 'host = "0.0.0.0".*set token'), ('robot.lan', '', 'set token'),
    ('127.0.0.1', 'short', '5 characters, at least 16')])
def test_an_address_that_others_reach_needs_a_secret(host, token, words):
    with pytest.raises(UserError, match=words):
        Access(host, token)


@pytest.mark.parametrize('text, order', [
    ('{"order": "stop"}', ('stop', '')), ('{"order": "pause", "value": true}', ('pause', True)),
    ('{"order": "tell", "value": "caf\\u00e9"}', ('tell', 'caf\u00e9'))])
def test_an_order_is_a_name_and_a_value(text, order):
    assert read_order(text) == order


BAD = ('stop', '[]', '{}', '{"order": 3}', '{"order": "tell", "value": ["x"]}',
       '{"order": "tell", "value": "\\ud800"}', '[' * 9000, b'stop')


class Served:
    """A server, and clients of it."""

    def __init__(self, access):
        self.orders = []
        self.server = PageServer(access, 0, lambda *order: self.orders.append(order[:2]))
        self.address = urlsplit(self.server.start())

    def get(self, path):
        connection = HTTPConnection(self.address.netloc, timeout=20)
        connection.request('GET', path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def open(self, token='', **more):
        more = {'origin': f'http://{self.address.netloc}'} | more
        return connect(f'ws://{self.address.netloc}/live?token={token}', **more)


@pytest.fixture(params=[''])
def served(request):
    made = Served(Access('127.0.0.1', request.param))
    yield made
    made.server.close()


def test_the_page_loads_nothing_from_elsewhere(served):
    status, headers, page = served.get('/')
    assert status == 200 and b'<button id="stop">' in page
    assert "default-src 'self'" in headers['content-security-policy']
    assert "frame-ancestors 'none'" in headers['content-security-policy']
    for name, kind in (('page.css', 'text/css'), ('page.js', 'text/javascript')):
        status, headers, text = served.get(f'/{name}')
        assert status == 200 and headers['content-type'].startswith(kind)
        assert not re.search(rb'https?://|url\(|@import', text)
    assert served.get('/../server.py')[0] == served.get('/index.py')[0] == 404


def test_a_browser_gets_what_changed_and_images_by_camera(served):
    with served.open() as browser:
        wait_for(lambda: served.server.watched)
        served.server.publish({'a': 1, 'b': [2]}, {'primary': b'', 'wrist': b'jpeg'})
        assert json.loads(browser.recv(20)) == {'a': 1, 'b': [2]}
        assert browser.recv(20) == b'\x01jpeg'
        served.server.publish({'a': 1, 'b': [3]}, {'primary': b'new', 'wrist': b'jpeg'})
        assert json.loads(browser.recv(20)) == {'b': [3]}
        assert browser.recv(20) == b'\x00new'
        browser.send('{"order": "stop"}')
        wait_for(lambda: served.orders == [('stop', '')])
    wait_for(lambda: not served.server.watched)


@pytest.mark.parametrize('sent', BAD, ids=range(len(BAD)))
def test_what_is_no_order_closes_that_socket_only(served, sent, capfd):
    with served.open() as browser, served.open() as other:
        browser.send(sent)
        with pytest.raises(ConnectionClosed) as closed:
            browser.recv(20)
        assert closed.value.rcvd.code == 1008 and 'no order' in closed.value.rcvd.reason
        other.send('{"order": "stop"}')
        wait_for(lambda: served.orders == [('stop', '')])
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('origin', [None, 'http://evil.example', 'http://localhost:1'])
def test_a_foreign_page_is_refused(served, origin):
    with pytest.raises(InvalidStatus, match='403'), served.open(origin=origin):
        pass
    assert not served.server.watched


@pytest.mark.parametrize('served', [TOKEN], indirect=True)
def test_with_a_token_only_its_address_opens_the_page(served):
    assert served.address.query == f'token={TOKEN}'
    assert served.get('/')[0] == 403 and served.get(f'/?{served.address.query}')[0] == 200
    with pytest.raises(InvalidStatus, match='403'), served.open('another'):
        pass
    with served.open(TOKEN) as browser:
        browser.send('{"order": "stop"}')
        wait_for(lambda: served.orders)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f'port {port}: .*; choose another port'):
            PageServer(Access('127.0.0.1'), port, lambda *_: None).start()
