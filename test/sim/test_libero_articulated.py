"""Drawers, the stove's knob, the microwave's door and the pushed plate, each skill alone."""

import numpy as np
import pytest
from support.libero_here import needs_libero
from support.perturb import ForcedOpening

from dtvla_ros.data.collect import CollectOptions
from dtvla_ros.rollout.episode import run_expert_episode
from dtvla_sim.env import REST
from dtvla_sim.experts import make_expert
from dtvla_sim.experts.articulated import Drawer, Knob
from dtvla_sim.experts.grasps import surface
from dtvla_sim.experts.noise import Disturber
from dtvla_sim.experts.skill import servo

pytestmark = needs_libero

MIDDLE = 'open_the_middle_drawer_of_the_cabinet'
PLATE = 'push_the_plate_to_the_front_of_the_stove'
STOVE = 'turn_on_the_stove'
BOWL = 'put_the_bowl_on_the_stove'
MILK = 'pick_up_the_milk_and_place_it_in_the_basket'
INSIDE = 'open_the_top_drawer_and_put_the_bowl_inside'
POT = 'KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it'
SHUT = 'KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it'
CANS = 'LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket'
MUG = 'KITCHEN_SCENE6_put_the_yellow_and_white_mug_in_the_microwave_and_close_it'
SEED = 7


def drive(env, skill, limit):
    """Let a skill act until its goal holds and it is free; return the phases it named."""
    phases = {}
    for _ in range(limit):
        move = skill.act()
        if skill.holds() and skill.free():
            return list(phases)
        phases[move.phase] = None
        env.step(servo(skill.end_effector(), move))
    raise AssertionError(f'{skill.goal} not reached in {limit} steps: {list(phases)}')


def test_the_middle_drawer_is_pulled_open_and_said_to_be_held(goal):
    result, actions = run_expert_episode(goal, make_expert(goal), MIDDLE, SEED)
    assert result.success and result.steps < 130 and np.abs(actions).max() <= 1.0
    said = ' | '.join(result.thoughts)
    assert 'now reach middle_drawer at x' in result.thoughts[0]
    assert 'holding middle_drawer done nothing now open middle_drawer at x' in said


@pytest.mark.parametrize(('task', 'beyond'), [
    (MIDDLE, True), (STOVE, True), (PLATE, True), (BOWL, False)])
def test_a_finished_task_is_waited_by_and_a_motion_under_way_ends_beyond_its_limit(
        goal, task, beyond):
    """Within a second; the arm is then still and the gripper open."""
    expert = make_expert(goal)
    assert run_expert_episode(goal, expert, task, SEED)[0].success
    steps = []
    for _ in range(20):
        steps.append(expert.act())
        goal.step(steps[-1].action)
    waits = [step.phase == 'wait' for step in steps]
    assert waits == sorted(waits) and waits[0] is not beyond and all(waits[-3:])
    assert steps[-1].action.tolist() == REST.tolist() and goal.success()


@pytest.mark.parametrize('suite, task, phase, word', [
    ('goal', MIDDLE, 'open', 'middle_drawer'), ('objects', MILK, 'carry', 'milk')])
def test_a_grip_that_is_lost_is_noticed_and_taken_anew(request, suite, task, phase, word):
    env, force = request.getfixturevalue(suite), ForcedOpening(lambda step: step.phase == phase)
    result, _ = run_expert_episode(env, make_expert(env), task, SEED + 1, disturb=force)
    assert force.left == 0 and result.success
    assert any(f' dropped now retry {word} ' in t for t in result.thoughts)


def test_the_plate_is_pushed_without_being_held(goal):
    lifted = []

    def watch(step):
        lifted.append(goal.scene.position('plate_1')[2])
        return step.action

    result, _ = run_expert_episode(goal, make_expert(goal), PLATE, SEED, disturb=watch)
    assert result.success and max(lifted) - lifted[0] < 0.02
    assert all(t.startswith('holding nothing') for t in result.thoughts)


def test_a_drawer_is_shut_with_the_fist_whether_or_not_something_is_in_it(ten):
    ten.reset(seed=SEED, options={'task': SHUT})
    skill = Drawer(ten, ['close', 'white_cabinet_1_bottom_region'])
    assert skill.value < -0.13 and not skill.holds()
    assert drive(ten, skill, 160) == ['reach', 'lower', 'close', 'retreat']
    away = surface(ten.scene, 'white_cabinet_1') - skill.end_effector().position
    assert skill.value > 0.0 and np.linalg.norm(away, axis=1).min() > 0.03


def test_the_knob_is_turned_on(ten):
    ten.reset(seed=SEED, options={'task': POT})
    skill = Knob(ten, ['turnon', 'flat_stove_1'])
    assert drive(ten, skill, 120) == ['reach', 'lower', 'grasp', 'turn', 'release', 'retreat']
    assert skill.value > 0.5


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['clean', 'noisy', 'shove'])
@pytest.mark.parametrize(('suite', 'task'), [
    ('goal', MIDDLE), ('goal', STOVE), ('goal', PLATE), ('goal', INSIDE), ('ten', POT),
    ('ten', SHUT), ('ten', MUG), ('ten', CANS)])
def test_tasks_are_solved_from_random_starts_and_in_spite_of_disturbances(
        request, suite, task, kind):
    """Undisturbed within the benchmark's limit, else within that of what is recorded."""
    env = request.getfixturevalue(suite)
    limit = None if kind == 'clean' else CollectOptions().max_steps
    solved = sum(run_expert_episode(env, make_expert(env), task, seed, limit, Disturber(
        kind, np.random.default_rng(seed)))[0].success for seed in range(4))
    assert solved >= (4 if kind == 'clean' else 3), (task, kind, solved)
