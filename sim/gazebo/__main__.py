"""``python3 -m dtvla_sim.gazebo --out FOLDER`` writes a world for gazebo.launch.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dtvla_ros.errors import UserError

from .. import EVAL_SEED_START


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
    from .build import build

    try:
        instruction = build(options.out, options.task, options.seed, options.image_size)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{options.out / "world.sdf"}: {instruction}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
