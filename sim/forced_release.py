"""A perturbation: the fingers are forced open while they carry an object."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError

LIFTED = 0.02  # above where it stood: carried, not only gripped [m]
SOONEST, LATEST = 4, 16  # control steps carried until the fingers are forced open
FORCED = 6  # control steps for which they are


class ForcedReleaseEnv:
    """An environment in which something forces the fingers open while they carry something.

    When, is drawn from the episode's seed, once an episode; or only by `release`, where not
    ``by_itself``. ``released``: whether an object has been lost so.
    """

    def __init__(self, env: Any, by_itself: bool = True):
        self.env = env
        self._by_itself = by_itself
        self.released = False
        self._wait = self._forced = 0
        self._stood: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start an episode, in which the release is still to come."""
        out = self.env.reset(seed=seed, options=options)
        self._wait = int(np.random.default_rng([seed or 0, 1]).integers(SOONEST, LATEST + 1))
        self._forced, self.released = FORCED if self._by_itself else 0, False
        scene = self.env.scene
        self._stood = {name: float(scene.position(name)[2]) for name in scene.objects}
        return out

    def release(self) -> None:
        """Force the fingers open from the next step on.

        Raises UserError if they hold nothing.
        """
        if not any(map(self.env.scene.held, self.env.scene.objects)):
            raise UserError('the gripper holds nothing that could be knocked out of it')
        self._wait, self._forced = 0, FORCED

    def step(self, action: NDArray[np.floating]) -> Any:
        """Run one control step, with the fingers forced open when it is time."""
        gripper = self.env.contract.gripper_index
        if self._forced and self._wait <= 0:
            action = np.array(action)
            action[gripper] = -1.0
            self._forced -= 1
            out = self.env.step(action)
            self.released = self._forced == 0 and not self._carried()
            return out
        out = self.env.step(action)
        if self._forced and action[gripper] > 0.0 and self._carried():
            self._wait -= 1
        return out

    def _carried(self) -> bool:
        scene = self.env.scene
        return any(scene.position(name)[2] > height + LIFTED and scene.held(name)
                   for name, height in self._stood.items())
