"""The ``dtvla`` command. Every command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from dtvla_ros.cli import annotate, data, evaluation, models, recording, running, talk, train
from dtvla_ros.cli.arguments import Given, call, group, names, takes
from dtvla_ros.cli.extras import extras_of
from dtvla_ros.cli.help import Commands
from dtvla_ros.errors import NodeDied, one_line
from dtvla_ros.interrupt import terminable
from dtvla_ros.ros import topic_cli

app = group(
    'dtvla',
    'A policy that writes down its thought, then acts: simulate, collect, train, evaluate.',
    cls=Commands, add_completion=False, pretty_exceptions_enable=False)
for part in (talk, running, recording, topic_cli, data, annotate, train, models, evaluation):
    app.add_typer(part.app)


def _show_version(asked: bool) -> None:
    if asked:
        from dtvla_ros.revision import version
        print(f'dtvla {version()}')
        raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, Option(
        '--version', is_eager=True, callback=_show_version,
        help='Show version and git revision, and exit.')] = False) -> None:
    pass


DEMO_TASKS = ('put_the_can_in_the_wooden_bin, stack_the_red_cube_on_the_green_cube, '
              'push_the_green_cube_onto_the_yellow_mark')


@app.command()
@takes('policy tasks episodes seed mode engine out viz say')
def demo(
    given: Given,
    tasks: Annotated[str, Option(callback=names, help='Comma-separated task names.')] = DEMO_TASKS,
    episodes: Annotated[int, Option(min=1, help='Episodes per task.')] = 5,
    mode: Annotated[str, Option(help='Thought: full or masked (empty).')] = 'full',
    out: Annotated[Path, Option(help='Folder for film, sheet and result.')] = Path('out'),
    viz: Annotated[str, Option(help='rerun: also write demo.rrd for Rerun.')] = '',
    say: Annotated[list[str] | None, Option(metavar='SENTENCE', help='Tell the policy this in the '
        'last episode, to see what it understands or refuses; repeatable.')] = None,
) -> None:
    """Watch a simulated arm think and act; every command travels over ROS 2 topics.

    Starts the simulator, the policy and the command gate as three processes, with or without
    ROS installed, on start states nothing was trained on. Leaves `demo.mp4`, a contact sheet
    `demo.png` and `demo.json`.

    SPACE presses the e-stop at once, c clears it: time stands still meanwhile, then the episode
    begins anew. Where stdin is no terminal a stop that lasts 60 s ends the demo with exit code 1.

    **Examples**
    `dtvla demo`
    `dtvla demo --tasks put_the_lemon_in_the_blue_bin --episodes 10 --out out/lemon`
    `dtvla demo --mode masked --out out/masked` the same arm without a thought
    `dtvla demo --episodes 1 --say "Push the green cube onto the yellow mark!" --say "sing a song"`
    """
    from dtvla_ros.demo.run import run_demo
    if call(run_demo, given, say=given.get('say') or ())['ended']:
        raise typer.Exit(1)


@app.command()
@takes('policy suite scene seed mode engine out open_page')
def play(
    given: Given,
    scene: Annotated[str, Option(
        help='A task whose scene it is, where every task has its own.')] = '',
    mode: Annotated[str, Option(help='Thought: full or masked (empty).')] = 'full',
    out: Annotated[Path, Option(help='Folder for films and logs.')] = Path('out/play'),
    open_page: Annotated[bool, Option(
        '--open', help="Open the operator's page in a browser, too.")] = False,
) -> None:
    """Play with a simulated arm: say what it should do, stop it, knock things out of its hand.

    One scene without end, over the same ROS 2 topics as a robot; time runs as it does here, and
    waits for the policy on a slow machine. Nothing is scored, and nothing but you says what to do.
    Type a sentence, or the number of a task; `reset`, `knock` and `film` are orders. SPACE on an
    empty line is the e-stop, ESC at any time. Ctrl-C ends.

    **Examples**
    `dtvla play`
    `dtvla play --seed 1000007` other places of the same things
    `dtvla play --suite libero_object --policy models/libero`
    `dtvla play --open` and a page with both cameras, the thought and a STOP (docs/operator.md)
    `dtvla topic call /sim/knock` from another terminal; also /sim/reset, /play/film
    """
    from dtvla_ros.demo.play import run_play
    call(run_play, given)


def main(commands: typer.Typer = app) -> None:
    """Run a command; bad input is one line and exit code 2, a node that died 1, Ctrl-C 130."""
    try:
        os.getcwd()  # nothing works in a folder that was removed, ...
        [word.encode() for word in sys.argv]  # ... and no file holds other text
        with terminable():
            code = commands(prog_name='dtvla' if commands is app else None, standalone_mode=False)
    except (KeyboardInterrupt, Exception) as error:
        # typer's own usage errors; which module defines their class depends on its version.
        kind = type(error).__name__
        if kind in ('KeyboardInterrupt', 'Abort'):  # which some make of it
            raise SystemExit(130) from None
        if kind == 'NoArgsIsHelpError':
            raise SystemExit(2) from None
        usage = getattr(error, 'format_message', None)
        where = getattr(getattr(error, 'ctx', None), 'command_path', 'dtvla')
        message = f'{usage().rstrip(".")}; see {where} --help' if usage else (
            one_line(error, extras_of(sys.argv[1:])))
        if message is None:
            raise
        traceback.clear_frames(error.__traceback__)  # progress bars end their line
        print('error: ' + ' '.join(message.split()), file=sys.stderr)
        raise SystemExit(1 if isinstance(error, NodeDied) else 2) from None
    raise SystemExit(code if isinstance(code, int) else 0)
