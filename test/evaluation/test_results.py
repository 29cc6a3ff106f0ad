"""Rates, tables and the HTML page of finished episodes."""

import base64
import math
import re
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from PIL import Image

from dtvla_ros.evaluation import results
from dtvla_ros.evaluation.report import write_html
from dtvla_ros.rollout.episode import EpisodeResult

TASKS = ('stack_the_cube', 'push_the_cube')
HOSTILE = ('stack_the_cube', 'push_the_<b>cube')


def test_published_intervals():
    """Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, 3."""
    for counts, interval in (((81, 263), (0.2553, 0.3662)), ((15, 148), (0.0624, 0.1605)),
                             ((0, 20), (0.0, 0.1611)), ((1, 29), (0.0061, 0.1718))):
        assert results.Rate(*counts).interval == pytest.approx(interval, abs=5e-5)


def test_nothing_is_known_without_episodes_and_impossible_counts_are_refused():
    assert results.Rate(0, 0).interval == (0.0, 1.0) and math.isnan(results.Rate(0, 0).value)
    for successes in (-1, 4):
        with pytest.raises(ValueError):
            results.Rate(successes, 3).to_dict()


def test_latency_summary_in_milliseconds():
    row = results.latency_summary({'think': [0.001 * k for k in range(1, 101)], 'act': []})
    assert set(row) == {'think'} and row['think']['n'] == 100
    assert row['think']['p50_ms'] == pytest.approx(50.5)


def test_when_done_was_said_is_counted_of_successes_and_too_early_of_all():
    """20 control steps after success is in time; one who said it as success went away was not."""
    def episode(success, steps, said=None, early=False):
        return EpisodeResult('t', 0, success, steps, said_done=said, too_early=early)
    done = results.said_done([
        episode(True, 50, 56), episode(True, 50, 70), episode(True, 50), episode(True, 50, 71),
        episode(True, 50, 56, True), episode(False, 30, 30, True), episode(False, 180)])
    assert (done['within_1_s'], done['without_success']) == ([2, 5], [2, 7])
    assert done['wilson95']['within_1_s'] == [0.1176, 0.7693]
    assert results.told_done(done) == (
        'done was said within 1 s of success in 2/5 (12% - 77%) successes, without success in '
        '2/7 (8% - 64%) episodes')


def test_the_report_stands_alone_and_shows_every_failure(tmp_path):
    episodes = [EpisodeResult(task, seed, seed != failed, 50, 1, 0, {'total': [0.02]})
                for task, failed in zip(HOSTILE, (7, 8)) for seed in (7, 8)]
    stills, films = tmp_path / 'stills', tmp_path / 'some films'
    stills.mkdir()
    Image.new('RGB', (8, 4), (200, 10, 10)).save(stills / f'{HOSTILE[0]}-7.jpg')
    films.mkdir()
    (films / f'{HOSTILE[0]}-7.mp4').write_bytes(b'film')
    summary = {'suite': 'tabletop', 'mode': 'full', 'perturb': ['camera:2'], 'via': 'inprocess',
               'flags': {'msaa_samples': 0, 'shadows': False, 'gripper': '-1 opens, +1 closes'},
               'files': {'model.safetensors': 'acc5'}, 'replan_steps': 3, 'seeds': [7, 8],
               'versions': results.versions(),
               **results.summarise(episodes, HOSTILE), 'cut_thoughts': 3, 'refused': 1,
               'done': results.said_done(episodes)}
    path = tmp_path / 'pages' / 'report.html'
    write_html(path, 'tabletop: <full> thought', summary, stills, films)
    page = path.read_text()
    assert 'Done was said within 1 s of success in 0 of ' in page
    # As XML: every element is closed, and every text escaped.
    tree = ElementTree.fromstring(re.sub(r'<(!|meta)[^>]*>|(<img[^>]*)>', lambda tag: (
        f'{tag[2]}/>' if tag[2] else ''), page))
    picture, link = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert not re.search('<(script|link|iframe)', page)
    assert link == '../some%20films/stack_the_cube-7.mp4'  # beside the page, which needs it not
    assert (path.parent / unquote(link)).read_bytes() == b'film'
    cells = {first: rest for first, *rest in (
        [''.join(cell.itertext()) for cell in row] for row in tree.iter('tr'))}
    assert cells['stack the cube'][:3] == ['1/2', '50%', '9 - 91 %']
    assert cells['push the <b>cube'][0] == '1/2' and cells['all'][0] == '2/4'
    assert cells['flags: msaa_samples'] == ['0'] and cells['perturb'] == ['camera:2']
    assert cells['files: model.safetensors'] == ['acc5'] and cells['replan_steps'] == ['3']
    assert cells['flags: shadows'] == ['no']
    assert cells['mujoco'] and cells['total'][0] == '20.0'
    data = base64.b64decode(picture.partition(',')[2])
    assert data == (stills / f'{HOSTILE[0]}-7.jpg').read_bytes()
    text = ''.join(tree.itertext())
    assert text.count('the last frame and the thought') == 1
    for said in ('push the <b>cube, seed 8, 50 steps', '1 failed because the policy refused',
                 '3 of 4 thoughts were truncated'):
        assert said in text
