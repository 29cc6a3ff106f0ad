"""The experts of LIBERO's suites: goals in order, each kind of destination, recovery, words."""

from types import SimpleNamespace

import numpy as np
import pytest
from support.libero_here import needs_libero

from dtvla_ros.errors import UserError
from dtvla_ros.rollout.episode import run_expert_episode
from dtvla_sim.experts import make_expert
from dtvla_sim.experts.grasps import Grasp, crowding
from dtvla_sim.experts.libero import needed_first, plan, skill_class
from dtvla_sim.experts.skill import word_of

CHEESE = 'put_the_cream_cheese_in_the_bowl'
ON_PLATE = 'put_the_bowl_on_the_plate'
RACK = 'put_the_wine_bottle_on_the_rack'
DRAWER = 'open_the_top_drawer_and_put_the_bowl_inside'
BOOK = 'STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_back_compartment_of_the_caddy'
BOWL = ('pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_'
        'plate')
MICROWAVE = 'KITCHEN_SCENE6_put_the_yellow_and_white_mug_in_the_microwave_and_close_it'
CANS = 'LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket'


def phases(thoughts):
    """Return the phases in the order in which they were first thought of, with their objects."""
    said = [' '.join(t.split(' now ')[1].split()[:2]) for t in thoughts]
    return list(dict.fromkeys(said))


def grasp_of(env):
    """Return the grasp that an expert chooses now."""
    expert = make_expert(env)
    expert.act()
    return expert._skill._grasp


def scene_of(goals, regions):
    """Return what a choice of goals needs to know of a scene."""
    return SimpleNamespace(goals=goals, objects=('akita_black_bowl_1', 'plate_1'), regions={
        region: {'target': target} for region, target in regions.items()})


def test_goals_come_in_an_order_in_which_they_can_be_reached():
    drawer = 'white_cabinet_1_bottom_region'
    scene = scene_of([['close', drawer], ['in', 'akita_black_bowl_1', drawer]],
                   {drawer: 'white_cabinet_1'})
    assert plan(scene) == [('in', 'akita_black_bowl_1', drawer), ('close', drawer)]
    assert needed_first(scene, ('in', 'akita_black_bowl_1', drawer)) == ('open', drawer)
    assert needed_first(scene, ('close', drawer)) is None
    stove = scene_of([['on', 'moka_pot_1', 'flat_stove_1_cook_region'],
                    ['turnon', 'flat_stove_1']], {})
    assert [g[0] for g in plan(stove)] == ['turnon', 'on']


def test_a_goal_without_a_skill_and_a_suite_without_an_expert_are_named():
    with pytest.raises(UserError, match='goal "turnoff flat_stove_1"'):
        skill_class(scene_of([], {}), ('turnoff', 'flat_stove_1'))
    with pytest.raises(UserError, match='no expert for libero_90'):
        make_expert(SimpleNamespace(suite='libero_90'))


def test_regions_have_short_words():
    scene = scene_of([], {
        'wooden_cabinet_1_top_region': 'wooden_cabinet_1', 'wine_rack_1_top_region': 'wine_rack_1',
        'wooden_cabinet_1_top_side': 'wooden_cabinet_1',
        'desk_caddy_1_back_contain_region': 'desk_caddy_1',
        'living_room_table_plate_right_region': 'living_room_table'})
    assert [word_of(scene, name) for name in (*scene.regions, 'plate_1')] == [
        'top_drawer', 'wine_rack', 'wooden_cabinet', 'desk_caddy', 'table', 'plate']


@needs_libero
@pytest.mark.parametrize('suite, task, seed', [
    ('goal', CHEESE, 11), ('goal', RACK, 11), ('ten', BOOK, 13), ('spatial', BOWL, 1_000_000)])
def test_one_goal_of_a_suite(request, suite, task, seed):
    """In a bowl, on a rack, between two walls; a bowl that is taken by the rim."""
    env = request.getfixturevalue(suite)
    result, actions = run_expert_episode(env, make_expert(env), task, seed)
    assert result.success and np.abs(actions).max() <= 1.0


@needs_libero
@pytest.mark.parametrize('suite, task, seed, first, then', [
    ('goal', DRAWER, 12, 'open top_drawer', 'grasp akita_black_bowl'),
    ('ten', MICROWAVE, 14, 'release white_yellow_mug', 'close microwave')])
def test_doors_are_opened_first_and_closed_last(request, suite, task, seed, first, then):
    env = request.getfixturevalue(suite)
    result, _ = run_expert_episode(env, make_expert(env), task, seed)
    said = phases(result.thoughts)
    assert result.success and said.index(first) < said.index(then)
    assert suite == 'goal' or f'done white_yellow_mug now {then}' in ' '.join(result.thoughts)


