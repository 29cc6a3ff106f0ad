"""From a start state of the suite to the files of a world."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dtvla_sim
from dtvla_ros.errors import UserError
from dtvla_ros.share import find

from . import sdf, urdf, xml
from .model import matrix, models

CONTROLLERS = 'config/gazebo_controllers.yaml'


def build(folder: Path, task: str, seed: int, image_size: int) -> str:
    """Write world.sdf and panda.urdf with what they name; return the task's instruction.

    Raises
    ------
    UserError
        If the task is unknown or the package's controller settings are not installed.

    """
    controllers = find(CONTROLLERS)
    if not controllers.is_file():
        raise UserError(f'{CONTROLLERS} is not installed: build the workspace or run this from '
                        'the source tree')
    env = dtvla_sim.make('tabletop', image_size=image_size)
    _, info = env.reset(seed=seed, options={'task': task or env.tasks[0]})
    m, d = env.scene.sim.model._model, env.scene.sim.data._data
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(models(m, d))
    xml.write(sdf.world(m, parts, folder, controllers.resolve(), image_size),
              folder / 'world.sdf')
    arm = next(p for p in parts if p.kind == 'arm')
    robot = env.scene.robots[0]
    hand = m.body(robot.robot_model.eef_name).id
    site = robot.eef_site_id
    # The policy's pose: the grip site's position, the hand's orientation.
    ee = np.linalg.inv(matrix(d.xpos[hand], d.xmat[hand])) @ matrix(
        d.site_xpos[site], d.xmat[hand])
    xml.write(urdf.robot(m, arm, ee, folder), folder / 'panda.urdf')
    env.close()
    return str(info['instruction'])
