"""Features of a decision's probabilities, and the probability of success made of them."""

import math

import numpy as np
import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.policy.confidence import (
    FEATURES,
    WINDOW,
    Calibration,
    certainty,
    fields_of,
    least_mean,
    least_sure,
)
from dtvla_ros.thought import EXAMPLE, parse_sentence

NAN = math.nan
WORDS = parse_sentence(EXAMPLE).compact().split()
FIELDS = ['', 'held', '', 'done', '', 'phase', 'object', '', 'place', 'place', '', 'following',
          '', 'move', 'move', 'move']
ACTIONS = np.float32([[-1, -2], [-3, -2]])


def calibration(**changed):
    return Calibration(**{'bias': 1.0, 'weights': {'thought_least': 2.0, 'action_mean': -0.5},
                          'error': 0.05, 'episodes': 10, 'decisions': 200,
                          'seeds': (2_000_000, 2_000_004), 'suite': 'tabletop'} | changed)


def test_a_word_is_of_the_field_that_its_mark_begins():
    assert fields_of(['', *WORDS, '']) == ['', *FIELDS, '']
    assert fields_of(['now', 'carry', 'blue', 'bin', '']) == [
        '', 'phase', 'object', 'object', '']
    assert fields_of(['any', 'text']) == ['', '']


def test_features_leave_out_what_was_not_chosen():
    thought = [NAN, -0.1, NAN, *[-0.2] * 5, -0.6, -0.8, *[-0.2] * 6]
    found = certainty(FIELDS, thought, ACTIONS)
    assert found == pytest.approx({
        'thought_mean': (-0.1 - 0.2 * 11 - 1.4) / 14, 'thought_least': -0.8, 'place_mean': -0.7,
        'action_mean': -2.0, 'action_least': -3.0})
    assert tuple(found) == FEATURES
    assert certainty([], (), ACTIONS) == {'action_mean': -2.0, 'action_least': -3.0}
    assert certainty(FIELDS, [NAN] * 16, ACTIONS)['thought_least'] == 0.0
    assert certainty(['', ''], [-1.0, -3.0], ACTIONS)['place_mean'] == -2.0, 'no place is named'


def test_the_least_sure_field():
    thought = [-9.0, *[-0.1] * 5, math.log(0.25), *[-0.2] * 9]
    assert least_sure(FIELDS, thought) == ('object', pytest.approx(0.25)), 'a mark is no field'
    assert least_sure(FIELDS, ()) == least_sure([''], [-1.0]) == ('', 1.0)


def test_confidence_is_a_logistic_function_of_the_features():
    fitted, found = calibration(), {'thought_least': -1.0, 'action_mean': -2.0, 'place_mean': 0.0}
    assert fitted.confidence(found) == pytest.approx(0.5)
    assert fitted.confidence(found | {'thought_least': -1e6}) == pytest.approx(0.0)
    assert fitted.confidence({'action_mean': -2.0}) is None, 'it needs the thought'


@pytest.mark.parametrize('changed', [
    {'weights': {'mood': 1.0}}, {'bias': NAN}, {'bias': 'high'}, {'weights': {'place_mean': NAN}}])
def test_a_calibration_is_of_known_features_and_finite(changed):
    with pytest.raises(UserError):
        calibration(**changed)


def test_the_mean_of_an_episode_is_judged_once_there_are_enough_decisions():
    assert least_mean([0.0] * (WINDOW - 1)) == 1.0
    assert least_mean([0.9] * 10) == pytest.approx(0.9)
    assert least_mean([0.9] * 4 + [0.4] * 3 + [0.9] * 9) == pytest.approx(0.6)
