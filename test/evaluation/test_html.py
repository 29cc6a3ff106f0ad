from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from urllib.parse import unquote

from PIL import Image

from dtvla_ros.evaluation.html import write_html
from dtvla_ros.evaluation.report import summarise, versions
from dtvla_ros.rollout.episode import EpisodeResult

TASKS = ('stack_the_cube', 'push_the_<b>cube')


class Reader(HTMLParser):
    """Collects cells by row, pictures, and whatever would be loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.rows, self.pictures, self.loaded, self.open, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ('img', 'meta'):
            self.open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')
        if tag in ('script', 'link', 'iframe'):
            self.loaded.append(tag)
        for name, value in attrs:
            if name in ('src', 'href'):
                (self.pictures if value.startswith('data:') else self.loaded).append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ('td', 'th'):
            self.rows[-1][-1] += data


def test_the_report_stands_alone_and_shows_every_failure(tmp_path):
    episodes = [EpisodeResult(task, seed, (task, seed) not in failed, 50, 1, 0, {'total': [0.02]})
                for failed in [{(TASKS[0], 7), (TASKS[1], 8)}]
                for task in TASKS for seed in (7, 8)]
    stills = tmp_path / 'stills'
    stills.mkdir()
    Image.new('RGB', (8, 4), (200, 10, 10)).save(stills / f'{TASKS[0]}-7.jpg')
    summary = {
        'suite': 'tabletop', 'mode': 'full', 'perturb': ['camera:2'], 'via': 'inprocess',
        'flags': {'msaa_samples': 0, 'shadows': False, 'gripper': '-1 opens, +1 closes'},
        'files': {'model.safetensors': 'acc5'}, 'replan_steps': 3, 'seeds': [7, 8],
        'versions': versions(), **summarise(episodes, TASKS), 'cut_thoughts': 3, 'refused': 1}
    films = tmp_path / 'some films'
    films.mkdir()
    (films / f'{TASKS[0]}-7.mp4').write_bytes(b'film')
    path = tmp_path / 'pages' / 'report.html'
    write_html(path, 'tabletop: <full> thought', summary, stills, films)
    page = Reader()
    page.feed(path.read_text())
    link = '../some%20films/stack_the_cube-7.mp4'  # beside the page, which needs it not
    assert page.open == [] and page.loaded == [link]
    assert (path.parent / unquote(link)).read_bytes() == b'film'
    cells = {row[0]: row[1:] for row in page.rows if row}
    assert cells['stack the cube'][:3] == ['1/2', '50%', '9 - 91 %']
    assert cells['push the <b>cube'][0] == '1/2' and cells['all'][0] == '2/4'
    assert cells['flags: msaa_samples'] == ['0'] and cells['perturb'] == ['camera:2']
    assert cells['files: model.safetensors'] == ['acc5'] and cells['replan_steps'] == ['3']
    assert cells['flags: shadows'] == ['no']
    assert cells['mujoco'] and cells['total'][0] == '20.0'
    assert len(page.pictures) == 1
    data = base64.b64decode(page.pictures[0].partition(',')[2])
    assert data == (stills / f'{TASKS[0]}-7.jpg').read_bytes()
    text = ''.join(page.text)
    assert len(re.findall(r'the last frame and the thought', text)) == 1
    assert 'push the <b>cube, seed 8, 50 steps' in text
    assert '1 failed because the policy refused' in text
    assert '3 of 4 thoughts were truncated' in text
