"""The tabletop suite: contract, start states, lazy images, experts."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from support.perturb import ForcedOpening

import dtvla_sim
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env import Env, Restorable
from dtvla_ros.rollout.episode import run_expert_episode
from dtvla_sim.experts import make_expert
from dtvla_sim.tabletop.scene import BINS, MARK, OBJECTS, TabletopScene
from dtvla_sim.tabletop.tasks import JITTER, TASKS, sample_start


def test_the_contract_is_gymnasiums(tabletop):
    """With the abilities that rollouts ask for, and six tasks of four kinds."""
    assert all(isinstance(tabletop, ability) for ability in (Env, Restorable))
    assert max(len(t.goals) for t in TASKS.values()) == 2
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
    tabletop.reset(seed=0)
    observation = tabletop.step(np.zeros(7))[0]
    assert 'agentview_image' in observation and observation['robot0_eef_pos'].shape == (3,)
    assert drawn == []
    assert observation['agentview_image'] is observation['agentview_image']
    assert drawn == ['agentview']
    tabletop.step(np.zeros(7))
    with pytest.raises(RuntimeError, match='before the next step'):
        observation['robot0_eye_in_hand_image']


@pytest.mark.parametrize('task', TASKS.values(), ids=lambda t: t.name)
def test_start_states_permute_everything_and_keep_it_apart(task):
    """Jittered ones are one arrangement."""
    places = {'shuffle': {}, 'jitter': {}}
    for starts, seed in itertools.product(places, range(60)):
        objects, fixtures = sample_start(task, np.random.default_rng(seed), starts)
        assert set(objects) == set(OBJECTS) and set(fixtures) == {*BINS, MARK}
        assert pdist([p[:2] for p in (*objects.values(), fixtures[MARK])]).min() > 0.09
        for name, place in {**objects, **fixtures}.items():
            places[starts].setdefault(name, []).append(place[:2])
    seen = {n: {tuple(row) for row in np.round(p, 1)} for n, p in places['shuffle'].items()}
    assert all(len(seen[n]) >= 6 for n in OBJECTS) and all(len(seen[b]) >= 2 for b in BINS)
    for name, drawn in places['jitter'].items():
        assert 0.01 < np.ptp(drawn, axis=0).max() <= (0.08 if 'bin' in name else 2 * JITTER)


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


def test_an_unknown_task_and_a_broken_action_are_refused(tabletop):
    with pytest.raises(UserError, match='unknown task "fly".*put_the_can'):
        tabletop.reset(seed=0, options={'task': 'fly'})
    for action in (np.full(7, np.nan), np.zeros(6), np.full(7, np.inf)):
        with pytest.raises(UserError, match='7 finite numbers'):
            tabletop.step(action)


def test_the_seed_decides_in_each_of_two_environments_of_one_process(tabletop):
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
    environ = {k: v for k, v in os.environ.items() if k not in ('MUJOCO_GL', 'DISPLAY')}
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=environ)
    assert done.returncode != 0 and 'apt-get install libosmesa6' in done.stderr


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
