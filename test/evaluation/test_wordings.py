"""Wordings of tasks and sentences to refuse: the file, the episodes, what is made of them."""

import json
from pathlib import Path

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import command
from dtvla_ros.evaluation.wordings import Trial, Wordings
from dtvla_ros.evaluation.workers import EvalOptions
from dtvla_ros.rollout.episode import EpisodeResult

NANO = Path(__file__).resolve().parents[2] / 'models/nano'
KNOWN = {'put_the_lemon_in_the_blue_bin': 'put the lemon in the blue bin',
         'KITCHEN_turn_on_the_stove': 'turn on the stove'}
LEMON, STOVE = KNOWN
FILE = """
Put the lemon in the blue bin:
  - put the lemon in the blue bin
  - "please: lemon, blue bin"
refuse:
  negations: [do not do it]
  unknown: [fly]
"""


@pytest.fixture
def written(tmp_path):
    """Return what writes the file of wordings."""
    def write(text):
        path = tmp_path / 'said.yaml'
        path.write_text(text)
        return path
    return write


def test_tasks_are_named_by_name_or_sentence_and_refusals_have_groups(written):
    read = Wordings.read(written(FILE), KNOWN)
    assert read.tasks == {LEMON: ('put the lemon in the blue bin', 'please: lemon, blue bin')}
    assert read.refuse == {'negations': ('do not do it',), 'unknown': ('fly',)}
    other = Wordings.read(written(f'{STOVE}: [heat it]\nrefuse: [fly]\n'), KNOWN)
    assert other.tasks == {STOVE: ('heat it',)} and other.refuse == {'refuse': ('fly',)}
    assert other.digest != read.digest
    assert Wordings.read(written('turn on the stove: [heat it]'), KNOWN).tasks == other.tasks


@pytest.mark.parametrize(('text', 'error'), [
    ('', 'an empty file|no tasks; write'), ('- a', 'no tasks; write "task'),
    ('a: [', r'no YAML .*; write "task'), (f'{LEMON}: [2026-99-99]', 'no YAML'),
    (f'{LEMON}: [!!timestamp x]', 'no YAML'), (f'{LEMON}: [!!bool maybe]', 'no YAML'),
    (f'{LEMON}: [!!int ""]', 'no YAML'), (f'{LEMON}: [!!map [x]]', 'no YAML'),
    (f'{LEMON}: [a]\n{LEMON}: [b]', 'stands twice'),
    (f'{LEMON}: [a]\nturn on the stov: [b]',
     'line 2: unknown task "turn on the stov"; nearest: "turn on the stove"'),
    (f'{LEMON}: [a]\nput the lemon in the blue bin: [b]',
     f'line 2: {LEMON} stands twice; put its wordings in one list'),
    (f'{LEMON}: a', f'line 1: {LEMON}: expected a list of sentences; write "- sentence"'),
    (f'{LEMON}:', 'line 1: .*expected a list'), (f'{LEMON}: []', 'line 1: .*expected a list'),
    (f'{LEMON}:\n  - a\n  - no', 'line 3: .*"no" is no sentence to YAML; put it in quotes'),
    (f'{LEMON}:\n  - 12', '"12" is no sentence'), (f'{LEMON}:\n  - b: c', 'an entry is no sent'),
    (f'{LEMON}:\n  - a\n  - " "', 'line 3: .*it is empty; delete it'),
    (f'{LEMON}:\n  - "a\\a"', r'"a\\x07" can be said to no policy: it has control characters'),
    (f'{LEMON}:\n  - a b\nrefuse:\n  - c\n  - a b',
     rf'line 5: refuse: "a b" is in line 2, too \({LEMON}\); delete one'),
    ('refuse: {near: fly}', 'line 1: refuse: near: expected a list')])
def test_a_damaged_file_names_line_and_remedy(written, text, error):
    with pytest.raises(UserError, match=error) as raised:
        Wordings.read(written(text), KNOWN)
    assert 'said.yaml' in str(raised.value)


def test_a_missing_file_and_a_task_without_wordings_are_named(written, tmp_path):
    with pytest.raises(UserError, match='none.yaml: no such file; write "task'):
        Wordings.read(tmp_path / 'none.yaml', KNOWN)
    with pytest.raises(UserError, match='no wordings of KITCHEN_turn_on_the_stove'):
        Wordings.read(written(FILE), KNOWN).only([STOVE])


def test_every_wording_has_a_start_state_of_its_own_one_after_another(written):
    read = Wordings.read(written(f'{LEMON}: [a, b]\n{STOVE}: [c]'), KNOWN)
    assert read.episodes(7, 1) == {(LEMON, 7): 'a', (LEMON, 8): 'b', (STOVE, 7): 'c'}
    assert read.episodes(7, 2) == {
        (LEMON, 7): 'a', (LEMON, 8): 'a', (LEMON, 9): 'b', (LEMON, 10): 'b', (STOVE, 7): 'c',
        (STOVE, 8): 'c'}


