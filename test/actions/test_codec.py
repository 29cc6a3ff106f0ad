"""Action tokens and statistics against the golden vectors and their own invariants."""

from __future__ import annotations

import numpy as np
import pytest
from support import golden

from dtvla_ros.actions.codec import ActionCodec
from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.errors import UserError


def test_golden_codec():
    data = golden.document('action_codec')
    codec = ActionCodec(data['action_token_begin_idx'], data['action_token_end_idx'])
    assert codec.encode(data['values']).tolist() == data['token_ids']
    np.testing.assert_allclose(codec.decode(data['token_ids']), data['decoded'], atol=1e-6)


def test_golden_statistics():
    data = golden.document('action_codec')
    stats = ActionStatistics.from_dict(data, dim=len(data['q01']))
    normalized = stats.normalize(data['raw_actions'])
    np.testing.assert_allclose(normalized, data['normalized'], atol=2e-6)
    np.testing.assert_allclose(stats.unnormalize(data['normalized']), data['unnormalized'],
                               atol=2e-6)
    assert ActionStatistics.from_dict(stats.to_dict()) == stats


@pytest.mark.parametrize('bins', [2, 256, 2048])
def test_round_trip_is_one_bin_up(bins):
    codec = ActionCodec(10, 9 + bins)
    x = np.random.default_rng(0).uniform(-1, 1, 1000)
    step = 2 / (bins - 1)
    tokens = codec.encode(x)
    assert tokens.min() >= 10 and tokens.max() <= 9 + bins
    assert codec.encode([-1.0, 1.0, 9.0]).tolist() == [9 + bins, 10, 10], 'in reversed order'
    error = codec.decode(tokens) - x
    assert np.abs(error).max() <= 1.5 * step + 1e-9
    inner = tokens > 10  # above the topmost bucket there is no bin to be off into
    assert (np.abs(error - step)[inner] <= 0.5 * step + 1e-9).all()


@pytest.mark.parametrize(('q01', 'q99', 'word'), [
    ([-1.0] * 7, None, 'lists of numbers'),
    ([-1.0] * 6, [1.0] * 7, 'q01 has 6 channels'),
    ([-1.0] * 6 + [-1.0], [1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0], 'channel 2'),
    ([float('nan')] + [-1.0] * 6, [1.0] * 7, 'channel 0 is not finite'),
    (['a'] * 7, [1.0] * 7, 'lists of numbers'),
])
def test_bad_statistics(q01, q99, word):
    with pytest.raises(UserError, match=word):
        ActionStatistics.from_dict({'q01': q01, 'q99': q99}, dim=7)


@pytest.mark.parametrize(('word', 'wrong'), [
    ('NaN', lambda: ActionCodec(5, 9).encode([0.0, np.nan])),
    ('outside the action ids', lambda: ActionCodec(5, 9).decode([4])),
    ('hold no bins', lambda: ActionCodec(5, 5)),
    ('channels', lambda: ActionStatistics((0.0,) * 7, (1.0,) * 7).normalize(np.zeros((2, 6))))])
def test_bad_values(word, wrong):
    with pytest.raises(UserError, match=word):
        wrong()
