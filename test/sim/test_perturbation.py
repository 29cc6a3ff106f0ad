"""Every family changes what it is named after and nothing else, in the real scene."""

import numpy as np
import pytest
from support.libero_here import needs_libero

from dtvla_ros.errors import UserError
from dtvla_sim.env import CAMERAS
from dtvla_sim.perturbation import FAMILIES, STRENGTHS, PerturbedEnv
from dtvla_sim.rewording import reword

TASK = 'stack_the_red_cube_on_the_green_cube'
SEED = 1_000_011
LOOKS = ('camera', 'light', 'texture', 'noise')
STILL = np.array([0.0, 0, 0, 0, 0, 0, -1])


@pytest.fixture(scope='module')
def env(tabletop):
    return PerturbedEnv(tabletop)


def run(env, *perturbations, seed=SEED, steps=6):
    """Return pictures before and after some steps, the states [n, nq + nv], and the sentence."""
    env.use(perturbations)
    obs, info = env.reset(seed=seed, options={'task': TASK})
    rng, pictures, states = np.random.default_rng(0), [], []
    for step in range(steps + 1):
        if step:
            obs, *_ = env.step(rng.uniform(-1, 1, 7))
        if step in (0, steps):
            pictures += [obs[key].copy() for key in CAMERAS]
        states.append(np.concatenate([env.data.qpos, env.data.qvel]))
    return pictures, np.array(states), info['instruction']


@pytest.fixture(scope='module')
def plain(env):
    return run(env)


def difference(a, b):
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize('family', FAMILIES)
def test_strength_0_changes_nothing_not_even_after_strength_3(env, plain, family):
    run(env, f'{family}:3', steps=2)
    pictures, states, sentence = run(env, f'{family}:0')
    assert all(map(np.array_equal, pictures, plain[0]))
    assert np.array_equal(states, plain[1]) and sentence == plain[2]


@pytest.mark.parametrize('strength', STRENGTHS)
@pytest.mark.parametrize('family', [*LOOKS, 'language'])
def test_what_changes_looks_or_words_leaves_physics_alone(env, plain, family, strength):
    pictures, states, sentence = run(env, f'{family}:{strength}')
    assert np.array_equal(states, plain[1])
    if family == 'language':
        assert all(map(np.array_equal, pictures, plain[0]))
        assert sentence != plain[2] and 'red cube' in sentence and 'green cube' in sentence
        return
    assert sentence == plain[2]
    assert min(difference(pictures[k], plain[0][k]) for k in (0, 2)) > 1.0
    if family == 'camera':  # the wrist's camera is on the arm
        assert np.array_equal(pictures[1], plain[0][1])


@pytest.mark.parametrize('family', LOOKS)
def test_a_higher_strength_changes_more(env, plain, family):
    changes = [np.mean([
        difference(*(run(env, *p, seed=s, steps=0)[0][0] for p in ((f'{family}:{k}',), ())))
        for s in range(SEED, SEED + 4)]) for k in STRENGTHS]
    assert changes == sorted(changes) and changes[2] > 1.3 * changes[0]


@pytest.mark.parametrize('strength', STRENGTHS)
def test_objects_are_moved_and_stay_apart(env, plain, strength):
    _, states, _ = run(env, f'layout:{strength}', steps=20)
    moved, quiet = states[0], plain[1][0]
    for joint in env._free_joints():
        at = env.model.jnt_qposadr[joint]
        off = np.linalg.norm(moved[at:at + 2] - quiet[at:at + 2])
        assert 0.0075 * strength <= off <= (0.022, 0.043, 0.064)[strength - 1]
        assert abs(moved[at + 2] - quiet[at + 2]) < 1e-3
        rolled = np.linalg.norm(states[5, at:at + 2] - moved[at:at + 2])
        rolls = np.linalg.norm(plain[1][5, at:at + 2] - quiet[at:at + 2])  # the lemon does
        assert rolled < rolls + 2e-3, 'flew apart'
    arm = env.robot._ref_joint_pos_indexes
    assert np.array_equal(moved[arm], quiet[arm])


