"""Ages on the steady clock, and a watcher that was itself away."""

import math

import pytest

from dtvla_ros.safety.watchdog import Watchdog


def watch(dog, start, stop, period=0.02):
    """Call `late` regularly, as the gate does; return the last answer."""
    steady, late = start, []
    while steady <= stop:
        late = dog.late(steady)
        steady += period
    return late


def test_late_after_its_timeout_latest_first():
    dog = Watchdog({'a': 0.1, 'b': 0.2, 'c': 0.0}, own_period=0.02)
    assert dog.late(0.0) == ['a', 'b'], 'never seen is late'
    dog.feed('a', 0.0)
    dog.feed('b', 0.05)
    assert watch(dog, 0.02, 0.09) == []
    assert watch(dog, 0.10, 0.13) == ['a']
    assert watch(dog, 0.14, 0.30) == ['a', 'b']
    assert dog.age('c', 1.0) == math.inf


def test_a_watcher_that_slept_gives_everyone_their_time_again():
    dog = Watchdog({'a': 0.1}, own_period=0.02)
    dog.feed('a', 1.0)
    assert watch(dog, 1.0, 1.04) == []
    assert dog.late(6.0) == []
    assert watch(dog, 6.02, 6.20) == ['a']


def test_negative_timeouts_are_refused():
    with pytest.raises(ValueError, match='a'):
        Watchdog({'a': -1.0}, own_period=0.02)
