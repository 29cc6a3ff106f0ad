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
        return SimpleNamespace(infer=infer)

    thinker = InferenceWorker(load, texts.append, woken.release)
    thinker.start()
    assert woken.acquire(timeout=5) and thinker.loaded.is_set()
    started = time.monotonic()
    thinker.think('good', 7)
    assert thinker.busy_since is not None and thinker.take() is None
    assert time.monotonic() - started < 0.5
    release.set()
    assert woken.acquire(timeout=5)
    outcome = thinker.take()
    assert (outcome.decision, outcome.ticket, outcome.error) == ('GOOD', 7, None)
    assert texts == ['half'] and thinker.busy_since is None
    thinker.think('bad', 8)
    assert woken.acquire(timeout=5)
    outcome = thinker.take()
    assert outcome.decision is None and isinstance(outcome.error, MemoryError)
    thinker.stop(2)
    assert not thinker._thread.is_alive()


def test_a_policy_that_cannot_be_loaded_is_reported():
    woken = threading.Event()

    def load(verified):
        raise UserError('no such policy')

    thinker = InferenceWorker(load, print, woken.set)
    thinker.start()
    assert woken.wait(5)
    assert not thinker.loaded.is_set()
    with pytest.raises(UserError):
        raise thinker.load_error
