"""Episodes a minute beside LIBERO's own loop, which renders two cameras at every step.

    python benchmarks/libero_speed.py libero_object

Both loops run the same actions; ``compare`` also returns where they lead, for the tests.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray

from dtvla_sim import EVAL_SEED_START
from dtvla_sim.env import CAMERAS, REST, SETTLE_STEPS
from dtvla_sim.libero.env import LiberoEnv
from dtvla_sim.libero.scene import seeded
from dtvla_sim.libero.tasks import read_init_states

# Runs the actions of an evaluation episode; the first image and the positions [steps, nq].
Loop = Callable[[int, NDArray], tuple[NDArray[np.uint8], NDArray[np.float64]]]


def compare(suite: str = 'libero_object', steps: int = 60, replan_every: int = 10,
            image_size: int = 256, episodes: int = 2) -> dict[str, Any]:
    """Run the same actions through both loops; return episodes a minute and the trajectories.

    Building and the first image are not counted. ``replan_every``: steps between the images that
    a policy reads. ``trajectory`` [episodes, steps, nq], ``image`` [H, W, 3] of the last start.
    """
    env = LiberoEnv(suite, image_size=image_size)
    actions = np.repeat(np.random.default_rng(0).uniform(-1.0, 1.0, (steps // 10 + 1, 7)), 10,
                        axis=0)[:steps]
    results = {}
    # LIBERO's own first: it draws into whatever GL context is current.
    for name, loop in (('stock', stock_loop(env)), ('ours', our_loop(env, replan_every))):
        loop(0, actions[:1])
        begun = time.perf_counter()
        images, paths = zip(*(loop(k, actions) for k in range(episodes)))
        seconds = time.perf_counter() - begun
        results[name] = {'episodes_per_minute': 60.0 * episodes / seconds,
                         'trajectory': np.stack(paths), 'image': images[-1]}
    env.close()
    return results


def our_loop(env: LiberoEnv, replan_every: int) -> Loop:
    """Return this package's loop: images are rendered when a policy reads them."""
    def run(index: int, actions: NDArray) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        obs, _ = env.reset(seed=EVAL_SEED_START + index)
        image, path = obs['agentview_image'], []
        for k, action in enumerate(actions):
            if k % replan_every == 0:
                _ = [obs[camera] for camera in CAMERAS]
            obs = env.step(action)[0]
            path.append(env.data.qpos.copy())
        return image, np.stack(path)

    return run


def stock_loop(env: LiberoEnv) -> Loop:
    """Return LIBERO's evaluation loop, but for ``ControlEnv.reset``, which may never end."""
    env.reset(seed=0)  # loads LIBERO and its assets
    from libero.libero.envs import OffScreenRenderEnv

    stock = OffScreenRenderEnv(
        bddl_file_name=str(env.task.bddl), camera_heights=env.image_size,
        camera_widths=env.image_size, ignore_done=True)
    states = read_init_states(env.task.init_states)

    def run(index: int, actions: NDArray) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        # The scene's seed as `LiberoEnv.reset` draws it.
        with seeded(int(np_random(EVAL_SEED_START + index)[0].integers(2**31))):
            stock.env.reset()
        stock.set_init_state(states[index])
        for _ in range(SETTLE_STEPS):
            obs = stock.step(REST.tolist())[0]
        path = []
        for action in actions:
            stock.step(action)
            path.append(stock.sim.data._data.qpos.copy())
        return obs['agentview_image'][::-1], np.stack(path)  # drawn bottom up

    return run


if __name__ == '__main__':
    for loop, result in compare(*sys.argv[1:]).items():
        print(f'{loop:>6} {result["episodes_per_minute"]:6.1f} episodes/min')