@pytest.mark.parametrize('strength', STRENGTHS)
def test_the_arm_starts_elsewhere_and_stays_there(env, plain, strength):
    env.use([f'robot:{strength}'])
    obs, _ = env.reset(seed=SEED, options={'task': TASK})
    bent = np.abs(obs['robot0_joint_pos'] - plain[1][0][env.robot._ref_joint_pos_indexes])
    size = (0.05, 0.1, 0.2)[strength - 1]
    assert (bent >= size / 2 - 1e-9).all() and (bent <= size + 1e-9).all()
    hand = np.array(obs['robot0_eef_pos'])
    for _ in range(10):
        obs, *_ = env.step(STILL)
    assert np.linalg.norm(obs['robot0_eef_pos'] - hand) < 0.02
    for joint in env._free_joints():
        at = slice(env.model.jnt_qposadr[joint], env.model.jnt_qposadr[joint] + 3)
        assert np.allclose(env.data.qpos[at], plain[1][0][at], atol=2e-3)


def test_the_seed_decides_and_families_combine(env):
    (first, *eye), (again, *_), (_, *other) = ((
        run(env, 'camera:2', 'layout:1', 'noise:1', seed=seed), *env.model.cam_pos.copy())
        for seed in (SEED + 1, SEED + 1, SEED + 2))
    assert all(map(np.array_equal, first[0], again[0])) and np.array_equal(first[1], again[1])
    assert not np.allclose(eye, other)


def test_unknown_perturbations_are_refused_by_name(env):
    for text in ('fog:2', 'camera', 'camera:4', 'camera:x'):
        with pytest.raises(UserError, match=f'"{text}".*camera:2'):
            env.use([text])
    with pytest.raises(UserError, match='must differ'):
        env.use(['light:1', 'light:2'])


@pytest.mark.parametrize('sentence, kept', [
    ('put the can in the wooden bin', ('the can', 'the wooden bin')),
    ('put the red cube and the can in the blue bin', ('the red cube and the can', 'the blue bin')),
    ('turn on the stove and put the moka pot on it', ('the stove', 'the moka pot')),
    ('pick up the black bowl next to the plate and place it on the plate',
     ('the black bowl next to the plate', 'the plate')),
    ('open the middle drawer of the cabinet', ('the middle drawer of the cabinet',))])
def test_rewording_keeps_the_things(sentence, kept):
    for strength in STRENGTHS:
        said = {reword(sentence, strength, np.random.default_rng(k)) for k in range(20)}
        assert sentence not in said
        assert all(thing in text for text in said for thing in kept), said


def pairs_in_contact(env):
    """Return the deepest penetration [m] of each pair of bodies (their roots) in contact."""
    deepest, contacts = {}, env.data.contact
    roots = env.model.body_rootid[env.model.geom_bodyid]
    for pair, dist in zip(map(frozenset, roots[contacts.geom]), contacts.dist):
        deepest[pair] = max(deepest.get(pair, 0.0), -dist)
    return deepest


@pytest.mark.slow
@needs_libero
@pytest.mark.parametrize('suite, tasks', [
    ('spatial', (0, 2, 4, 8)),  # beside the plate, on a cookie box, in a drawer
    ('goal', (0, 7))])
def test_moved_things_of_libero_neither_collide_nor_fall_nor_solve_the_task(request, suite, tasks):
    env = PerturbedEnv(request.getfixturevalue(suite))
    shifts = []
    for name in (env.tasks[k] for k in tasks):
        for seed in range(SEED, SEED + 4):
            start = {'seed': seed, 'options': {'task': name}}
            env.use([])
            env.reset(**start)
            places = {n: env.scene.position(n) for n in env.scene.objects}
            quiet = pairs_in_contact(env)
            env.use(['layout:3'])
            env.reset(**start)
            now = pairs_in_contact(env)
            assert now.keys() <= quiet.keys(), (name, seed)
            assert all(depth < quiet[pair] + 1e-3 for pair, depth in now.items()), (name, seed)
            assert not env.scene.success(), (name, seed)
            moved = {n: env.scene.position(n) for n in places}
            shifts.append(np.mean([np.linalg.norm(moved[n] - places[n]) for n in places]))
            for _ in range(10):
                _, _, success, *_ = env.step(STILL)
            assert not success, (name, seed)
            fallen = {n: np.linalg.norm(env.scene.position(n) - at) for n, at in moved.items()}
            assert max(fallen.values()) < 0.01, (name, seed, fallen)
    assert np.mean(shifts) > 0.02
