"""The tabletop scene: a Panda, five graspable objects, two bins and a mark, in robosuite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from robosuite.environments.manipulation.single_arm_env import SingleArmEnv
from robosuite.models.arenas import TableArena
from robosuite.models.objects import (
    BoxObject,
    BreadObject,
    CanObject,
    CompositeObject,
    LemonObject,
)
from robosuite.models.tasks import ManipulationTask
from robosuite.utils.mjcf_utils import CustomMaterial
from scipy.spatial.transform import Rotation

from ..control import ArmControl, scene_settings

OBJECTS = ('red_cube', 'green_cube', 'can', 'bread', 'lemon')
BINS = ('wooden_bin', 'blue_bin')
MARK = 'mark'
TABLE_TOP = 0.8  # world z [m]
CUBE_HALF = 0.022
BIN_HALF = 0.075  # outer half width [m]
BIN_HEIGHT = 0.05
MARK_HALF = 0.05
# Distance from the object's origin down to its lowest point when it stands on the table [m].
REST_HEIGHT = {
    'red_cube': CUBE_HALF, 'green_cube': CUBE_HALF, 'can': 0.041, 'bread': 0.024, 'lemon': 0.021,
}
WALL = 0.005
# A tight, steep view from the front: the camera looks along -x of the base (REP 103). World [m].
CAMERA_EYE = np.array([0.34, 0.0, 1.62])
CAMERA_TARGET = np.array([-0.14, 0.0, 0.8])
CAMERA_FOVY = 49.0  # vertical field of view [deg]


def _camera_rotation() -> NDArray[np.float64]:
    """Return the camera's axes in the world as columns [3, 3]: right, up, backwards."""
    back = (CAMERA_EYE - CAMERA_TARGET) / np.linalg.norm(CAMERA_EYE - CAMERA_TARGET)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back], axis=1)


def _material(name: str, texture: str) -> CustomMaterial:
    return CustomMaterial(
        texture=texture, tex_name=f'{name}_tex', mat_name=f'{name}_mat',
        tex_attrib={'type': 'cube'},
        mat_attrib={'texrepeat': '1 1', 'specular': '0.1', 'shininess': '0.1'},
    )


def _bin(name: str, texture: str) -> CompositeObject:
    h, w, t = BIN_HEIGHT / 2, BIN_HALF, WALL
    sizes = [[w, w, t], [t, w, h], [t, w, h], [w, t, h], [w, t, h]]
    places = [[0, 0, t - h], [w - t, 0, 0], [t - w, 0, 0], [0, w - t, 0], [0, t - w, 0]]
    box = CompositeObject(
        name=name, total_size=[w, w, h], geom_types=['box'] * 5, geom_sizes=sizes,
        geom_locations=places, geom_names=[f'g{i}' for i in range(5)],
        geom_materials=[f'{name}_mat'] * 5, joints=None,
        locations_relative_to_center=True, obj_types='all',
    )
    box.append_material(_material(name, texture))
    return box


class TabletopScene(SingleArmEnv):
    """Physics of the suite; images and tasks are those of ``TabletopEnv``."""

    def __init__(self, control: Callable[[Any], ArmControl] = ArmControl) -> None:
        super().__init__(**scene_settings())
        self.robot = self.robots[0]
        self.arm: Any = control(self)

    def step(self, action: NDArray[np.float64]) -> None:
        """Run one control step (50 ms) under a command [D]: ``MujocoEnv.step``'s physics."""
        self.arm.step(action)

    def _load_model(self) -> None:
        super()._load_model()
        size = (0.8, 1.2, 0.05)
        self.robots[0].robot_model.set_base_xpos(
            self.robots[0].robot_model.base_xpos_offset['table'](size[0]))
        arena = TableArena(
            table_full_size=size, table_friction=(1.0, 5e-3, 1e-4),
            table_offset=(0.0, 0.0, TABLE_TOP))
        arena.set_origin([0, 0, 0])
        quat = Rotation.from_matrix(_camera_rotation()).as_quat()
        arena.set_camera(
            camera_name='agentview', pos=CAMERA_EYE, quat=quat[[3, 0, 1, 2]],
            camera_attribs={'fovy': str(CAMERA_FOVY)})
        half = [CUBE_HALF] * 3
        cubes = [
            BoxObject(name=f'{c}_cube', size_min=half, size_max=half, rgba=rgba, density=300.0,
                      friction=(1.0, 5e-3, 1e-4), material=_material(f'{c}_cube', texture))
            for c, texture, rgba in (
                ('red', 'WoodRed', (1, 0, 0, 1)), ('green', 'WoodGreen', (0, 1, 0, 1)))
        ]
        mark = BoxObject(
            name=MARK, size_min=[MARK_HALF, MARK_HALF, 5e-4],
            size_max=[MARK_HALF, MARK_HALF, 5e-4], rgba=(1.0, 0.85, 0.1, 1), joints=None,
            obj_type='visual')
        self.objects = dict(zip(OBJECTS, [
            *cubes, CanObject('can'), BreadObject('bread'), LemonObject('lemon')]))
        self.fixtures = {
            'wooden_bin': _bin('wooden_bin', 'WoodLight'),
            'blue_bin': _bin('blue_bin', 'WoodBlue'), MARK: mark,
        }
        self.model = ManipulationTask(
            mujoco_arena=arena, mujoco_robots=[r.robot_model for r in self.robots],
            mujoco_objects=[*self.objects.values(), *self.fixtures.values()])

    def _setup_references(self) -> None:
        super()._setup_references()
        everything = {**self.objects, **self.fixtures}
        self.body_ids = {
            n: self.sim.model.body_name2id(o.root_body) for n, o in everything.items()}
        model = self.sim.model
        self.geom_ids = {
            n: {model.geom_name2id(g) for g in o.contact_geoms} for n, o in self.objects.items()}

    def _setup_observables(self) -> dict:
        """No robosuite observables: the env above reads the state once per control step."""
        return {}

    def reward(self, action: Any = None) -> float:
        """Return 0: success is judged by the task."""
        return 0.0

    def place(self, objects: dict[str, NDArray[np.float64]],
              fixtures: dict[str, NDArray[np.float64]]) -> None:
        """Put free objects (x, y, yaw) and fixtures (x, y) on the table, world frame [m, rad]."""
        for name, (x, y, yaw) in objects.items():
            z = TABLE_TOP + REST_HEIGHT[name] + 2e-3
            quat = Rotation.from_euler('z', yaw).as_quat()[[3, 0, 1, 2]]
            self.sim.data.set_joint_qpos(
                self.objects[name].joints[0], np.concatenate([[x, y, z], quat]))
        for name, (x, y) in fixtures.items():
            self.sim.model.body_pos[self.body_ids[name]] = [
                x, y, TABLE_TOP + (1e-3 if name == MARK else BIN_HEIGHT / 2)]
        self.sim.forward()

    def position(self, name: str) -> NDArray[np.float64]:
        """World position [3] of an object's or fixture's origin [m]."""
        return np.array(self.sim.data.body_xpos[self.body_ids[name]])

    def held(self, name: str) -> bool:
        """Return whether both fingers touch the object."""
        return self.arm.holds(self.geom_ids[name])
