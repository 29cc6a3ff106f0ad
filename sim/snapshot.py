"""Going back to a moment of an episode, to see what else could have come of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np


def snapshot(scene: Any) -> Callable[[], None]:
    """Return what brings a robosuite scene back to how it is now, to the last bit.

    Physics, the arm's controller and the gripper's ramp; the model itself must not have changed.
    The same commands then lead to the same states; what follows from the state (places, contacts)
    is that of the moment again after the next step.
    """
    model, data = scene.sim.model._model, scene.sim.data._data
    controller, gripper = scene.robots[0].controller, scene.robots[0].gripper
    what = mujoco.mjtState.mjSTATE_INTEGRATION
    physics = np.empty(mujoco.mj_stateSize(model, what))
    mujoco.mj_getState(model, data, physics, what)
    law = {name: copy.copy(value) for name, value in vars(controller).items()
           if isinstance(value, (np.ndarray, bool))}
    fingers = np.array(gripper.current_action)

    def restore() -> None:
        mujoco.mj_setState(model, data, physics, what)
        for name, value in law.items():
            setattr(controller, name, copy.copy(value))
        gripper.current_action = fingers.copy()

    return restore
