"""``python3 -m dtvla_sim.gazebo --out FOLDER`` writes a world for gazebo.launch.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared

from ..suites import EVAL_SEED_START
from ..tabletop.env import TabletopEnv
from . import sdf, urdf
from .model import matrix, models, write

CONTROLLERS = 'config/gazebo_controllers.yaml'


def build(folder: Path, task: str, seed: int, image_size: int) -> str:
    """Write world.sdf and panda.urdf with what they name; return the task's instruction.

    Raises
    ------
    UserError
        If the task is unknown or the package's controller settings are not installed.

    """
    controllers = find_shared(CONTROLLERS)
    if not controllers.is_file():
        raise UserError(f'{CONTROLLERS} is not installed: build the workspace or run this from '
                        'the source tree')
    env = TabletopEnv(image_size)
    _, info = env.reset(seed=seed, options={'task': task or env.tasks[0]})
    m, d = env.model, env.data
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(models(m, d))
    write(sdf.world(m, parts, folder, controllers.resolve(), image_size),
              folder / 'world.sdf')
    arm = next(p for p in parts if p.kind == 'arm')
    robot = env.robot
    flange = m.body(robot.robot_model.eef_name).id
    site = robot.eef_site_id
    # The policy's pose: the grip site's position, the flange's orientation.
    ee = np.linalg.inv(matrix(d.xpos[flange], d.xmat[flange])) @ matrix(
        d.site_xpos[site], d.xmat[flange])
    write(urdf.robot(m, arm, ee, folder), folder / 'panda.urdf')
    env.close()
    return str(info['instruction'])


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog='python3 -m dtvla_sim.gazebo', description='Write the tabletop scene as a Gazebo '
        'world: world.sdf, panda.urdf, meshes and textures. The folder stays where it is made.')
    parser.add_argument('--out', type=Path, required=True, help='folder of the world')
    parser.add_argument('--task', default='', help='task whose start state it shows')
    parser.add_argument('--seed', type=int, default=EVAL_SEED_START, help='start state')
    parser.add_argument('--image-size', type=int, default=128, help='side of the images [px]')
    options = parser.parse_args(arguments)
    try:
        instruction = build(options.out, options.task, options.seed, options.image_size)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{options.out / "world.sdf"}: {instruction}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
