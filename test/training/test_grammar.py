from dataclasses import replace
from pathlib import Path

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.training.language.grammar import Goal, Grammar, Noun, Placed, meaning
from dtvla_ros.training.language.matcher import vocabulary_of
from dtvla_ros.training.language.sentences import Sampler

FILE = Path(__file__).parents[2] / 'config/train/language.yaml'
LEMON = (Goal('in', (Noun('lemon', 'things'),), Noun('blue bin', 'containers')),)


@pytest.fixture(scope='module')
def grammar() -> Grammar:
    return Grammar.read(FILE)


def test_every_slot_is_filled(grammar):
    sampler = Sampler(grammar, 0)
    pairs = [sampler.pair() for _ in range(4000)]
    assert not [pair for pair in pairs if {*'{}'} & {*pair[0], *pair[1]}]
    assert 0.4 < sum(pair[2] for pair in pairs) / len(pairs) < 0.5
    assert len({pair[0] for pair in pairs}) > 3800


def test_the_same_seed_draws_the_same(grammar):
    a, b = Sampler(grammar, 3), Sampler(grammar, 3)
    assert [a.pair() for _ in range(50)] == [b.pair() for _ in range(50)]


@pytest.mark.parametrize('close', [False, True])
def test_another_task_asks_for_something_else(grammar, close):
    sampler = Sampler(grammar, 1)
    for _ in range(300):
        task = sampler.tasks.task()
        other = sampler.tasks.another(task, close)
        assert meaning(other) != meaning(task)


def test_what_may_mean_two_tasks_is_no_example(grammar):
    sampler = Sampler(grammar, 2)
    mug = (Goal('on', (Noun('mug', 'things'),), Noun('table', 'fixtures')),)
    cup = (Goal('on', (Noun('mug', 'things'),), Noun('red plate', 'shapes')),)
    assert sampler.tasks.differ(mug, cup) and not sampler.tasks.differ(mug, mug)
    # A blue bin may be called a blue box.
    box = (Goal('in', LEMON[0].objects, Noun('blue box', 'containers')),)
    assert not sampler.tasks.differ(LEMON, box)


def test_a_task_is_named_as_data_sets_name_it(grammar):
    sampler = Sampler(grammar, 4)
    said = {sampler.sentence(LEMON) for _ in range(200)}
    assert {'put the lemon in the blue bin', 'place the lemon in the blue bin',
            'pick up the lemon and place it in the blue bin'} <= said


def test_things_are_known_by_pretrained_vectors_only(grammar):
    vocabulary = vocabulary_of(grammar, ('lemon', 'put'))
    assert {'put', "don't", 'please', 'wooden'} <= {*vocabulary.learnt}
    assert not {'lemon', 'can', 'bread'} & {*vocabulary.learnt} - {'can'}
    assert {'lemon', 'bread', 'ramekin'} <= {*vocabulary.domain}
    assert 'libero' not in vocabulary.domain and vocabulary.strangers


BOWL, RAMEKIN, PLATE = (Noun('black bowl', 'shapes'), Noun('ramekin', 'things'),
                        Noun('plate', 'fixtures'))
BESIDE = Placed.at(BOWL, 'next to the {w}', [RAMEKIN])


def test_what_a_thing_is_told_by_is_said_with_it(grammar):
    sampler = Sampler(grammar, 5)
    task = (Goal('on', (BESIDE,), PLATE),)
    spelt = 'pick up the black bowl next to the ramekin and place it on the plate'
    assert spelt in {sampler.sentence(task) for _ in range(50)}
    said = {sampler._say(BESIDE) for _ in range(3000)}
    assert 'bowl beside the ramekin' in said and 'black bowl by the ramekin' in said
    assert not [text for text in said if 'ramekin' not in text and 'baking dish' not in text]


def test_the_same_thing_elsewhere_is_another(grammar):
    sampler = Sampler(grammar, 6)
    sampler.tasks.group = sampler.tasks.groups[[*grammar.tasks].index('libero')]
    ways = {sampler.tasks.elsewhere(BESIDE).name for _ in range(300)}
    assert BESIDE.name not in ways
    assert {'black bowl next to the plate', 'black bowl on the ramekin'} <= ways
    assert not sampler.tasks.differ(
        (Goal('on', (BESIDE,), PLATE),),
        (Goal('on', (Placed.at(Noun('white bowl', 'shapes'), 'next to the {w}', [RAMEKIN]),),
              PLATE),))  # both may be called the bowl next to the ramekin


def test_between_two_things_their_order_does_not_matter():
    between = 'between the {w} and the {x}'
    assert Placed.at(BOWL, between, [PLATE, RAMEKIN]) == Placed.at(BOWL, between, [RAMEKIN, PLATE])


def test_a_second_goal_calls_what_was_spoken_of_it(grammar):
    sampler = Sampler(grammar, 7)
    task = (Goal('in', (Noun('mug', 'things'),), Noun('microwave', 'fixtures')),
            Goal('close', (Noun('microwave', 'fixtures'),)))
    assert 'put the mug in the microwave and close it' in {
        sampler.sentence(task) for _ in range(200)}
    assert not [text for text in (sampler.command(task) for _ in range(300)) if 'the it' in text]


def test_tasks_of_the_grammar_are_spelt_as_policies_spell_them(grammar):
    sampler = Sampler(grammar, 8)
    for group in grammar.tasks.values():
        for text, goals in group.items():
            task = sampler.tasks.own(text, goals)
            assert text in {sampler.sentence(task) for _ in range(40)}


@pytest.mark.parametrize('goals', [
    [['open', ['microwave']]], [['on', ['mug'], 'table']]], ids=['no place', 'one thing, on'])
def test_other_tasks_are_drawn_near_few_ones(grammar, goals):
    sampler = Sampler(replace(grammar, tasks={'few': {'a task': goals}}), 10)
    assert len({sampler.pair()[0] for _ in range(300)}) > 200


@pytest.mark.parametrize('goals, message', [
    ([['in', ['unicorn'], 'blue bin']], 'there is no "unicorn"'),
    ([['in', ['lemon']]], r"\['in', \['lemon'\]\] is no goal"),
    ([['fly', ['lemon'], 'blue bin']], 'is no goal')])
def test_a_task_of_unknown_things_or_kinds_is_refused(grammar, goals, message):
    with pytest.raises(UserError, match=message):
        Sampler(grammar, 9).tasks.own('a task', goals)
