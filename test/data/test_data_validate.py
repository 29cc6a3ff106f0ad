"""Damage to a dataset is found, named and comes with a remedy; an intact one is left alone."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.published import encode, published_dataset
from support.tiny import CONFIG, tiny_episode, write_dataset
from typer.testing import CliRunner

from dtvla_ros.cli.data import data as app
from dtvla_ros.data import layout
from dtvla_ros.data.inspect import dataset_statistics, inspect_dataset
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.validate import fits_policy, validate

DATA = 'data/chunk-000/file-000.parquet'
PRIMARY = 'observation.images.image'


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    return published_dataset(tmp_path_factory.mktemp('v21') / 'cot', episodes=3)


@pytest.fixture
def broken(dataset, tmp_path):
    """Return a copy of the v3.0 dataset to be damaged."""
    return shutil.copytree(dataset, tmp_path / 'broken', copy_function=shutil.copy)


def edit(path, name, row, value):
    """Change one cell of a parquet file."""
    table = pq.read_table(path)
    cells = table.to_pydict()
    if isinstance(cells[name][row], list):
        cells[name][row][2] = value
    else:
        cells[name][row] = value
    pq.write_table(pa.table(cells, table.schema), path)


def edit_info(root, change):
    info = json.loads((root / layout.INFO).read_text())
    change(info)
    (root / layout.INFO).write_text(json.dumps(info))


def only(findings):
    """Return the one finding there is."""
    assert len(findings) == 1 and findings[0].remedy, findings
    return findings[0]


def test_images_beside_the_numbers_are_checked(tmp_path):
    root = published_dataset(tmp_path / 'png', episodes=2, png=True)
    assert validate(root) == []
    edit_info(root, lambda info: info['features'][PRIMARY].update(shape=[64, 64, 3]))
    assert ['32x32' in f.problem for f in validate(root)] == [True, True]


@pytest.mark.parametrize('name, row, value, said', [
    ('timestamp', 14, 9.0, 'timestamp is 9 at episode 1, frame 2, 0.2 is due at 10 frames'),
    ('index', 30, 7, 'index is 7 at episode 2, frame 6, 30 is due'),
    ('episode_index', 13, 0, 'episode_index is 0 at episode 1, frame 1, 1 is due'),
    ('frame_index', 5, 6, 'frame_index is 6 at episode 0, frame 5'),
    ('task_index', 0, 1, 'task_index is 1 at episode 0, frame 0'),
    ('observation.state', 26, float('nan'), 'nan in channel 2 at episode 2, frame 2')])
def test_a_wrong_cell_is_named(broken, name, row, value, said):
    """But places of things that are not in a scene may be NaN."""
    edit(broken / DATA, layout.PLACES, 3, float('nan'))
    assert validate(broken) == []
    edit(broken / DATA, name, row, value)
    finding = only([f for f in validate(broken) if f.file.endswith('.parquet')])
    assert said in finding.problem and finding.file == str(broken / DATA)


def test_stale_statistics_are_found_and_the_remedy_mends_them(broken):
    edit(broken / DATA, layout.ACTION, 3, 1.5)
    finding = only(validate(broken))
    assert finding.file.endswith('stats.json') and 'dtvla data stats' in finding.remedy
    dataset_statistics(broken, episodes=0).write(broken / 'meta')
    assert validate(broken) == []


def test_missing_and_short_files_of_v21(published, tmp_path):
    assert validate(published, decode=True) == []
    broken21 = shutil.copytree(published, tmp_path / 'broken')
    videos = broken21 / f'videos/chunk-000/{PRIMARY}'
    (broken21 / 'data/chunk-000/episode_000001.parquet').unlink()
    (videos / 'episode_000000.mp4').unlink()
    encode(videos / 'episode_000002.mp4', [np.zeros((32, 32, 3), np.uint8)] * 7)
    found = {f.file.rsplit('/', 1)[1]: f.problem for f in validate(broken21)}
    assert sorted(found) == ['episode_000000.mp4', 'episode_000001.parquet', 'episode_000002.mp4']
    for problem, said in zip(found.values(), ('no such', 'no such', '7 images'), strict=True):
        assert said in problem


def test_a_damaged_video_is_found_by_decoding(broken):
    assert validate(broken, decode=True) == []
    video = next((broken / f'videos/{PRIMARY}').rglob('*.mp4'))
    data = bytearray(video.read_bytes())
    begin = data.find(b'mdat') + 400
    data[begin:begin + 3000] = bytes(3000)
    video.write_bytes(data)
    assert [f.file for f in validate(broken, decode=True)] == [str(video)]


def test_schema_and_totals(broken):
    edit_info(broken, lambda info: (
        info['features'][layout.ACTION].update(dtype='float64'),
        info['features'].pop(layout.PLACES), info.update(total_frames=7)))
    problems = ' | '.join(f.problem for f in validate(broken))
    for said in ('action is float, meta/info.json says float64', 'total_frames is 7, the metadata '
                 'hold 120', f'has the column {layout.PLACES}'):
        assert said in problems


@pytest.mark.parametrize('lengths, kind, found', [
    ([3, 3, 3], None, '3 of 3 episodes, of 3 to 3 frames, are shorter than a chunk of 8'),
    ([1, 2, 12], None, '2 of 3 episodes, of 1 to 2 frames'), ([1, 12, 12], None, ''),
    ([1, 1, 1], 'look', '')])
def test_demonstrations_in_pieces_are_found(tmp_path, lengths, kind, found):
    """A single short one is legal, and so are frames that are to teach localisation."""
    made = [tiny_episode(k, n) for k, n in enumerate(lengths)]
    for k, episode in enumerate(made):  # as of actions at the rate of the frames
        columns = layout.action_chunks(episode.columns[layout.ACTION], np.arange(len(episode)), 8)
        made[k] = replace(episode, columns={**episode.columns, **columns},
                          metadata={'kind': kind} if kind else {})
    root = write_dataset(tmp_path, made)
    assert [f.problem.startswith(found) for f in validate(root)] == [True] * bool(found)


def test_no_dataset_is_one_finding(tmp_path):
    assert 'info.json' in only(validate(tmp_path)).file
    (tmp_path / 'meta').mkdir()
    for text, said in (('{', 'JSON'), ('{"codebase_version": "v3.0", "features": {}}', 'fps')):
        (tmp_path / layout.INFO).write_text(text)
        assert said in only(validate(tmp_path)).problem


@pytest.fixture(scope='module')
def policy(dataset, tmp_path_factory):
    """Return the folder of a training run with the suite's own words."""
    from dtvla_ros.policy.transform import write_transform
    from dtvla_ros.training.initialisation import new_transform

    folder = tmp_path_factory.mktemp('policy')
    write_transform(folder, new_transform(CONFIG, [DatasetReader(dataset)]))
    return folder


