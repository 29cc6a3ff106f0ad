"""What an action means, from the manifest to the codec, the queue and padded chunks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dtvla_ros.actions.chunk import Chunk, ChunkQueue
from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.data import layout
from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.policy.transform import PolicyTransform, read_transform, write_transform
from dtvla_ros.policy.vocabulary import build_tokenizer, special_ids

JAW_FIRST = ActionContract(
    controller='JOINT_POSITION', channels=('jaw', 'pan', 'lift'), units=('%', 'rad', 'rad'),
    gripper='jaw', gripper_open=100.0, gripper_close=0.0)


def small_transform(contract: ActionContract = JAW_FIRST) -> PolicyTransform:
    tokenizer = build_tokenizer(['push', 'cube'])
    config = DecoderConfig.nano(
        tokenizer.get_vocab_size(), special_ids(tokenizer), width=32, layers=1, image_size=32,
        tokens=(4,), cameras=('front',), channels=(8, 8), chunk_steps=2)
    return PolicyTransform(
        replace(config, action_dim=contract.dim), tokenizer,
        ActionStatistics((0.0, -1.0, 0.5), (100.0, 1.0, 1.5), contract.gripper_index),
        contract=contract)


@pytest.mark.parametrize('name', ['nano', 'libero', 'libero4'])
def test_manifests_of_earlier_versions_mean_todays_contract_and_are_written_as_they_were(name):
    folder = find_shared(f'models/{name}')
    manifest = PolicyManifest.read(folder)
    assert replace(manifest.action, replan_steps=6) == ActionContract()
    before = json.loads((folder / 'manifest.json').read_text())
    written = json.loads(manifest.to_json())
    assert {name: written[name] for name in before} == before
    assert list(written['action']) == list(before['action'])


def written(folder: Path, transform: PolicyTransform, **changed) -> PolicyManifest:
    manifest = PolicyManifest(
        'arm', 'Apache-2.0', transform.config, transform.statistics, {},
        action=replace(transform.contract, replan_steps=2))
    data = json.loads(manifest.to_json())
    data['action'] |= changed
    (folder / 'manifest.json').write_text(json.dumps(data))
    return manifest


def test_manifest_of_another_arm(tmp_path):
    manifest = written(tmp_path, small_transform())
    assert json.loads((tmp_path / 'manifest.json').read_text())['format'] == 2
    assert PolicyManifest.read(tmp_path) == manifest


@pytest.mark.parametrize(('changed', 'named'), [
    ({'channels': ['jaw', 'pan'], 'units': ['%', 'rad']}, 'action has 2 channels, the network 3'),
    ({'gripper': 'hand'}, "gripper 'hand' is none of the channels jaw, pan, lift"),
    ({'channels': 'jaw'}, 'channels is')])
def test_damaged_action_is_named_with_its_file(tmp_path, changed, named):
    written(tmp_path, small_transform(), **changed)
    with pytest.raises(UserError, match='manifest.json: .*' + named):
        PolicyManifest.read(tmp_path)


def test_a_gripper_in_front_in_percent_reaches_the_tokens_as_a_switch():
    transform = small_transform()
    chunk = np.array([[100.0, -1.0, 1.5], [0.0, 0.25, 0.5]])
    tokens = transform.encode_actions(chunk)
    first, last = transform.config.ids.bins_first, transform.config.ids.bins_last
    # Reversed order: -1 is the last id, and an open jaw is -1 though 100 % is its upper quantile.
    assert tokens[[0, 1, 3]].tolist() == [last, last, first]
    np.testing.assert_allclose(transform.decode_actions(tokens), chunk, atol=1.0)
    np.testing.assert_allclose(transform.decode_actions(tokens)[:, 1:], chunk[:, 1:], atol=0.02)
    batch = transform.encode_actions(np.stack([chunk, chunk]))
    assert batch.tolist() == [tokens.tolist()] * 2


def test_transform_keeps_its_contract_in_a_run_and_earlier_runs_have_none(tmp_path):
    transform = small_transform()
    write_transform(tmp_path, transform)
    assert read_transform(tmp_path).contract == JAW_FIRST
    (tmp_path / 'action.json').unlink()
    with pytest.raises(UserError, match='3 channels, none of which is the gripper'):
        read_transform(tmp_path)


def test_only_what_moves_is_faded():
    queue = ChunkQueue(blend_steps=1, fade=JAW_FIRST.fade)
    queue.put(Chunk(0.0, 0.05, np.array([[0.0, 0.0, 0.0]] * 8, np.float32)))
    queue.put(Chunk(0.01, 0.05, np.array([[100.0, 1.0, 2.0]] * 8, np.float32)))
    np.testing.assert_allclose(queue.take(0.05), [100.0, 0.5, 1.0])
    np.testing.assert_allclose(queue.take(0.10), [100.0, 1.0, 2.0])


def test_padding_keeps_an_arm_where_its_positions_lead_it():
    actions = np.arange(6, dtype=np.float32).reshape(2, 3)
    chunks = layout.action_chunks(actions, np.array([1]), 2, contract=JAW_FIRST)
    np.testing.assert_allclose(chunks[layout.ACTION_CHUNK], [[3, 4, 5, 3, 4, 5]])
    offsets = replace(JAW_FIRST, controller='JOINT_DELTA')
    chunks = layout.action_chunks(actions, np.array([1]), 2, contract=offsets)
    np.testing.assert_allclose(chunks[layout.ACTION_CHUNK], [[3, 4, 5, 3, 0, 0]])
    assert chunks[layout.ACTION_IS_PAD].tolist() == [[False, True]]
