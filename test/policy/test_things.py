"""Which thing a correction names, by the tasks and the present thought, and what is refused."""

import pytest

from dtvla_ros.correction import parse_correction
from dtvla_ros.errors import UserError
from dtvla_ros.policy.things import Things, things, understand_correction
from dtvla_ros.thought import Thought
from dtvla_sim.tabletop.tasks import TASKS as TABLETOP

TASKS = [task.instruction for task in TABLETOP.values()]
CAN, LEMON, STACK = TASKS[0], TASKS[1], TASKS[3]
LEMON_ELSEWHERE = 'put the lemon in the wooden bin'
REACH = 'holding nothing done nothing now reach can at x37 y-16 next lower move back right down'
LIFT = 'holding can done nothing now lift can at x37 y-16 next carry move still still up'
CARRY = ('holding can done nothing now carry wooden bin at x43 y+35 next place move forward left '
         'up')


@pytest.mark.parametrize(('task', 'named'), [
    (CAN, ('can', 'wooden bin')), (STACK, ('red cube', 'green cube')),
    ('Put the red cube and the can in the blue bin.', ('red cube', 'can', 'blue bin')),
    ('pick up the black bowl between the plate and the ramekin and place it on the plate',
     ('black bowl', 'plate', 'ramekin')),
    ('put the yellow and white mug in the microwave and close it',
     ('yellow and white mug', 'microwave')),
    ('turn on the stove and put the moka pot on it', ('stove', 'moka pot')),
    ('pick a lemon', ('lemon',)), ('wave', ())])
def test_the_things_of_a_task(task, named):
    assert things(task) == named


def test_things_are_handled_or_where_those_go():
    known = Things.of(TASKS)
    assert known.objects == ('can', 'lemon', 'bread', 'red cube', 'green cube')
    assert known.destinations == ('wooden bin', 'blue bin', 'green cube', 'yellow mark')
    assert Things.of(['pick a lemon']) == Things(('lemon',), ())


def understood(text, task=CAN, thought=REACH, tasks=TASKS, names=()):
    return understand_correction(
        parse_correction(text), tasks, names, task, thought and Thought.parse(thought)).fields


@pytest.mark.parametrize(('text', 'task', 'thought', 'fields'), [
    ('the lemon', CAN, REACH, {'object': 'lemon', 'destination': 'wooden bin'}),
    ('the other bin', CAN, REACH, {'destination': 'blue bin'}),
    ('the other bin', CAN, CARRY.replace('wooden', 'blue'), {'destination': 'wooden bin'}),
    ('the other bin', CAN, None, {'destination': 'blue bin'}),
    ('the lemon to the other bin', CAN, REACH, {'object': 'lemon', 'destination': 'blue bin'}),
    ('carry it to the other bin', CAN, CARRY, {'phase': 'carry', 'destination': 'blue bin'}),
    ('the other cube', STACK, REACH.replace('can', 'red cube'), {'object': 'green cube'}),
    ('the green cube', STACK, REACH.replace('can', 'red cube'), {'object': 'green cube'}),
    ('the green cube', CAN, CARRY, {'destination': 'green cube'}),
    ('the mark', CAN, REACH, {'destination': 'yellow mark'}),
    ('the can', CAN, CARRY, {'object': 'can'}),
    ('release the can', CAN, CARRY, {'phase': 'release', 'object': 'can'}),
    ('nothing in hand; reach the lemon', CAN, CARRY,
     {'held': None, 'phase': 'reach', 'object': 'lemon', 'destination': 'wooden bin'}),
    ('move left', CAN, CARRY, {'move': ('still', 'left', 'still')})])
def test_names_are_told_apart(text, task, thought, fields):
    assert understood(text, task, thought) == fields


@pytest.mark.parametrize(('text', 'task', 'tasks', 'asks'), [
    ('the lemon', CAN, TASKS, LEMON), ('reach the lemon', CAN, TASKS, LEMON),
    ('the lemon', CAN, (*TASKS, LEMON_ELSEWHERE), LEMON_ELSEWHERE),
    ('the lemon to the wooden bin', LEMON, (*TASKS, LEMON_ELSEWHERE), LEMON_ELSEWHERE),
    ('the can', CAN, TASKS, ''), ('the other bin', CAN, TASKS, ''), ('move left', CAN, TASKS, ''),
    ('the green cube', CAN, TASKS, ''),  # pushed, not put
    ('the red cube', CAN, TASKS, ''),  # put with another thing
    ('the banana', CAN, (), '')])
def test_a_task_that_asks_for_the_thing_is_found(text, task, tasks, asks):
    correction = understand_correction(
        parse_correction(text), tasks, (), task, Thought.parse(REACH))
    assert correction.asks == asks
    empty, full, other = REACH, LIFT, LIFT.replace('can', 'lemon')
    wanted = [asks or task, task, asks or task] if 'lemon' in text else [task] * 3
    assert [correction.asked(task, before) for before in (empty, full, other)] == wanted


@pytest.mark.parametrize(('text', 'thought', 'told'), [
    ('pick up the can', REACH, '"pick up the can" is no thing'),
    ('the banana', REACH, 'no thing of this policy\'s tasks: say one of can, lemon.*"move"'),
    ('holding the banana', REACH, '"banana" is no thing'),
    ('the cube', REACH, 'could be red cube or green cube; say which'),
    ('the other lemon', REACH.replace('can', 'lemon'), '"other lemon" is no thing'),
    ('carry the lemon', REACH, '"carry" names where it goes, one of wooden bin.*"the lemon"'),
    ('the lemon', CARRY, 'the hand holds the can and would drop it; say "release the can" before'),
    ('reach the can', CARRY, 'the hand holds the can'), ('wait', CARRY, 'the hand holds the can')])
def test_what_is_nonsense_here_is_refused(text, thought, told):
    with pytest.raises(UserError, match=told):
        understood(text, thought=thought)


def test_things_are_called_as_the_thoughts_call_them():
    tasks = ['pick up the black bowl on the stove and place it on the plate']
    names = ['akita black bowl', 'flat stove', 'plate']
    known = Things.of(tasks, names)
    assert known == Things(('akita black bowl', 'flat stove'), ('plate',))
    for said in ('the black bowl', 'the akita black bowl', 'the bowl'):
        assert understood(said, tasks[0], None, tasks, names) == {'object': 'akita black bowl'}
    assert understood('the yellow mark', CAN, None, TASKS, ['mark']) == {'destination': 'mark'}
    pushing = 'holding nothing done nothing now push mark at x43 y+35 next wait move still left up'
    assert understood('push the yellow mark', TASKS[4], pushing) == {
        'phase': 'push', 'destination': 'mark'}


def test_a_policy_without_tasks_takes_any_name_and_no_other_one():
    assert understood('reach the fork', tasks=[]) == {'phase': 'reach', 'object': 'fork'}
    with pytest.raises(UserError, match='"other fork" is no thing'):
        understood('the other fork', tasks=[])
