"""Going back to a moment, and how much of a task is left."""

import numpy as np
import pytest

from dtvla_sim.experts import make_expert
from dtvla_sim.tabletop.progress import GRASP
from dtvla_sim.tabletop.tasks import TASKS

LOOK = 6  # control steps between measurements


def drive(env, expert, steps):
    """Let the expert act; return whether the task was done by then."""
    return any(env.step(expert.act().action)[2] for _ in range(steps))


def test_the_same_commands_lead_to_the_same_states_again(tabletop):
    """Among them the moment at which the fingers close, where contacts begin."""
    tabletop.reset(seed=3, options={'task': 'put_the_can_in_the_wooden_bin'})
    expert = make_expert(tabletop)
    drive(tabletop, expert, 20)
    restore = tabletop.snapshot()
    plan = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 12, 7))

    def play(commands):
        states = []
        for command in commands:
            obs, *_ = tabletop.step(command)
            states.append(np.concatenate([
                obs['robot0_eef_pos'], obs['robot0_joint_vel'], obs['robot0_gripper_qpos'],
                *(tabletop.place(name) for name in tabletop.object_names),
                [tabletop.remaining(), tabletop._steps]]))
        return np.stack(states), tabletop.draw('agentview')

    played = []
    for commands in (*plan, *plan[::-1]):
        restore()
        played.append(play(commands))
    for first, again in zip(played[:2], played[:1:-1], strict=True):
        assert all(map(np.array_equal, first, again))
    assert not np.array_equal(played[0][0], played[1][0])


@pytest.mark.parametrize('task', TASKS)
def test_what_is_left_falls_on_the_experts_way(tabletop, task):
    tabletop.reset(seed=5, options={'task': task})
    expert, left, success = make_expert(tabletop), [tabletop.remaining()], False
    while not success:
        assert len(left) * LOOK < tabletop.max_steps
        success = drive(tabletop, expert, LOOK)
        left.append(tabletop.remaining())
    assert left[-1] == 0.0 and min(left[:-1]) > 0.0
    steps = -np.diff(left)
    assert (steps > 0.0).mean() > 0.75 and steps.mean() > 0.03
    assert steps.min() > -0.1  # nowhere does the way lead far uphill


def test_going_past_the_object_or_dropping_it_makes_the_way_longer(tabletop):
    tabletop.reset(seed=5, options={'task': 'put_the_can_in_the_wooden_bin'})
    expert = make_expert(tabletop)
    while not tabletop.scene.held('can'):
        assert not drive(tabletop, expert, 1)
    carried = tabletop.remaining()
    restore = tabletop.snapshot()
    for _ in range(12):
        tabletop.step(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]))  # lets go
    assert not tabletop.scene.held('can') and tabletop.remaining() > carried + 0.5 * GRASP
    restore()
    assert drive(tabletop, expert, tabletop.max_steps)

    tabletop.reset(seed=5, options={'task': 'put_the_can_in_the_wooden_bin'})
    way = [tabletop.remaining()]
    side = float(np.sign(tabletop.place('can')[1])) or 1.0
    for _ in range(60):
        tabletop.step(np.array([0.0, side, 0.0, 0.0, 0.0, 0.0, -1.0]))
        way.append(tabletop.remaining())
    assert way[-1] > min(way) + 0.1
