"""Labelling against a real endpoint that misbehaves; nothing is lost, repeated or overspent."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from support.beside import wait_for
from support.picks import answer_frames

from dtvla_ros.annotation import providers
from dtvla_ros.annotation.keyframes import KeyframeOptions, read_keyframes, write_keyframes
from dtvla_ros.annotation.label import FAILED, LABELS, LabelOptions, estimate, label
from dtvla_ros.errors import UserError
from dtvla_ros.files import Journal

USAGE = {'prompt_tokens': 1000, 'completion_tokens': 200}
KEY = 'sk-not-to-be-seen-anywhere'
PRICES = providers.Budget(price_in=2.0, price_out=10.0, picture_tokens=50)
ONE = PRICES.price(*USAGE.values())  # what an answered request costs
SETTINGS = {'key': KEY, 'timeout': 5.0, 'tries': 4, 'first_wait': 0.01, 'max_tokens': 500,
            'concurrency': 1}


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

    def __init__(self, behave=None):
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


class Run:
    """Labels into a folder through an endpoint; ``spent``: requests and cost so far."""

    def __init__(self, source, folder, episodes=3):
        self.source, self.folder, self.episodes = source, folder, episodes
        write_keyframes(source, folder, KeyframeOptions())
        self.keyframes = read_keyframes(folder, source)

    def __call__(self, endpoint, options=LabelOptions(), budget=PRICES, **changes):
        """Label until it ends or fails; ``changes``: of the HTTP options."""
        ledger = providers.Ledger(self.folder / 'ledger.jsonl', budget)
        provider = providers.HttpProvider(
            providers.HttpOptions(endpoint.url, 'm', **SETTINGS | changes), ledger)
        try:
            return self.label('.', provider, options)
        finally:
            self.spent = ledger.spent
            provider.close()

    def label(self, folder, provider, options=LabelOptions()):
        return label(self.source, self.keyframes, self.folder / folder / LABELS, provider,
                     options, self.episodes)

    def estimate(self, episodes):
        return estimate(self.source, self.keyframes, self.folder / LABELS, LabelOptions(), PRICES,
                        episodes)

    def rows(self):
        return Journal.read(self.folder / LABELS, '')[1]


@pytest.fixture
def run(source, tmp_path):
    """Return a run in a folder that holds key frames and nothing else."""
    return Run(source, tmp_path)


@pytest.fixture
def one(run):
    """Return a run of one episode, which is one question."""
    run.episodes = 1
    return run


def test_what_is_asked(run):
    with Endpoint() as endpoint:
        rows, failed, counts = run(endpoint)
    assert [row['episode'] for row in rows] == [0, 1, 2] and rows == run.rows()
    assert counts['asked'] == 3 and not failed and not any(row['findings'] for row in rows)
    assert run.spent == (3, pytest.approx(3 * ONE))
    request, headers = endpoint.requests[0], endpoint.headers[0]
    assert (headers['path'], headers['Authorization']) == ('/v1/chat/completions', f'Bearer {KEY}')
    form = request['response_format']
    assert form['type'] == 'json_schema' and form['json_schema']['strict'] is True
    frame = form['json_schema']['schema']['$defs']['Frame']
    assert frame['additionalProperties'] is False
    assert set(frame['required']) == set(answer_frames(1)['frames'][0])
    assert frame['properties']['object']['enum'] == ['can', 'blue_bin']
    assert request['temperature'] == 0 and request['max_tokens'] == 500
    content = request['messages'][1]['content']
    text = '\n'.join(part['text'] for part in content if part['type'] == 'text')
    assert 'put the can in the blue bin' in text and 'gripper closes' in text
    images = [part['image_url']['url'] for part in content if part['type'] == 'image_url']
    assert len(images) == 2 * wanted(request)
    kind, _, data = images[0].partition(',')
    assert kind == 'data:image/jpeg;base64'
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 32)
    run.keyframes[1] = run.keyframes[1][:-2]
    with pytest.raises(UserError, match='episode 1 is labelled at other key frames'):
        run(endpoint)


def test_the_key_is_sent_and_nowhere_else(run, caplog, capfd):
    caplog.set_level('DEBUG')
    refused = Reply(401, body=f'{{"error": "bad key {KEY}"}}'.encode())
    with Endpoint({1: refused}) as endpoint, pytest.raises(UserError, match='401') as error:
        run(endpoint)
    shown = f'{error.value}{caplog.text}{"".join(capfd.readouterr())}'
    shown += ''.join(p.read_text() for p in run.folder.iterdir())
    assert KEY not in shown and '***' in str(error.value)
    assert KEY not in repr(providers.HttpOptions('https://host', 'm', KEY))
    assert len(endpoint.requests) == 2  # what a server refuses is not tried again
    with pytest.raises(UserError, match='unencrypted'):
        providers.HttpProvider(providers.HttpOptions('http://example.org/v1', 'm', KEY), None)


@pytest.mark.parametrize('replies, billed, gap', [
    ([Reply(wait=9.0)], True, 0.0), ([Reply(429, headers={'Retry-After': '1'})], False, 0.95),
    ([Reply(500), Reply(503), Reply(body=b'<html>')], True, 0.0),
    ([Reply(truncated=True)], True, 0.0)])
def test_what_may_pass_is_tried_again(one, replies, billed, gap):
    """And paid for, where the server may have worked on it."""
    with Endpoint(dict(enumerate(replies))) as endpoint:
        assert one(endpoint, timeout=3.0)[0]
    assert len(endpoint.requests) == one.spent[0] == len(replies) + 1
    assert endpoint.times[1] - endpoint.times[0] >= gap
    assert (one.spent[1] > ONE + PRICES.price(0, 500)) is billed
    assert billed or one.spent[1] == pytest.approx(ONE)


def test_it_gives_up_in_the_end(one):
    with Endpoint(lambda n, r: Reply(502)) as endpoint, pytest.raises(
            UserError, match='answered 502, 4 times'):
        one(endpoint)
    assert len(endpoint.requests) == 4
    with pytest.raises(UserError, match='no connection'):
        one(endpoint)  # it has gone
    date = formatdate(time.time() + 30, usegmt=True)
    refused = Reply(429, headers={'Retry-After': date})
    with Endpoint({0: refused}) as endpoint, pytest.raises(UserError, match=r'wait [23]\d s'):
        one(endpoint, longest_wait=20.0)


@pytest.mark.parametrize('answer, wrong', [
    ('{"frames": [', 'the answer: Invalid JSON'), ('{"frames": []}', 'frames: '),
    ({'object': 'moon'}, 'frames.0.object: '), ({'extra': 1}, 'frames.0.extra: '),
    ({'reason': 'x' * 500}, 'frames.0.reason: ')])
def test_an_unusable_answer_is_sent_back_once(one, answer, wrong):
    def behave(number, request):
        right = answer_frames(wanted(request))
        if number:
            return Reply(text=f'```json\n{json.dumps(right)}\n```')
        return Reply(text=answer if isinstance(answer, str) else json.dumps(
            {'frames': [frame | answer for frame in right['frames']]}))

    with Endpoint(behave) as endpoint:
        assert one(endpoint)[0]
    again = endpoint.requests[1]['messages']
    assert [m['role'] for m in again] == ['system', 'user', 'assistant', 'user']
    assert 'frames' in again[2]['content'] and wrong in again[3]['content'][0]['text']


def message_of(**fields):
    """Return the body of an answer whose message has these fields."""
    return json.dumps({'choices': [{'message': {'role': 'assistant', **fields}}],
                       'usage': USAGE}).encode()


@pytest.mark.parametrize('say', [
    lambda right: {'content': f'<think>a {{"frames": []}} b {{</think>\n{right}'},
    lambda right: {'content': f'the hand moves </think>{right}'},
    lambda right: {'content': f'<think>\n\n</think>\n```json\n{right}\n```'},
    lambda right: {'content': f'Here {{as asked}}:\n```json\n{right}\n```\nAnything else?'},
    lambda right: {'content': f'```\n{right}\n```'},
    lambda right: {'content': f'{right}\n{{"frames": []}} {{"note": "}}"}}'},
    lambda right: {'content': right.replace('"reason": ""', '"reason": "a } and { in words"')},
    lambda right: {'content': [{'type': 'thinking', 'thinking': 'hm {'},
                               {'type': 'text', 'text': right[:9]}, right[9:]]},
    lambda right: {'content': None, 'reasoning_content': f'Well. {right}'},
    lambda right: {'content': '', 'reasoning': f'<think>Well. {right}</think>'},
    lambda right: {'content': 'done', 'reasoning_content': right},
    lambda right: {'content': json.loads(right)}, lambda right: {'content': f'\ufeff{right}'},
    lambda right: {'content': f'{right} \ud83d'},
    lambda right: {'content': None, 'tool_calls': [{'function': {'arguments': right}}]},
    lambda right: {'content': None, 'function_call': {'name': 'labels', 'arguments': right}}])
def test_an_answer_is_found_wherever_a_server_puts_it(one, say):
    with Endpoint(lambda n, request: Reply(body=message_of(**say(json.dumps(
            answer_frames(wanted(request))))))) as endpoint:
        assert one(endpoint)[0]
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize('say', [
    lambda right: {'content': right.replace('}]}', '},]}')}, lambda right: {'content': None},
    lambda right: {'content': f'<think>{right[:-9]}'}, lambda right: {'refusal': 'I will not'}])
def test_an_answer_without_an_object_is_asked_for_again(one, say):
    def behave(number, request):
        return Reply(body=message_of(**say(json.dumps(
            answer_frames(wanted(request)))))) if not number else None

    with Endpoint(behave) as endpoint:
        assert one(endpoint)[0]
    again = endpoint.requests[1]['messages'][3]['content'][0]['text']
    assert 'That is not valid: the answer: Invalid JSON' in again


@pytest.mark.parametrize('body', [
    b'[]', b'{"choices": [{"message": "hello"}]}', b'[' * 10**5, b'<html>login</html>',
    b'{"error": {"message": "no credits"}}'])
def test_something_else_than_a_completion_is_tried_again(one, body):
    """And told in the end."""
    with Endpoint(lambda n, r: Reply(body=body)) as endpoint, pytest.raises(
            UserError, match='than a chat completion') as told:
        one(endpoint)
    assert body[:200].decode() in str(told.value) and len(str(told.value)) < 500
    with Endpoint({0: Reply(body=body)}) as endpoint:
        assert one(endpoint)[0]
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize('usage', ['{"prompt_tokens": Infinity}', '{"prompt_tokens": "x"}', '[1]',
                                   '{"prompt_tokens": NaN}', '{"prompt_tokens": -5}', 'null'])
def test_an_answer_counts_whatever_it_says_of_tokens(one, usage):
    def behave(number, request):
        text = json.dumps(json.dumps(answer_frames(wanted(request))))
        return Reply(body=(f'{{"choices": [{{"message": {{"content": {text}}}}}], '
                           f'"usage": {usage}}}').encode())

    with Endpoint(behave) as endpoint:
        assert one(endpoint)[0]
    assert len(endpoint.requests) == 1 and 0 < one.spent[1] < 1


@pytest.mark.parametrize('path, asked', [
    ('/v1/', '/v1/chat/completions'), ('/v1/chat/completions', '/v1/chat/completions'),
    ('/v1?api-version=2', '/v1/chat/completions?api-version=2')])
def test_an_address_may_be_given_whole(tmp_path, path, asked):
    ledger = providers.Ledger(tmp_path / 'ledger.jsonl', PRICES)
    made = providers.HttpProvider(providers.HttpOptions(f'http://127.0.0.1:1{path}', 'm'), ledger)
    assert made._address == f'http://127.0.0.1:1{asked}'
    made.close()


@pytest.mark.parametrize('status, headers, told', [
    (307, {'Location': 'https://other/v1'}, 'sends on to https://other/v1; give the --url'),
    (404, {}, 'answered 404: .*correct --url, --model')])
def test_another_address_is_told(one, status, headers, told):
    with Endpoint(lambda n, r: Reply(status, body=b'not here', headers=headers)) as endpoint:
        with pytest.raises(UserError, match=told):
            one(endpoint)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize('refuse, said, form', [
    (('json_schema',), 'This response_format type is unavailable now', {'type': 'json_object'}),
    (('json_schema', 'json_object'), "unknown field 'response_format'", None)])
def test_a_model_without_schemas_gets_the_next_form(run, refuse, said, form):
    """The schema then stands in the prompt."""
    def behave(number, request):
        if request.get('response_format', {}).get('type') in refuse:
            return Reply(400, '-', json.dumps({'error': {'message': said}}).encode())
        schema = json.loads(request['messages'][0]['content'].rpartition('\n')[2])
        return Reply(text=json.dumps(answer_frames(schema['properties']['frames']['minItems'])))

    with Endpoint(behave) as endpoint:
        assert len(run(endpoint)[0]) == 3
    assert len(endpoint.requests) == 3 + len(refuse)
    assert endpoint.requests[-1].get('response_format') == form


@pytest.mark.parametrize('status, refuse, seen', [
    (400, ('max_tokens',), {'max_completion_tokens': 500, 'temperature': 0.0}),
    (422, ('max_tokens', 'temperature'), {'max_completion_tokens': 500})])
def test_a_model_that_refuses_a_parameter_gets_the_newer_one(run, status, refuse, seen):
    """Once for a run; it costs nothing."""
    def behave(number, request):
        name = next((name for name in refuse if name in request), None)
        return Reply(status, body=json.dumps({'error': {'message': (
            f"Unsupported parameter: '{name}' is not supported with this model.")}}).encode()
            ) if name else None

    with Endpoint(behave) as endpoint:
        assert len(run(endpoint)[0]) == 3
    assert len(endpoint.requests) == 3 + len(refuse)
    assert {k: v for k, v in endpoint.requests[-1].items()
            if k.startswith(('max', 'temp'))} == seen
    assert run.spent[1] == pytest.approx(3 * ONE)


def test_a_refusal_of_both_names_of_a_parameter_is_told(one):
    with Endpoint(lambda n, r: Reply(400, text='', body=b'max_tokens is too large')) as endpoint:
        with pytest.raises(UserError, match='answered 400: max_tokens is too large'):
            one(endpoint)
    assert len(endpoint.requests) == 2


def test_an_episode_without_usable_answer_does_not_stop_the_others(run):
    bad = Reply(text=json.dumps(answer_frames(1, phase='fly')))
    with Endpoint({1: bad, 2: bad}) as endpoint:
        rows, failed, _ = run(endpoint)
    assert len(rows) == 2 and list(failed) == [1] and len(endpoint.requests) == 4
    assert (run.folder / FAILED).exists()
    with Endpoint() as endpoint:  # asked anew, though the bad answers are in the cache
        rows, failed, _ = run(endpoint)
    assert len(rows) == 3 and not failed and len(endpoint.requests) == 1


def test_issues_are_sent_back_and_kept(one):
    with Endpoint(lambda n, r: Reply(
            text=json.dumps(answer_frames(wanted(r), holding='can')))) as endpoint:
        [[row], *_] = one(endpoint)
    assert row['findings'][0]['kind'] == 'gripper'
    assert 'holding can with open fingers' in str(endpoint.requests[1]['messages'][3])


def test_requests_run_side_by_side(run):
    run.episodes = 6
    together = threading.Barrier(3)  # breaks, and answers 500s, unless three are under way
    with Endpoint(lambda n, r: together.wait(60) and None) as endpoint:
        rows, *_ = run(endpoint, concurrency=3, timeout=60.0)
    assert len(endpoint.requests) == 6 and [row['episode'] for row in rows] == list(range(6))


def test_the_budget_stops_before_it_is_exceeded(run):
    with Endpoint() as endpoint:
        for _ in range(2):  # also after a restart
            with pytest.raises(UserError, match='2 requests are sent'):
                run(endpoint, budget=replace(PRICES, max_requests=2))
            assert len(endpoint.requests) == 2 and len(run.rows()) == 2
        assert len(run(endpoint, budget=replace(PRICES, max_requests=3))[0]) == 3


def test_the_cost_stops_before_it_is_exceeded(run):
    # What the first request may cost; with the second, the sum could exceed that.
    most = PRICES.price(run.estimate(1)['read'], 500) + ONE / 2
    with Endpoint() as endpoint:
        with pytest.raises(UserError, match='max-cost'):
            run(endpoint, budget=replace(PRICES, max_cost=most))
        assert 0 < run.spent[1] <= most and len(endpoint.requests) == 1
        left = run.estimate(3)
        assert left['requests'] == 2 and left['images'] == 2 * sum(
            len(run.keyframes[k]) for k in (1, 2))
        assert len(run(endpoint, budget=replace(PRICES, max_cost=1.0))[0]) == 3
    with pytest.raises(UserError, match='price-in'):
        providers.Budget(max_cost=1.0)


def test_one_run_spends_at_a_time(tmp_path):
    path = tmp_path / 'ledger.jsonl'
    with providers.Ledger(path, PRICES), pytest.raises(UserError, match='another run'):
        providers.Ledger(path, PRICES)
    providers.Ledger(path, PRICES)


def test_answers_are_replayed_without_a_server(run):
    with Endpoint({0: Reply(text='nonsense')}) as endpoint:
        run(endpoint)
    provider = providers.ReplayProvider(run.folder / providers.ANSWERS)
    rows, _, counts = run.label('again', provider)
    assert rows == run.rows() and counts['asked'] == 4
    run.episodes = 4
    with pytest.raises(UserError, match='nobody answered'):
        run.label('again', provider)


def test_a_long_episode_is_asked_about_in_parts(one):
    with Endpoint() as endpoint:
        one(endpoint, LabelOptions(window=3))
    counts = list(map(wanted, endpoint.requests))
    assert sum(counts) == len(one.keyframes[0]) and max(counts) <= 3
    assert 'The key frame before these' in str(endpoint.requests[1])
    with pytest.raises(UserError, match='window'):
        one(endpoint)  # other settings, same file


def test_killed_in_the_middle_it_goes_on_and_pays_for_nothing_twice(run, root):
    """The process is killed while its fourth request is being answered."""
    with Endpoint({3: Reply(wait=30.0)}) as endpoint:
        command = [sys.executable, '-m', 'dtvla_ros.cli', 'annotate', 'label', '--data', str(root),
                   '--out', str(run.folder), '--provider', 'http', '--url', endpoint.url,
                   '--model', 'm', '--concurrency', '1', '--episodes', '6', '--key-env', 'KEY',
                   '--price-in', '2', '--price-out', '10', '--max-requests', '7']
        environment = os.environ | {'KEY': KEY, 'OMP_NUM_THREADS': '1'}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        wait_for(lambda: len(endpoint.requests) == 4, 120)
        process.kill()
        process.wait(30)
        done = subprocess.run(command, env=environment, capture_output=True, text=True,
                              timeout=200)
        assert done.returncode == 0, done.stderr
        # The request that was under way at the kill is the only one asked twice, and was counted.
        asked = list(map(json.dumps, endpoint.requests))
        assert len(asked) == 7 and asked[3] == asked[4] and len(set(asked)) == 6
    assert 'sent in all: 7 requests' in done.stdout and KEY not in done.stdout + done.stderr
    assert [row['episode'] for row in run.rows()] == list(range(6))
