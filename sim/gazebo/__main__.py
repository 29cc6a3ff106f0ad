"""``python3 -m dtvla_sim.gazebo --out FOLDER`` writes a world for gazebo.launch.py.

The documents are the templates beside this file, ``world.sdf`` for Gazebo Harmonic and later.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dtvla_ros.conventions import FINGER_JOINTS
from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared

from .. import EVAL_SEED_START
from ..tabletop.env import TabletopEnv
from .model import (
    JOINTS,
    SHAPES,
    Link,
    effort,
    matrix,
    models,
    numbers,
    pose_text,
    topic_name,
)
from .surfaces import Surfaces, linear

CONTROLLERS = 'config/gazebo_controllers.yaml'
CAMERAS = {'camera_primary': 'agentview', 'camera_wrist': 'robot0_eye_in_hand'}
BASE = 'panda_link0'
SPEEDS = {'revolute': 2.175, 'prismatic': 0.2}  # the Panda's data sheet [rad/s], [m/s]
# MuJoCo's cameras look along -z with y up, Gazebo's along x with z up.
CAMERA_AXES = np.array([[0, -1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])


def build(folder: Path, task: str, seed: int, image_size: int) -> str:
    """Write world.sdf and panda.urdf with what they name; return the task's instruction.

    Raises UserError if the task is unknown or the package's controller settings are not installed.
    """
    controllers = find_shared(CONTROLLERS)
    if not controllers.is_file():
        raise UserError(f'{CONTROLLERS} is not installed: build the workspace or run this from '
                        'the source tree')
    env = TabletopEnv(image_size)
    _, info = env.reset(seed=seed, options={'task': task or env.tasks[0]})
    m, d = env.model, env.data
    parts = list(models(m, d))
    arm: dict[str, Link] = {}  # from its base on, without the pedestal
    for link in next(part for part in parts if part.kind == 'arm').links:
        if link.name == BASE or link.parent in arm:
            arm[link.name] = link
    flange, site = m.body(env.robot.robot_model.eef_name).id, env.robot.eef_site_id
    # The policy's pose: the grip site's position, the flange's orientation.
    ee = np.linalg.inv(matrix(d.xpos[flange], d.xmat[flange])) @ matrix(
        d.site_xpos[site], d.xmat[flange])
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {'n': numbers, 'pose': pose_text, 'topic': topic_name}
    leader, follower = FINGER_JOINTS
    fingers = [link.body for link in arm.values() if 'finger' in link.name]
    grip = m.geom_friction[np.isin(m.geom_bodyid, fingers), 0].max()  # the pads'
    folder.mkdir(parents=True, exist_ok=True)
    surfaces = Surfaces(m, folder)
    for name in ('world.sdf', 'panda.urdf'):
        (folder / name).write_text(templates.get_template(name).render(
            m=m, d=d, parts=parts, links=[*arm.values()], ee=ee, folder=folder.resolve(),
            controllers=controllers.resolve(), surfaces=surfaces, size=image_size,
            cameras={name: m.camera(view) for name, view in CAMERAS.items()},
            camera_pose=lambda c: matrix(c.pos, c.quat) @ CAMERA_AXES, matrix=matrix,
            geoms=lambda body: [m.geom(g) for g in np.flatnonzero(m.geom_bodyid == body)],
            kinds=SHAPES, joints=JOINTS, effort=partial(effort, m), speeds=SPEEDS,
            leader=leader, follower=follower, grip=grip, linear=linear))
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
