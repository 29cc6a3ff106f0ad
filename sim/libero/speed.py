"""How many episodes a minute, beside LIBERO's own loop, which draws two cameras every step."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from .. import EVAL_SEED_START
from ..env import CAMERAS, SETTLE_STEPS
from .env import LiberoEnv
from .scene import scene_settings, seeded
from .tasks import read_init_states


def compare(
    suite: str = 'libero_object', task: str | None = None, steps: int = 100,
    look_every: int = 10, image_size: int = 256, episodes: int = 2,
) -> dict[str, Any]:
    """Run the same actions through both loops; return episodes a minute and the trajectories.

    Episodes begin with a reset and settle; building and the first picture are not counted.
    ``look_every`` is how often a policy looks in this package's loop. ``trajectory`` [episodes,
    steps, nq] holds every position after every step, ``picture`` [H, W, 3] the last start.
    """
    env = LiberoEnv(suite, image_size=image_size)
    task = task or env.tasks[0]
    rng = default_rng(0)
    actions = np.repeat(rng.uniform(-1.0, 1.0, (steps // 10 + 1, 7)), 10, axis=0)[:steps]
    results = {}
    # LIBERO's own first: it draws into whatever GL context is current.
    for name, loop in (('stock', _Stock(env, task)), ('ours', _Ours(env, task))):
        loop.run(0, actions[:1], look_every)
        begun = time.perf_counter()
        paths = [loop.run(k, actions, look_every) for k in range(episodes)]
        seconds = time.perf_counter() - begun
        results[name] = {
            'episodes_per_minute': 60.0 * episodes / seconds, 'trajectory': np.stack(paths),
            'picture': loop.picture}
    env.close()
    return results


class _Ours:
    def __init__(self, env: LiberoEnv, task: str):
        self.env, self.task = env, task
        self.picture = np.zeros(0)

    def run(self, index: int, actions: NDArray, look_every: int) -> NDArray[np.float64]:
        env = self.env
        obs, _ = env.reset(seed=EVAL_SEED_START + index, options={'task': self.task})
        self.picture = obs['agentview_image']
        path = []
        for k, action in enumerate(actions):
            if k % look_every == 0:
                for camera in CAMERAS:
                    obs[camera]
            obs = env.step(action)[0]
            path.append(env.scene.data.qpos.copy())
        return np.stack(path)


class _Stock:
    """What LIBERO's evaluation scripts do, but for ``ControlEnv.reset``, which may never end."""

    def __init__(self, env: LiberoEnv, task: str):
        env.reset(seed=0, options={'task': task})  # loads LIBERO and its assets
        from libero.libero.envs import OffScreenRenderEnv

        self.spec = env.task
        settings = scene_settings()
        for own in ('controller_configs', 'hard_reset', 'has_renderer', 'use_camera_obs',
                    'has_offscreen_renderer'):
            del settings[own]
        self.env = OffScreenRenderEnv(
            bddl_file_name=str(self.spec.bddl), camera_heights=env.image_size,
            camera_widths=env.image_size, **settings)
        self.states = read_init_states(self.spec.init_states)
        self.picture = np.zeros(0)

    def run(self, index: int, actions: NDArray, look_every: int) -> NDArray[np.float64]:
        seed = int(_first_draw(EVAL_SEED_START + index))
        with seeded(seed):
            self.env.env.reset()
        self.env.set_init_state(self.states[index])
        for _ in range(SETTLE_STEPS):
            obs = self.env.step([0.0] * 6 + [-1.0])[0]
        self.picture = obs['agentview_image'][::-1]  # drawn bottom up
        path = []
        for action in actions:
            self.env.step(action)
            path.append(self.env.sim.data._data.qpos.copy())
        return np.stack(path)


def _first_draw(seed: int) -> np.integer:
    """Return the seed of the scene that ``LiberoEnv.reset`` draws."""
    from gymnasium.utils.seeding import np_random

    return np_random(seed)[0].integers(2**31)
