from pathlib import Path

import pytest

from dtvla_ros.training.language.grammar import Goal, Grammar, Noun, Sampler, meaning
from dtvla_ros.training.language.matcher import vocabulary_of

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
        task = sampler.task()
        other = sampler.another(task, close)
        assert meaning(other) != meaning(task)


def test_what_may_mean_two_tasks_is_no_example(grammar):
    sampler = Sampler(grammar, 2)
    mug = (Goal('on', (Noun('mug', 'things'),), Noun('table', 'fixtures')),)
    cup = (Goal('on', (Noun('mug', 'things'),), Noun('red plate', 'shapes')),)
    assert sampler._differ(mug, cup) and not sampler._differ(mug, mug)
    # A blue bin may be called a blue box.
    box = (Goal('in', LEMON[0].objects, Noun('blue box', 'containers')),)
    assert not sampler._differ(LEMON, box)


def test_a_task_is_named_as_data_sets_name_it(grammar):
    sampler = Sampler(grammar, 4)
    said = {sampler.sentence(LEMON) for _ in range(200)}
    assert {'put the lemon in the blue bin', 'place the lemon in the blue bin',
            'pick up the lemon and place it in the blue bin'} <= said


def test_things_are_known_by_pretrained_vectors_only(grammar):
    vocabulary = vocabulary_of(grammar, ('lemon', 'put'))
    assert {'put', "don't", 'please', 'wooden'} <= {*vocabulary.learnt}
    assert not {'lemon', 'can', 'bread'} & {*vocabulary.learnt} - {'can'}
    assert {'lemon', 'bread'} <= {*vocabulary.domain}
