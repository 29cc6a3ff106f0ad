"""Corrections in mid-episode: to which task, how long they stand, and what is counted."""

from pathlib import Path

import pytest

import dtvla_sim
from dtvla_ros.engine.policy import Policy
from dtvla_ros.evaluation import corrections, interventions
from dtvla_ros.evaluation.workers import EvalOptions
from dtvla_ros.thought import Thought
from dtvla_sim.tabletop.env import TabletopEnv
from dtvla_sim.tabletop.tasks import TASKS

NANO = Path(__file__).resolve().parents[2] / 'models/nano'
CAN, LEMON, BREAD, STACK, PUSH, TWO = TASKS


def test_a_correction_names_another_thing_and_keeps_the_verb():
    env = dtvla_sim.make('tabletop', image_size=32)
    env.reset(seed=1, options={'task': CAN})
    named = {task: corrections.same_verb(env, task) for task in env.tasks}
    assert named == {CAN: [LEMON, BREAD], LEMON: [CAN, BREAD], BREAD: [CAN, LEMON], STACK: [],
                     PUSH: [], TWO: [LEMON, BREAD]}
    env.close()


def test_it_stands_from_mid_reach_until_it_is_cleared_and_the_policy_names_the_thing(monkeypatch):
    given, infer = [], Policy.infer

    def noted(self, observation, on_text=None, correction=None):
        decision = infer(self, observation, on_text, correction)
        if correction is None or 'move' not in correction.fields:
            given.append((correction and correction.said, Thought.parse(decision.reasoning)))
        return decision

    monkeypatch.setattr(Policy, 'infer', noted)
    monkeypatch.setattr(TabletopEnv, 'max_steps', 15)
    monkeypatch.setattr(corrections, 'drawn', lambda names, seed: LEMON)
    result = corrections.make_correction_worker(EvalOptions(NANO))((CAN, 1_000_000))
    assert (result.other, result.said) == (LEMON, 'the lemon to the blue bin')
    assert not result.done and not result.asked, 'there was no time'
    assert result.followed >= 0.9 * result.decisions > 5
    # Three decisions of its own, 15 steps of three to a decision and one, then its own again.
    assert [said is not None for said, _ in given] == [False] * 3 + [True] * 6 + [False] * 5
    assert {thought.object for said, thought in given} == {'can', 'lemon'}
    for said, thought in given:
        assert thought.object == ('lemon' if said else 'can')


def test_what_is_counted():
    rows = [corrections.Corrected(CAN, LEMON, 1, 'x', True, True, 10, 9),
            corrections.Corrected(CAN, LEMON, 2, 'x', True, False, 10, 10),
            corrections.Corrected(STACK, '', 3, '', False, False, 5, 5)]
    summary = corrections.correction_summary(rows)
    assert {key: (rate['successes'], rate['n']) for key, rate in summary.items()} == {
        'thing': (2, 2), 'cleared': (1, 2), 'direction': (24, 25)}
    assert corrections.correction_sentence(summary) == (
        'Corrected to another thing on its way, the arm did the task of that one in 2 of 2 '
        'episodes and, once that was cleared, its own in 1; motions corrected to the opposite '
        'were followed in 24 of 25 decisions.')
    alone = corrections.correction_sentence(corrections.correction_summary(rows[2:]))
    assert alone.startswith('No scene had another thing to correct to; ')


def test_the_command_writes_what_the_others_do(monkeypatch, tmp_path, dtvla):
    row = corrections.Corrected(CAN, LEMON, 1_000_000, 'the lemon', True, True, 10, 9)
    monkeypatch.setattr(interventions, 'run_jobs', lambda jobs, *_: [(j, row) for j in jobs])
    code, said, told = dtvla('steer', '--correct', '--policy', NANO, '--tasks', CAN,
                             '--episodes', '1', '--json', 'c.json')
    assert code == 0 and 'in 1 of 1 episodes and, once that was cleared, its own in 1' in said
    assert 'wrote out/steer.html\nwrote c.json\n' in told


@pytest.mark.parametrize(('thought', 'move'), [
    ('holding nothing done nothing now reach can at x45 y-12 next lower move forward still down',
     ('back', 'still', 'up')),
    ('holding nothing done nothing now grasp can at x45 y-12 next lift move still still still',
     None), ('The can stands.', None)])
def test_a_motion_is_turned_round(thought, move):
    turned = interventions.turned(thought)
    assert (turned and turned.fields) == (move and {'move': move})
