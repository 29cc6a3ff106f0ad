"""A labeller learns accepted key frames and fills the frames between them."""

import json

import numpy as np
import pytest
from support.picks import picks_dataset

from dtvla_ros import thought
from dtvla_ros.annotation import fill as module
from dtvla_ros.annotation.checks import compare
from dtvla_ros.annotation.fill import Classes, MotionLabeller, fill, learn
from dtvla_ros.annotation.keyframes import KeyframeOptions, find_keyframes
from dtvla_ros.annotation.question import PHASES, Semantics, parse_thought, write_thought
from dtvla_ros.annotation.rules import label_frames
from dtvla_ros.annotation.source import Goal, Source
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.thought import Thought


@pytest.fixture
def accepted(source):
    """Return right labels of the key frames of all episodes but the last."""
    motions = [source.motion(episode) for episode in range(len(source) - 1)]
    return {number: [(k, label_frames(motion, source.goal(number))[k].model_copy(
        update={'reason': f'as seen in {k}.'}))
        for k in find_keyframes(motion, KeyframeOptions(max_gap=0.5))]
        for number, motion in enumerate(motions)}


def content(folder):
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_a_new_dataset_with_every_thought(source, accepted, tmp_path):
    before, out = content(source.root), tmp_path / 'thoughts'
    facts = fill(source, accepted, MotionLabeller(steps=200), out, held_out=0.3)
    assert content(source.root) == before
    assert facts['held_out']['phase']['rate'] > 0.85 and facts['held_out']['phase']['n'] > 20
    filled = Source(out)
    assert filled.reader.info['features']['reasoning']['dtype'] == 'string'
    assert json.loads((out / module.PROVENANCE).read_text())['labeller'] == 'motion'
    for episode, labels in accepted.items():
        for frame, label in labels:
            assert parse_thought(filled.thoughts(episode)[frame])[0].key() == label.key()
    rates = compare(source, filled, range(len(source)))
    assert rates['phase'].value > 0.9 and rates['object'].value > 0.9
    assert compare(source, filled, [len(source) - 1])['phase'].value > 0.8  # never labelled
    key = filled.reader.video_keys[0]
    np.testing.assert_array_equal(*(s.reader.image(3, 2, key) for s in (filled, source)))


def test_a_dataset_without_thoughts_gets_the_column(accepted, source, tmp_path):
    bare = Source(picks_dataset(tmp_path / 'bare', 12, places=False))
    fill(bare, accepted, MotionLabeller(steps=20), tmp_path / 'out', reason=True)
    filled = DatasetReader(tmp_path / 'out').column('reasoning')
    assert filled[0].startswith('as seen in 0. holding nothing done nothing now ')
    assert len(filled) == len(source.reader.column('reasoning'))
    assert not list(tmp_path.glob('.out*'))


def test_the_held_out_agreement_is_honest(source, accepted):
    """Labels that follow nothing cannot be learned, and the number says so."""
    rng = np.random.default_rng(0)
    pool = [label for labels in accepted.values() for _, label in labels]
    noise = {k: [(frame, pool[rng.integers(len(pool))]) for frame, _ in labels]
             for k, labels in accepted.items()}
    _, rates = learn(source, noise, MotionLabeller(steps=100), held_out=0.3)
    assert rates['all fields'].value < 0.5
    with pytest.raises(UserError, match='at least one'):
        learn(source, dict(list(accepted.items())[:1]), MotionLabeller())


def label(phase, name='can', holding='nothing', trouble='none'):
    return Semantics(holding=holding, done='nothing', trouble=trouble, phase=phase, object=name,
                     next='wait')


def test_classes_carry_over_to_other_things():
    goals = {0: Goal('put', ('can',), 'bin'), 1: Goal('put', ('lemon',), 'box')}
    carry = label('carry', 'bin', 'can')
    classes = Classes.of({0: [(0, label('reach')), (4, carry)]}, goals)
    assert len(classes.keys) == 2
    other = classes.label(classes.number(carry, goals[0]), goals[1])
    assert (other.object, other.holding) == ('box', 'lemon')
    assert classes.fits(Goal('lift', ('can',), None)).sum() == 1  # it has no destination


def test_the_path_passes_through_what_is_known_and_changes_seldom():
    goal = Goal('put', ('can',), 'bin')
    rows = [(0, label('reach')), (3, label('lower')), (6, label('grasp'))]
    classes = Classes.of({0: rows}, {0: goal})
    reach, lower, grasp = (classes.number(row[1], goal) for row in rows)
    scores = np.full((9, 3), -1.0)
    scores[4, reach] = -0.5  # a flicker
    path = classes.best_path(
        scores, goal, np.arange(9) >= 7, {0: reach, 2: lower, 8: grasp}).tolist()
    assert path[0] == reach and path[2:7] == [lower] * 5  # and then as the gripper is told
    assert path[7:] == [grasp] * 2 and path[1] in (reach, lower)
    backwards = classes.best_path(
        np.full((4, 3), -1.0), goal, np.arange(4) < 1, {0: grasp, 3: reach})
    assert backwards[0] == grasp and backwards[3] == reach  # unlikely, not impossible


def test_thoughts_are_read_as_they_are_written():
    missed = label('lower', trouble='missed')
    text = write_thought(missed, np.array([0.45, -0.12, 0]), np.array([0.05, -0.05, 0.0]))
    assert text == ('holding nothing done nothing missed now lower can at x45 y-12 next wait '
                    'move forward right still')
    assert parse_thought(text) == (missed, Thought.parse(text))
    assert parse_thought(text.replace('can', 'black bowl'))[0].object == 'black_bowl'
    assert {*PHASES} < {*thought.PHASES}
    assert parse_thought('I think I will grasp the can') is None
