"""Which row is due: counting, chunk boundaries, staleness, and the invariant that raises."""

import numpy as np
import pytest

from dtvla_ros.actions.chunk import Chunk, ChunkQueue, QueueInvariantError

DT = 0.05


def chunk(stamp, rows=4, value=None):
    values = np.arange(rows * 7, dtype=np.float32).reshape(rows, 7)
    return Chunk(stamp, DT, values if value is None else np.full((rows, 7), value, np.float32))


def test_rows_come_in_order_once_and_end_and_waiting_uses_up_none():
    queue, c = ChunkQueue(max_latency=1.0), chunk(10.0)
    assert [queue.take(10.0 + k * DT) for k in range(5)] == [None] * 5
    assert queue.put(c) is None
    for k in range(4):
        for _ in range(2):  # the same tick again is the same row
            np.testing.assert_array_equal(queue.take(10.25 + k * DT), c.values[k])
    assert queue.take(10.45) is None and queue.consumed == 4


def test_a_late_chunk_skips_exactly_the_rows_that_were_played_since_its_observation():
    queue = ChunkQueue(max_latency=1.0)
    queue.put(chunk(0.0, rows=6))
    for k in range(3):
        queue.take(k * DT)
    new = chunk(1 * DT, rows=6, value=0.5)  # observed at tick 1; ticks 1 and 2 were played since
    assert queue.put(new) is None
    assert queue.remaining(3 * DT) == 4


def test_older_and_expired_chunks_are_dropped_and_time_never_goes_back():
    queue = ChunkQueue()
    assert queue.put(chunk(5.0)) is None
    assert 'not newer' in queue.put(chunk(4.9))
    assert 'not newer' in queue.put(chunk(5.0))
    assert queue.take(5.1) is not None
    with pytest.raises(QueueInvariantError):
        queue.take(5.0)
    assert queue.take(5.2) is None  # 4 rows of 50 ms are over
    assert queue.remaining(5.2) == 0


def test_flush_refuses_what_was_observed_before_and_keeps_what_was_observed_then():
    queue = ChunkQueue()
    queue.put(chunk(1.0))
    queue.flush(2.0)
    assert queue.take(2.0) is None
    assert 'flushed' in queue.put(chunk(1.95))
    assert queue.put(chunk(2.0)) is None
    queue.flush(2.0)
    assert queue.take(2.0) is not None


def test_blending_fades_motion_but_never_the_gripper():
    queue = ChunkQueue(max_latency=1.0, blend_steps=3)
    queue.put(chunk(0.0, rows=8, value=0.0))
    queue.take(0.0)
    queue.put(chunk(DT, rows=8, value=1.0))
    rows = [queue.take((k + 1) * DT) for k in range(5)]
    np.testing.assert_allclose([r[0] for r in rows], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose([r[6] for r in rows], 1.0)
