"""``dtvla record``, ``dtvla view`` and ``dtvla data from-bag``."""

from __future__ import annotations

import sys
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from dtvla_ros.cli.arguments import ChunkSteps, File, NewDataset, call, group, names
from dtvla_ros.cli.data import data
from dtvla_ros.cli.running import Robot, read_configuration
from dtvla_ros.errors import UserError
from dtvla_ros.ros.environment import require_one_ros

if TYPE_CHECKING:
    from dtvla_ros.data.robot_names import RobotNames

app = group()


Topics = Annotated[list[str] | None, Option('--topic', metavar='NAME=/TOPIC',
    help='Topic of a name, as in image_primary=/front/image; repeatable.')]
ParamsFile = Annotated[str | None, Option(
    help="Parameter file of the nodes, for the robot's topics, frames and joints.")]


@app.command()
def record(
    out: Annotated[Path, Option(help='Folder of the bag; must not exist.')],
    topics: Annotated[str | None, Option(
        help='Comma-separated topics. [default: everything the package defines]')] = None,
    topic: Topics = None,
    params_file: ParamsFile = None,
    robot: Robot = None,
    seconds: Annotated[float, Option(min=0.0, help='Stop by itself; 0: at Ctrl-C.')] = 0.0,
) -> None:
    """Record the running graph into a rosbag2 bag (MCAP).

    `ros2 bag play` and Foxglove open it; `dtvla data from-bag` makes a dataset of it. What was
    never heard is said at the end. The topics, frames and joints of a robot are kept in the bag.
    When the disk is full recording stops with exit code 3, and nothing else does.

    **Examples**
    `dtvla record --out bags/monday`
    `dtvla record --out bags/thoughts --topics /vla/reasoning,/vla/state --seconds 60`
    `dtvla record --out bags/front --topic image_primary=/front/image_raw
    --robot fr3_servo`
    """
    require_one_ros()
    from dtvla_ros.data.robot_names import VALID_TOPIC, RobotNames, parse_topics
    from dtvla_ros.recording.record import record as run
    if wrong := [topic for topic in names(topics) if not VALID_TOPIC.fullmatch(topic)]:
        raise UserError(f'--topics {wrong[0]}: write the whole name of a topic, as in '
                        '/joint_states')
    told = RobotNames(parse_topics(topic or ())).over(_robot(params_file, robot))
    code = run(out, names(topics), seconds, told)
    if code == 0:
        print(f'wrote {out}; next: dtvla data from-bag {out} --out data/{out.name}')
    raise typer.Exit(code)


