"""Pages and contact sheets show the episodes that were asked for, and need nothing else."""

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from PIL import Image
from support.arm import arm_episode
from support.published import published_dataset
from support.tiny import write_dataset
from typer.testing import CliRunner

from dtvla_ros.cli.data import data as app
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.view import view
from dtvla_ros.errors import UserError

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


@pytest.fixture(scope='module')
def arm(tmp_path_factory):
    """Return a dataset of three episodes; their thoughts hold HTML's own characters."""
    return write_dataset(tmp_path_factory.mktemp('arm'),
                         [arm_episode(k, frames=25 + k) for k in range(3)])


@pytest.fixture(scope='module')
def page(arm, tmp_path_factory):
    """Return the text of a page of two episodes, the later one first."""
    out = tmp_path_factory.mktemp('page') / 'sub' / 'page.html'
    result = CliRunner().invoke(app, ['view', str(arm), '--episodes', '2,0', '--out', str(out)])
    assert result.exit_code == 0, result.output
    return out.read_text()


def episodes_of(text):
    """Return the data of the sections of a page."""
    return [json.loads(unescape(data)) for data in re.findall(r'data-episode="([^"]*)"', text)]


def test_a_page_needs_nothing_else(page):
    links = re.findall(r'(?:src|href)="([^"]+)"|url\(([^)]+)\)', page)
    assert links and all((a or b).startswith('data:') for a, b in links)
    assert '<link' not in page and 'import ' not in page


def test_a_page_tells_each_frame_its_thought_and_phase(page):
    """In the order that was asked for; text is text, whatever characters it holds."""
    two, zero = episodes_of(page)
    assert (two['length'], zero['length']) == (27, 25)
    assert zero['runs'][1] == [5, 10, 'now <b>1</b> & on']
    assert (zero['phases'][0], zero['phases'][9]) == ('reach', 'carry')
    assert '<b>1</b>' not in page and re.findall(r'<h2>Episode (\d)', page) == ['2', '0']


def test_a_thought_is_shown_as_a_sentence(tmp_path):
    episode = arm_episode(0, frames=10)
    compact = ('holding can done nothing now carry wooden_bin at x43 y+35 next place move still '
               'left up')
    episode.columns[layout.REASONING] = [compact] * 10
    view(write_dataset(tmp_path / 'data', [episode]), tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    assert episodes_of(page)[0]['runs'] == [[0, 10, (
        'Holding the can. Carrying it to the wooden bin, 43 cm ahead and 35 cm to the left; then '
        'place. Moving left and up.')]]


def test_a_page_holds_every_image(page, arm):
    data, = re.findall(r'\.e0c1 \{[^}]*base64,([^)]*)\)', page)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    for k, image in enumerate(DatasetReader(arm).frames(0, list(layout.CAMERAS)[1])):
        down, across = divmod(k, episodes_of(page)[1]['columns'])
        part = sheet[64 * down:64 * down + 64, 64 * across:64 * across + 64]
        assert np.abs(part.astype(int) - image).mean() < 8


@pytest.mark.skipif(CHROMIUM is None, reason='needs chromium')
def test_the_script_shows_the_first_frame(page, tmp_path):
    """In a real browser, of both episodes."""
    (tmp_path / 'page.html').write_text(page)
    shown = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom',
         f'--user-data-dir={tmp_path}/profile', (tmp_path / 'page.html').as_uri()],
        capture_output=True, text=True, timeout=240).stdout
    assert shown.count('0.00 s, frame 0') == 2
    assert '<p class="said">now &lt;b&gt;0&lt;/b&gt; &amp; on</p>' in shown


def test_a_contact_sheet_shows_the_images(arm, tmp_path):
    out = tmp_path / 'sheet.png'
    assert view(arm, out, [1]) == 1
    sheet = np.asarray(Image.open(out).convert('RGB')).astype(int)
    assert sheet.shape[1] == 1500 and sheet.std() > 20
    bright = np.abs(sheet - (235, 225, 215)).max(-1) < 12  # the drawn gripper
    assert bright[:200].sum() > 500


def test_ids_are_shown_as_text_only_with_their_tokenizer(tmp_path):
    root, out = published_dataset(tmp_path / 'cot', episodes=1), tmp_path / 'page.html'
    view(root, out)
    assert 'This dataset holds no thought' in out.read_text()
    view(root, out, tokenizer=root)
    assert episodes_of(out.read_text())[0]['runs'][0][2].startswith('holding nothing now reach')


def test_without_a_choice_every_task_is_shown(tmp_path):
    tasks = ['look', 'look', 'lift', 'push', 'lift']
    made = [replace(arm_episode(k, frames=1 if task == 'look' else 8), task=task)
            for k, task in enumerate(tasks)]
    out = tmp_path / 'page.html'
    assert view(write_dataset(tmp_path / 'data', made), out) == 3
    assert re.findall(r'<h2>Episode (\d)', out.read_text()) == ['2', '3', '4']


@pytest.mark.parametrize('out, episodes, said', [
    ('sheet.gif', [], r'\.html or \.png'), ('page.html', [3], 'episodes 0 to 2')])
def test_what_cannot_be_drawn_is_refused(arm, tmp_path, out, episodes, said):
    with pytest.raises(UserError, match=said):
        view(arm, tmp_path / out, episodes)
    assert not (tmp_path / out).exists()
