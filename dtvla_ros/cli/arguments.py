"""Options that several commands share: each is defined once, here."""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

import typer
from typer import Option
from typer.core import TyperCommand

from dtvla_ros.interrupt import say

T = TypeVar('T')
Given = Mapping[str, Any]  # all arguments of a command by name
NANO = Path('models/nano')
File, Folder = partial(Option, dir_okay=False), partial(Option, file_okay=False)

Policy = Annotated[Path, Option(help='Folder of a policy (its manifest).')]
ChunkSteps = Annotated[int, Option('--chunk', min=1, help='Actions stored with each frame.')]
NewDataset = Annotated[Path, Folder(help='Folder of the new dataset.')]
RunFolder = Annotated[Path, Folder(help='Folder of the run.')]
Config = Annotated[Path, File(help='Training config (YAML).')]
Changes = Annotated[list[str] | None, Option(
    '--set', metavar='KEY=VALUE', help="Instead of the config's value; repeatable.")]
Compile = Annotated[bool, Option('--compile', help='Compile the network first (needs a C++ '
    'compiler; always on cuda): half as many seconds a training step on a CPU.')]
Json = Annotated[Path | None, File('--json', help='Write the result here.')]


def names(text: str | None) -> tuple[str, ...]:
    """Return the comma-separated names in an argument."""
    return tuple(name.strip() for name in (text or '').split(',') if name.strip())


def shared(
    policy: Policy = NANO,
    mode: Annotated[str, Option(help="Thought: full, masked, random, swapped (another task's) or "
        'frozen; where a policy is evaluated, replay, too: no policy, eyes closed.')] = 'full',
    engine: Annotated[str, Option(help='onnx or torch.')] = 'onnx',
    device: Annotated[str, Option(
        help='Where the policy runs: cpu, cuda, tensorrt or auto; onnx on cuda or tensorrt is '
        'untested.')] = 'cpu',
    threads: Annotated[int, Option(min=1,
        help="Of the policy's engine on the CPU, in each process.")] = 1,
    cpu_threads: Annotated[int | None, Option('--threads', min=1,
        help='CPU threads of the network. [default: all cores]')] = None,
    replan_steps: Annotated[int | None, Option('--replan', min=1,
        help='Actions per decision. [default: as the policy promises]')] = None,
    suite: Annotated[str, Option(help='Scenes and tasks.')] = 'tabletop',
    tasks: Annotated[str | None, Option(callback=names,
        help='Comma-separated task names. [default: all of the suite]')] = None,
    starts: Annotated[str | None, Option(help='Start states: benchmark, random, jitter or '
        "shuffle, as the suite has them. [default: the suite's]")] = None,
    seed: Annotated[int | None, Option(
        help='First seed. [default: the first evaluation seed]')] = None,
    max_steps: Annotated[int | None, Option(min=1,
        help="Control steps per episode. [default: the suite's limit]")] = None,
    antialiasing: Annotated[bool, Option('--antialiasing/--no-antialiasing', help='As '
        'LIBERO draws, or in half the time; a policy should be tested on images like those it was '
        'trained on.')] = True,
    shadows: Annotated[bool, Option('--shadows/--no-shadows',
        help='As LIBERO draws; its own lights throw none.')] = True,
    workers: Annotated[int, Option(min=1, help='Processes, one simulator each.')] = 2,
    ray: Annotated[str | None, Option(help='Address of a Ray cluster to put the simulators '
        'on; auto: the one this machine belongs to. [default: this machine alone]')] = None,
    camera_every: Annotated[int, Option(help='Keep every k-th control step as a frame.')] = 2,
    after_success: Annotated[int, Option(min=0, help='Control steps that an episode goes on '
        'after success, in which the thought says that it is done.')] = 20,
    chunk: ChunkSteps = 8,
    changes: Changes = None,
    json_file: Json = None,
) -> None:
    """Declare the options that commands share, each with its usual default."""


