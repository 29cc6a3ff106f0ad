"""The worker: results in order, errors handed over, the caller never blocked."""

import threading
import time
from types import SimpleNamespace

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.nodes.inference_worker import InferenceWorker


def test_results_and_errors_come_back_and_the_caller_is_never_blocked():
    woken, release, texts = threading.Semaphore(0), threading.Event(), []

    def load(verified):
        verified()

        def infer(observation, on_text):
            on_text('half')
            release.wait(5)
            if observation == 'bad':
                raise MemoryError('device')
            return observation.upper()
        return SimpleNamespace(infer=infer), None

    worker = InferenceWorker(load, texts.append, woken.release)
    assert woken.acquire(timeout=5) and worker.loaded.is_set()
    started = time.monotonic()
    worker.request('good', 7)
    assert worker.busy_since is not None and worker.take() is None
    assert time.monotonic() - started < 0.5
    release.set()
    assert woken.acquire(timeout=5)
    outcome = worker.take()
    assert (outcome.decision, outcome.request_id, outcome.error) == ('GOOD', 7, None)
    assert texts == ['half'] and worker.busy_since is None
    worker.request('bad', 8)
    assert woken.acquire(timeout=5)
    outcome = worker.take()
    assert outcome.decision is None and isinstance(outcome.error, MemoryError)
    worker.stop(2)
    assert not worker._thread.is_alive()


def test_a_policy_that_cannot_be_loaded_is_reported():
    woken = threading.Event()

    def load(verified):
        raise UserError('no such policy')

    worker = InferenceWorker(load, print, woken.set)
    assert woken.wait(5)
    assert not worker.loaded.is_set()
    with pytest.raises(UserError):
        raise worker.load_error
