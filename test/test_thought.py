"""The thought's grammar: compact words, sentences, and back; phrases while it is written."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla_ros.actions.grid import CM_RANGE
from dtvla_ros.errors import UserError
from dtvla_ros.thought import (
    AXIS_WORDS,
    EXAMPLE,
    PHASES,
    STILL,
    TROUBLES,
    Thought,
    as_compact,
    as_sentence,
    as_told,
    parse_sentence,
    phrases,
    without_told,
)
from dtvla_sim.tabletop.scene import OBJECTS
from dtvla_sim.tabletop.tasks import TASKS

GLOSSARY = Path(__file__).resolve().parents[1] / 'docs' / 'glossary.md'
LOWER = 'holding nothing done nothing now lower can at x50 y-17 next grasp move still still down'
CARRY = ('holding can done red cube now carry wooden bin at x43 y+35 next place move forward left '
         'up')
# The objects, fixtures and parts of LIBERO's four suites, as its experts name them.
LIBERO = (  # noqa: SIM905
    'akita_black_bowl alphabet_soup basket bbq_sauce black_book butter chefmate_8_frypan '
    'chocolate_pudding cookies cream_cheese desk_caddy flat_stove glazed_rim_porcelain_ramekin '
    'ketchup microwave milk moka_pot orange_juice plate porcelain_mug red_coffee_mug '
    'salad_dressing table tomato_sauce white_cabinet white_yellow_mug wine_bottle wine_rack '
    'wooden_cabinet top_drawer middle_drawer bottom_drawer').split()
NAMES = [name.replace('_', ' ') for name in (
    *OBJECTS, *(goal.destination for task in TASKS.values() for goal in task.goals), *LIBERO)]
MOVES = list(itertools.product(*((*axis, STILL) for axis in AXIS_WORDS)))
THOUGHTS = st.builds(
    Thought, held=st.none() | st.sampled_from(NAMES), done=st.none() | st.sampled_from(NAMES),
    trouble=st.sampled_from((None, *TROUBLES)), phase=st.sampled_from([*PHASES]),
    object=st.sampled_from(NAMES), x=st.integers(*CM_RANGE['x']), y=st.integers(*CM_RANGE['y']),
    following=st.sampled_from([*PHASES]), move=st.sampled_from(MOVES))


def every_word():
    """Yield thoughts that hold, together, every word of the grammar and every pair of phases."""
    first = Thought('can', None, None, 'lower', 'can', 50, -17, 'grasp', ('still',) * 3)
    fields = {'held': (None, *NAMES), 'done': (None, *NAMES), 'trouble': (None, *TROUBLES),
              'object': NAMES, 'x': range(CM_RANGE['x'][0], CM_RANGE['x'][1] + 1),
              'y': range(CM_RANGE['y'][0], CM_RANGE['y'][1] + 1), 'move': MOVES}
    values = {name: getattr(first, name) for name in first.__slots__}
    for name, words in fields.items():
        for word in words:
            yield Thought(**{**values, name: word})
    for phase, following in itertools.product(PHASES, PHASES):
        yield Thought(**{**values, 'phase': phase, 'following': following})


def there_and_back(thought):
    compact, sentence = thought.compact(), thought.sentence()
    assert Thought.parse(compact) == thought
    assert parse_sentence(sentence) == thought
    assert (as_sentence(compact), as_compact(sentence)) == (sentence, compact)
    assert ''.join(phrases(compact)) == sentence


def test_every_word_of_the_grammar_comes_back():
    for thought in every_word():
        there_and_back(thought)


@settings(deadline=None)
@given(THOUGHTS)
def test_any_thought_comes_back(thought):
    there_and_back(thought)


@pytest.mark.parametrize('compact, sentence', [
    (LOWER, EXAMPLE),
    (CARRY, 'Holding the can. Done with the red cube. Carrying it to the wooden bin, 43 cm ahead '
     'and 35 cm to the left; then place. Moving forward, left and up.'),
    ('holding nothing done nothing missed now retry black bowl at x60 y+0 next reach move still '
     'left up', 'Nothing in hand. Missed it. Trying again for the black bowl, 60 cm straight '
     'ahead; then reach. Moving left and up.'),
    ('holding nothing done can now wait can at x43 y+35 next wait move still still still',
     'Nothing in hand. Done with the can. Task complete, waiting by the can, 43 cm ahead and 35 '
     'cm to the left. Keeping still.')])
def test_sentences(compact, sentence):
    assert as_sentence(compact) == sentence
    assert Thought.parse(compact).finished == ('Task complete' in sentence)


def test_the_mark_of_what_a_person_said_is_not_part_of_the_thought():
    marked = as_told(EXAMPLE, 'reach the lemon, move left')
    assert marked == f'{EXAMPLE} (told: reach the lemon, move left)'
    assert parse_sentence(marked) == Thought.parse(LOWER) and as_compact(marked) == LOWER
    assert without_told(marked) == (EXAMPLE, 'reach the lemon, move left')
    assert without_told(EXAMPLE) == (EXAMPLE, '')


def test_names_of_data_sets_have_underscores():
    compact = CARRY.replace('wooden bin', 'wooden_bin')
    assert Thought.parse(compact).compact() == compact
    assert as_sentence(compact) == as_sentence(CARRY)


def test_measured():
    thought = Thought.measured(
        held=None, done=None, trouble=None, phase='lower', object='can',
        place=np.array([0.504, -0.171, 0.2]), following='grasp', move=np.array([0.01, 0.0, -0.1]))
    assert thought.compact() == LOWER
    far = Thought.measured(held=None, done=None, trouble=None, phase='lower', object='can',
                           place=np.array([2.0, -2.0, 0.2]), following='grasp', move=np.ones(3))
    assert (far.x, far.y, far.move) == (80, -45, ('forward', 'left', 'up'))


@pytest.mark.parametrize('changed, words', [
    (EXAMPLE.replace('can', 'black bowl'), {'object': 'black bowl'}),
    (EXAMPLE.replace('50 cm', '61 cm'), {'x': 61}),
    (EXAMPLE.replace('right', 'left'), {'y': 17}),
    (EXAMPLE.replace('ahead and 17 cm to the right', 'straight ahead'), {'y': 0}),
    (EXAMPLE.replace('ahead and 17 cm to the right', 'ahead'), {'y': 0}),
    (EXAMPLE.replace('Moving down', 'Moving up, back'), {'move': ('back', 'still', 'up')}),
    (EXAMPLE.replace('Moving down', 'Moving still'), {'move': ('still',) * 3}),
    (EXAMPLE.replace('Nothing in hand', 'Holding lemon'), {'held': 'lemon'}),
    (EXAMPLE.replace('Nothing in hand', 'Holding nothing'), {}),
    (EXAMPLE.replace('Lowering onto', 'missed it. Reaching for'),
     {'trouble': 'missed', 'phase': 'reach'}),
    (EXAMPLE.replace('then grasp', 'then push'), {'following': 'push'}),
    ('  ' + EXAMPLE.upper().removesuffix('.'), {}),
    (EXAMPLE.replace(' ', '   ').replace(', ', ' ,').replace('. ', '.'), {})])
def test_a_changed_sentence_is_read(changed, words):
    before = Thought.parse(LOWER)
    assert parse_sentence(changed) == Thought(
        **{name: getattr(before, name) for name in before.__slots__} | words)


@pytest.mark.parametrize('text, told', [
    ('', 'ends before it says what is in the hand; write "Nothing in hand."'),
    (LOWER, '"holding nothing done nothing now.*does not say what is in the hand'),
    (EXAMPLE.replace('Nothing', 'Something'), '"something in hand.*does not say what is in the'),
    (EXAMPLE.replace('Lowering onto', 'Flying to'),
     '"flying to the can.*does not say what the arm does; write "Lowering onto.*Reaching for'),
    (EXAMPLE.replace('50 cm', '50 m'), 'does not say where that is; write ", 50 cm ahead and'),
    (EXAMPLE.replace('50 cm', '150 cm'), '150 cm is out of the range.*20 to 80 cm ahead'),
    (EXAMPLE.replace('17', '99999'), '99999 cm is out.*45 cm to the left or right at most'),
    (EXAMPLE.replace('grasp', 'dance'), 'what follows; write "; then grasp." or another of'),
    (EXAMPLE.replace('; then grasp', ''), 'does not say what follows.*as in: Nothing in hand'),
    (EXAMPLE.replace(' Moving down.', ''), 'ends before it says the motion'),
    (EXAMPLE.replace('down', 'down and up'), '"moving down and up" is no motion.*up or down'),
    (EXAMPLE.replace('down', 'sideways'), '"moving sideways" is no motion'),
    (EXAMPLE + ' Hello.', '"hello." follows the motion; end as in: Nothing in hand')])
def test_what_cannot_be_read_is_named(text, told):
    with pytest.raises(UserError, match=told):
        parse_sentence(text)


@pytest.mark.parametrize('text', [
    '', 'holding', LOWER.replace(' at ', ' '), LOWER + ' up', LOWER.replace('y-17', 'y-170'),
    LOWER.replace('x50', 'x5'), LOWER.replace('lower', 'fly'), LOWER.replace('holding', 'Holding'),
    LOWER.replace('can', 'can now'), ' ' + LOWER, LOWER + '\n', 'The can stands left of the bin.',
    f'It is upright. {LOWER}', EXAMPLE.replace('50', '5000')])
def test_a_text_outside_the_grammar_stays_as_it_is(text):
    assert Thought.parse(text) is None
    assert as_sentence(text) == text == as_compact(text)


def test_phrases_come_as_soon_as_they_are_complete():
    words = LOWER.replace('done nothing', 'done red cube missed').split()
    heard = [len(phrases(' '.join(words[:k]))) for k in range(len(words) + 1)]
    assert heard == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 4, 4, 4, 4, 5]
    assert phrases(' '.join(words[:14])) == [
        'Nothing in hand.', ' Done with the red cube. Missed it.',
        ' Lowering onto the can, 50 cm ahead and 17 cm to the right', '; then grasp.']


@settings(deadline=None)
@given(THOUGHTS, st.integers(0, 200))
def test_phrases_begin_the_sentence_wherever_the_text_is_cut(thought, letters):
    text = thought.compact()[:letters]  # large models write parts of words
    assert thought.sentence().startswith(''.join(phrases(text)))


@pytest.mark.parametrize('text, heard', [
    ('The c', ''), ('The can stands.', ''), ('The can stands. Now', 'The can stands.'),
    ('Lift 0.1 m. Is it up?  Yes', 'Lift 0.1 m. Is it up?'),
    ('holding nothing in particular. The can', 'holding nothing in particular.'),
    ('holding nothing done what now. fly', 'Nothing in hand.')])
def test_sentences_of_another_text_come_as_they_are_completed(text, heard):
    assert ''.join(phrases(text)) == heard


def test_the_glossary_shows_every_phase_as_it_is_said():
    rows = re.findall(r'^\|[^|]*\| `now (\w+) (.+?)(?: \.\.\. next wait)?` \| (.+?) \|$',
                      GLOSSARY.read_text(), re.MULTILINE)
    assert [phase for phase, _, _ in rows] == [*PHASES]
    for phase, name, said in rows:
        compact = LOWER.replace('lower can', f'{phase} {name}').replace('grasp', phase)
        assert f'Nothing in hand. {said}, 50 cm ahead' in as_sentence(compact)