def test_a_dataset_in_the_words_of_a_policy_fits(dataset, published, policy):
    assert fits_policy(dataset, policy) == []
    assert [f.problem for f in fits_policy(published, policy, published)] == [
        'no feature action_chunk']


def test_images_of_another_shape_than_a_policys_are_named(dataset, policy, tmp_path):
    wide = tmp_path / 'wide'
    shutil.copytree(policy, wide)
    (wide / 'images.json').write_text('{"sizes": {"wrist": [640, 480]}}')
    assert [f.problem for f in fits_policy(dataset, wide)] == [
        f"the images of the camera 'wrist' are 32x32, those of {wide} 640x480: squeezed to a "
        'square, they would not look alike']


def test_words_a_policy_lacks_are_named_with_their_place(tmp_path, policy):
    made = replace(tiny_episode(0), task='juggle the can')
    made.columns[layout.REASONING][4] = 'holding nothing now juggle can'
    made.columns[layout.ACTION_CHUNK] = np.zeros((12, 14), np.float32)
    write_dataset(tmp_path, [made])
    problems = [f.problem for f in fits_policy(tmp_path, policy)]
    for problem, said in zip(problems, (
            'chunks of 2 actions', "'juggle' is no word of this policy",
            "'juggle' is not in the vocabulary.*1 frames, first episode 0, frame 4"), strict=True):
        assert re.search(said, problem)


def test_exit_codes_and_json(broken, tmp_path):
    run = CliRunner()
    assert run.invoke(app, ['validate', str(broken)]).exit_code == 0
    edit(broken / DATA, 'timestamp', 0, 5.0)
    out = tmp_path / 'findings.json'
    result = run.invoke(app, ['validate', str(broken), '--json', str(out)])
    assert result.exit_code == 1 and '1 finding' in result.output
    finding = json.loads(out.read_text())['findings'][0]
    assert finding['file'].endswith(DATA) and 'timestamp is 5' in finding['problem']


def test_inspection_tells_what_was_written(dataset, published, tmp_path):
    """Counts, cameras and thoughts of both versions, with and without their tokenizer."""
    out = tmp_path / 'found.json'
    result = CliRunner().invoke(app, ['inspect', str(dataset), '--json', str(out)])
    assert result.exit_code == 0 and 'LeRobot v3.0' in result.output
    found = json.loads(out.read_text())
    assert (found['version'], found['episodes'], found['frames'], found['fps']) == (
        'v3.0', 10, 120, 10)
    assert list(found['tasks'].values()) == [5, 5]
    assert found['cameras'][PRIMARY]['policy_camera'] == 'primary'
    assert found['thoughts']['share'] == 1.0
    for tokenizer, unit, longest in ((None, 'token ids', ''), (
            published, 'words', 'holding nothing now reach can at x')):
        found = inspect_dataset(published, tokenizer)
        assert (found['version'], found['thoughts']['unit']) == ('v2.1', unit)
        assert found['thoughts']['share'] == pytest.approx(26 / 27)
        assert found['thoughts']['longest'].startswith(longest)
        assert found['facts']['success'] == {'true': 2, 'false': 1}
