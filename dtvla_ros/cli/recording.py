"""``dtvla record``, ``dtvla view`` and ``dtvla data from-bag``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from dtvla_ros.cli.arguments import ChunkSteps, File, NewDataset, call, group, names
from dtvla_ros.cli.data import data
from dtvla_ros.errors import UserError
from dtvla_ros.ros.environment import require_one_ros

app = group()


@app.command()
def record(
    out: Annotated[Path, Option(help='Folder of the bag; must not exist.')],
    topics: Annotated[str | None, Option(
        help='Comma-separated topics. [default: everything the package defines]')] = None,
    seconds: Annotated[float, Option(min=0.0, help='Stop by itself; 0: at Ctrl-C.')] = 0.0,
) -> None:
    """Record the running graph into a rosbag2 bag (MCAP).

    `ros2 bag play` and Foxglove open it; `dtvla data from-bag` makes a dataset of it. When the
    disk is full recording stops with exit code 3, and nothing else does.

    **Examples**
    `dtvla record --out bags/monday`
    `dtvla record --out bags/thoughts --topics /vla/reasoning,/vla/state --seconds 60`
    """
    require_one_ros()
    from dtvla_ros.conventions import RECORDED
    from dtvla_ros.recording.record import record as run
    wanted = names(topics) or RECORDED
    if relative := [topic for topic in wanted if not topic.startswith('/')]:
        raise UserError(f'--topics {relative[0]}: write the whole name, /{relative[0]}')
    raise typer.Exit(run(out, wanted, seconds))


@data.command('from-bag')
def from_bag(
    bags: Annotated[list[Path], Argument(help='Folders of bags, or .mcap files.')],
    out: NewDataset,
    successful: Annotated[bool, Option('--successful',
        help='Keep only episodes that /sim/episode calls successful.')] = False,
    rate: Annotated[int | None, Option(min=1,
        help='Commands a second. [default: as their stamps show]')] = None,
    camera_every: Annotated[int | None, Option(min=1,
        help='Control steps per frame. [default: as the images come]')] = None,
    tolerance: Annotated[float | None, Option(min=0.0, help='Largest difference between the '
        'stamps of a frame [s]. [default: half a control period]')] = None,
    chunk: ChunkSteps = 8,
    command: Annotated[str | None, Option(
        help='/action, /twist_cmd or /target_pose. [default: the one recorded]')] = None,
    fingers: Annotated[str | None, Option(
        help='Comma-separated gripper joints. [default: those of a Panda]')] = None,
    robot: Annotated[str, Option(help='Name of the robot in the dataset.')] = 'panda',
) -> None:
    """Make a LeRobot v3.0 dataset of recorded runs, to train on what was really commanded.

    Commands are turned back into OSC_POSE units, images and measurements are matched with
    them by their stamps, and the thought is the one that led to the command. A frame that lacks
    something is a gap: the episode is cut there, and the gaps are told.

    **Examples**
    `dtvla data from-bag bags/monday bags/tuesday --out data/real`
    `dtvla data from-bag bags/sim --out data/good --successful --camera-every 2`
    """
    require_one_ros()
    from dtvla_ros.conventions import FINGER_JOINTS
    from dtvla_ros.data.from_bag import ConvertOptions, convert
    report = convert(bags, out, call(
        ConvertOptions, locals(), fingers=names(fingers) or FINGER_JOINTS))
    print(f'{out}: {report.episodes} episodes in {report.pieces} pieces, {report.frames} frames'
          + (f', {report.unthought} of them before any thought' if report.unthought else '')
          + (f'; {report.failed} episodes without success left out' if report.failed else ''))
    for name, count in report.gaps.items():
        print(f'  gaps: {count} frames without {name}')


@app.command()
def view(save: Annotated[Path | None, File(help='Write a Rerun file.')] = None,
         spawn: Annotated[bool, Option('--spawn', help='Open the Rerun viewer.')] = False) -> None:
    """Show the running graph in Rerun: cameras, thoughts, commands, latency, path of the gripper.

    Needs the extra `viz`: `pip install 'dtvla_ros[viz]'`. Ctrl-C ends it.

    **Examples**
    `dtvla view --spawn`
    `dtvla view --save out/run.rrd`, then `rerun out/run.rrd`
    """
    require_one_ros()
    from dtvla_ros.recording.view import view as run
    raise typer.Exit(run(save, spawn))
