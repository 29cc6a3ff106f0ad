"""The tabletop suite: contract, start states, lazy images, experts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from support.perturb import ForcedOpening

import dtvla_sim
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env import Env, Restorable
from dtvla_ros.rollout.episode import run_expert_episode
from dtvla_sim.experts import make_expert
from dtvla_sim.tabletop.scene import BINS, MARK, OBJECTS, TabletopScene
from dtvla_sim.tabletop.tasks import TASKS, sample_start


def test_the_contract_is_gymnasiums(tabletop):
    """With the abilities that rollouts ask for, and six tasks of four kinds."""
    assert all(isinstance(tabletop, ability) for ability in (Env, Restorable))
    assert len(tabletop.tasks) >= 6 and max(len(t.goals) for t in TASKS.values()) == 2
    assert {g.verb for t in TASKS.values() for g in t.goals} == {'put', 'stack', 'push'}
    observation, info = tabletop.reset(seed=3, options={'task': tabletop.tasks[0]})
    assert info['instruction'] == 'put the can in the wooden bin'
    for key, space in tabletop.observation_space.spaces.items():
        assert observation[key].shape == space.shape, key
        assert observation[key].dtype.kind == np.dtype(space.dtype).kind, key
    _, reward, success, _, _ = tabletop.step(tabletop.action_space.sample())
    assert reward == 0.0 and success is False


def test_images_are_drawn_once_and_only_when_read(tabletop, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        tabletop, 'draw', lambda camera: drawn.append(camera) or np.zeros((2, 2, 3)))
    observation, _ = tabletop.reset(seed=0)
    for _ in range(3):
        observation = tabletop.step(np.zeros(7))[0]
    assert drawn == []
    assert 'agentview_image' in observation and observation['robot0_eef_pos'].shape == (3,)
    assert drawn == []
    first, second = observation['agentview_image'], observation['agentview_image']
    assert first is second and drawn == ['agentview']
    stale = observation
    tabletop.step(np.zeros(7))
    with pytest.raises(RuntimeError, match='before the next step'):
        stale['robot0_eye_in_hand_image']


def test_the_same_seed_gives_the_same_scene_and_another_does_not(tabletop):
    first = tabletop.reset(seed=11)[0]
    image, gripper = first['agentview_image'].copy(), first['robot0_eef_pos']
    tabletop.reset(seed=12)
    again = tabletop.reset(seed=11)[0]
    assert np.array_equal(again['agentview_image'], image)
    assert np.array_equal(again['robot0_eef_pos'], gripper)
    assert not np.array_equal(tabletop.reset(seed=12)[0]['agentview_image'], image)


@pytest.mark.parametrize('task', TASKS.values(), ids=lambda t: t.name)
def test_start_states_permute_everything_and_keep_it_apart(task):
    seen: dict[str, set] = {}
    for seed in range(60):
        objects, fixtures = sample_start(task, np.random.default_rng(seed))
        assert set(objects) == set(OBJECTS) and set(fixtures) == {*BINS, MARK}
        places = np.array([p[:2] for p in (*objects.values(), fixtures[MARK])])
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)
        assert gaps[~np.eye(len(gaps), dtype=bool)].min() > 0.09
        for name, place in {**objects, **fixtures}.items():
            seen.setdefault(name, set()).add(tuple(np.round(place[:2], 1)))
    assert all(len(seen[n]) >= 6 for n in OBJECTS)
    assert all(len(seen[b]) >= 2 for b in BINS)


@pytest.mark.parametrize('task', list(TASKS))
def test_the_expert_solves_every_task(tabletop, task):
    result, _ = run_expert_episode(tabletop, make_expert(tabletop), task, 1_000_123)
    assert result.success, result.thoughts[-1]


def test_the_expert_says_that_it_dropped_the_object_and_tries_again(tabletop):
    task = 'put_the_can_in_the_wooden_bin'
    force = ForcedOpening(lambda step: step.thought.startswith('holding can'), after=12)
    result, _ = run_expert_episode(tabletop, make_expert(tabletop), task, 5, 400, force)
    assert result.success and force.left == 0
    assert any(' dropped now retry can ' in t for t in result.thoughts)


def test_a_replay_of_actions_fails_on_other_starts(tabletop):
    task = 'put_the_lemon_in_the_blue_bin'
    result, actions = run_expert_episode(tabletop, make_expert(tabletop), task, 0)
    assert result.success
    wins = 0
    for seed in range(1_000_000, 1_000_008):
        tabletop.reset(seed=seed, options={'task': task})
        wins += any(tabletop.step(a)[2] for a in actions)
    assert wins <= 1


def test_an_unknown_task_and_suite_are_named(tabletop):
    with pytest.raises(UserError, match='unknown task "fly".*put_the_can'):
        tabletop.reset(seed=0, options={'task': 'fly'})
    with pytest.raises(UserError, match='unknown suite "moon"'):
        dtvla_sim.make('moon')


@pytest.mark.parametrize('action', [np.full(7, np.nan), np.zeros(6), np.full(7, np.inf)])
def test_a_broken_action_is_refused(tabletop, action):
    tabletop.reset(seed=0)
    with pytest.raises(UserError, match='7 finite numbers'):
        tabletop.step(action)


def test_two_environments_in_one_process_draw_their_own_scene(tabletop):
    other = dtvla_sim.make('tabletop', image_size=64)
    mine = tabletop.reset(seed=21)[0]['agentview_image'].copy()
    theirs = other.reset(seed=22)[0]['agentview_image'].copy()
    assert np.array_equal(tabletop.reset(seed=21)[0]['agentview_image'], mine)
    assert np.array_equal(other.reset(seed=22)[0]['agentview_image'], theirs)
    assert not np.array_equal(mine, theirs)
    other.close()


def test_no_renderer_names_the_remedy():
    code = ('import ctypes.util; ctypes.util.find_library = lambda n: None\n'
            'import dtvla_sim; dtvla_sim.make("tabletop")')
    import os
    environ = {k: v for k, v in os.environ.items() if k not in ('MUJOCO_GL', 'DISPLAY')}
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environ)
    assert done.returncode != 0
    assert 'apt-get install libosmesa6' in done.stderr


def test_the_camera_shows_a_place_where_the_projection_says(tabletop):
    observation, _ = tabletop.reset(seed=31)
    image = observation['agentview_image']
    column, row = (64 * tabletop.image_point(tabletop.scene.position(MARK))).round().astype(int)
    red, green, blue = image[row, column].astype(int)
    assert red > 180 and green > 140 and blue < 110, (red, green, blue)
    assert np.allclose(tabletop.base_position, [-0.56, 0.0, 0.912])


def test_a_control_step_is_robosuites_own_to_the_bit(tabletop, monkeypatch):
    from robosuite.environments.base import MujocoEnv

    actions = np.repeat(np.random.default_rng(3).uniform(-1, 1, (8, 7)), 5, axis=0)

    def run():
        tabletop.reset(seed=4, options={'task': next(iter(TASKS))})
        path = []
        for action in actions:
            tabletop.step(action)
            data = tabletop.sim.data
            path.append(np.concatenate([data.qpos, data.qvel, data.ctrl, data.body_xpos.ravel()]))
        return np.stack(path)

    ours = run()
    monkeypatch.setattr(TabletopScene, 'step', MujocoEnv.step)
    assert np.array_equal(ours, run())
