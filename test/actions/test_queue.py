"""Which row is due: counting, chunk boundaries, staleness, and the invariant that raises."""

import threading

import numpy as np
import pytest

from dtvla_ros.actions.chunk import Chunk, ChunkQueue, QueueInvariantError

DT = 0.05


def chunk(stamp, rows=4, value=None):
    values = np.arange(rows * 7, dtype=np.float32).reshape(rows, 7)
    return Chunk(stamp, DT, values if value is None else np.full((rows, 7), value, np.float32))


def test_rows_come_in_order_and_end():
    queue, c = ChunkQueue(), chunk(10.0)
    assert queue.take(10.0) is None
    assert queue.put(c) is None
    for k in range(4):
        np.testing.assert_array_equal(queue.take(10.0 + k * DT), c.values[k])
    assert queue.take(10.2) is None
    assert queue.consumed == 4


def test_the_same_tick_twice_plays_one_row():
    queue = ChunkQueue()
    queue.put(chunk(1.0))
    first = queue.take(1.0)
    np.testing.assert_array_equal(queue.take(1.0), first)
    assert queue.consumed == 1
    assert queue.remaining(1.0) == 3


def test_a_late_chunk_skips_exactly_the_rows_that_were_played_since_its_observation():
    queue = ChunkQueue(max_latency=1.0)
    queue.put(chunk(0.0, rows=6))
    for k in range(3):
        queue.take(k * DT)
    new = chunk(1 * DT, rows=6, value=0.5)  # observed at tick 1; ticks 1 and 2 were played since
    assert queue.put(new) is None
    assert queue.remaining(3 * DT) == 4


def test_waiting_uses_up_no_rows():
    queue = ChunkQueue(max_latency=1.0)
    for k in range(5):
        assert queue.take(k * DT) is None
    c = chunk(0.0)
    queue.put(c)
    np.testing.assert_array_equal(queue.take(5 * DT), c.values[0])


def test_older_and_expired_chunks_are_dropped():
    queue = ChunkQueue()
    assert queue.put(chunk(5.0)) is None
    assert 'not newer' in queue.put(chunk(4.9))
    assert 'not newer' in queue.put(chunk(5.0))
    assert queue.take(5.2) is None  # 4 rows of 50 ms are over
    assert queue.remaining(5.2) == 0


def test_flush_refuses_what_was_observed_before():
    queue = ChunkQueue()
    queue.put(chunk(1.0))
    queue.flush(2.0)
    assert queue.take(2.0) is None
    assert 'flushed' in queue.put(chunk(1.95))
    assert queue.put(chunk(2.0)) is None
    queue.flush(2.0)
    assert queue.take(2.0) is not None, 'a chunk observed at the flush itself stays'


def test_blending_fades_motion_but_never_the_gripper():
    queue = ChunkQueue(max_latency=1.0, blend_steps=3)
    queue.put(chunk(0.0, rows=8, value=0.0))
    queue.take(0.0)
    queue.put(chunk(DT, rows=8, value=1.0))
    rows = [queue.take((k + 1) * DT) for k in range(5)]
    np.testing.assert_allclose([r[0] for r in rows], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose([r[6] for r in rows], 1.0)


def test_going_back_in_time_without_a_flush_raises():
    queue = ChunkQueue()
    queue.put(chunk(1.0))
    queue.take(1.05)
    with pytest.raises(QueueInvariantError):
        queue.take(1.0)


def test_two_threads_never_play_a_row_twice():
    queue = ChunkQueue(max_latency=1e6)
    c = Chunk(0.0, DT, np.arange(2000, dtype=np.float32)[:, None].repeat(7, 1))
    queue.put(c)
    seen, lock, tick = [], threading.Lock(), iter(range(2000))

    def play():
        while True:
            with lock:
                k = next(tick, None)
                row = None if k is None else queue.take(k * DT)
            if row is None:
                return
            seen.append(float(row[0]))

    threads = [threading.Thread(target=play) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(seen) == list(range(2000))
