"""A dataset reads back as it was written."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.arm import FPS, arm_episode

from dtvla_ros.data import layout, writer
from dtvla_ros.data.layout import Episode
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.validate import validate
from dtvla_ros.errors import UserError


def episode(seed: int, frames: int, task: str) -> Episode:
    """Return an episode with columns of each kind."""
    made, rng = arm_episode(seed, frames), np.random.default_rng(seed)
    return replace(made, task=task, columns={
        **made.columns, layout.ACTION_CHUNK: rng.uniform(-1, 1, (frames, 8, 7)).astype(np.float32),
        layout.ACTION_IS_PAD: rng.random((frames, 8)) < 0.2})


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """Write three episodes in two shards; return them with the reader."""
    root = tmp_path_factory.mktemp('dataset')
    episodes = [episode(0, 9, 'stack it'), episode(1, 5, 'push it'), episode(2, 7, 'stack it')]
    for number, shard in enumerate((episodes[:2], [], episodes[2:])):
        writer.write_shard(root, number, shard, FPS)
    writer.merge_shards(root)
    return episodes, DatasetReader(root)


def test_numbers_and_text_are_exact_and_images_survive_the_video(dataset):
    episodes, reader = dataset
    assert reader.tasks == ['stack it', 'push it']
    assert reader.info['total_frames'] == 21 == len(reader.table)
    for number, written in enumerate(episodes):
        read = reader.episode(number)
        assert (read.task, read.metadata) == (written.task, written.metadata)
        assert set(read.columns) == set(written.columns)
        for name, values in written.columns.items():
            np.testing.assert_array_equal(read.columns[name], values, strict=not isinstance(
                values, list))
        for key, images in written.images.items():
            noise = np.mean((images.astype(float) - read.images[key]) ** 2, axis=(1, 2, 3))
            assert noise.max() < 16, 'a signal-to-noise ratio of 36 dB'
            np.testing.assert_array_equal(reader.image(number, 4, key), read.images[key][4])


def test_layout_is_lerobot_v3_and_merging_again_changes_nothing(dataset):
    """Files, path templates, statistics and the columns that LeRobot's loader looks up."""
    episodes, reader = dataset
    actions = np.concatenate([e.columns[layout.ACTION] for e in episodes])
    np.testing.assert_allclose(reader.stats[layout.ACTION]['q01'], np.quantile(actions, 0.01, 0))
    assert reader.stats[layout.ACTION]['count'] == [21]
    assert np.shape(reader.stats['observation.images.image']['mean']) == (3, 1, 1)
    info = reader.info
    assert info['features'][layout.ACTION] == {'dtype': 'float32', 'shape': [7], 'names': None}
    assert info['features'][layout.REASONING]['dtype'] == 'string'
    assert validate(reader.root) == [], 'indices run through over shards'
    metadata = json.loads(pq.read_schema(reader.root / layout.TASKS).metadata[b'pandas'])
    assert metadata['index_columns'] == ['task']
    before = {p: p.read_bytes() for p in reader.root.rglob('*.parquet')}
    writer.merge_shards(reader.root)
    assert {p: p.read_bytes() for p in reader.root.rglob('*.parquet')} == before


def test_what_cannot_be_merged_is_refused(tmp_path):
    with pytest.raises(UserError, match='another --seed'):
        writer.merge_shards(tmp_path)
    writer.write_shard(tmp_path, 0, [episode(0, 3, 'a')], FPS)
    writer.write_shard(tmp_path, 1, [episode(0, 3, 'a')], FPS * 2)
    with pytest.raises(UserError, match='00001'):
        writer.merge_shards(tmp_path)
