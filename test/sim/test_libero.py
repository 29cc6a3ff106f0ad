"""LIBERO's suites: contract, independence of episodes, starts, experts, the same physics."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.libero_here import needs_libero

import dtvla_sim
from benchmarks.libero_speed import compare
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env import Env
from dtvla_ros.rollout.episode import observation_from_sim
from dtvla_sim.libero import env as libero_env
from dtvla_sim.libero import package, tasks
from dtvla_sim.perturbation import FAMILIES, PerturbedEnv

MILK = 'pick_up_the_milk_and_place_it_in_the_basket'
DRAWER = ('pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_'
          'plate')
TEST_SEED = dtvla_sim.EVAL_SEED_START


@needs_libero
@pytest.mark.parametrize('suite', dtvla_sim.LIBERO_SUITES)
def test_every_task_has_a_sentence_and_fifty_initial_states(suite):
    found = tasks.suite_tasks(suite)
    assert len(found) == (90 if suite == 'libero_90' else 10)
    for task in found.values():
        assert task.instruction.islower() and 'scene' not in task.instruction
        states = tasks.read_init_states(task.init_states)
        assert len(states) == 50 and np.isfinite(states).all()


def test_initial_states_that_would_run_code_are_refused(tmp_path):
    path = tmp_path / 'evil.pruned_init'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickle.dumps(os.getcwd))
    with pytest.raises(UserError, match='evil.pruned_init.*not a file of initial states'):
        tasks.read_init_states(path)


def test_a_mujoco_that_breaks_the_tasks_is_refused():
    package.check_mujoco('3.3.7')
    for version in ('2.3.7', '3.4.0', '4.0.0'):
        with pytest.raises(UserError, match=rf'mujoco {version}.*mujoco==3\.3\.7'):
            package.check_mujoco(version)


@needs_libero
def test_missing_assets_name_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv('DTVLA_LIBERO_ASSETS', str(tmp_path))
    with pytest.raises(UserError, match='DTVLA_LIBERO_ASSETS.*scenes|articulated_objects/ is'):
        package.find_assets()
    for name in (*package.ENVIRONMENT, 'DTVLA_LIBERO_DOWNLOAD'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    if (package.root() / 'assets').is_dir():
        pytest.skip('this hf-libero was installed with its assets')
    with pytest.raises(UserError, match='set DTVLA_LIBERO_ASSETS'):
        package.find_assets()


@needs_libero
def test_the_first_import_asks_nothing(tmp_path):
    code = ('from dtvla_sim.libero import package; package.libero_modules(); '
            'import libero.libero as l; print(l.get_libero_path("bddl_files"))')
    printed = subprocess.check_output(
        [sys.executable, '-c', code], stdin=subprocess.DEVNULL, timeout=60, text=True,
        env=os.environ | {'LIBERO_CONFIG_PATH': str(tmp_path / 'config')})
    assert Path(printed.strip()).is_dir()


@needs_libero
def test_the_contract_is_the_tabletops(objects):
    observation, info = objects.reset(seed=TEST_SEED + 53, options={'task': MILK})
    assert info['instruction'] == 'pick up the milk and place it in the basket'
    assert info['init'] == 3 and info['msaa_samples'] == 4 and info['shadows'] is True
    assert objects.max_steps == 280
    seen = observation_from_sim(observation, info, objects)
    assert 0.3 < seen.ee_position[0] < 0.6 and 0.07 < seen.gripper_opening < 0.081
    observation, reward, success, truncated, info = objects.step(np.zeros(7))
    assert (reward, success, truncated, info['success']) == (0.0, False, False, False)
    assert isinstance(objects, Env)


@needs_libero
def test_the_image_is_upright_and_not_mirrored(objects):
    observation, _ = objects.reset(seed=TEST_SEED, options={'task': MILK})
    image = observation['agentview_image'].astype(int)
    column, row = (64 * objects.image_point(objects.place('basket_1'))).astype(int)
    assert column > 40  # y points to the right of who faces the robot
    for at, wicker in ((column, True), (63 - column, False)):  # on grey planks
        red, _, blue = image[row, at]
        assert (red > blue + 25) == wicker, (red, blue)


def trace(env, task, seed, steps=12):
    """Return positions and a image after some actions."""
    env.reset(seed=seed, options={'task': task})
    for k in range(steps):
        observation = env.step(np.sin(np.arange(7) + k))[0]
    return env.scene.data.qpos.copy(), observation['agentview_image']


@needs_libero
@pytest.mark.parametrize('seed', [TEST_SEED + 7, 7])
def test_an_episode_does_not_depend_on_those_before_it(spatial, seed):
    alone = trace(spatial, DRAWER, seed)
    trace(spatial, DRAWER, seed + 1)
    later = trace(spatial, DRAWER, seed)
    other = dtvla_sim.make('libero_spatial', image_size=64)
    trace(other, spatial.tasks[0], 3)
    elsewhere = trace(other, DRAWER, seed)
    other.close()
    for again in (later, elsewhere):
        assert all(map(np.array_equal, again, alone))
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    spatial.reset(seed=seed)
    assert np.array_equal(np.random.get_state()[1], before)


@needs_libero
def test_a_bowl_starts_inside_the_drawer_wherever_the_cabinet_stands(spatial):
    for seed in range(3):
        spatial.reset(seed=seed, options={'task': DRAWER})
        scene = spatial.scene
        assert 0.03 < scene.position('akita_black_bowl_1')[2] - 1.0 < 0.1
        assert not scene.success()


@needs_libero
def test_jitter_moves_and_shuffle_permutes():
    places = {}
    for starts in ('random', 'jitter', 'shuffle'):
        env = dtvla_sim.make('libero_object', starts=starts, image_size=64)
        rows = []
        for seed in range(12):
            env.reset(seed=seed, options={'task': MILK})
            assert not env.scene.success()
            rows.append([env.scene.position(n)[:2] for n in ('milk_1', 'basket_1')])
        places[starts] = np.array(rows)
        env.close()
    spread = {k: v.std(axis=0).max(axis=1) for k, v in places.items()}  # [milk, basket]
    assert spread['random'][0] < 0.02 < spread['jitter'][0] < 0.05 < spread['shuffle'][0]
    assert spread['jitter'][1] > 0.02 > spread['shuffle'][1]


@needs_libero
def test_starts_that_do_not_exist_are_named(objects):
    with pytest.raises(UserError, match='unknown starts "shuffle"; libero_spatial has: bench'):
        dtvla_sim.make('libero_spatial', starts='shuffle')
    with pytest.raises(UserError, match='initial state 50'):
        objects.reset(seed=0, options={'task': MILK, 'init': 50})


@needs_libero
def test_perturbations_reach_libero_and_are_undone(objects):
    perturbed, seen = PerturbedEnv(objects), []
    for perturbations in ([], [f'{family}:2' for family in FAMILIES], []):
        perturbed.use(perturbations)
        observation, info = perturbed.reset(seed=TEST_SEED + 5, options={'task': MILK})
        assert (info['instruction'] != objects.task.instruction) == bool(perturbations)
        seen.append(observation['agentview_image'].copy())
    assert np.array_equal(seen[0], seen[2]) and not np.array_equal(seen[0], seen[1])


@needs_libero
def test_leaving_out_the_unseen_changes_no_pixel(monkeypatch):
    env = libero_env.LiberoEnv('libero_spatial', image_size=96)
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(6):
        for _ in range(8):
            env.step(rng.uniform(-1, 1, 7).astype(np.float32))
        for camera in ('agentview', 'robot0_eye_in_hand'):
            hidden = libero_env.unseen(env.scene.model, env.scene.data, camera)
            assert 0 < hidden.sum() < len(hidden)
            culled = env.draw(camera).copy()
            with monkeypatch.context() as patch:
                patch.setattr(libero_env, 'unseen', lambda *_: slice(0))
                assert np.array_equal(env.draw(camera), culled)
    env.close()


@pytest.mark.slow
@needs_libero
@pytest.mark.parametrize('suite', ['libero_spatial', 'libero_object', 'libero_goal', 'libero_10'])
def test_it_is_liberos_own_loop_to_the_bit(suite):
    stock, ours = compare(suite, steps=60).values()
    assert np.array_equal(stock['trajectory'], ours['trajectory'])
    assert np.abs(stock['image'].astype(int) - ours['image']).mean() < 0.1


@pytest.mark.slow
@needs_libero
@pytest.mark.parametrize('suite', ['libero_spatial', 'libero_object', 'libero_goal', 'libero_10'])
def test_every_task_starts_settled_and_unsolved(suite):
    env = dtvla_sim.make(suite, image_size=64)
    for k, task in enumerate(env.tasks):
        env.reset(seed=TEST_SEED + k, options={'task': task})
        before = {n: env.scene.position(n) for n in env.scene.objects}
        for _ in range(10):
            env.step(np.array([0.0, 0, 0, 0, 0, 0, -1.0]))
        moved = max(np.linalg.norm(env.scene.position(n) - p) for n, p in before.items())
        assert moved < 0.01, (task, moved)
        assert not env.scene.success(), task
    env.close()
