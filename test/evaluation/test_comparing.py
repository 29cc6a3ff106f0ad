"""Results side by side: modes of one policy, and two policies on the same start states."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dtvla_ros.cli import app
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import comparing, pairing, results
from dtvla_ros.policy.manifest import PROOF, PolicyManifest
from dtvla_ros.rollout.episode import EpisodeResult

ROOT = Path(__file__).resolve().parents[2]
TASKS = ('stack_the_cube', 'push_the_cube')


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
    lines = comparing.markdown(comparing.read_results(files)).splitlines()
    assert lines[0] == '| task | thinks | open-loop replay |'
    assert lines[2] == '| stack the cube | 9/10 (60% - 98%) | 1/10 |'
    assert lines[4].startswith('| **all** | 18/20 (') and lines[4].endswith('| 2/20 |')
    assert '20 ms median' in lines[-1]


def test_document_keeps_what_is_around_the_table_and_what_is_no_result_is_refused(tmp_path):
    document = tmp_path / 'README.md'
    document.write_text(f'before\n{comparing.BEGIN}\nold\n{comparing.END}\nafter\n')
    comparing.compare([result(tmp_path, 'full', 10)], document, None)
    text = document.read_text()
    assert text.startswith(f'before\n{comparing.BEGIN}\n| task')
    assert text.endswith(f'{comparing.END}\nafter\n') and 'old' not in text
    document.write_text('no markers')
    with pytest.raises(UserError, match=r'README\.md lacks'):
        comparing.compare([result(tmp_path, 'full', 10)], document, None)
    assert document.read_text() == 'no markers'
    (tmp_path / 'x.json').write_text('{"mode": "full"}')
    with pytest.raises(UserError, match=r'x\.json is not a result'):
        comparing.read_results([tmp_path / 'x.json'])


def test_a_manifest_gets_the_success_of_its_own_policy_only(tmp_path):
    shutil.copy(ROOT / 'models/nano/manifest.json', tmp_path)
    told = PolicyManifest.read(tmp_path).files
    own = {name: digest for name, digest in told.items() if name != PROOF}
    comparing.compare([result(tmp_path, 'full', 7, own)], None, tmp_path)
    assert PolicyManifest.read(tmp_path).success['full']['total']['successes'] == 14
    with pytest.raises(UserError, match='mode full is of another policy'):
        comparing.compare([result(tmp_path, 'full', 7, {**own, 'act.onnx': 'x'})], None, tmp_path)


def test_other_starts_and_suites_are_other_rows(tmp_path):
    policy = {'a': 'x'}
    files = [
        result(tmp_path, 'replay', 2, None, 'libero_object', 'shuffle'),
        result(tmp_path, 'full', 8, policy, 'libero_object', 'shuffle'),
        result(tmp_path, 'full', 10, policy, 'libero_object', 'benchmark', threads=2, workers=3),
        result(tmp_path, 'masked', 1, policy, 'libero_object', 'benchmark'),
        result(tmp_path, 'full', 9, policy, 'tabletop', 'shuffle')]
    lines = comparing.markdown(comparing.read_results(files)).splitlines()
    assert lines[0] == '| suite, starts | thinks | empty thought | open-loop replay |'
    assert [line.split(' | ')[0] for line in lines[2:5]] == [
        '| tabletop, shuffle', '| libero_object, benchmark', '| libero_object, shuffle']
    assert lines[4] == ('| libero_object, shuffle | 16/20 (58% - 92%) | - | 4/20 (8% - 42%) |')
    assert lines[3].startswith('| libero_object, benchmark | 20/20 (84% - 100%) | 2/20 (')
    with pytest.raises(UserError, match='--policy: a manifest holds the success of one'):
        comparing.compare(files, None, tmp_path)
    with pytest.raises(UserError, match='already there'):
        comparing.read_results([*files, files[0]])


@pytest.mark.parametrize('key, value', [
    ('perturb', ['camera:2']), ('flags', {'msaa_samples': 0}), ('seeds', [101, 110]),
    ('tasks', {'stack_the_cube': {'successes': 1, 'n': 1}}), ('files', {'a': 'y'})])
def test_what_was_measured_otherwise_is_not_compared(tmp_path, key, value):
    files = [result(tmp_path, 'full', 9, {'a': 'x'}),
             result(tmp_path, 'replay', 9, **{key: value})]
    with pytest.raises(UserError, match=f'differ in {key.replace("files", "policy")}'):
        comparing.read_results(files)


def test_of_libero_it_is_said_how_it_is_drawn_and_a_cell_may_have_fewer_episodes(tmp_path):
    for suite in ('tabletop', 'libero_object'):
        file = result(tmp_path, 'full', 9, suite=suite, flags={'msaa_samples': 0})
        text = comparing.markdown(comparing.read_results([file]))
        assert ('antialiasing' in text) == (suite != 'tabletop')
    full, few = result(tmp_path, 'full', 10), result(tmp_path, 'replay', 10, episodes=4)
    line = comparing.markdown(comparing.read_results([full, few])).splitlines()[4]
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
    comparing.compare(files, None, None, page)
    sentence = ('The policy succeeds in 20 of 20 episodes with its own thought, in 10 of 20 '
                'episodes with an empty one.')
    assert capsys.readouterr().out.endswith(f'\n{sentence}\n')
    text = page.read_text()
    assert f'<p>{sentence}</p>' in text and text.count('class="bar"') == 2 * (1 + len(TASKS))
    assert 'left:50.0%' in text and '<td>20/20</td>' in text and 'mujoco' in text


def test_two_policies_are_compared_on_the_start_states_of_both(tmp_path):
    """Of 20 starts 6 are won and none lost: 2 / 2**6 by the sign test; 4 more are in one alone."""
    (tmp_path / 'now').mkdir()
    new = result(tmp_path / 'now', 'full', 9, {'a': 'y'}, episodes=12)
    old = result(tmp_path, 'full', 6, {'a': 'x'})
    page = tmp_path / 'report.html'
    asked = ['report', str(new), '--against', str(old), '--html', str(page)]
    told = CliRunner().invoke(app, asked, env={'COLUMNS': '200'})
    assert told.exit_code == 0, told.output
    row = next(line for line in told.output.splitlines() if 'tabletop, shuffle' in line)
    assert [cell.strip() for cell in row.strip('│').split('│')] == [
        'tabletop, shuffle', 'thinks', '12/20', '18/20', '6', '0', '0.03']
    assert 'Won, of the start states' in page.read_text() and '<td>6/6</td>' in page.read_text()


def test_policies_without_a_start_state_in_common_are_not_compared(tmp_path):
    (tmp_path / 'now').mkdir()
    old = comparing.read_results([result(tmp_path, 'full', 6)])
    for more, complaint in (
            ({'starts': 'jitter'}, 'no episode of the same suite'),
            ({'flags': {'msaa_samples': 0}}, 'shuffle, mode full: the results differ in flags')):
        new = comparing.read_results([result(tmp_path / 'now', 'full', 9, **more)])
        with pytest.raises(UserError, match=complaint):
            pairing.pair(new, old)
