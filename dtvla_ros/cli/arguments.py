"""Options that several commands share: each is defined once, here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

NANO = Path('models/nano')

# Policies
Policy = Annotated[Path, typer.Option(help='Folder of a policy (its manifest).')]
Mode = Annotated[str, typer.Option(help="Thought: full, masked, random, swapped (another task's) "
    'or frozen; where a policy is evaluated, replay, too: no policy, eyes closed.')]
Engine = Annotated[str, typer.Option(help='onnx or torch.')]
Device = Annotated[str, typer.Option(help='Where the policy runs: cpu, cuda, tensorrt or auto.')]
Threads = Annotated[int, typer.Option(
    min=1, help="Of the policy's engine on the CPU, in each process.")]
Replan = Annotated[int | None, typer.Option('--replan', min=1,
    help='Actions per decision. [default: as the policy promises]')]

# Episodes
Suite = Annotated[str, typer.Option(help='Scenes and tasks.')]
Tasks = Annotated[str | None, typer.Option(
    help='Comma-separated task names. [default: all of the suite]')]
Starts = Annotated[str | None, typer.Option(help='Start states: benchmark, random, jitter or '
    "shuffle, as the suite has them. [default: the suite's]")]
Seed = Annotated[int | None, typer.Option(help='First seed. [default: the first evaluation seed]')]
MaxSteps = Annotated[int | None, typer.Option(
    min=1, help="Control steps per episode. [default: the suite's limit]")]
Antialiasing = Annotated[bool, typer.Option('--antialiasing/--no-antialiasing', help='As LIBERO '
    'draws, or in half the time; a policy should be tested on images like those it was '
    'trained on.')]
Shadows = Annotated[bool, typer.Option(
    '--shadows/--no-shadows', help='As LIBERO draws; its own lights throw none.')]
Workers = Annotated[int, typer.Option(min=1, help='Processes, one simulator each.')]
Ray = Annotated[str | None, typer.Option(help='Address of a Ray cluster to put the simulators on; '
    'auto: the one this machine belongs to. [default: this machine alone]')]

# Datasets
CameraEvery = Annotated[int, typer.Option(help='Keep every k-th control step as a frame.')]
ChunkSteps = Annotated[int, typer.Option('--chunk', min=1,
    help='Actions stored with each frame.')]
NewDataset = Annotated[Path, typer.Option(help='Folder of the new dataset.', file_okay=False)]

# Training
RunFolder = Annotated[Path, typer.Option(help='Folder of the run.', file_okay=False)]
Config = Annotated[Path, typer.Option(help='Training config (YAML).', dir_okay=False)]
Changes = Annotated[list[str] | None, typer.Option(
    '--set', metavar='KEY=VALUE', help="Instead of the config's value; repeatable.")]
CpuThreads = Annotated[int | None, typer.Option(
    '--threads', min=1, help='CPU threads of the network. [default: all cores]')]
Compile = Annotated[bool, typer.Option('--compile', help='Compile the network first (needs a C++ '
    'compiler; always on cuda): half as many seconds a training step on a CPU.')]

# Results
Json = Annotated[Path | None, typer.Option('--json', help='Write the result here.',
    dir_okay=False)]


FORMER_NAMES = {'--drop-share': '--release-share', '--shove-share': '--push-share',
                '--look-share': '--observation-share'}


class Command(TyperCommand):
    """Accepts the former names of options, too; the help does not show them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return the arguments that are left, after former names have become today's."""
        pairs = [arg.partition('=') for arg in args]
        return super().parse_args(ctx, [
            FORMER_NAMES.get(name, name) + sign + value for name, sign, value in pairs])


def group(name: str = '', help: str = '', **settings: Any) -> typer.Typer:  # noqa: A002
    """Return an empty group of commands, with the settings all of them share.

    Without a ``name`` its commands stand directly under ``dtvla``.
    """
    named: dict[str, Any] = {'name': name, 'help': help, 'no_args_is_help': True} if name else {}
    return typer.Typer(rich_markup_mode='markdown', context_settings={
        'help_option_names': ['-h', '--help']}, **named, **settings)


def names(text: str | None) -> tuple[str, ...]:
    """Return the comma-separated names in an argument."""
    return tuple(name.strip() for name in (text or '').split(',') if name.strip())
