"""A suite that needs no physics: an end effector over a plane must reach a spot, one of two tasks.

Small enough that a policy learns it in seconds, and with the contract of the real suites.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dtvla_ros.actions.contract import ActionContract

SIZE = 16  # side of the images [px]
INSTRUCTIONS = {'left': 'push the can left', 'right': 'push the can right'}


class ToyEnv:
    """The end effector moves along y by a tenth of the action, and must be ``goal`` m aside."""

    tasks = tuple(INSTRUCTIONS)
    instructions = INSTRUCTIONS
    suite = 'toy'
    contract = ActionContract()
    views = {'primary': 'agentview_image', 'wrist': 'robot0_eye_in_hand_image'}
    image_size = SIZE
    control_rate = 20.0
    one_scene = True
    base_position = np.zeros(3)

    def __init__(self, limit: int = 12, goal: float = 0.5):
        self.max_steps = int(limit)
        self._goal = goal
        self._task, self._y, self._steps = 'left', 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        self._task = (options or {})['task']
        self._y = float(np.random.default_rng(seed).uniform(-0.05, 0.05))
        self._steps = 0
        return self._observe(), {'instruction': INSTRUCTIONS[self._task], 'success': False}

    def step(self, action):
        self._steps += 1
        self._y += 0.1 * float(action[1])
        success = self._left() < 0.0
        over = self._steps >= self.max_steps and not success
        return self._observe(), float(success), success, over, {'success': success}

    def remaining(self) -> float:
        """Return how far the end effector is from its spot [m]."""
        return max(self._left(), 0.0)

    def _left(self) -> float:
        return self._goal - (1.0 if self._task == 'left' else -1.0) * self._y

    def snapshot(self):
        """Return what brings it back."""
        return partial(vars(self).update, vars(self).copy())

    def _observe(self) -> dict[str, np.ndarray]:
        image = np.full((SIZE, SIZE, 3), 120, np.uint8)
        column = int(np.clip((self._y + 1.0) * SIZE / 2, 0, SIZE - 2))
        image[6:9, column:column + 2] = (220, 30, 30)
        return {'agentview_image': image, 'robot0_eye_in_hand_image': image[::-1].copy(),
                'robot0_eef_pos': np.array([0.4, self._y, 0.1]), 'robot0_eef_quat': np.eye(4)[0],
                'robot0_joint_pos': np.zeros(7), 'robot0_gripper_qpos': np.array([0.02, -0.02])}


class FaultyEnv(ToyEnv):
    """Does once what its file says when a task of that name takes its third step."""

    def __init__(self, fault: Path):
        super().__init__()
        self._fault = fault

    def step(self, action):
        if self._steps == 2 and self._fault.exists():
            task, what = self._fault.read_text().split()
            if task == self._task:
                if what != 'always':
                    self._fault.unlink()
                if what == 'die':
                    os._exit(3)
                if what == 'hang':
                    time.sleep(1000.0)
                raise RuntimeError('the arm fell off')
        return super().step(action)


@dataclass(frozen=True)
class ToyScene:
    """Stands where ``SceneSetup`` does."""

    limit: int = 12
    goal: float = 0.5
    fault: Path | None = None

    def make(self) -> ToyEnv:
        return FaultyEnv(self.fault) if self.fault else ToyEnv(self.limit, self.goal)
