"""What a sentence means to a policy."""

from dataclasses import replace
from pathlib import Path

import pytest

from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.policy.understanding import NotUnderstood, Understood, understanding_of

NANO = Path(__file__).parents[2] / 'models/nano'
MANIFEST = PolicyManifest.read(NANO)
LEMON = 'put the lemon in the blue bin'


def test_every_task_is_understood_as_itself_in_any_spelling():
    understanding = understanding_of(NANO, MANIFEST)
    assert understanding.tasks == MANIFEST.tasks
    for task in MANIFEST.tasks:
        for text in (task, f' {task.upper()} !', task.replace(' ', '_')):
            assert understanding.understand(text) == Understood(task, 1.0)


@pytest.mark.parametrize(('text', 'why'), [
    ('asdf qwer zxcv', 'nearest: "'), ('', 'it is empty'), ('put\x07it', 'control characters'),
    ('x' * 10_000, 'not shorter than 10000 bytes')])
def test_what_is_no_task_is_refused_with_the_reason(text, why):
    with pytest.raises(NotUnderstood, match=why):
        understanding_of(NANO, MANIFEST).understand(text)


def test_only_what_is_allowed_is_understood_in_the_words_of_the_policy():
    understanding = understanding_of(NANO, MANIFEST, ['Put the Lemon in the blue bin.', 'wave'])
    assert understanding.tasks == (LEMON, 'wave')
    assert understanding.understand('put the lemon in the blue bin').task == LEMON
    with pytest.raises(NotUnderstood, match='nothing in allowed_instructions, .*; nearest: "'):
        understanding.understand('wave at the lemon')


def test_a_policy_that_names_no_tasks_takes_any_sentence_as_it_is():
    understanding = understanding_of(NANO, replace(MANIFEST, tasks=()))
    assert understanding.understand(' Fold the shirt. ') == Understood('Fold the shirt.', 1.0)
    with pytest.raises(NotUnderstood, match='it is empty'):
        understanding.understand(' ')
