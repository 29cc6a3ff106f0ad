"""Randomised scenes look different, and nothing else about them is."""

import numpy as np
import pytest

from dtvla_sim import perturbation, randomisation
from dtvla_sim.env import CAMERAS
from dtvla_sim.randomisation import pattern, randomised

SEED = 700_000
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 7))


def images(env):
    obs = env.observe()
    return [obs[key].copy() for key in CAMERAS]


def played(env):
    """Return the states [6, nq + nv] that the actions lead to."""
    return np.array([
        [env.step(action)[0]['robot0_eef_pos'], np.r_[env.data.qpos, env.data.qvel]][1]
        for action in ACTIONS])


def test_it_looks_different_while_physics_is_the_same_and_then_as_before(tabletop):
    tabletop.reset(seed=SEED)
    before, states = images(tabletop), played(tabletop)
    tabletop.reset(seed=SEED)
    seen = []
    for number in range(3):
        with randomised(tabletop, np.random.default_rng(number)):
            seen.append(images(tabletop))
            if number == 2:
                assert np.array_equal(played(tabletop), states)
        if number < 2:
            assert all(map(np.array_equal, images(tabletop), before))
    for a, b in ((before, seen[0]), (seen[0], seen[1]), (seen[1], seen[2])):
        assert all(np.abs(x.astype(float) - y).mean() > 8.0 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize('number', range(4))
def test_an_object_is_where_its_image_point_says(tabletop, number):
    tabletop.reset(seed=SEED + number)
    with randomised(tabletop, np.random.default_rng(number)):
        image = tabletop.observe()['agentview_image']
        across, down = tabletop.image_point(tabletop.place('mark')) * len(image)
        red, green, blue = image[int(down) - 1:int(down) + 2,
                                 int(across) - 1:int(across) + 2].mean((0, 1))
    assert min(red, green) > 1.2 * blue, 'the mark is yellow'


def test_the_same_generator_draws_the_same(tabletop):
    tabletop.reset(seed=SEED)
    made = []
    for _ in range(2):
        with randomised(tabletop, np.random.default_rng(5)):
            made.append(images(tabletop))
    assert all(map(np.array_equal, *made))


def test_nothing_is_drawn_that_a_perturbation_draws():
    """Sizes of what both change are disjoint; perturbations are at least half of their largest."""
    drawn, tested = randomisation, perturbation
    for k, sizes in enumerate((tested.AZIMUTH, tested.ELEVATION)):
        assert drawn.SMALL_SWING[k] <= 0.5 * sizes[0] and drawn.WIDE_SWING[k][0] >= sizes[-1]
    assert 0.5 * tested.SWING[0] >= drawn.SMALL_TURN and drawn.WIDE_TURN[0] >= tested.SWING[-1]
    assert drawn.APART > 0.0, 'perturbations change all lights alike'


def test_patterns_are_many():
    made = [pattern(np.random.default_rng(k), 32, 48) for k in range(40)]
    assert all(image.shape == (32, 48, 3) and image.dtype == np.uint8 for image in made)
    assert {image.std((0, 1)).max() > 2.0 for image in made} == {True, False}
    assert np.stack([image.mean((0, 1)) for image in made]).std(0).min() > 30.0
