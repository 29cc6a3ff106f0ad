"""The tabletop suite: contract, start states, lazy images, experts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import dtvla_sim
from dtvla_ros.errors import UserError
from dtvla_sim.experts import make_expert
from dtvla_sim.tabletop import camera
from dtvla_sim.tabletop.scene import BINS, MARK, OBJECTS, TabletopScene
from dtvla_sim.tabletop.start import sample_start
from dtvla_sim.tabletop.tasks import TASKS


@pytest.fixture(scope='module')
def env():
    environment = dtvla_sim.make('tabletop', image_size=64)
    yield environment
    environment.close()


def run_expert(env, task, seed, tamper=None, limit=None):
    """Let the expert play one episode; ``tamper(step, expert_step, action)`` may spoil it."""
    env.reset(seed=seed, options={'task': task})
    expert = make_expert(env)
    thoughts, actions = [], []
    for k in range(limit or env.max_steps):
        step = expert.act()
        action = step.action.copy()
        if tamper is not None:
            tamper(k, step, action)
        thoughts.append(step.thought)
        actions.append(action)
        _, _, success, _, _ = env.step(action)
        if success:
            return True, thoughts, actions
    return False, thoughts, actions


def test_there_are_at_least_six_tasks_of_four_kinds(env):
    assert len(env.tasks) >= 6
    verbs = {g.verb for t in TASKS.values() for g in t.goals}
    assert verbs == {'put', 'stack', 'push'}
    assert max(len(t.goals) for t in TASKS.values()) == 2


def test_the_contract_is_gymnasiums(env):
    observation, info = env.reset(seed=3, options={'task': env.tasks[0]})
    assert info['instruction'] == 'put the can in the wooden bin'
    for key, space in env.observation_space.spaces.items():
        assert observation[key].shape == space.shape, key
        assert observation[key].dtype.kind == np.dtype(space.dtype).kind, key
    result = env.step(env.action_space.sample())
    assert len(result) == 5
    assert result[1] == 0.0 and result[2] is False


def test_images_are_drawn_once_and_only_when_read(env, monkeypatch):
    drawn = []
    monkeypatch.setattr(env, 'draw', lambda camera: drawn.append(camera) or np.zeros((2, 2, 3)))
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        observation = env.step(np.zeros(7))[0]
    assert drawn == []
    assert 'agentview_image' in observation and observation['robot0_eef_pos'].shape == (3,)
    assert drawn == []
    first, second = observation['agentview_image'], observation['agentview_image']
    assert first is second and drawn == ['agentview']
    stale = observation
    env.step(np.zeros(7))
    with pytest.raises(RuntimeError, match='before the next step'):
        stale['robot0_eye_in_hand_image']


def test_the_same_seed_gives_the_same_scene_and_another_does_not(env):
    first = env.reset(seed=11)[0]
    image, hand = first['agentview_image'].copy(), first['robot0_eef_pos']
    env.reset(seed=12)
    again = env.reset(seed=11)[0]
    assert np.array_equal(again['agentview_image'], image)
    assert np.array_equal(again['robot0_eef_pos'], hand)
    assert not np.array_equal(env.reset(seed=12)[0]['agentview_image'], image)


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
def test_the_expert_solves_every_task(env, task):
    success, thoughts, _ = run_expert(env, task, seed=1_000_123)
    assert success, thoughts[-1]


def test_the_expert_says_that_it_dropped_the_object_and_tries_again(env):
    state = {'held': 0, 'force': 0}

    def knock_out(_, step, action):
        state['held'] += step.thought.startswith('holding can')
        if state['held'] == 12:
            state['held'], state['force'] = 10_000, 8
        if state['force']:
            state['force'] -= 1
            action[6] = -1.0

    task = 'put_the_can_in_the_wooden_bin'
    success, thoughts, _ = run_expert(env, task, seed=5, tamper=knock_out, limit=400)
    assert success
    assert any(' dropped now retry can ' in t for t in thoughts)


def test_a_replay_with_closed_eyes_fails_on_other_starts(env):
    task = 'put_the_lemon_in_the_blue_bin'
    success, _, actions = run_expert(env, task, seed=0)
    assert success
    wins = 0
    for seed in range(1_000_000, 1_000_008):
        env.reset(seed=seed, options={'task': task})
        wins += any(env.step(a)[2] for a in actions)
    assert wins <= 1


def test_an_unknown_task_and_suite_are_named(env):
    with pytest.raises(UserError, match='unknown task "fly".*put_the_can'):
        env.reset(seed=0, options={'task': 'fly'})
    with pytest.raises(UserError, match='unknown suite "moon"'):
        dtvla_sim.make('moon')


@pytest.mark.parametrize('action', [np.full(7, np.nan), np.zeros(6), np.full(7, np.inf)])
def test_a_broken_action_is_refused(env, action):
    env.reset(seed=0)
    with pytest.raises(UserError, match='7 finite numbers'):
        env.step(action)


def test_two_environments_in_one_process_draw_their_own_scene(env):
    other = dtvla_sim.make('tabletop', image_size=64)
    mine = env.reset(seed=21)[0]['agentview_image'].copy()
    theirs = other.reset(seed=22)[0]['agentview_image'].copy()
    assert np.array_equal(env.reset(seed=21)[0]['agentview_image'], mine)
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


def test_the_camera_shows_a_place_where_the_projection_says(env):
    observation, _ = env.reset(seed=31)
    image = observation['agentview_image']
    column, row = (64 * env.image_point(env.scene.position(MARK))).round().astype(int)
    red, green, blue = image[row, column].astype(int)
    assert red > 180 and green > 140 and blue < 110, (red, green, blue)
    assert np.allclose(env.base_position, camera.BASE_POSITION)


def test_a_control_step_is_robosuites_own_to_the_bit(env, monkeypatch):
    from robosuite.environments.base import MujocoEnv

    actions = np.repeat(np.random.default_rng(3).uniform(-1, 1, (8, 7)), 5, axis=0)

    def run():
        env.reset(seed=4, options={'task': next(iter(TASKS))})
        path = []
        for action in actions:
            env.step(action)
            data = env.sim.data
            path.append(np.concatenate([data.qpos, data.qvel, data.ctrl, data.body_xpos.ravel()]))
        return np.stack(path)

    ours = run()
    monkeypatch.setattr(TabletopScene, 'step', MujocoEnv.step)
    assert np.array_equal(ours, run())
