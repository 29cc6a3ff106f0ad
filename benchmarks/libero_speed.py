"""Episodes a minute beside LIBERO's own loop, which renders two cameras at every step.

    python benchmarks/libero_speed.py libero_object

Both loops run the same actions; ``compare`` also returns where they lead, for the tests.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray

from dtvla_sim import EVAL_SEED_START
from dtvla_sim.env import CAMERAS, REST, SETTLE_STEPS
from dtvla_sim.libero.env import LiberoEnv
from dtvla_sim.libero.scene import scene_settings, seeded
from dtvla_sim.libero.tasks import read_init_states


def compare(
    suite: str = 'libero_object', steps: int = 60, replan_every: int = 10,
    image_size: int = 256, episodes: int = 2,
) -> dict[str, Any]:
    """Run the same actions through both loops; return episodes a minute and the trajectories.

    Episodes begin with a reset and settle; building and the first image are not counted.
    ``replan_every``: steps between the images a policy reads in this package's loop.
    ``trajectory`` [episodes, steps, nq] holds every position after every step, ``image``
    [H, W, 3] the last start.
    """
    env = LiberoEnv(suite, image_size=image_size)
    actions = np.repeat(np.random.default_rng(0).uniform(-1.0, 1.0, (steps // 10 + 1, 7)), 10,
                        axis=0)[:steps]
    results = {}
    # LIBERO's own first: it draws into whatever GL context is current.
    for name, loop in (('stock', Stock(env)), ('ours', Ours(env, replan_every))):
        loop.run(0, actions[:1])
        begun = time.perf_counter()
        paths = [loop.run(k, actions) for k in range(episodes)]
        seconds = time.perf_counter() - begun
        results[name] = {'episodes_per_minute': 60.0 * episodes / seconds,
                         'trajectory': np.stack(paths), 'image': loop.image}
    env.close()
    return results


class Ours:
    """This package's loop: images are rendered when a policy reads them."""

    def __init__(self, env: LiberoEnv, replan_every: int):
        self.env, self.replan_every, self.image = env, replan_every, np.zeros(0)

    def run(self, index: int, actions: NDArray) -> NDArray[np.float64]:
        """Return the positions [steps, nq] of an evaluation episode."""
        obs, _ = self.env.reset(seed=EVAL_SEED_START + index)
        self.image = obs['agentview_image']
        path = []
        for k, action in enumerate(actions):
            if k % self.replan_every == 0:
                for camera in CAMERAS:
                    obs[camera]
            obs = self.env.step(action)[0]
            path.append(self.env.data.qpos.copy())
        return np.stack(path)


class Stock:
    """LIBERO's evaluation loop, but for ``ControlEnv.reset``, which may never end."""

    def __init__(self, env: LiberoEnv):
        env.reset(seed=0)  # loads LIBERO and its assets
        from libero.libero.envs import OffScreenRenderEnv

        settings = scene_settings()
        for own in ('controller_configs', 'hard_reset', 'has_renderer', 'use_camera_obs',
                    'has_offscreen_renderer'):
            del settings[own]
        self.env = OffScreenRenderEnv(
            bddl_file_name=str(env.task.bddl), camera_heights=env.image_size,
            camera_widths=env.image_size, **settings)
        self.states, self.image = read_init_states(env.task.init_states), np.zeros(0)

    def run(self, index: int, actions: NDArray) -> NDArray[np.float64]:
        """Return the positions [steps, nq] of an evaluation episode."""
        # The scene's seed as `LiberoEnv.reset` draws it.
        with seeded(int(np_random(EVAL_SEED_START + index)[0].integers(2**31))):
            self.env.env.reset()
        self.env.set_init_state(self.states[index])
        for _ in range(SETTLE_STEPS):
            obs = self.env.step(REST.tolist())[0]
        self.image = obs['agentview_image'][::-1]  # drawn bottom up
        path = []
        for action in actions:
            self.env.step(action)
            path.append(self.env.sim.data._data.qpos.copy())
        return np.stack(path)


if __name__ == '__main__':
    for loop, result in compare(*sys.argv[1:]).items():
        print(f'{loop:>6} {result["episodes_per_minute"]:6.1f} episodes/min')
