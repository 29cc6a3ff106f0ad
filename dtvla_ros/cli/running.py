"""The commands ``dtvla run`` and ``dtvla doctor``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from typer import Argument, Exit, Option

from dtvla_ros.cli.arguments import Json, group
from dtvla_ros.errors import UserError
from dtvla_ros.files import write_json
from dtvla_ros.ros import bringup
from dtvla_ros.ros.environment import require_one_ros

app = group()
PANELS: dict[str, bringup.Table] = {
    'Policy': {**bringup.POLICY, 'namespace': bringup.GRAPH['namespace']},
    'Topics': {**bringup.IMAGES, 'transport': bringup.GRAPH['transport'], **bringup.TOPICS,
               **bringup.COMMAND},
    'Beside the nodes': bringup.VIEWERS, 'Simulated arm only': bringup.SIMULATION}
"""Arguments of the launch files, by panel of the help; use_sim_time is left to the file."""


MARKS = {True: ('ok', 'green'), False: ('NO', 'bold red'), None: ('-', 'dim')}


def _option(name: str) -> str:
    return f'--{name.replace("_", "-")}'


def _options(panels: Iterable[str]) -> Iterator[inspect.Parameter]:
    for panel in panels:
        for name, (_, meaning, *choices) in PANELS[panel].items():
            is_flag = bringup.TYPES.get(name) is bool
            yield inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=False if is_flag else None,
                annotation=Annotated[bool if is_flag else str | None, Option(
                    _option(name), help=meaning, rich_help_panel=panel,
                    metavar=None if is_flag else '|'.join(choices) or 'TEXT')])


def _given(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that are given as the launch files' texts."""
    given = {name: 'true' if value is True else value
             for name, value in options.items() if value not in (None, False)}
    for table in PANELS.values():
        for name, (_, _, *choices) in table.items():
            if choices and given.get(name, choices[0]) not in choices:
                raise UserError(f'{_option(name)} {given[name]}: choose from {", ".join(choices)}')
    return given


def _with_options(*panels: str) -> Any:
    """Return a decorator which gives a command, as ``given``, the launch files' arguments."""
    def decorate(command: Callable[..., None]) -> Any:
        own = inspect.signature(command, eval_str=True).parameters
        names = own.keys() - {'given'}

        def run(**options: Any) -> None:
            command(**{name: options.pop(name) for name in names}, given=_given(options))

        parameters = [*(own[name].replace(kind=inspect.Parameter.KEYWORD_ONLY)
                        for name in own if name in names), *_options(panels)]
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


Robot = Annotated[str | None, Option(
    '--robot', metavar='NAME', help='An arm that starts as shipped, of config/robots.')]


def read_configuration(config: str | None, robot: str | None) -> Any:
    """Return a parameter file by either of its names, None where none is given."""
    from dtvla_ros.ros import params_file
    if config and robot:
        raise UserError(f'{config} and --robot {robot}: name one of them')
    if robot:
        return params_file.ParameterFile.read(params_file.find_robot(robot))
    return config and params_file.ParameterFile.read(params_file.find_configuration(config))


@app.command()
@_with_options(*PANELS)
def run(config: Annotated[str | None, Argument(
        help='Name of a configuration, or a parameter file. [default: list them]')] = None,
        robot: Robot = None, given: Mapping[str, str] = {}) -> None:
    """Run policy, command gate and, where the file names it, the simulator, without ros2 launch.

    Starts what the launch files start, from the same parameter files, with or without a ROS
    installation; an option that is not given is as the file says. Every line on the terminal
    begins with its process; a process that waits says for what. Ctrl-C stops the policy and the
    gate, then the rest; one that dies ends the rest. A simulated arm ends after its episodes.

    For an arm of your own copy the nearest file of config/robots, set workspace box and names, and
    ask `dtvla doctor` what is missing. Nothing moves before `dtvla topic call /start`.

    **Examples**
    `dtvla run` lists the configurations
    `dtvla run sim_realtime --tasks put_the_lemon_in_the_blue_bin --episodes 3`
    `dtvla run --robot ur5e_servo`
    `dtvla run my_cell.yaml --image-primary /front/image_raw --record bags/first`
    """
    from dtvla_ros.ros.params_file import configurations
    console = Console(markup=False, highlight=False)
    if config is None and robot is None:
        table = Table('configuration', 'what it is', box=None, pad_edge=False)
        for name, meaning in configurations().items():
            table.add_row(name, meaning)
        console.print(table)
        console.print('\ndtvla run NAME, or the path of a copy; dtvla run --help', style='dim')
        return
    if given.get('viz') == 'rviz':
        raise UserError('--viz rviz: RViz comes with a ROS installation: rviz2 -d '
                        'config/rviz/dtvla.rviz; or choose rerun')
    require_one_ros()
    from dtvla_ros.ros.runner import run_graph
    run_graph(read_configuration(config, robot), given, console)


@app.command()
@_with_options('Topics')
def doctor(
    config: Annotated[str | None, Argument(help='Configuration to check a robot against before '
        'the nodes run. [default: the nodes that run]')] = None,
    robot: Robot = None,
    seconds: Annotated[float, Option(min=1.0, help='How long to listen.')] = 5.0,
    json_file: Json = None,
    given: Mapping[str, str] = {}) -> None:
    """Check what the policy and the gate need of the running graph; one row per requirement.

    Cameras (type, rate, stamps, latency, skew, encoding), joints by name, the pose and its frame,
    clocks, the command topic's publishers and listeners, controllers, quality of service, the
    policy. Where the nodes run their own parameters and topics count, else those of a
    configuration. Says what was found, what is wanted and what helps; changes nothing.
    Exit code 1 if anything is missing.

    **Examples**
    `dtvla doctor`
    `dtvla doctor --robot fr3_crisp`
    `dtvla doctor my_cell.yaml --image-primary /front/image_raw --json out/doctor.json`
    """
    require_one_ros()
    from rich.progress import Progress

    from dtvla_ros.doctor.checks import judge
    from dtvla_ros.doctor.look import look
    console = Console(markup=False, highlight=False)
    file = read_configuration(config, robot)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task('listening', total=seconds)
        seen = look(file, given, seconds, lambda passed: progress.update(task, completed=passed))
    rows = judge(seen)
    table = Table('', Column('requirement', overflow='fold'), Column(
        'found, wanted, remedy', overflow='fold'), box=None, pad_edge=False)
    for row in rows:
        helps = (('wanted', row.wanted), ('remedy', row.remedy)) if row.ok is False else ()
        table.add_row(Text(*MARKS[row.ok]), row.requirement, Text.assemble(row.found, *(
            part for name, text in helps for part in ((f'\n{name}  ', 'dim'), text))))
    console.print(table)
    missing = [row.requirement for row in rows if row.ok is False]
    console.print(f'{len(missing)} of {len(rows)} requirements missing: {", ".join(missing)}'
                  if missing else 'nothing is missing',
                  style='bold red' if missing else 'bold green')
    write_json(json_file, {'source': seen.source, 'missing': missing,
                           'rows': [asdict(row) for row in rows]})
    raise Exit(bool(missing))
