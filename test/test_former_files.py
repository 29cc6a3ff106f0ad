"""Files of revision 9edfabb load as they did: recipes, a recorded bag, a collected dataset."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dtvla_ros.data.from_bag import ConvertOptions, convert
from dtvla_ros.data.reader import open_dataset
from dtvla_ros.data.validate import validate
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.grpo.config import GrpoConfig

ROOT = Path(__file__).resolve().parents[1]
FORMER = ROOT / 'test' / 'data' / 'former'
# The first 16 digits of each column's SHA-256 as that revision read or made it.
DATASET = {
    'action': '54a96ba8a78a7670', 'action_chunk': '29f1f16438b1f52e',
    'action_is_pad': '43c55c1c72748c91', 'observation.state': '684207735ede967f',
    'observation.joint_positions': 'eef525d0c302f852', 'observation.places': 'baa801f626b15f82',
    'observation.image_points': '855cbd669d8c2eb9', 'reasoning': 'ef481324004287da'}
RECIPES_CHANGED = {'nano-obeys': {'counterfactual': 0.5, 'reasoning_dropout': 0.2}}  # since
FROM_BAG = {'action': '2741903bca5451b5', 'action_chunk': '4c00ec29d3c29acf',
            'action_is_pad': '8a88db51fc995bca', 'observation.state': 'b76f43cab3c2a955',
            'observation.joint_positions': 'd8746b70f8f3438f',
            'reasoning': '973b82315e98856e', 'timestamp': 'f5137a4e22aef03f'}


@pytest.fixture(scope='module')
def former(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('former')
    for name in ('bag', 'dataset'):
        with tarfile.open(FORMER / f'{name}.tar.xz') as archive:
            archive.extractall(folder, filter='data')
    return folder


def digests(root: Path, names) -> dict[str, str]:
    """Return the first digits of the hash of each column's values."""
    table = pq.read_table(next(root.glob('data/*/*.parquet')))
    return {name: hashlib.sha256(repr(table.column(name).to_pylist()).encode()).hexdigest()[:16]
            for name in names}


@pytest.mark.parametrize('path', sorted(FORMER.glob('recipes/*.yaml')), ids=lambda path: path.stem)
def test_a_recipe_means_what_it_meant(path):
    kind = GrpoConfig if path.stem.startswith('grpo') else SftConfig
    changed = RECIPES_CHANGED.get(path.stem, {})
    assert replace(kind.read(path), **changed) == kind.read(ROOT / 'config' / 'train' / path.name)


def test_a_dataset_is_read_and_found_intact(former):
    root = former / 'dataset'
    reader = open_dataset(root)
    assert (reader.info['total_episodes'], reader.info['total_frames']) == (8, 88)
    assert digests(root, DATASET) == DATASET and validate(root, decode=True) == []


def test_a_bag_becomes_the_same_dataset(former, tmp_path):
    report = convert([former / 'bag'], tmp_path / 'out', ConvertOptions(
        camera_every=5, tolerance=0.2))
    assert (report.episodes, report.pieces, report.frames) == (1, 1, 19)
    assert digests(tmp_path / 'out', FROM_BAG) == FROM_BAG
