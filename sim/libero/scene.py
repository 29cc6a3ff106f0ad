"""The robosuite scene of a LIBERO task: physics and success; a reset depends on its seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ..control import ArmControl, scene_settings
from .package import prepare
from .tasks import LiberoTask

RESETS = 20


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which robosuite draws from, and give it back afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


class _Reduced:
    """Leaves out LIBERO's observables, and makes a reset independent of those before."""

    _compiled: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def _setup_observables(self) -> dict[str, Any]:
        """No robosuite observables: what is observed is read by ``LiberoEnv``."""
        return {}

    def _reset_internal(self) -> None:
        # Fixtures have no joint: sampling moves them in the model, and what starts in or on them
        # is placed as if they had not been moved yet.
        model = self.sim.model._model  # type: ignore[attr-defined]
        if self._compiled is None:
            self._compiled = model.body_pos.copy(), model.body_quat.copy()
        model.body_pos[:], model.body_quat[:] = self._compiled
        super()._reset_internal()  # type: ignore[misc]


class LiberoScene:
    """Physics and success predicate of one task."""

    def __init__(self, task: LiberoTask, assets: Any = None, download: bool = False):
        self.assets = prepare(assets, download)
        from libero.libero.envs import TASK_MAPPING
        from libero.libero.envs.bddl_utils import get_problem_info

        stock = TASK_MAPPING[get_problem_info(str(task.bddl))['problem_name']]
        # LIBERO compares the name of the class with the task's.
        reduced = type(stock.__name__, (_Reduced, stock), {})
        with seeded(0):
            self.env = reduced(str(task.bddl), **scene_settings())
        self.sim, self.robot = self.env.sim, self.env.robots[0]
        self.model: mujoco.MjModel = self.env.sim.model._model
        self.data: mujoco.MjData = self.env.sim.data._data
        self.arm = ArmControl(self.env)
        self.base = self.model.body(self.robot.robot_model.root_body).id
        self.objects: tuple[str, ...] = tuple(self.env.objects_dict)
        self.fixtures: tuple[str, ...] = tuple(self.env.fixtures_dict)
        self.goals: list[list[str]] = self.env.parsed_problem['goal_state']
        self.initial: list[list[str]] = self.env.parsed_problem['initial_state']
        self.regions: dict[str, Any] = self.env.parsed_problem['regions']
        self._geoms: dict[str, list[int]] = {}

    def reset(self, seed: int) -> None:
        """Sample the task's own random start; fixtures included, it depends on ``seed`` only.

        Raises RuntimeError if the objects find no room in their regions.
        """
        from robosuite.utils.errors import RandomizationError

        gripper = self.robot.gripper
        gripper.current_action = np.zeros(gripper.dof)  # robosuite keeps the last one
        with seeded(seed):
            for _ in range(RESETS):
                with contextlib.suppress(RandomizationError):
                    self.env.reset()
                    break
            else:
                raise RuntimeError(f'no room for the objects in {RESETS} tries, seed {seed}')
        self.env._post_process()

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Put the scene into a recorded state (time, positions, velocities)."""
        self.env.sim.set_state_from_flattened(state)
        self.forward()

    def forward(self) -> None:
        """Recompute what follows from positions that were set from outside."""
        self.env.sim.forward()
        self.env._post_process()

    def step(self, action: NDArray[np.float64]) -> None:
        """Run one control step (50 ms) under a command [7]."""
        self.arm.step(action)
        self.env._post_process()

    def success(self) -> bool:
        """Evaluate the benchmark's own predicate."""
        return bool(self.env._check_success())

    def body(self, name: str) -> int:
        """Return the root body of an object or fixture."""
        return int(self.env.obj_body_id[name])

    def position(self, name: str) -> NDArray[np.float64]:
        """World position [3] of an object's or fixture's origin [m]."""
        return np.array(self.data.xpos[self.body(name)])

    def joint_address(self, name: str) -> int:
        """Return where an object's free joint begins in ``qpos`` (x, y, z, then wxyz)."""
        return int(self.model.joint(self.env.objects_dict[name].joints[-1]).qposadr[0])

    def geoms(self, name: str) -> Sequence[int]:
        """Return the colliding geoms of an object or fixture, its moving parts included."""
        if name not in self._geoms:
            model = self.model
            mine = model.body_rootid[model.geom_bodyid] == self.body(name)
            self._geoms[name] = np.flatnonzero(
                mine & ((model.geom_contype | model.geom_conaffinity) != 0)).tolist()
        return self._geoms[name]

    def held(self, name: str) -> bool:
        """Return whether both fingers touch the object."""
        return self.arm.holds(self.geoms(name))
