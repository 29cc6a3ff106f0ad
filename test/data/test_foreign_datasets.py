"""What other writers of datasets do is understood as meant, or refused by every command alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.published import published_dataset
from support.tiny import CONFIG, tiny_dataset, tiny_episode, write_dataset

from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.data import layout
from dtvla_ros.data.channels import end_effector
from dtvla_ros.data.convert import ConvertOptions, convert
from dtvla_ros.data.inspect import dataset_statistics, inspect_dataset
from dtvla_ros.data.metadata import READ
from dtvla_ros.data.reader import DatasetReader, open_dataset
from dtvla_ros.data.validate import validate
from dtvla_ros.data.video import read_video
from dtvla_ros.data.view import view
from dtvla_ros.errors import UserError
from dtvla_ros.training import data as training
from dtvla_ros.training.initialisation import new_transform

LFS = ('version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d2\n'
       'size 12345\n')
PRIMARY = 'observation.images.image'
EPISODES, V21 = 'meta/episodes/chunk-000/file-000.parquet', 'data/chunk-000/episode_{:06d}.parquet'
DATA, VIDEO = 'data/chunk-000/file-000.parquet', f'videos/{PRIMARY}/chunk-000/file-000.mp4'


@pytest.fixture(scope='module')
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return small datasets of both versions, and of v2.1 with images in the parquet files."""
    folder = tmp_path_factory.mktemp('sound')
    return {'v30': tiny_dataset(folder / 'v30', 3), 'v21': published_dataset(folder / 'v21', 3),
            'png': published_dataset(folder / 'png', 3, png=True)}


