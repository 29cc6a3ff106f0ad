"""How large the demonstrations' images were: in the manifest, in a run, and what is refused."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from support.policies import NANO, untrained

from dtvla_ros.errors import UserError
from dtvla_ros.policy.inspect import inspect, show
from dtvla_ros.policy.manifest import MANIFEST, ImageContract, PolicyManifest
from dtvla_ros.policy.shapes import another_shape
from dtvla_ros.policy.transform import IMAGES, read_transform, write_transform

SIZES = {'primary': (640, 480), 'wrist': (1280, 720)}


@pytest.mark.parametrize(('size', 'fits'), [
    ((640, 480), True), ((320, 240), True), ((1600, 1200), True), ((643, 480), True),
    ((1280, 720), False), ((480, 640), False), ((128, 128), False), ((650, 480), False)])
def test_a_shape_is_an_aspect_ratio_in_any_resolution(size, fits):
    assert another_shape(size, None) is None
    told = another_shape(size, (640, 480))
    assert told is None if fits else told.startswith(
        f'the image is {size[0]}x{size[1]}, the policy was trained on 640x480: set the camera')


def test_a_manifest_without_sizes_is_written_as_it_was_read():
    manifest = PolicyManifest.read(NANO)
    assert manifest.images.sizes == {}
    assert manifest.to_json() == (NANO / MANIFEST).read_text()


def test_a_manifest_keeps_them_and_inspection_shows_them(tmp_path):
    manifest = replace(PolicyManifest.read(NANO), images=ImageContract(sizes=SIZES))
    (tmp_path / MANIFEST).write_text(manifest.to_json())
    assert json.loads(manifest.to_json())['images']['sizes'] == {
        'primary': [640, 480], 'wrist': [1280, 720]}
    assert PolicyManifest.read(tmp_path) == manifest
    found = inspect(tmp_path)
    assert found.images['sizes'] == SIZES
    show(found, Console(file=(out := io.StringIO()), width=120))
    assert 'primary 640x480, wrist 1280x720' in out.getvalue()


@pytest.mark.parametrize(('sizes', 'named'), [
    ({'front': [640, 480]}, "images: sizes: camera 'front' is none of primary, wrist"),
    ({'primary': [640]}, r'images: sizes: primary is \[640\], expected width and height'),
    ({'primary': [640, 0]}, r'primary is \[640, 0\], expected'),
    ({'primary': [640, 480, 3]}, r'primary is \[640, 480, 3\], expected'),
    ({'primary': [640.5, 480]}, r'sizes is .*640\.5'), ({'primary': 'wide'}, 'sizes is .*wide'),
    ({'primary': [True, 480]}, 'sizes is .*True'), ([640, 480], r'sizes is \[640, 480\]')])
def test_damaged_sizes_are_named_with_their_file(tmp_path, sizes, named):
    data = json.loads((NANO / MANIFEST).read_text())
    data['images']['sizes'] = sizes
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(UserError, match=f'{MANIFEST}: .*{named}'):
        PolicyManifest.read(tmp_path)


def test_a_run_keeps_them_and_earlier_runs_have_none(tmp_path):
    transform = replace(untrained()[1], sizes=SIZES)
    write_transform(tmp_path, transform)
    assert read_transform(tmp_path).sizes == SIZES
    (tmp_path / IMAGES).write_text('{"sizes": {"front": [640, 480]}}')
    with pytest.raises(UserError, match=f"{IMAGES}: sizes: camera 'front' is none of primary"):
        read_transform(tmp_path)
    (tmp_path / IMAGES).unlink()
    assert read_transform(tmp_path).sizes == {}