@data.command('from-bag')
def from_bag(
    bags: Annotated[list[Path], Argument(help='Folders of bags, or .mcap files.')],
    out: NewDataset,
    successful: Annotated[bool, Option('--successful',
        help='Keep only episodes that a person (/episode_mark), or else the simulator, calls '
        'successful.')] = False,
    rate: Annotated[int | None, Option(min=1,
        help='Commands a second. [default: as their stamps show]')] = None,
    camera_every: Annotated[int | None, Option(min=1,
        help='Control steps per frame. [default: as the images come]')] = None,
    tolerance: Annotated[float | None, Option(min=0.0, help='Largest difference between the '
        'stamps of a frame [s]. [default: half of what lies between two images]')] = None,
    chunk: ChunkSteps = 8,
    topic: Topics = None,
    instruction: Annotated[str, Option(help='The task. [default: as the bag says]')] = '',
    command: Annotated[str | None, Option(
        help='/action, /twist_cmd (not for poses) or /target_pose; of an arm commanded by its '
        'joints /action, /joint_trajectory or /joint_commands, or measured: where the joints '
        'were a control period later. [default: the one recorded; of joints measured where '
        'there is none]',
    )] = None,
    gripper: Annotated[str | None, Option(metavar='CLOSED,OPEN', help="The gripper's command when "
        'closed and when open; measured: as the fingers move. [default: 0,1; in /action 1,-1]',
    )] = None,
    fingers: Annotated[str | None, Option(
        help='Comma-separated gripper joints. [default: as kept in the bag, or a Panda]')] = None,
    joints: Annotated[str | None, Option(
        help='Comma-separated joints of the arm. [default: as kept in the bag or found]')] = None,
    cameras: Annotated[str | None, Option(help='Comma-separated cameras, NAME for the topic '
        'image_NAME. [default: as kept in the bag, or primary,wrist]')] = None,
    action_space: Annotated[str, Option(help='What an action is: OSC_POSE, OSC_POSE_ABSOLUTE, '
        'JOINT_POSITION or JOINT_DELTA. [default: as kept in the bag, or OSC_POSE]')] = '',
    gripper_channel: Annotated[str | None, Option(help="The gripper's channel behind the joints; "
        "'': none; with --action-space. [default: gripper]")] = None,
    base_frame: Annotated[str, Option(help='Frame of poses and commands.')] = '',
    ee_frame: Annotated[str, Option(
        help='Frame of the gripper: its pose is then taken from /tf.')] = '',
    stamps: Annotated[str, Option(metavar='header|received', help='When a message happened: as '
        'its header says, or when it was received.')] = 'header',
    params_file: ParamsFile = None,
    robot: Annotated[str, Option(help='An arm that starts as shipped, of config/robots: its '
        'topics, frames, joints and action space, where the bag keeps none. Any other name is '
        'only that of the robot in the dataset.')] = 'panda',
) -> None:
    """Make a LeRobot v3.0 dataset of recorded runs, to train on what was really commanded.

    Commands are turned back into OSC_POSE units, or into poses of the end effector, or into
    positions or offsets of the joints that they command. Images and measurements are matched with
    them by their stamps, and the thought is the one that led to the command. A frame that lacks
    something is a gap: the episode is cut there, and the gaps are told. Exit code 1, the dataset
    written, where that leaves more than two pieces an episode.

    **Examples**
    `dtvla data from-bag bags/monday bags/tuesday --out data/real`
    `dtvla data from-bag bags/sim --out data/good --successful --camera-every 2`
    `dtvla data from-bag bags/front --out data/front --topic image_primary=/front/image_raw
    --instruction "put the lemon in the blue bin"`
    `dtvla data from-bag bags/leader --robot so101 --out data/leader
    --topic joint_commands=/leader/joint_states`
    """
    require_one_ros()
    from dtvla_ros.actions.contract import GRIPPER, SPACES
    from dtvla_ros.data.bag import Told
    from dtvla_ros.data.from_bag import ConvertOptions, convert
    from dtvla_ros.data.robot_names import RobotNames, parse_cameras, parse_topics
    from dtvla_ros.ros.params_file import robots
    if stamps not in ('header', 'received'):
        raise UserError(f'--stamps {stamps}: choose header or received')
    if action_space not in ('', *SPACES):
        raise UserError(f'--action-space {action_space}: choose from {", ".join(SPACES)}')
    if gripper_channel is not None and not action_space:
        raise UserError(f'--gripper-channel {gripper_channel}: give --action-space, too')
    told = Told(RobotNames(
        parse_topics(topic or ()), base_frame, ee_frame, names(joints), names(fingers),
        parse_cameras(names(cameras)), action_space=action_space,
        gripper_channel=GRIPPER if gripper_channel is None else gripper_channel),
        command, _ends(gripper), stamps == 'received',
        robot=_robot(params_file, robot if robot in robots() else None))
    report = convert(bags, out, call(ConvertOptions, locals()))
    print(f'{out}: {report.episodes} episodes in {report.pieces} pieces, {report.frames} frames'
          + (f', {report.unthought} of them before any thought' if report.unthought else '')
          + (f'; {report.failed} episodes without success left out' if report.failed else ''))
    if not report.contract.is_normalised:
        contract = report.contract
        print(f'  {contract.controller} of {", ".join(contract.channels)} at '
              f'{contract.rate_hz:g} Hz, from {", ".join(sorted(report.commands))}')
    for name, count in report.gaps.items():
        print(f'  gaps: {count} frames without {name}')
    for why, count in report.left_out.items():
        print(f'  left out: {count} messages on {why}')
    if report.clipped:
        print(f'  clipped: {report.clipped} commands beyond what an action can say')
    if trouble := report.trouble():
        print(f'error: {out}: {trouble}', file=sys.stderr)
        raise typer.Exit(1)
    print(f'next: dtvla data validate {out}'
          + (' --policy models/nano' if report.contract.is_normalised else ''))


def _robot(params_file: str | None, robot: str | None) -> RobotNames:
    """Return what the file of a robot says, by either of its names."""
    from dtvla_ros.data.robot_names import RobotNames, names_in_params
    file = read_configuration(params_file, robot)
    return names_in_params(file) if file else RobotNames()


def _ends(text: str | None) -> tuple[float, float] | str | None:
    """Return a gripper's commands when closed and open. Raises ``UserError``."""
    if text in (None, 'measured'):
        return text
    with suppress(ValueError):
        shut, wide = map(float, text.split(','))
        if isfinite(shut) and isfinite(wide) and shut != wide:
            return shut, wide
    raise UserError(f'--gripper {text}: write CLOSED,OPEN, two different numbers as in 0,0.08, or '
                    'measured')


@app.command()
def view(save: Annotated[Path | None, File(help='Write a Rerun file.')] = None,
         spawn: Annotated[bool, Option('--spawn', help='Open the Rerun viewer.')] = False,
         topic: Topics = None) -> None:
    """Show the running graph in Rerun: cameras, thoughts, commands, latency, path of the gripper.

    Needs the extra `viz`: `pip install 'dtvla_ros[viz]'`. Ctrl-C ends it.

    **Examples**
    `dtvla view --spawn`
    `dtvla view --save out/run.rrd`, then `rerun out/run.rrd`
    """
    require_one_ros()
    from dtvla_ros.data.robot_names import RobotNames, parse_topics
    from dtvla_ros.recording.view import view as run
    raise typer.Exit(run(save, spawn, RobotNames(parse_topics(topic or ()))))
