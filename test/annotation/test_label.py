"""Labelling against a real endpoint that misbehaves; nothing is lost, repeated or overspent."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import pytest
from PIL import Image
from support.endpoint import USAGE, Endpoint, Reply, wanted
from support.picks import answer_frames

from dtvla_ros.annotation import keyframes as keyframes_module
from dtvla_ros.annotation import providers
from dtvla_ros.annotation.keyframes import KeyframeOptions, read_keyframes
from dtvla_ros.annotation.label import FAILED, LABELS, LabelOptions, estimate, label
from dtvla_ros.errors import UserError
from dtvla_ros.files import Journal

KEY = 'sk-not-to-be-seen-anywhere'
PRICES = providers.Prices(read=2.0, written=10.0, image_tokens=50)
ONE = (USAGE['prompt_tokens'] * 2.0 + USAGE['completion_tokens'] * 10.0) / 1e6


class Run:
    """Labels into a folder through an endpoint."""

    def __init__(self, source, folder, episodes=3):
        self.source, self.folder, self.episodes = source, folder, episodes
        if not (folder / keyframes_module.FILE).exists():
            keyframes_module.write_keyframes(source, folder, KeyframeOptions())
        self.keyframes = read_keyframes(folder, source)

    def __call__(self, endpoint, key=KEY, max_requests=None, max_cost=None, file=LABELS,
                 options=LabelOptions(), **changes):
        ledger = providers.Ledger(self.folder / 'ledger.jsonl', PRICES, max_requests, max_cost)
        settings = {'url': endpoint.url, 'model': 'm', 'timeout': 5.0, 'tries': 4,
                    'first_wait': 0.01, 'max_tokens': 500, 'parallel': 1} | changes
        provider = providers.HttpProvider(providers.HttpOptions(**settings), key, ledger)
        try:
            return label(self.source, self.keyframes, self.folder / file, provider, options,
                         self.episodes)
        finally:
            self.spent = ledger.requests, ledger.cost
            provider.close()
            ledger.close()

    def rows(self, file=LABELS):
        return Journal.read(self.folder / file, '')[1]


@pytest.fixture
def run(source, tmp_path):
    return Run(source, tmp_path)


def test_what_is_asked(run):
    with Endpoint() as endpoint:
        told = run(endpoint)
    assert (told.episodes, told.answered, dict(told.issues), told.failed) == (3, 3, {}, {})
    assert [row['episode'] for row in run.rows()] == [0, 1, 2]
    assert run.spent == (3, pytest.approx(3 * ONE))
    request, headers = endpoint.requests[0], endpoint.headers[0]
    assert headers['path'] == '/v1/chat/completions'
    assert headers['Authorization'] == f'Bearer {KEY}'
    form = request['response_format']
    assert form['type'] == 'json_schema' and form['json_schema']['strict'] is True
    assert request['temperature'] == 0 and request['max_tokens'] == 500
    content = request['messages'][1]['content']
    text = '\n'.join(part['text'] for part in content if part['type'] == 'text')
    assert 'put the can in the blue bin' in text and 'gripper closes' in text
    images = [part['image_url']['url'] for part in content if part['type'] == 'image_url']
    assert len(images) == 2 * wanted(request)
    kind, _, data = images[0].partition(',')
    assert kind == 'data:image/jpeg;base64'
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 32)


def test_the_key_is_sent_and_nowhere_else(run, caplog, capfd):
    caplog.set_level('DEBUG')
    refused = Reply(401, body=f'{{"error": "bad key {KEY}"}}'.encode())
    with Endpoint(lambda n, r: refused if n == 1 else None) as endpoint:
        with pytest.raises(UserError, match='401') as error:
            run(endpoint)
    shown = f'{error.value}{caplog.text}{"".join(capfd.readouterr())}'
    shown += ''.join(p.read_text() for p in run.folder.iterdir())
    assert KEY not in shown and '***' in str(error.value)
    assert len(endpoint.requests) == 2  # what a server refuses is not tried again
    with pytest.raises(UserError, match='unencrypted'):
        providers.HttpProvider(providers.HttpOptions('http://example.org/v1', 'm'), KEY, None)


def test_a_time_out_is_tried_again_and_paid_for(run):
    run.episodes = 1
    with Endpoint(lambda n, r: Reply(wait=9.0) if n == 0 else None) as endpoint:
        told = run(endpoint, timeout=3.0)
    assert told.episodes == 1 and len(endpoint.requests) == 2
    assert run.spent[0] == 2 and run.spent[1] > ONE + 500 * 10.0 / 1e6


@pytest.mark.parametrize('how', ['seconds', 'date'])
def test_retry_after_is_honoured(run, how):
    run.episodes = 1
    after = '1'
    if how == 'date':
        after = formatdate(time.time() + 30, usegmt=True)
    with Endpoint(lambda n, r: Reply(429, headers={'Retry-After': after}) if n == 0 else None
                  ) as endpoint:
        if how == 'date':
            with pytest.raises(UserError, match=r'asks to wait [23]\d s'):
                run(endpoint, longest_wait=20.0)
            return
        run(endpoint)
    assert endpoint.times[1] - endpoint.times[0] > 0.95
    assert run.spent == (2, pytest.approx(ONE))


def test_a_broken_server_is_tried_again_until_enough(run):
    run.episodes = 1
    bad = [Reply(500), Reply(503), Reply(body=b'<html>'), None]
    with Endpoint(lambda n, r: bad[n]) as endpoint:
        assert run(endpoint).episodes == 1
    assert len(endpoint.requests) == 4
    with Endpoint(lambda n, r: Reply(502)) as endpoint:
        run.episodes = 2
        with pytest.raises(UserError, match='answered 502, 4 times'):
            run(endpoint)
    assert len(endpoint.requests) == 4 and len(run.rows()) == 1


def test_a_connection_that_breaks_is_tried_again(run):
    run.episodes = 1
    with Endpoint(lambda n, r: Reply(cut=True) if n == 0 else None) as endpoint:
        assert run(endpoint).episodes == 1
    assert len(endpoint.requests) == 2
    with pytest.raises(UserError, match='no connection'):
        run.episodes = 2
        run(endpoint)  # it has gone


@pytest.mark.parametrize('text, wrong', [
    ('{"frames": [', 'Invalid JSON'),
    (json.dumps({'frames': []}), 'at least'),
    (json.dumps(answer_frames(99, object='moon')), 'frames'),
])
def test_an_unusable_answer_is_sent_back_once(run, text, wrong):
    run.episodes = 1
    with Endpoint(lambda n, r: Reply(text=text) if n == 0 else None) as endpoint:
        assert run(endpoint).episodes == 1
    again = endpoint.requests[1]['messages']
    assert [m['role'] for m in again] == ['system', 'user', 'assistant', 'user']
    assert again[2]['content'] == text and wrong in again[3]['content'][0]['text']


def test_an_episode_without_usable_answer_does_not_stop_the_others(run):
    bad = answer_frames(1, phase='fly')
    with Endpoint(lambda n, r: Reply(text=json.dumps(bad)) if n in (1, 2) else None) as endpoint:
        told = run(endpoint)
    assert told.episodes == 2 and list(told.failed) == [1]
    assert len(endpoint.requests) == 4
    assert (run.folder / FAILED).exists()
    with Endpoint() as endpoint:  # asked anew, though the bad answers are in the cache
        told = run(endpoint)
    assert told.episodes == 3 and not told.failed and len(endpoint.requests) == 1


def test_findings_are_sent_back_and_kept(run):
    run.episodes = 1

    def holds(number, request):
        return Reply(text=json.dumps(answer_frames(wanted(request), holding='can')))

    with Endpoint(holds) as endpoint:
        told = run(endpoint)
    assert told.issues['gripper'] > 0
    assert 'holding can with open fingers' in str(endpoint.requests[1]['messages'][3])
    assert run.rows()[0]['findings'][0]['kind'] == 'gripper'


def test_requests_run_side_by_side(run):
    run.episodes = 6
    together = threading.Barrier(3)
    waiting = []

    def three_at_once(number, request):
        waiting.append(together.n_waiting)
        together.wait(60)  # breaks, and answers 500s, unless three are under way

    with Endpoint(three_at_once) as endpoint:
        assert run(endpoint, parallel=3, timeout=60.0).episodes == 6
    assert len(endpoint.requests) == 6 and max(waiting) <= 2
    assert sorted(row['episode'] for row in run.rows()) == list(range(6))


def test_the_budget_stops_before_it_is_exceeded(run):
    with Endpoint() as endpoint:
        with pytest.raises(providers.BudgetReached, match='2 requests are sent'):
            run(endpoint, max_requests=2)
        assert len(endpoint.requests) == 2 and len(run.rows()) == 2
        with pytest.raises(providers.BudgetReached):  # also after a restart
            run(endpoint, max_requests=2)
        assert len(endpoint.requests) == 2
        assert run(endpoint, max_requests=3).episodes == 3


def test_the_cost_stops_before_it_is_exceeded(run):
    guess = estimate(run.source, run.keyframes, run.folder / LABELS, LabelOptions(), PRICES, 1)
    most = PRICES.cost(guess.tokens_read, 500) + ONE / 2  # what the first request may cost
    with Endpoint() as endpoint:
        with pytest.raises(providers.BudgetReached, match='max-cost'):
            run(endpoint, max_cost=most)
        # The second is not sent: with it, the sum could exceed that.
        assert 0 < run.spent[1] <= most and len(endpoint.requests) == 1
        assert run(endpoint, max_cost=1.0).episodes == 3
    with pytest.raises(UserError, match='price-in'):
        providers.Ledger(run.folder / 'other.jsonl', providers.Prices(), max_cost=1.0)


def test_one_run_spends_at_a_time(tmp_path):
    ledger = providers.Ledger(tmp_path / 'ledger.jsonl', PRICES)
    with pytest.raises(UserError, match='another run'):
        providers.Ledger(tmp_path / 'ledger.jsonl', PRICES)
    ledger.close()
    providers.Ledger(tmp_path / 'ledger.jsonl', PRICES).close()


def test_an_estimate_asks_nothing(run):
    with Endpoint() as endpoint:
        guess = estimate(run.source, run.keyframes, run.folder / LABELS, LabelOptions(), PRICES, 3)
        assert not endpoint.requests
        run.episodes = 1
        run(endpoint)
        later = estimate(run.source, run.keyframes, run.folder / LABELS, LabelOptions(), PRICES, 3)
    frames = sum(len(run.keyframes[k]) for k in range(3))
    assert (guess.episodes, guess.requests, guess.images) == (3, 3, 2 * frames)
    assert guess.cost == pytest.approx(PRICES.cost(guess.tokens_read, guess.tokens_written))
    assert later.requests == 2


def test_answers_are_replayed_without_a_server(run):
    bad = Reply(text='nonsense')
    with Endpoint(lambda n, r: bad if n == 0 else None) as endpoint:
        run(endpoint)
    provider = providers.ReplayProvider(run.folder / providers.ANSWERS)
    again = run.folder / 'again'
    told = label(run.source, run.keyframes, again / LABELS, provider, LabelOptions(), 3)
    assert told.episodes == 3 and told.answered == 4
    assert Journal.read(again / LABELS, '')[1] == run.rows()
    with pytest.raises(UserError, match='nobody answered'):
        label(run.source, run.keyframes, again / 'more.jsonl', provider, LabelOptions(), 4)


def test_a_long_episode_is_asked_about_in_parts(run):
    run.episodes = 1
    frames = len(run.keyframes[0])
    with Endpoint() as endpoint:
        run(endpoint, options=LabelOptions(window=3))
    assert sum(map(wanted, endpoint.requests)) == frames and len(endpoint.requests) > 1
    assert max(map(wanted, endpoint.requests)) <= 3
    assert 'The key frame before these' in str(endpoint.requests[1])
    with pytest.raises(UserError, match='window'):
        run(endpoint)  # other settings, same file


def test_rules_are_deterministic_and_cached_by_motion(run):
    for name in ('a', 'b'):
        label(run.source, run.keyframes, run.folder / name / LABELS, providers.RuleProvider(),
              LabelOptions(), 12)
    first, second = ((run.folder / name / LABELS).read_bytes() for name in 'ab')
    assert first == second
    rows = Journal.read(run.folder / 'a' / LABELS, '')[1]
    assert not any(row['findings'] for row in rows)
    phases = {label['phase'] for row in rows for label in row['labels']}
    assert {'grasp', 'release', 'reach'} <= phases


def test_killed_in_the_middle_it_goes_on_and_pays_for_nothing_twice(run, root):
    """The process is killed while its fourth request is being answered."""
    held = {'wait': True}

    def slow(number, request):
        return Reply(wait=30.0) if number == 3 and held['wait'] else None

    with Endpoint(slow) as endpoint:
        command = [sys.executable, '-m', 'dtvla_ros.cli', 'annotate', 'label', '--data', str(root),
                   '--out', str(run.folder), '--provider', 'http', '--url', endpoint.url,
                   '--model', 'm', '--concurrency', '1', '--episodes', '6', '--key-env', 'KEY',
                   '--price-in', '2', '--price-out', '10', '--max-requests', '7']
        environment = os.environ | {'KEY': KEY, 'OMP_NUM_THREADS': '1'}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(endpoint.requests) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert len(endpoint.requests) == 4
        held['wait'] = False
        done = subprocess.run(command, env=environment, capture_output=True, text=True,
                              timeout=200)
        assert done.returncode == 0, done.stderr
        # The request that was under way at the kill is the only one asked twice, and was counted.
        assert len(endpoint.requests) == 7
        assert endpoint.hashes[3] == endpoint.hashes[4]
        assert len(set(endpoint.hashes)) == 6
    assert 'sent in all: 7 requests' in done.stdout
    assert [row['episode'] for row in run.rows()] == list(range(6))
    assert KEY not in done.stdout + done.stderr


def test_labels_of_other_key_frames_are_refused(run):
    with Endpoint() as endpoint:
        run(endpoint)
        run.keyframes[1] = run.keyframes[1][:-2]
        with pytest.raises(UserError, match='episode 1 is labelled at other key frames'):
            run(endpoint)
