"""The evaluation commands: devices, flags, start states, continued tables."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.libero_here import needs_libero
from support.policies import trained_on
from support.toy import ToyEnv

import dtvla_sim
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import command
from dtvla_ros.evaluation.workers import EvalOptions, load
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import EpisodeResult

NANO = Path(__file__).resolve().parents[2] / 'models/nano'
LEMON = 'put_the_lemon_in_the_blue_bin'
SETTINGS = {'suite': 'tabletop', 'mode': 'full', 'files': {'a': 'hash'}}


def episodes(path, settings=SETTINGS):
    """Run two episodes that are not in the journal; return their seeds, and all results."""
    ran = []

    def source(jobs):
        for task, seed in jobs:
            ran.append(seed)
            yield (task, seed), EpisodeResult(
                task, seed, seed % 2 == 0, 80, 2, 0, {'think': [0.1, 0.2]}, ('a', 'b'))

    found, = command.run_episodes('table', settings, [('stack', 1), ('stack', 2)], source, path)
    return ran, found


def test_a_journal_is_continued_after_a_kill_in_mid_line(tmp_path):
    path = tmp_path / 'runs' / 'eval.jsonl'
    assert episodes(path)[0] == [1, 2]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert episodes(path)[0] == [2] and path.read_bytes() == whole
    ran, (_, again) = episodes(path)
    assert not ran and again.success and again.latency == {'think': [0.1, 0.2]}
    with pytest.raises(UserError, match=r'eval\.jsonl.*mode.*choose another'):
        episodes(path, {**SETTINGS, 'mode': 'masked'})
    with pytest.raises(UserError, match='files'):
        episodes(path, {**SETTINGS, 'files': {'a': 'another'}})
    assert not episodes(path, {**SETTINGS, 'policy': 'a copy of it'})[0]
    assert path.read_bytes() == whole


@pytest.mark.parametrize('text', ['hello\n', '{}\n[1]\n', '{}\n{"x": 1}\n'])
def test_a_foreign_file_is_refused_and_kept(tmp_path, text):
    path = tmp_path / 'notes.txt'
    path.write_text(text)
    with pytest.raises(UserError, match=r'notes\.txt'):
        episodes(path)
    assert path.read_text() == text


def test_the_success_meanwhile_says_of_how_many_tasks_it_is():
    wanted = [(task, seed) for task in 'ab' for seed in (1, 2)]
    assert command.standing(wanted, {}) == '0/2 tasks: -'
    done = {job: EpisodeResult(*job, True, 9) for job in wanted[:2]}
    assert command.standing(wanted, done).startswith('1/2 tasks: 100% (2/2, ')
    done |= {job: EpisodeResult(*job, False, 9) for job in wanted[2:]}
    assert command.standing(wanted, done).startswith('50% (2/4, ')


def test_a_result_never_comes_from_another_device_than_it_says(monkeypatch):
    import onnxruntime

    available = command.available_device
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: ['CPUExecutionProvider'])
    assert available('onnx', 'auto') == available('onnx', 'cpu') == 'cpu'
    with pytest.raises(UserError, match='engine onnx here "cuda"; there is: cpu$'):
        available('onnx', 'cuda')
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: [
        'CUDAExecutionProvider', 'CPUExecutionProvider'])
    assert available('onnx', 'auto') == available('onnx', 'cuda') == 'cuda'
    with pytest.raises(UserError, match='tensorrt.* there is: cpu, cuda$'):
        available('onnx', 'tensorrt')
    with pytest.raises(UserError, match='engine torch'):
        available('torch', 'tensorrt')


def test_an_engine_that_falls_back_to_the_cpu_gives_no_result(caplog):
    with pytest.raises(UserError, match='--device cuda: the engine onnx fell back to the CPU'):
        load(EvalOptions(NANO, device='cuda'), None)
    assert 'running on the CPU instead' in caplog.text


def test_a_policy_of_images_that_are_no_squares_is_not_played(tmp_path):
    env = ToyEnv()
    fits = trained_on(tmp_path / 'fits', primary=(128, 128), wrist=(640, 640))
    assert load(EvalOptions(fits), env)[1] == 3
    other = trained_on(tmp_path / 'other', primary=(640, 480), wrist=(128, 128))
    with pytest.raises(UserError, match='other: the images of the suite toy are squares, the '
                       "policy was trained on 640x480 of the camera 'primary'"):
        load(EvalOptions(other), env)


@needs_libero
def test_what_differs_from_the_suites_own_is_in_the_flags():
    asked = {'antialiasing': False, 'shadows': False, 'max_steps': 620}
    for changes, wanted in (({}, [4, True, 520]), (asked, [0, False, 620])):
        flags = command.inspect_scene(SceneSetup('libero_10', **changes))[1]['flags']
        assert [flags[name] for name in ('msaa_samples', 'shadows', 'max_steps')] == wanted


def test_a_suite_names_its_starts():
    scene = command.inspect_scene(SceneSetup('tabletop', 'jitter', max_steps=90))[1]
    assert scene['starts'] == 'jitter' and scene['flags']['max_steps'] == 90
    scene = command.inspect_scene(SceneSetup('tabletop'))[1]
    assert scene['starts'] == 'shuffle' and 'max_steps' not in scene['flags']
    assert scene['flags']['msaa_samples'] == 0 and scene['flags']['image_size'] == 128


def experts(suite, task, starts, seed=None, episodes=1):
    summary = command.evaluate_experts(EvalOptions(
        scene=SceneSetup(suite, starts), tasks=(task,), episodes=episodes, workers=1, seed=seed))
    return summary['starts'], summary['seeds'], [e['steps'] for e in summary['episodes']]


def test_experts_begin_where_they_are_told():
    shuffle, jitter = (experts('tabletop', LEMON, kind, 7, 3) for kind in (None, 'jitter'))
    assert shuffle[:2] == ('shuffle', [7, 9]) and jitter[:2] == ('jitter', [7, 9])
    assert shuffle[2] != jitter[2]


@pytest.mark.slow
@needs_libero
def test_random_resets_of_libero_are_not_its_recorded_states():
    suite, task = 'libero_object', 'pick_up_the_milk_and_place_it_in_the_basket'
    first = dtvla_sim.EVAL_SEED_START
    recorded = experts(suite, task, 'benchmark')
    assert recorded[:2] == ('benchmark', [first, first])
    at_will = experts(suite, task, 'random', first)
    assert at_will[0] == 'random' and at_will[2] != recorded[2]
    # Seeds below have no recorded state, and the result says what they began from.
    assert experts(suite, task, None, 5) == experts(suite, task, 'random', 5)
    with pytest.raises(UserError, match='seed 5 has no recorded state'):
        experts(suite, task, 'benchmark', 5)


def test_robustness_leaves_a_page_and_names_what_disturbs_most(tmp_path, monkeypatch, capsys):
    def played(options, jobs):
        for job in jobs:
            yield job, EpisodeResult(job[1], job[2], job[0] != 'camera:3', 50, 1, 0, {})

    monkeypatch.setattr(command, '_policy_episodes', played)
    page = tmp_path / 'page.html'
    command.evaluate_robustness(EvalOptions(NANO, tasks=(LEMON,), episodes=2, html=page),
                                ('light', 'camera'), ('1', '3'))
    sentence = ('Undisturbed the policy succeeds in 2 of 2 episodes; what disturbs it most is '
                'camera at strength 3: 0 of 2.')
    assert sentence in ' '.join(capsys.readouterr().out.split())
    text = page.read_text()
    assert sentence in text and text.count('class="bar"') == 5
    assert [*re.findall('<h2>(.*)</h2>', text)][:3] == ['undisturbed', 'light', 'camera']


@pytest.mark.slow
def test_a_stopped_table_is_continued_cell_by_cell(tmp_path, capsys):
    journals = tmp_path / 'journals'
    options = EvalOptions(NANO, tasks=(LEMON,), episodes=1, workers=1, journal=journals)

    def robustness(**changes):
        return command.evaluate_robustness(
            replace(options, **changes), ('noise', 'language'), ('3',))

    first = robustness()
    assert first['undisturbed']['n'] == first['families']['noise']['3']['n'] == 1
    shown = capsys.readouterr().out
    assert 'strength 3' in shown and 'undisturbed' in shown
    assert {path.stem for path in journals.iterdir()} == {'undisturbed', 'noise-3', 'language-3'}
    # As after a kill: one cell has its header only, another a success that never was.
    lost, other = journals / 'noise-3.jsonl', journals / 'language-3.jsonl'
    head, row = lost.read_text().splitlines()
    lost.write_text(f'{head}\n')
    head, flipped = map(json.loads, other.read_text().splitlines())
    flipped['success'] = not flipped['success']
    other.write_text(f'{json.dumps(head)}\n{json.dumps(flipped)}\n')
    second = robustness()
    assert second['families']['noise'] == first['families']['noise']
    assert second['families']['language']['3']['successes'] == int(flipped['success'])
    again, row = json.loads(lost.read_text().splitlines()[1]), json.loads(row)
    assert (again['commands'], again['steps']) == (row['commands'], row['steps'])
    with pytest.raises(UserError, match='mode'):
        robustness(mode='masked')