@needs_libero
def test_what_is_undone_is_done_again(ten):
    home, moved = [], []

    def undo(step):
        """Put the first can back on the table while the second is reached for."""
        scene = ten.scene
        address = scene.joint_address('alphabet_soup_1')
        at = scene.data.qpos[address:address + 7]
        home.append(at.copy())
        if not moved and step.phase == 'reach' and 'done alphabet_soup' in step.thought:
            at[:] = home[0]
            scene.forward()
            moved.append(step)
        return step.action

    result, _ = run_expert_episode(ten, make_expert(ten), CANS, 15, disturb=undo)
    assert moved and result.success
    after = result.thoughts[result.thoughts.index(moved[0].thought) + 1:]
    assert any('done nothing now reach alphabet_soup' in t for t in after)


@pytest.mark.slow
@needs_libero
@pytest.mark.parametrize('suite', ['goal', 'ten'])
def test_every_task_of_the_suite(request, suite):
    env = request.getfixturevalue(suite)
    results = [run_expert_episode(env, make_expert(env), task, 20 + k)[0]
               for k, task in enumerate(env.tasks)]
    assert sum(r.success for r in results) >= 9, [r.task for r in results if not r.success]


@needs_libero
def test_an_onlooker_says_what_the_arm_it_watches_can_do_next(goal):
    """Not what it would have asked for itself before: DAgger's labels belong to what is seen."""
    onlookers, said = {}, {'lower': [], 'carry': []}

    def watch(step):
        if step.phase in said:
            onlooker = onlookers.setdefault(step.phase, make_expert(goal))
            said[step.phase].append(onlooker.act(driving=False))
        return step.action

    assert run_expert_episode(goal, make_expert(goal), CHEESE, 3, disturb=watch)[0].success
    lowering, carrying = said['lower'][-6:], said['carry'][6:]  # five of touch
    assert {s.phase for s in lowering} <= {'lower', 'grasp'} and len(lowering) > 3
    assert {s.phase for s in carrying} <= {'lift', 'carry', 'place'} and len(carrying) > 3
    assert all(s.action[6] == 1.0 for s in carrying)


@needs_libero
def test_a_gripper_that_comes_in_low_over_the_destination_is_not_sent_up_again(goal):
    onlooker, over = make_expert(goal), []

    def keep_low(step):
        label, skill, action = onlooker.act(driving=False), onlooker._skill, step.action.copy()
        if label.phase in ('carry', 'place') and label.action[6] > 0:
            off = skill.end_effector().position - skill._target
            if np.linalg.norm(off[:2]) < 0.015:
                over.append(label.action[2])
        if step.phase in ('lift', 'carry'):
            action[2] = min(action[2], 0.3 if step.phase == 'lift' else 0.0)
        return action

    assert run_expert_episode(goal, make_expert(goal), ON_PLATE, 4, disturb=keep_low)[0].success
    assert len(over) > 2 and max(over) < 0.0


@needs_libero
@pytest.mark.parametrize('task', [CHEESE, ON_PLATE])
def test_which_grasp_is_taken_does_not_depend_on_how_the_gripper_is_turned(goal, task):
    goal.reset(seed=5, options={'task': task})
    grasps = []
    for turn in (0.0, 0.5, -0.5):
        for _ in range(10):
            goal.step(np.array([0.0, 0.0, 0.0, 0.0, 0.0, turn, -1.0]))
        grasps.append(grasp_of(goal))
    assert [g.yaw for g in grasps] == pytest.approx([grasps[0].yaw] * 3)
    assert [g.angle for g in grasps] == [grasps[0].angle] * 3


@needs_libero
def test_bowls_are_taken_by_the_same_side_wherever_there_is_room(spatial):
    angles = []
    for place in ('next_to_the_ramekin', 'on_the_cookie_box', 'on_the_stove'):
        for seed in range(4):
            spatial.reset(seed=seed, options={
                'task': f'pick_up_the_black_bowl_{place}_and_place_it_on_the_plate'})
            angles.append(grasp_of(spatial).angle)
    assert angles == pytest.approx([np.pi] * len(angles))


@pytest.mark.parametrize('along, met', [(0.0, True), (0.03, True), (0.05, True), (0.08, False)])
def test_what_stands_between_the_fingers_is_in_the_way_too(along, met):
    grasp = Grasp(np.array([0.5, 0.0, 0.9]), 0.0, 0.92, 0.88)
    neighbour = np.array([[0.5 + along, 0.0, 0.91]])
    assert (crowding(grasp, np.zeros(3), neighbour) > 0.0) == met
