"""When a policy counts as having said that its task is complete."""

from dataclasses import replace

import pytest
from support.graph import NANO

from dtvla_ros.policy.completion import (
    AFTER_SUCCESS,
    Completion,
    after_success,
    decisions_in_a_row,
)
from dtvla_ros.policy.manifest import PolicyManifest

IN_A_ROW = 3
WAIT = 'holding nothing done can now wait can at x50 y-17 next wait move still still still'
PUSHES = 'holding nothing done nothing now push mark at x50 y-17 next wait move still left still'
GOES_ON = 'holding nothing done can now reach can at x50 y-17 next lower move still left still'


@pytest.mark.parametrize(('thoughts', 'complete'), [
    ([WAIT] * IN_A_ROW, True), ([GOES_ON] + [WAIT] * IN_A_ROW, True),
    ([WAIT] * (IN_A_ROW - 1), False), ([WAIT, WAIT, GOES_ON, WAIT], False),
    ([WAIT, WAIT, '', WAIT], False), (['now wait'] * IN_A_ROW, False),
    (['The task is complete; I wait.'] * IN_A_ROW, False),
    ([WAIT.replace('next wait', 'next grasp')] * IN_A_ROW, True), ([PUSHES] * IN_A_ROW, False)])
def test_it_must_be_said_in_decisions_in_a_row_and_in_the_words_of_the_grammar(thoughts, complete):
    completion = Completion()
    assert [completion.add(text, IN_A_ROW) for text in thoughts][-1] is complete


@pytest.mark.parametrize(('replan_steps', 'rate', 'decisions'), [
    (3, 20.0, 3), (6, 20.0, 2), (2, 20.0, 4), (1, 20.0, 7), (8, 20.0, 2), (6, 10.0, 2),
    (3, 30.0, 4)])
def test_it_must_be_said_for_as_long_however_often_a_policy_decides(replan_steps, rate, decisions):
    assert decisions_in_a_row(replan_steps, rate) == decisions


def test_only_a_policy_that_learnt_it_and_thinks_for_itself_is_waited_for():
    manifest = PolicyManifest.read(NANO)
    assert after_success(replace(manifest, says_done=True)) == AFTER_SUCCESS
    assert after_success(replace(manifest, says_done=True), 'masked') == 0
    assert after_success(replace(manifest, says_done=False)) == 0
