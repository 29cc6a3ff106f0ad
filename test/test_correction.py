"""What a person may say of a thought, which words that is, and where they stand in it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla_ros.correction import WHOLE, Correction, parse_correction
from dtvla_ros.errors import UserError
from dtvla_ros.thought import EXAMPLE, PHASES, Thought, as_sentence, settled

LOWER = 'holding nothing done nothing now lower can at x50 y-17 next grasp move still still down'
LEFT = ('still', 'left', 'still')


@pytest.mark.parametrize(('text', 'fields'), [
    ('reach the lemon', {'phase': 'reach', 'object': 'lemon'}),
    ('Reaching for the lemon.', {'phase': 'reach', 'object': 'lemon'}),
    ('lower onto the red cube', {'phase': 'lower', 'object': 'red cube'}),
    ('the lemon', {'object': 'lemon'}), ('  LEMON ', {'object': 'lemon'}),
    ('the other bin', {'object': 'other bin'}),
    ('the lemon to the blue bin', {'object': 'lemon', 'destination': 'blue bin'}),
    ('the lemon, into the blue bin', {'object': 'lemon', 'destination': 'blue bin'}),
    ('carry it to the blue bin', {'phase': 'carry', 'destination': 'blue bin'}),
    ('carry the lemon to the blue bin',
     {'phase': 'carry', 'object': 'lemon', 'destination': 'blue bin'}),
    ('grasp', {'phase': 'grasp'}), ('letting go of the can', {'phase': 'release',
                                                              'object': 'can'}),
    ('move left', {'move': LEFT}), ('left', {'move': LEFT}), ('Moving left.', {'move': LEFT}),
    ('move up and back', {'move': ('back', 'still', 'up')}),
    ('keep still', {'move': ('still',) * 3}),
    ('then grasp', {'following': 'grasp'}), ('nothing in hand', {'held': None}),
    ('holding the red cube', {'held': 'red cube'}),
    ('done with the can', {'done': 'can', 'trouble': None}),
    ('done with the can. Dropped it', {'done': 'can', 'trouble': 'dropped'}),
    ('missed it', {'done': None, 'trouble': 'missed'}),
    ('50 cm ahead and 17 cm to the right', {'x': 50, 'y': -17}),
    ('at 50 cm straight ahead', {'x': 50, 'y': 0}),
    ('reach the lemon and move left, up; then grasp.', {
        'phase': 'reach', 'object': 'lemon', 'move': ('still', 'left', 'up'),
        'following': 'grasp'}),
    ('Nothing in hand. Lowering onto the can, 50 cm ahead and 17 cm to the right', {
        'held': None, 'phase': 'lower', 'object': 'can', 'x': 50, 'y': -17})])
def test_parts(text, fields):
    correction = parse_correction(text)
    assert correction.fields == fields
    assert parse_correction(correction.said).fields == fields, 'what is repeated means the same'


@pytest.mark.parametrize('phase', PHASES)
def test_every_phase_is_said_as_in_words_and_in_sentences(phase):
    key = 'destination' if phase in ('carry', 'place', 'push') else 'object'
    said = as_sentence(LOWER.replace('lower', phase)).split('. ')[1].split(',')[0]
    text = f'{said.removeprefix("Task complete, ")} ' if phase != 'wait' else 'wait by the can'
    for way in (phase, f'{phase} the can', text):
        assert parse_correction(way).fields == {'phase': phase} | (
            {key: 'can'} if way != phase else {})


@pytest.mark.parametrize(('text', 'told'), [
    ('', 'nothing is said; say a phase'), ('!!', '"!!" is no part of a thought.*"move"'),
    ('move sideways', '"move sideways" is no part'), ('left and right', 'is no motion'),
    ('move left, move up', '"move up" is no part of a thought, or one too many'),
    ('the lemon, the can', '"the can" is no part of a thought, or one too many'),
    ('150 cm ahead', '150 cm is out of the range'), ('then dance', '"then dance" is no part')])
def test_nonsense_is_refused_with_what_can_be_said(text, told):
    with pytest.raises(UserError, match=told):
        parse_correction(text)


def test_a_whole_sentence_gives_every_word():
    correction = parse_correction(EXAMPLE)
    assert correction.said == WHOLE and correction.follows('') == f' {LOWER}'[:8]
    text = ''
    while more := correction.follows(text):
        text += more
    assert text.split() == LOWER.split() and correction.ends(text.strip())
    assert correction.applied(LOWER) == {
        'held': None, 'done': None, 'trouble': None, 'phase': 'lower', 'object': 'can', 'x': 50,
        'y': -17, 'following': 'grasp', 'move': ('still', 'still', 'down')}


@pytest.mark.parametrize(('fields', 'written', 'follows'), [
    ({'object': 'lemon'}, 'holding nothing done nothing now', ''),
    ({'object': 'lemon'}, 'holding nothing done nothing now reach', ' lemon at'),
    ({'object': 'lemon'}, 'holding nothing done nothing now reach lem', 'on at'),
    ({'object': 'lemon'}, 'holding nothing done nothing now reach lemon at', ''),
    ({'object': 'red cube'}, 'holding nothing done nothing now lower red', ' cube at'),
    ({'object': 'lemon'}, 'holding lemon done can missed now lift', ' lemon at'),
    ({'object': 'lemon'}, 'holding can done nothing now lift', ''),
    ({'object': 'lemon'}, 'holding lemon done nothing now carry', ''),
    ({'destination': 'blue bin'}, 'holding can done nothing now carry', ' blue bin at'),
    ({'destination': 'blue bin'}, 'holding can done nothing now lift', ''),
    ({'phase': 'reach', 'object': 'lemon'}, 'holding can done nothing now', ' reach lemon at'),
    ({'phase': 'reach'}, 'holding can done nothing now', ' reach'),
    ({'phase': 'reach'}, 'holding can done nothing now reach', ''),
    ({'held': None}, 'holding', ' nothing done'), ({'held': None}, '', ' holding'),
    ({'done': 'can', 'trouble': None}, 'holding nothing done', ' can now'),
    ({'done': None, 'trouble': 'missed'}, 'holding nothing done', ' nothing missed now'),
    ({'x': 50, 'y': 0}, 'holding nothing done nothing now reach can at', ' x50 y+0 next'),
    ({'following': 'lift'}, LOWER.split(' grasp')[0], ' lift move'),
    ({'move': LEFT}, LOWER.split(' still')[0], ' still left still'),
    ({'move': LEFT}, LOWER.split(' still')[0] + ' still', ' left still')])
def test_where_a_word_is_given(fields, written, follows):
    assert Correction('', fields).follows(written) == follows


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(['object', 'phase', 'move', 'following', 'held']), unique=True))
def test_what_was_given_and_no_more_is_known_of_a_finished_thought(keys):
    fields = {'object': 'can', 'phase': 'lower', 'move': ('still', 'still', 'down'),
              'following': 'grasp', 'held': None}
    correction = Correction('', {key: fields[key] for key in keys})
    assert correction.applied(LOWER) == {key: fields[key] for key in keys}
    assert correction.ends(LOWER) == ('move' in keys)
    words = LOWER.split()
    for k in range(len(words)):
        more = correction.follows(' '.join(words[:k]))
        assert ' '.join([*words[:k], *more.split()]) == ' '.join(words[:k + len(more.split())])
    assert correction.applied('The can stands.') == {}


def test_an_object_waits_while_another_is_in_the_hand():
    lemon = Correction('the lemon', {'object': 'lemon'})
    lift = 'holding can done nothing now lift can at x50 y-17 next carry move still still up'
    assert Thought.parse(lift) and lemon.applied(lift) == {}
    assert settled('holding can done') == {'held': 'can'}