def sharing(prototype: Callable[..., None], **made: Callable[[Given], Any]) -> Callable[..., Any]:
    """Return a decorator which gives commands the options of ``prototype``.

    ``@takes('policy suite shown', suite='libero_10')`` lists the options of a command as help
    shows them, and defaults that are not the usual ones. Those that a command declares itself
    are its own. It is called with the parameters it names; ``given`` holds all arguments, and
    what is ``made`` of them for every command.
    """
    common = inspect.signature(prototype, eval_str=True).parameters

    def takes(listed: str, **defaults: Any) -> Callable[[Callable[..., None]], Any]:
        def decorate(command: Callable[..., None]) -> Any:
            own = inspect.signature(command, eval_str=True).parameters
            options = [own[name] if get_origin(getattr(own.get(name), 'annotation', None)) is
                       Annotated else common[name] for name in listed.split()]

            @wraps(command)
            def run(**given: Any) -> None:
                given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
                given |= {name: make(given) for name, make in made.items()}
                command(**{name: given.get(name, given) for name in own})

            run.__annotations__ = {option.name: option.annotation for option in options}
            run.__signature__ = inspect.Signature([option.replace(  # type: ignore[attr-defined]
                kind=inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(option.name, option.default)) for option in options])
            return run

        return decorate

    return takes


takes = sharing(shared)


def call(function: Callable[..., T], given: Given, **more: Any) -> T:
    """Call a function, or build a dataclass, with the arguments that it has parameters for."""
    wanted = inspect.signature(function).parameters.keys() & given.keys()
    return function(**{name: given[name] for name in wanted} | more)


FORMER_NAMES = {'--drop-share': '--release-share', '--shove-share': '--push-share',
                '--look-share': '--observation-share'}


class Command(TyperCommand):
    """Accepts the former names of options, too; the help does not show them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        pairs = (arg.partition('=') for arg in args)
        return super().parse_args(ctx, [''.join([FORMER_NAMES.get(name, name), *rest])
                                        for name, *rest in pairs])


def tell_written(options: Given, began: int) -> None:
    """Print which files have been written since a time [ns]; of its ``out`` a command tells."""
    for name, path in options.items():
        if name != 'out' and isinstance(path, Path) and path.is_file() and (
                path.stat().st_mtime_ns >= began):
            print(f'wrote {path}', file=sys.stderr)


class Group(typer.Typer):
    """Commands whose help shows every example of their docstring as a paragraph to copy.

    Files that their options name are told when they are written.
    What a KeyboardInterrupt says, what is kept of the work, is printed.
    """

    def command(self, name: str | None = None, **settings: Any) -> Any:  # type: ignore[override]
        def decorate(function: Callable[..., Any]) -> Any:
            text, mark, examples = (inspect.getdoc(function) or '').partition('**Example')
            examples = re.sub(r'(`[^`]*\bdtvla [^`]*`),?\s+(?=[^`\s])', r'\1 # ', examples)
            text += mark + re.sub(r'\n(?=`[^`\n]*dtvla )', '\n\n', examples)

            @wraps(function)
            def told(*arguments: Any, **options: Any) -> Any:
                began = time.time_ns()
                try:
                    result = function(*arguments, **options)
                except KeyboardInterrupt as error:  # of which typer keeps only an exit code
                    say(str(error))
                    raise
                except typer.Exit:
                    tell_written(options, began)
                    raise
                tell_written(options, began)
                return result

            return super(Group, self).command(name, help=text, **settings)(told)

        return decorate


def group(name: str | None = None, help: str | None = None, **settings: Any) -> typer.Typer:
    """Return an empty group; without a ``name`` its commands stand directly under ``dtvla``."""
    return Group(
        name=name, help=help, no_args_is_help=bool(name), rich_markup_mode='markdown',
        context_settings={'help_option_names': ['-h', '--help']}, **settings)


def counts(info: Given) -> str:
    """Return how much is in a dataset."""
    return '{total_episodes} episodes, {total_frames} frames, {total_tasks} tasks'.format(**info)