@pytest.fixture
def copied(sound: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return what copies one of them."""
    return lambda name: shutil.copytree(sound[name], tmp_path / name)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_line(path: Path, line: int, change: Callable[[dict[str, Any]], Any]) -> None:
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    change(lines[line])
    path.write_text('\n'.join(map(json.dumps, lines)))


def edit_column(path: Path, name: str, change: Callable[[list[Any]], Any],
                kind: pa.DataType | None = None) -> None:
    """Change the cells of a column in place, and perhaps its type."""
    table = pq.read_table(path)
    at = table.column_names.index(name)
    cells = table.column(name).to_pylist()
    change(cells)
    pq.write_table(table.set_column(at, name, pa.array(
        cells, kind or table.schema.field(name).type)), path)


def learn(folder: Path) -> None:
    reader = training.open_demonstrations(folder)
    transform = new_transform(CONFIG, [reader])
    training.tokenize([reader], transform, training.object_names([reader]))
    training.open_frames(reader, transform)


def answers(folder: Path, out: Path) -> Mapping[str, str]:
    """Return what every reader of datasets says of one, '' where it says nothing."""
    from dtvla_ros.annotation.source import Source

    said = {}
    readers: dict[str, Callable[[], Any]] = {
        'inspect': lambda: inspect_dataset(folder),
        'stats': lambda: dataset_statistics(folder, whole=False),
        'view': lambda: view(folder, out / 'page.html'), 'annotate': lambda: Source(folder),
        'train': lambda: learn(folder), 'validate': lambda: validate(folder),
        'convert': lambda: convert(folder, out / 'new', ConvertOptions(tokenizer=folder))}
    if folder.name != 'v30':
        del readers['annotate'], readers['train']
    for name, read in readers.items():
        try:
            found = read()
            said[name] = '' if name != 'validate' else '; '.join(
                f'{issue.file}: {issue.problem}; {issue.remedy}' for issue in found[:2])
        except UserError as error:
            said[name] = str(error)
    return said


def refused(folder: Path, out: Path, *words: str, by: str = '') -> None:
    """Require that all readers, or those named, refuse it in a line with these words."""
    said = answers(folder, out)
    for name in by.split() or said:
        for word in words:
            assert word in said[name], (name, said[name])
        assert len(said[name].splitlines()) == 1 and len(said[name]) < 700
    assert not (out / 'new' / layout.INFO).exists()


@pytest.mark.parametrize('name', ['v30', 'v21', 'png'])
@pytest.mark.parametrize('change', [
    {'fps': 10.0}, {'codebase_version': None}, {'robot_type': None}])
def test_what_is_meant_is_understood(
        copied: Any, tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    """A whole rate with a point, a version without its letter, no robot."""
    folder = copied(name)
    told = json.loads((folder / layout.INFO).read_text())
    if 'codebase_version' in change:
        change = {'codebase_version': told['codebase_version'].removeprefix('v')}
    edit_json(folder / layout.INFO, **change)
    assert not any(answers(folder, tmp_path).values())
    assert json.loads((tmp_path / 'new' / layout.INFO).read_text())['fps'] == 10


def test_one_text_is_one_task(copied: Any, tmp_path: Path) -> None:
    folder = copied('v21')
    whole = open_dataset(folder).episodes[1]['tasks']
    edit_line(folder / layout.V21_EPISODES, 1, lambda row: row.update(tasks=row['tasks'][0]))
    assert open_dataset(folder).episodes[1]['tasks'] == whole
    assert not any(answers(folder, tmp_path).values())
    assert DatasetReader(tmp_path / 'new').task(1) == whole[0]


@pytest.mark.parametrize('tasks', [None, 7, [7], 'missing'])
def test_tasks_that_are_none_are_refused_with_their_line(
        copied: Any, tmp_path: Path, tasks: Any) -> None:
    folder = copied('v21')
    edit_line(folder / layout.V21_EPISODES, 1, lambda row: row.pop('tasks')
              if tasks == 'missing' else row.update(tasks=tasks))
    refused(folder, tmp_path, 'meta/episodes.jsonl: line 2: tasks of episode 1', '"tasks": ["')


@pytest.mark.parametrize('version, said', [
    ('v1.6', 'convert_dataset_v1_to_v2.py'), ('2.3.0', 'its files look like "v2.1"'),
    (None, 'its files look like "v2.1"'), ('v3.1', 'is newer'), (7, 'v2.0, v2.1, v3.0 are read')])
def test_other_versions_are_refused_with_what_converts_them(
        copied: Any, tmp_path: Path, version: Any, said: str) -> None:
    """And never by the command that is refusing."""
    folder = copied('v21')
    edit_json(folder / layout.INFO, codebase_version=version)
    refused(folder, tmp_path, 'meta/info.json', said)
    assert 'dtvla data convert' not in answers(folder, tmp_path)['convert']


def test_a_version_that_convert_reads_is_sent_there(sound: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r'v2.1.*v3.0 is needed.*dtvla data convert .*v21 --out'):
        training.open_demonstrations(sound['v21'])


@pytest.mark.parametrize('key, value', [
    ('fps', '10'), ('fps', 0), ('fps', True), ('fps', float('nan')), ('features', []),
    ('features', {'action': 7}), ('features', {'action': {'dtype': 'audio', 'shape': [7]}}),
    ('features', {'action': {'dtype': 'float32', 'shape': 7}}), ('chunks_size', 0),
    ('data_path', 'data/{number}.parquet'), ('data_path', 7)])
def test_metadata_of_other_types_are_refused_by_name(
        copied: Any, tmp_path: Path, key: str, value: Any) -> None:
    folder = copied('v30')
    edit_json(folder / layout.INFO, **{key: value})
    refused(folder, tmp_path, 'meta/info.json', key.removesuffix('s'))


@pytest.mark.parametrize('name, change', [
    ('dataset_from_index', lambda cells: cells.reverse()), ('length', lambda c: c.reverse()),
    ('dataset_to_index', lambda cells: cells.__setitem__(0, 30)),
    ('episode_index', lambda cells: cells.__setitem__(1, 0)),
    (f'videos/{PRIMARY}/from_timestamp', lambda cells: cells.reverse()),
    (f'videos/{PRIMARY}/from_timestamp', lambda cells: cells.__setitem__(2, 1e30))])
def test_places_of_episodes_that_contradict_each_other_are_refused(
        copied: Any, tmp_path: Path, name: str, change: Any) -> None:
    folder = copied('v30')
    edit_column(folder / EPISODES, 'length', lambda c: c.__setitem__(0, 11 + (name != 'length')))
    edit_column(folder / EPISODES, name, change)
    refused(folder, tmp_path, EPISODES, 'episode')


@pytest.mark.parametrize('rows', [[12, 0], [12, 24]])
def test_rows_of_another_episode_are_refused(copied: Any, tmp_path: Path, rows: list[int]) -> None:
    """Two episodes of one length change places: the metadata fit, only the rows tell."""
    folder = copied('v30')
    table = pq.read_table(folder / DATA)
    order = np.arange(len(table))
    a, b = (slice(row, row + 12) for row in rows)
    order[a], order[b] = order[b].copy(), order[a].copy()
    pq.write_table(table.take(order), folder / DATA)
    refused(folder, tmp_path, DATA, 'episode_index is ', 'frame 0',
            by='stats view annotate train convert validate')


def test_tasks_of_rows_and_of_episodes_must_agree(copied: Any, tmp_path: Path) -> None:
    folder = copied('v30')
    edit_column(folder / DATA, 'task_index', lambda cells: cells.__setitem__(14, 0))
    refused(folder, tmp_path, DATA, 'task_index is 0 at episode 1, frame 2',
            by='stats view annotate train convert validate')


@pytest.mark.parametrize('change, said', [
    (lambda cells: cells.__setitem__(3, None), 'is null at episode 1, frame 3'),
    (lambda cells: cells[3].__setitem__(2, None), 'is null at episode 1, frame 3'),
    (lambda cells: cells.__setitem__(3, cells[3][:5]),
     'holds 5 numbers where 7 are due at episode 1, frame 3')])
@pytest.mark.parametrize('kind', [pa.list_(pa.float32()), pa.large_list(pa.float64())])
def test_nulls_and_ragged_rows_are_refused_with_their_place(
        copied: Any, tmp_path: Path, change: Any, said: str, kind: pa.DataType) -> None:
    folder = copied('v21')
    edit_column(folder / V21.format(1), layout.ACTION, change, kind)
    refused(folder, tmp_path, V21.format(1), f'action {said}', by='stats view convert validate')


def test_files_of_two_precisions_are_read_as_declared(copied: Any, tmp_path: Path) -> None:
    folder = copied('v21')
    edit_column(folder / V21.format(1), layout.ACTION, len, pa.list_(pa.float64(), 7))
    edit_column(folder / V21.format(2), 'episode_index', len, pa.int32())
    edit_column(folder / V21.format(2), layout.STATE, len, pa.list_(pa.float32()))
    said = answers(folder, tmp_path)
    assert 'action is double, meta/info.json says float32' in said.pop('validate')
    assert not any(said.values())
    assert DatasetReader(tmp_path / 'new').column(layout.ACTION).dtype == np.float32


@pytest.mark.parametrize('number, name', [(1, layout.ACTION), (0, PRIMARY), (1, PRIMARY)])
def test_a_column_one_file_lacks_is_named(
        copied: Any, tmp_path: Path, number: int, name: str) -> None:
    folder, path = copied('png'), V21.format(number)
    pq.write_table(pq.read_table(folder / path).drop_columns([name]), folder / path)
    refused(folder, tmp_path, path, f'lacks the column {name}', by='view convert validate')


def test_text_where_numbers_are_due_is_refused(copied: Any, tmp_path: Path) -> None:
    folder = copied('v21')
    edit_column(folder / V21.format(1), layout.ACTION, lambda cells: cells.__setitem__(
        slice(None), [list(map(str, row)) for row in cells]), pa.list_(pa.string()))
    refused(folder, tmp_path, V21.format(1), 'says float32', by='stats view convert validate')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('name', [layout.ACTION, layout.STATE])
def test_what_is_not_finite_is_refused_where_it_would_be_learnt(
        copied: Any, tmp_path: Path, name: str, value: float) -> None:
    folder = copied('v30')
    edit_column(folder / DATA, name, lambda cells: cells[14].__setitem__(1, value))
    for problem in (answers(folder, tmp_path)[reader] for reader in (
            'train', 'convert', 'annotate', 'validate')):
        assert f'{DATA}: {name} is ' in problem and 'channel 1 at episode 1, frame 2' in problem
    issues = {issue.check: issue for issue in dataset_statistics(folder, whole=False).issues}
    assert issues['not finite'].where == ('episode 1, frame 2',)
    with pytest.raises(UserError, match='episode 1, frame 2'):
        dataset_statistics(folder, whole=True)


@pytest.mark.parametrize('name, file, by', [
    ('v30', layout.INFO, ''), ('v30', layout.TASKS, ''), ('v21', layout.V21_EPISODES, ''),
    ('v30', EPISODES, ''), ('v30', DATA, 'stats view annotate train convert validate'),
    ('v30', VIDEO, 'stats view train convert validate'),
    ('v21', V21.format(1), 'stats view convert validate')])
@pytest.mark.parametrize('damage, said', [
    (LFS, 'a Git LFS pointer, not the file itself; run git lfs pull'), ('', 'an empty file'),
    (None, 'no such file'), ('garbage', ' (')])
def test_files_that_are_none_are_named(
        copied: Any, tmp_path: Path, name: str, file: str, by: str, damage: str | None, said: str,
) -> None:
    if file == EPISODES and damage is None:
        said = 'no episode'
    folder = copied(name)
    (folder / file).unlink()
    if damage is not None:
        (folder / file).write_text(damage)
    named = folder if said == 'no episode' else folder / file
    refused(folder, tmp_path, f'{named}', said, by=by)


def test_text_that_editors_and_systems_write_is_read(copied: Any, tmp_path: Path) -> None:
    """A byte order mark, UTF-16, line separators within a text, files of macOS beside others."""
    folder = copied('v21')
    info, episodes = folder / layout.INFO, folder / layout.V21_EPISODES
    info.write_bytes(info.read_bytes().decode().encode('utf-16'))
    for path in (episodes, folder / layout.V21_TASKS):
        text = path.read_text().replace('put the', 'put\u2028the')
        path.write_bytes(b'\xef\xbb\xbf' + text.encode())
    for path in [*folder.rglob('*.parquet'), *folder.rglob('*.mp4')]:
        path.with_name(f'._{path.name}').write_bytes(b'\0\5\x16\7')
    assert not any(answers(folder, tmp_path).values())
    assert any('\u2028' in task for task in open_dataset(folder).tasks)


def test_files_of_macos_are_no_metadata(copied: Any, tmp_path: Path) -> None:
    folder = copied('v30')
    for name in (EPISODES, DATA):
        (folder / name).with_name('._file-000.parquet').write_bytes(b'\0\5\x16\7')
    assert not any(answers(folder, tmp_path).values())


def test_half_a_character_is_refused(copied: Any, tmp_path: Path) -> None:
    folder = copied('v21')
    for name in (layout.V21_TASKS, layout.V21_EPISODES):
        edit_line(folder / name, 0, lambda row: row.update(
            {key: json.loads(json.dumps(value).replace('put the', 'put \\ud83d the'))
             for key, value in row.items()}))
    refused(folder, tmp_path, '.jsonl: cannot be read', 'surrogates not allowed', 'correct it')


def test_text_that_is_no_utf8_is_refused(copied: Any, tmp_path: Path) -> None:
    folder = copied('v30')
    table = pq.read_table(folder / DATA)
    cells = [text.encode() for text in table.column(layout.REASONING).to_pylist()]
    cells[14] = b'\xff\xfe'
    data = pa.array(cells, pa.binary())
    pq.write_table(table.set_column(
        table.column_names.index(layout.REASONING), layout.REASONING, pa.Array.from_buffers(
            pa.string(), len(data), data.buffers())), folder / DATA)
    refused(folder, tmp_path, f'{DATA}: {layout.REASONING} is no UTF-8 at episode 1, frame 2')


def test_other_kinds_of_columns_are_read(copied: Any, tmp_path: Path) -> None:
    """Tensors, views of lists and of texts, dictionaries."""
    folder = copied('v30')
    before = DatasetReader(folder).rows(layout.ACTION)
    table = pq.read_table(folder / DATA)
    for name, column in ((layout.ACTION, pa.FixedShapeTensorArray.from_numpy_ndarray(
            before.astype(np.float32))), (layout.STATE, pa.array(
                table.column(layout.STATE).to_pylist(), pa.list_view(pa.float32()))),
            (layout.REASONING, table.column(layout.REASONING).cast(pa.string_view()))):
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, folder / DATA)
    assert not any(answers(folder, tmp_path).values())
    np.testing.assert_array_equal(DatasetReader(tmp_path / 'new').rows(layout.ACTION), before)


@pytest.mark.parametrize('name', ['../../../elsewhere', '/elsewhere', 'images/front', 'x' * 300])
def test_a_feature_that_is_no_name_of_a_file_is_refused(
        copied: Any, tmp_path: Path, name: str) -> None:
    folder = copied('png')
    info = json.loads((folder / layout.INFO).read_text())
    info['features'][name] = info['features'][PRIMARY]
    (folder / layout.INFO).write_text(json.dumps(info))
    refused(folder, tmp_path, f'a feature is called {name[:20]!r:.20}'.rstrip("'"), 'call it')


def recode(folder: Path, rate: float = 10, offset: int = 0, more: int = 0) -> None:
    """Encode every video again: at another rate, later in the file, with other lengths."""
    for path in sorted(folder.rglob('*.mp4')):
        frames = list(read_video(path))
        with av.open(str(path), 'w') as container:
            stream = container.add_stream('libx264', rate=rate)
            stream.height, stream.width = frames[0].shape[:2]
            for k, image in enumerate([*frames, *frames[-1:] * more]):
                frame = av.VideoFrame.from_ndarray(image, format='rgb24')
                frame.pts = k + offset
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


@pytest.mark.parametrize('change, said', [
    ({'rate': 30}, '30 images a second, the dataset has 10'),
    ({'more': 2}, 'more images than the')])
def test_videos_that_are_not_beside_their_rows_are_refused(
        copied: Any, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = copied('v21')
    recode(folder, **change)
    said_by = answers(folder, tmp_path)
    for name in ('view', 'convert'):
        assert '.mp4: ' in said_by[name]
    assert said in said_by['view'] and '.mp4: ' in said_by['validate']
    assert not (tmp_path / 'new' / layout.INFO).exists()


@pytest.mark.parametrize('name', ['v30', 'v21'])
def test_a_video_that_begins_later_shows_the_same_images(copied: Any, name: str) -> None:
    folder = copied(name)
    recode(folder)
    before = [DatasetReader(folder, READ).image(k, frame, PRIMARY) for k, frame in (
        (0, 0), (1, 3), (2, 5))]
    recode(folder, offset=5)
    for k, frame, image in zip((0, 1, 2), (0, 3, 5), before, strict=True):
        after = DatasetReader(folder, READ).image(k, frame, PRIMARY)
        assert np.abs(after.astype(int) - image).mean() < 2


def test_a_rate_that_is_no_whole_number_is_kept(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / 'source', [tiny_episode(k) for k in range(2)], fps=20 / 3)
    assert not any(answers(source, tmp_path).values())
    assert DatasetReader(tmp_path / 'new').fps == pytest.approx(20 / 3)


@pytest.mark.parametrize('data, said', [
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n', 'no image'),
    ('bomb', 'exceeds limit')])
def test_images_that_would_run_a_program_or_fill_the_memory_are_refused(
        copied: Any, tmp_path: Path, data: Any, said: str) -> None:
    folder = copied('png')
    if data == 'bomb':
        Image.new('1', (30000, 30000)).save(folder / 'bomb.png')
        data = (folder / 'bomb.png').read_bytes()
    cell = {'bytes': data, 'path': None}
    for path in sorted(folder.rglob('*.parquet')):
        edit_column(path, PRIMARY, lambda cells: cells.__setitem__(
            slice(None), [cell] * len(cells)))
    refused(folder, tmp_path, 'frame 0', said, by='stats view convert validate')


@pytest.mark.parametrize('share', [0.3, 0.9])
def test_a_video_that_is_cut_off_or_damaged_is_named_and_no_picture_silently_missing(
        copied: Any, tmp_path: Path, share: float) -> None:
    folder = copied('v21')
    video = folder / f'videos/chunk-000/{PRIMARY}/episode_000001.mp4'
    whole = video.read_bytes()
    body = whole.find(b'mdat') + 4
    video.write_bytes(whole[:body] + bytes(int((len(whole) - body) * share)) + whole[
        body + int((len(whole) - body) * share):])
    said = answers(folder, tmp_path)
    for name in ('stats', 'view'):
        assert 'episode_000001.mp4: ' in said[name], said
    video.write_bytes(whole[:int(len(whole) * share)])
    refused(folder, tmp_path, 'episode_000001.mp4: ', by='stats view convert validate')


def depth(folder: Path, key: str, declared: str = 'observation.images.depth') -> None:
    """Store a 16-bit PNG of 300 mm as images of a camera."""
    image = Image.fromarray(np.full((32, 32), 300, np.uint16))
    image.save(folder / 'depth.png')
    cell = {'bytes': (folder / 'depth.png').read_bytes(), 'path': None}
    for path in sorted((folder / 'data').rglob('*.parquet')):
        table = pq.read_table(path)
        cells = pa.array([cell] * len(table))
        at = table.schema.get_field_index(key)
        pq.write_table(table.append_column(key, cells) if at < 0 else
                       table.set_column(at, key, cells), path)
    info = json.loads((folder / layout.INFO).read_text())
    info['features'][key] = {'dtype': 'image', 'shape': [32, 32, 1], 'names': None}
    (folder / layout.INFO).write_text(json.dumps(info))


def test_a_depth_camera_is_left_out_by_name(copied: Any, tmp_path: Path, dtvla: Any) -> None:
    folder, key = copied('png'), 'observation.images.depth'
    depth(folder, key)
    code, output, _ = dtvla('data', 'convert', folder, '--tokenizer', folder, '--out', 'new')
    assert code == 0 and f'left out: {key} (mode I;16: depth' in output
    assert sorted(open_dataset(Path('new')).camera_keys) == sorted(layout.CAMERAS)
    assert 'depth' in inspect_dataset(folder)['cameras'][key]['left_out']
    assert not any(answers(folder, tmp_path / 'other').values())


def test_depth_where_colour_is_needed_is_refused(copied: Any, tmp_path: Path) -> None:
    folder = copied('png')
    depth(folder, PRIMARY)
    refused(folder, tmp_path, PRIMARY, 'depth', '--rename', by='convert')


def test_a_single_deep_image_among_others_is_refused(copied: Any, tmp_path: Path) -> None:
    folder = copied('png')
    depth(folder, 'depth')
    deep = {'bytes': (folder / 'depth.png').read_bytes(), 'path': None}
    edit_column(folder / V21.format(1), PRIMARY, lambda cells: cells.__setitem__(4, deep))
    refused(folder, tmp_path, V21.format(1), 'episode 1, frame 4', 'more than 8 bits',
            by='convert view')


@pytest.mark.parametrize('shape', [[64, 64, 3], [3, 64, 64]])
def test_images_of_another_size_than_declared_are_refused(
        copied: Any, tmp_path: Path, shape: list[int]) -> None:
    folder = copied('png')
    info = json.loads((folder / layout.INFO).read_text())
    info['features'][PRIMARY]['shape'] = shape
    (folder / layout.INFO).write_text(json.dumps(info))
    refused(folder, tmp_path, '32x32', '64x64', by='stats view convert validate')


@pytest.mark.parametrize('name', ['v21', 'png', 'v30'])
def test_what_is_legal_is_not_called_broken(copied: Any, tmp_path: Path, name: str) -> None:
    """Shapes with the channels first, names that are a label or a dict, shape [] for a number."""
    folder = copied(name)
    info = json.loads((folder / layout.INFO).read_text())
    features = info['features']
    features[PRIMARY].update(shape=[3, 32, 32], names=['channels', 'height', 'width'])
    features[layout.STATE]['names'] = ['state']
    features[layout.ACTION]['names'] = {f'a{k}': k for k in range(7)}
    features['frame_index']['shape'] = []
    (folder / layout.INFO).write_text(json.dumps(info))
    assert not any(answers(folder, tmp_path).values())
    assert open_dataset(folder).channels(layout.STATE) == []
    assert open_dataset(folder).channels(layout.ACTION) == [f'a{k}' for k in range(7)]


def test_files_may_be_links_into_a_store(sound: dict[str, Path], tmp_path: Path) -> None:
    """As Hugging Face's cache keeps them."""
    store, folder = tmp_path / 'blobs', tmp_path / 'snapshot'
    store.mkdir()
    for k, path in enumerate(sorted(p for p in sound['v21'].rglob('*') if p.is_file())):
        shutil.copy(path, store / str(k))
        link = folder / path.relative_to(sound['v21'])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(store / str(k))
    assert not any(answers(folder, tmp_path).values())


@pytest.mark.parametrize('place', ['snapshots/0a1b', 'pusht'])
def test_a_folder_that_holds_datasets_names_one(
        sound: dict[str, Path], tmp_path: Path, place: str) -> None:
    shutil.copytree(sound['v30'], tmp_path / 'hub' / place)
    refused(tmp_path / 'hub', tmp_path, 'no such file', f'give {tmp_path / "hub" / place}')


@pytest.mark.parametrize('command', ['inspect', 'validate', 'stats', 'view', 'convert'])
@pytest.mark.parametrize('make, said', [
    (lambda path: None, 'no such folder'), (lambda path: path.mkdir(), 'no such file'),
    (lambda path: path.touch(), 'a file')])
def test_no_folder_and_an_empty_one_are_told_apart(
        dtvla: Any, tmp_path: Path, command: str, make: Any, said: str) -> None:
    make(folder := tmp_path / 'mine')
    code, output, error = dtvla('data', command, folder, *(
        ('--out', 'new.html') if command in ('view', 'convert') else ()))
    text = error or output
    assert code in (1, 2) and said in text.replace('\n', ' ') or (
        code == 2 and 'is a file' in text), text


def test_demonstrations_that_never_turn_are_learnt_from(tmp_path: Path) -> None:
    """A constant channel gets a narrow span around its value, one that moves once its extremes."""
    made = [tiny_episode(k) for k in range(3)]
    for episode in made:
        for name, width in ((layout.ACTION, 7), (layout.ACTION_CHUNK, 56)):
            np.reshape(episode.columns[name], (-1, width // 7 * 7)).reshape(-1, 7)[:, 3:5] = 0.0
    made[1].columns[layout.ACTION][5, 4] = 0.3
    write_dataset(tmp_path / 'data', made)
    learn(tmp_path / 'data')
    transform = new_transform(CONFIG, [DatasetReader(tmp_path / 'data')])
    statistics = transform.statistics
    assert (statistics.q01[3], statistics.q99[3]) == (-1e-3, 1e-3)
    assert statistics.unnormalize(np.ones(7))[3] == pytest.approx(0.0, abs=1.1e-3)
    np.testing.assert_allclose(statistics.normalize(np.zeros(7))[3], 0.0, atol=1e-4)
    told = dataset_statistics(tmp_path / 'data').norm_stats
    assert ActionStatistics.from_dict(told) == statistics


def test_statistics_of_a_channel_that_moves_once() -> None:
    actions = np.zeros((1000, 3))
    actions[7, 1], actions[:, 0] = 0.3, np.linspace(-1, 1, 1000)
    made = ActionStatistics.of(actions)
    assert (made.q01[1], made.q99[1]) == (0.0, 0.3)
    assert made.q01[0] == pytest.approx(-0.98)


@pytest.mark.parametrize('names, position', [
    ([], [0, 1, 2]), (['x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper', 'gripper'], [0, 1, 2]),
    ([f'state_{k}' for k in range(8)], [0, 1, 2]),
    (['j1', 'j2', 'ee_pos_x', 'ee_pos_y', 'ee_pos_z', 'ee_quat_x', 'ee_quat_y', 'ee_quat_z'],
     [2, 3, 4]), ([f'panda_joint{k}' for k in range(8)], []),
    ([f'motor_{k}' for k in range(8)], []),
    (['left_x', 'left_y', 'left_z', 'right_x', 'right_y', 'right_z', 'a', 'b'], []),
    (['x', 'y', 'z', 'x', 'y', 'z', 'a', 'b'], []),
    (['force_x', 'force_y', 'force_z', 'b', 'c', 'd', 'e', 'f'], [])])
def test_a_position_is_what_is_called_so(names: list[str], position: list[int]) -> None:
    assert end_effector(names, 8).position == position


def test_a_quaternion_is_no_rotation_vector_and_its_last_number_no_finger() -> None:
    names = ['x', 'y', 'z', 'qx', 'qy', 'qz', 'qw', 'gripper']
    assert end_effector(names, 8) == ([0, 1, 2], [], [])


@pytest.mark.parametrize('turn', [('roll', 'pitch', 'yaw'), ('rot6d_0', 'rot6d_1', 'rot6d_2')])
def test_other_rotations_are_no_rotation_vector(
        copied: Any, tmp_path: Path, turn: tuple[str, ...]) -> None:
    folder = copied('v30')
    info = json.loads((folder / layout.INFO).read_text())
    info['features'][layout.STATE]['names'] = ['x', 'y', 'z', *turn, 'finger_l', 'finger_r']
    (folder / layout.INFO).write_text(json.dumps(info))
    said = answers(folder, tmp_path)
    assert 'has no rotation vector of the end effector' in said.pop('train')
    assert not any(said.values())


def test_joints_are_not_taken_for_a_pose(copied: Any, tmp_path: Path, dtvla: Any) -> None:
    """They can be inspected, checked, drawn and converted; what needs a pose says so."""
    folder = copied('v30')
    info = json.loads((folder / layout.INFO).read_text())
    info['features'][layout.STATE]['names'] = [f'{name}.pos' for name in (
        'shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll', 'gripper',
        'a', 'b')]
    (folder / layout.INFO).write_text(json.dumps(info))
    said = answers(folder, tmp_path)
    for name in ('annotate', 'train'):
        assert 'shoulder_pan.pos' in said.pop(name)
    assert not any(said.values())
    code, _, error = dtvla('annotate', 'keyframes', '--data', folder, '--out', 'out')
    assert code == 2 and 'has no position of the end effector' in error
    checks = {issue.check: issue for issue in dataset_statistics(folder, whole=False).issues}
    assert 'not checked' in checks['action and next state'].problem


@pytest.mark.parametrize('names, gripper, learnt', [
    (['x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper'], 6, True),
    ([f'delta_{k}' for k in 'abcdefg'], 6, True),
    (['gripper', 'dx', 'dy', 'dz', 'rx', 'ry', 'rz'], 0, False),
    ([f'joint_{k}' for k in range(6)] + ['gripper'], 6, False),
    ([f'panda_joint{k}.vel' for k in range(7)], None, False),
    ([f'q{k}' for k in range(6)] + ['gripper'], 6, False),
    (['shoulder_pan.pos', 'elbow_flex.pos', *'abcde'], None, False),
    ([f'motor_{k}' for k in range(7)], 6, True)])
def test_actions_are_what_they_are_called(
        copied: Any, names: list[str], gripper: int | None, learnt: bool) -> None:
    """Joints are not learnt as offsets, and the gripper's command is found by name."""
    from dtvla_ros.annotation.source import Source

    folder = copied('v30')
    info = json.loads((folder / layout.INFO).read_text())
    info['features'][layout.ACTION]['names'] = names
    (folder / layout.INFO).write_text(json.dumps(info))
    reader = DatasetReader(folder)
    assert reader.gripper == gripper
    if learnt:
        learn(folder)
    else:
        with pytest.raises(UserError, match=f'action .{names[0]}.*not the end effector'):
            learn(folder)
    if gripper is None:
        with pytest.raises(UserError, match='no command of the gripper'):
            Source(folder)
    else:
        command = reader.rows(layout.ACTION)[:, gripper]
        np.testing.assert_allclose(Source(folder).level, (command - command.min()) / np.ptp(
            command))
    assert validate(folder) == []


def test_a_depth_video_is_known_by_its_flag(copied: Any, tmp_path: Path) -> None:
    folder, key = copied('v21'), 'observation.images.depth'
    info = json.loads((folder / layout.INFO).read_text())
    info['features'][key] = info['features'][PRIMARY] | {'info': {'video.is_depth_map': True}}
    (folder / layout.INFO).write_text(json.dumps(info))
    shutil.copytree(folder / f'videos/chunk-000/{PRIMARY}', folder / f'videos/chunk-000/{key}')
    assert not any(answers(folder, tmp_path).values())
    assert list(open_dataset(folder).left_out) == [key]
    assert key not in DatasetReader(tmp_path / 'new').camera_keys


@pytest.mark.parametrize('command', ['keyframes', 'label'])
def test_annotation_of_nothing_is_one_line(dtvla: Any, tmp_path: Path, command: str) -> None:
    for make in (lambda: None, (tmp_path / 'mine').mkdir):
        make()
        code, _, error = dtvla('annotate', command, '--data', tmp_path / 'mine')
        assert code == 2 and error.startswith('error: ') and 'no such f' in error
