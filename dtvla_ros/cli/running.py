"""The command ``dtvla run``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from dtvla_ros.cli.arguments import group
from dtvla_ros.errors import UserError
from dtvla_ros.ros import bringup
from dtvla_ros.ros.environment import require_one_ros

app = group()
PANELS: dict[str, bringup.Table] = {
    'Policy': {**bringup.POLICY, 'namespace': bringup.GRAPH['namespace']},
    'Topics': {**bringup.IMAGES, 'transport': bringup.GRAPH['transport'], **bringup.TOPICS,
               **bringup.COMMAND},
    'Beside the nodes': bringup.VIEWERS, 'Simulated arm only': bringup.SIMULATION}
"""Arguments of the launch files, by panel of the help; use_sim_time is left to the file."""


def _option(name: str) -> str:
    return f'--{name.replace("_", "-")}'


def _options() -> Iterator[inspect.Parameter]:
    for panel, table in PANELS.items():
        for name, (_, meaning, *choices) in table.items():
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


def _with_options(command: Callable[..., None]) -> Any:
    """Give a command that takes ``config`` and ``given`` the launch files' arguments."""
    own = inspect.signature(command, eval_str=True).parameters

    def run(config: str | None, **options: Any) -> None:
        command(config, _given(options))

    parameters = [own['config'].replace(kind=inspect.Parameter.KEYWORD_ONLY), *_options()]
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


@app.command()
@_with_options
def run(config: Annotated[str | None, Argument(
        help='Name of a configuration, or a parameter file. [default: list them]')] = None,
        given: Mapping[str, str] = {}) -> None:
    """Run policy, command gate and, where the file names it, the simulator, without ros2 launch.

    Starts what the launch files start, from the same parameter files, with or without a ROS
    installation; an option that is not given is as the file says. Every line on the terminal
    begins with its process; a process that waits says for what. Ctrl-C stops the policy and the
    gate, then the rest; one that dies ends the rest. A simulated arm ends after its episodes.

    For an arm of your own copy config/robot_servo.yaml, robot_crisp.yaml or robot_fzi.yaml, set
    workspace box and joint names, and ask `dtvla doctor` what is missing. Nothing moves before
    `dtvla topic call /start`.

    **Examples**
    `dtvla run` lists the configurations
    `dtvla run sim_realtime --tasks put_the_lemon_in_the_blue_bin --episodes 3`
    `dtvla run my_cell.yaml --image-primary /front/image_raw --record bags/first`
    """
    from dtvla_ros.ros import params_file
    console = Console()
    if config is None:
        table = Table('configuration', 'what it is', box=None, pad_edge=False)
        for name, meaning in params_file.configurations().items():
            table.add_row(name, meaning)
        console.print(table)
        console.print('\ndtvla run NAME, or the path of a copy; dtvla run --help', style='dim')
        return
    if given.get('viz') == 'rviz':
        raise UserError('--viz rviz: RViz comes with a ROS installation: rviz2 -d '
                        'config/rviz/dtvla.rviz; or choose rerun')
    require_one_ros()
    from dtvla_ros.ros.runner import run_graph
    run_graph(params_file.ParameterFile.read(params_file.find_configuration(config)), given,
              console)
