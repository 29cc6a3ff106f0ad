"""Rates, tables, comparisons and the HTML page of finished episodes."""

import base64
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from PIL import Image

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import results
from dtvla_ros.evaluation.report import write_html
from dtvla_ros.policy.manifest import PROOF, PolicyManifest
from dtvla_ros.rollout.episode import EpisodeResult

ROOT = Path(__file__).resolve().parents[2]
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


def result(folder, mode, good, files=None, suite='tabletop', starts='shuffle', episodes=10,
           **more):
    played = [EpisodeResult(task, 100 + k, k < good, 50, 1, 0, {'total': [0.02]})
              for task in TASKS for k in range(episodes)]
    row = {'suite': suite, 'starts': starts, 'mode': mode, 'seeds': [100, 99 + episodes],
           'versions': results.versions(), **results.summarise(played, TASKS), **more,
           **({'files': files} if files else {})}
    path = folder / f'{suite}-{starts}-{mode}.json'
    path.write_text(json.dumps(row))
    return path


def test_table_holds_every_mode_and_the_total(tmp_path):
    files = [result(tmp_path, 'replay', 1), result(tmp_path, 'full', 9, {'a': 'x'})]
    lines = results.markdown(results.read_results(files)).splitlines()
    assert lines[0] == '| task | thinks | open-loop replay |'
    assert lines[2] == '| stack the cube | 9/10 (60% - 98%) | 1/10 |'
    assert lines[4].startswith('| **all** | 18/20 (') and lines[4].endswith('| 2/20 |')
    assert '20 ms median' in lines[-1]


def test_document_keeps_what_is_around_the_table_and_what_is_no_result_is_refused(tmp_path):
    document = tmp_path / 'README.md'
    document.write_text(f'before\n{results.BEGIN}\nold\n{results.END}\nafter\n')
    results.compare([result(tmp_path, 'full', 10)], document, None)
    text = document.read_text()
    assert text.startswith(f'before\n{results.BEGIN}\n| task')
    assert text.endswith(f'{results.END}\nafter\n') and 'old' not in text
    document.write_text('no markers')
    with pytest.raises(UserError, match=r'README\.md lacks'):
        results.compare([result(tmp_path, 'full', 10)], document, None)
    assert document.read_text() == 'no markers'
    (tmp_path / 'x.json').write_text('{"mode": "full"}')
    with pytest.raises(UserError, match=r'x\.json is not a result'):
        results.read_results([tmp_path / 'x.json'])


def test_a_manifest_gets_the_success_of_its_own_policy_only(tmp_path):
    shutil.copy(ROOT / 'models/nano/manifest.json', tmp_path)
    told = PolicyManifest.read(tmp_path).files
    own = {name: digest for name, digest in told.items() if name != PROOF}
    results.compare([result(tmp_path, 'full', 7, own)], None, tmp_path)
    assert PolicyManifest.read(tmp_path).success['full']['total']['successes'] == 14
    with pytest.raises(UserError, match='mode full is of another policy'):
        results.compare([result(tmp_path, 'full', 7, {**own, 'act.onnx': 'x'})], None, tmp_path)


def test_other_starts_and_suites_are_other_rows(tmp_path):
    policy = {'a': 'x'}
    files = [
        result(tmp_path, 'replay', 2, None, 'libero_object', 'shuffle'),
        result(tmp_path, 'full', 8, policy, 'libero_object', 'shuffle'),
        result(tmp_path, 'full', 10, policy, 'libero_object', 'benchmark', threads=2, workers=3),
        result(tmp_path, 'masked', 1, policy, 'libero_object', 'benchmark'),
        result(tmp_path, 'full', 9, policy, 'tabletop', 'shuffle')]
    lines = results.markdown(results.read_results(files)).splitlines()
    assert lines[0] == '| suite, starts | thinks | empty thought | open-loop replay |'
    assert [line.split(' | ')[0] for line in lines[2:5]] == [
        '| tabletop, shuffle', '| libero_object, benchmark', '| libero_object, shuffle']
    assert lines[4] == ('| libero_object, shuffle | 16/20 (58% - 92%) | - | 4/20 (8% - 42%) |')
    assert lines[3].startswith('| libero_object, benchmark | 20/20 (84% - 100%) | 2/20 (')
    with pytest.raises(UserError, match='--policy: a manifest holds the success of one'):
        results.compare(files, None, tmp_path)
    with pytest.raises(UserError, match='already there'):
        results.read_results([*files, files[0]])


@pytest.mark.parametrize('key, value', [
    ('perturb', ['camera:2']), ('flags', {'msaa_samples': 0}), ('seeds', [101, 110]),
    ('tasks', {'stack_the_cube': {'successes': 1, 'n': 1}}), ('files', {'a': 'y'})])
def test_what_was_measured_otherwise_is_not_compared(tmp_path, key, value):
    files = [result(tmp_path, 'full', 9, {'a': 'x'}),
             result(tmp_path, 'replay', 9, **{key: value})]
    with pytest.raises(UserError, match=f'differ in {key.replace("files", "policy")}'):
        results.read_results(files)


def test_of_libero_it_is_said_how_it_is_drawn_and_a_cell_may_have_fewer_episodes(tmp_path):
    for suite in ('tabletop', 'libero_object'):
        file = result(tmp_path, 'full', 9, suite=suite, flags={'msaa_samples': 0})
        text = results.markdown(results.read_results([file]))
        assert ('antialiasing' in text) == (suite != 'tabletop')
    full, few = result(tmp_path, 'full', 10), result(tmp_path, 'replay', 10, episodes=4)
    line = results.markdown(results.read_results([full, few])).splitlines()[4]
    assert line == '| **all** | 20/20 (84% - 100%) | 8/8 |'


@pytest.mark.skipif(shutil.which('make') is None, reason='no make')
def test_one_command_measures_every_cell_once(tmp_path):
    def wanted():
        done = subprocess.run(
            ['make', '-n', 'libero-table', f'TABLE={tmp_path}', 'POLICY=models/nano', 'VENV=.venv',
             'EPISODES=20'], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        lines = done.stdout.replace('\\\n', ' ').splitlines()
        calls = [line for line in lines if 'dtvla eval' in line]
        assert all('--episodes 20' in c and '--resume' in c for c in calls)
        assert f'dtvla report {tmp_path}' in done.stdout
        return {tuple(re.findall(r'--(?:suite|starts|mode) (\w+)', c)) for c in calls}

    cells = wanted()
    assert len(cells) == 45 and ('libero_object', 'shuffle', 'swapped') in cells
    assert ('libero_10', 'jitter', 'replay') in cells
    assert {cell[0] for cell in cells if cell[1] == 'shuffle'} == {'libero_object'}
    (tmp_path / 'libero_object-jitter-full.json').touch()
    assert cells - wanted() == {('libero_object', 'jitter', 'full')}


def test_a_comparison_leaves_a_page_and_one_sentence(tmp_path, capsys):
    files = [result(tmp_path, 'full', 10), result(tmp_path, 'masked', 5)]
    page = tmp_path / 'report.html'
    results.compare(files, None, None, page)
    sentence = ('The policy succeeds in 20 of 20 episodes with its own thought, in 10 of 20 '
                'episodes with an empty one.')
    assert capsys.readouterr().out.endswith(f'\n{sentence}\n')
    text = page.read_text()
    assert f'<p>{sentence}</p>' in text and text.count('class="bar"') == 2 * (1 + len(TASKS))
    assert 'left:50.0%' in text and '<td>20/20</td>' in text and 'mujoco' in text


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
