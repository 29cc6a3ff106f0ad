"""A published v2.1 dataset becomes one of v3.0 that the trainer reads."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.published import MISSING_THOUGHT, encode, published_dataset
from support.tiny import CONFIG, tiny_episode
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from dtvla_ros.data import convert as converting
from dtvla_ros.data import layout, writer
from dtvla_ros.data.convert import ConvertOptions, convert
from dtvla_ros.data.reader import DatasetReader, open_dataset
from dtvla_ros.data.video import can_join, join_videos, probe, read_video
from dtvla_ros.data.writer import finished_shards
from dtvla_ros.errors import UserError

WRIST = list(layout.CAMERAS)[1]


@pytest.fixture(scope='module', params=[False, True], ids=['videos', 'images'])
def published(request, tmp_path_factory):
    """Return a v2.1 dataset, its images in videos or in the parquet files."""
    return published_dataset(tmp_path_factory.mktemp('v21') / 'cot', png=request.param)


def again(source, out, **changes):
    """Convert with the tokenizer of the source, unless told otherwise."""
    return convert(source, out, ConvertOptions(**{'tokenizer': source, **changes}))


@pytest.fixture(scope='module')
def converted(published, tmp_path_factory):
    """Return source, report and the reader of the conversion."""
    out = tmp_path_factory.mktemp('v30') / 'new'
    return published, again(published, out, chunk=4), DatasetReader(out)


def test_numbers_images_thoughts_tasks_and_metadata_are_read_and_arrive(converted):
    """Episode by episode, copied videos bit by bit; the thought nobody wrote is empty."""
    source, report, reader = converted
    before = open_dataset(source)
    assert (before.info['codebase_version'], reader.info['codebase_version']) == ('v2.1', 'v3.0')
    assert reader.tasks == before.tasks
    assert report.unthought == 1 and report.copied == bool(before.video_keys)
    for number in range(6):
        made = tiny_episode(number, frames=8 + number)
        old, new = before.episode(number), reader.episode(number)
        assert new.task == old.task == made.task and new.metadata == old.metadata == {
            'success': number % 2 == 0, 'operator': f'person {number}'}
        for name in (layout.STATE, layout.ACTION):
            np.testing.assert_array_equal(old.columns[name], made.columns[name])
            np.testing.assert_array_equal(new.columns[name], made.columns[name])
        thoughts = list(made.columns[layout.REASONING])
        if number == 1:
            thoughts[MISSING_THOUGHT] = ''
        assert new.columns[layout.REASONING] == thoughts
        for key, images in old.images.items():
            read, off = (np.abs(images.astype(int) - seen[key]) for seen in (
                made.images, new.images))
            assert np.median(read) < 3 if before.video_keys else read.max() == 0
            assert off.max() == 0 if report.copied else off.mean() < 3
            np.testing.assert_array_equal(before.image(number, 4, key), images[4])
    assert reader.info['features'][layout.STATE]['names'] == list('xyzrpqab')
    assert (reader.root / 'meta/norm_stats.json').exists()


def test_chunks_hold_the_next_actions(converted):
    """Past the end of an episode the gripper keeps still, and the slots count as padding."""
    _, _, reader = converted
    actions, chunk = reader.column(layout.ACTION, 2), reader.column(layout.ACTION_CHUNK, 2)
    chunk = chunk.reshape(len(actions), 4, 7)
    np.testing.assert_array_equal(chunk[:-3, 3], actions[3:])
    np.testing.assert_array_equal(chunk[-1, 1:, :6], 0)
    np.testing.assert_array_equal(chunk[-1, 1:, 6], actions[-1, 6])
    np.testing.assert_array_equal(reader.column(layout.ACTION_IS_PAD, 2)[-3:],
                                  [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]])


def test_the_trainer_learns_from_it(converted, tmp_path):
    from dtvla_ros.training.sft import SftRun, Trainer

    source, _, reader = converted
    if open_dataset(source).image_keys:
        pytest.skip('the same trainer, the same features')
    trainer = Trainer(CONFIG, SftRun(data=(reader.root,), out=tmp_path / 'run', steps=30))
    losses = [float(trainer.train_step(trainer.batches.train(k, 0))['loss']) for k in range(30)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])


def test_a_killed_conversion_goes_on(published, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, 'EPISODES_PER_SHARD', 2)
    whole, out = tmp_path / 'whole', tmp_path / 'out'
    again(published, whole)
    write = writer.write_shard
    made = []

    def dying(root, number, *rest):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(number)
        return write(root, number, *rest)

    monkeypatch.setattr(writer, 'write_shard', dying)
    with pytest.raises(KeyboardInterrupt):
        again(published, out)
    assert finished_shards(out) == [0, 1]
    made.clear()
    again(published, out)
    assert made == [2]
    for path in whole.rglob('*.parquet'):
        assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert not (out / '.shards').exists()


def test_nothing_is_overwritten(published, tmp_path):
    out, other = tmp_path / 'out', tmp_path / 'other'
    again(published, out)
    other.mkdir()
    (other / 'thesis.txt').write_text('mine')
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    with pytest.raises(UserError, match='converted already'):
        again(published, out)
    (out / '.shards').mkdir()
    with pytest.raises(UserError, match='another chunk'):
        again(published, out, chunk=5)
    with pytest.raises(UserError, match='choose another --out'):
        again(published, other)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before


@pytest.mark.parametrize('changes, message', [
    ({'tokenizer': None}, '--tokenizer'), ({'tokenizer': Path('.')}, 'outside the 2 ids'),
    ({'rename': {'wrist': 'hand'}}, 'no such feature'),
    ({'rename': {WRIST: 'observation.images.hand'}}, f'OLD={WRIST}')])
def test_what_cannot_be_trained_on_is_refused_at_once(
        published, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    Tokenizer(WordLevel({'<pad>': 0, '<unk>': 1}, unk_token='<unk>')).save('tokenizer.json')
    with pytest.raises(UserError, match=message):
        again(published, tmp_path / 'out', **changes)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('encoder, codec, every', [
    ('libsvtav1', 'av1', 2), ('libx264', 'h264', 30), ('libx265', 'hevc', 12)])
def test_videos_of_every_published_codec_are_joined(tmp_path, encoder, codec, every):
    if encoder not in av.codecs_available:
        pytest.skip(f'no {encoder} here')
    clips = [(tmp_path / f'{length}.mp4', length) for length in (13, 9, 20)]
    # SVT-AV1 makes the whole process that it encodes in real-time where root may.
    with ProcessPoolExecutor(1, get_context('spawn')) as other:
        for path, length in clips:
            images = [np.roll(np.tile(np.arange(96, dtype=np.uint8), (96, 1)), 3 * k + length, 1)
                      for k in range(length)]
            other.submit(encode, path, [np.repeat(i[..., None], 3, 2) for i in images],
                         encoder=encoder, options={'g': str(every)}).result()
    assert can_join([path for path, _ in clips], 10)
    out = tmp_path / 'joined.mp4'
    assert join_videos(out, clips, 10) == 42
    assert probe(out)['codec'] == codec
    due = [frame for path, _ in clips for frame in read_video(path)]
    np.testing.assert_array_equal(list(read_video(out)), due)
    for k in range(42):
        np.testing.assert_array_equal(next(read_video(out, k / 10)), due[k])


def test_a_video_with_too_few_frames_is_named(tmp_path):
    source = published_dataset(tmp_path / 'v21', episodes=2)
    video = source / 'videos/chunk-000/observation.images.image/episode_000001.mp4'
    encode(video, [np.zeros((32, 32, 3), np.uint8)] * 5)
    with pytest.raises(UserError, match='episode_000001.mp4: 5 frames for 9 rows'):
        again(source, tmp_path / 'out')


def test_v3_of_another_writer_gets_chunks_and_names(dataset, tmp_path):
    source = tmp_path / 'foreign'
    shutil.copytree(dataset, source)
    reader = DatasetReader(source)
    info = json.loads((source / layout.INFO).read_text())
    for name in (layout.ACTION_CHUNK, layout.ACTION_IS_PAD):
        del info['features'][name]
    info['features']['front'] = info['features'].pop('observation.images.image')
    (source / layout.INFO).write_text(json.dumps(info))
    (source / 'videos/observation.images.image').rename(source / 'videos/front')
    path = next((source / 'meta/episodes').rglob('*.parquet'))
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(
        [n.replace('observation.images.image/', 'front/') for n in table.column_names]), path)
    convert(source, tmp_path / 'out', ConvertOptions(
        chunk=6, rename={'front': 'observation.images.image'}))
    new = DatasetReader(tmp_path / 'out')
    assert new.column(layout.ACTION_CHUNK).shape == (len(reader.table), 42)
    assert new.image(3, 0, 'observation.images.image').shape == (32, 32, 3)