@pytest.mark.parametrize(('tasks', 'understood', 'outcome'), [
    (('put the lemon in the blue bin',), 'put the lemon in the blue bin', 'success'),
    (('Put the lemon in the blue bin.', 'x'), 'Put the lemon in the blue bin.', 'success'),
    (('put the lemon in the blue bin', 'x'), 'x', 'another task'), (('x',), 'x', 'another task'),
    (('x',), '', 'refused'), ((), 'whatever it is', 'success'), ((), '', 'refused')])
def test_a_success_counts_only_where_the_wording_was_understood(
        written, tasks, understood, outcome):
    trial = Trial.of(Wordings.read(written(FILE), KNOWN), KNOWN, tasks)
    assert trial.outcome(LEMON, understood, True) == outcome
    assert trial.outcome(LEMON, understood, False) == outcome.replace('success', 'failed')
    episodes = trial.judged(lambda jobs: (
        (job, EpisodeResult(*job, True, 9, understood=understood)) for job in jobs))
    (_, judged), = episodes([(LEMON, 7)])
    assert judged.success == (outcome == 'success')


SAID = """
put the lemon in the blue bin:
  - Put the lemon in the blue bin!
  - drop the lemon into the blue box
  - put the can in the wooden bin
refuse:
  - asdf qwer
  - stack the red cube on the green cube
"""


def test_how_a_list_is_understood_takes_no_episode(written, tmp_path, dtvla):
    path, result = written(SAID), tmp_path / 'u.json'
    code, out, _ = dtvla('eval', '--policy', str(NANO), '--instructions', str(path),
                         '--understand-only', '--json', str(result))
    assert code == 0
    assert [line.split('│')[1].strip() for line in out.splitlines() if '│ ok' in line
            or '│ NO' in line] == ['ok', 'ok', 'NO', 'ok', 'NO']
    told = json.loads(result.read_text())
    assert [row['understood'] for row in told['sentences']] == [
        *['put the lemon in the blue bin'] * 2, 'put the can in the wooden bin', '',
        'stack the red cube on the green cube']
    assert {group: (row['successes'], row['n']) for group, row in told['groups'].items()} == {
        'put the lemon in the blue bin': (2, 3), 'refuse': (1, 2)}
    assert 'nearest: "' in told['sentences'][3]['refused']
    assert told['sentences'][0]['confidence'] == 1.0 > told['sentences'][1]['confidence']


@pytest.mark.parametrize(('words', 'error'), [
    (('--understand-only',), '--understand-only needs --instructions FILE'),
    (('--instructions', 'FILE', '--understand-only', '--html', 'x.html'),
     'no episode for --html'),
    (('--instructions', 'FILE', '--mode', 'replay'), '--mode replay hears nothing'),
    (('--instructions', 'FILE', '--perturb', 'language:1'), '--perturb language rewords'),
    (('--instructions', 'FILE', '--tasks', 'push_the_green_cube_onto_the_yellow_mark'),
     'no wordings of push_the_green_cube')])
def test_what_does_not_go_together_is_refused(written, dtvla, words, error):
    path = str(written(SAID))
    code, out, err = dtvla('eval', *(path if word == 'FILE' else word for word in words))
    assert (code, out, err.count('\n')) == (2, '', 1) and error in err


def test_the_result_tells_each_wording_apart(written, tmp_path, monkeypatch, capsys):
    meant = {'Put the lemon in the blue bin!': 'put the lemon in the blue bin',
             'put the can in the wooden bin': 'put the can in the wooden bin'}

    def played(options, jobs):
        for job in jobs:
            said = options.said[job]
            yield job, EpisodeResult(*job, True, 50, 1, said=said, understood=meant.get(said, ''),
                                     refused='' if said in meant else 'no idea')

    monkeypatch.setattr(command, '_policy_episodes', played)
    page = tmp_path / 'page.html'
    result = command.evaluate_policy(EvalOptions(
        NANO, instructions=written(SAID), episodes=1, html=page, journal=tmp_path / 'j.jsonl'))
    row = result['tasks'][LEMON]
    assert [row[key] for key in ('successes', 'n', 'refused', 'another task')] == [1, 3, 1, 1]
    assert [e['outcome'] for e in result['episodes']] == ['success', 'refused', 'another task']
    assert result['seeds'] == [1_000_000, 1_000_002]
    refuse = result['refuse']
    assert (refuse['total']['successes'], refuse['total']['n']) == (1, 2)
    assert len(refuse['total']['wilson95']) == 2
    out = capsys.readouterr().out
    assert 'taken wrongly' in out and 'another task' in out
    text = page.read_text()
    assert 'What must be refused' in text and 'no idea' in text and 'asdf qwer' in text
    # The journal is one of these wordings.
    with pytest.raises(UserError, match='wordings differ'):
        command.evaluate_policy(EvalOptions(
            NANO, instructions=written(SAID.replace('drop', 'let fall')), episodes=1,
            journal=tmp_path / 'j.jsonl'))
