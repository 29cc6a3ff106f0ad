"""``dtvla tell``, ``think``, ``stop``, ``tasks`` and ``watch``: a person and a running robot."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from dtvla_ros.cli.arguments import group
from dtvla_ros.errors import UserError
from dtvla_ros.ros.environment import require_one_ros

app = group()


@app.command()
def tell(
    sentence: Annotated[list[str], Argument(help='The task in words, with or without quotes.')],
) -> None:
    """Tell the running policy its task.

    It does one of its own tasks or refuses: what it understood is printed, or the reason and the
    nearest task, exit code 2.

    **Examples**
    `dtvla tell put the lemon in the blue bin`
    `ROS_DOMAIN_ID=42 dtvla tell "stack the red cube on the green cube"` in the demo's domain
    """
    require_one_ros()
    from dtvla_ros.ros import talk
    print(talk.tell(' '.join(sentence)))


@app.command()
def think(
    words: Annotated[list[str] | None, Argument(
        help='A thought as a sentence, or parts of one.')] = None,
    clear: Annotated[bool, Option('--clear', help='Let it think for itself again.')] = False,
) -> None:
    """Correct what the running policy thinks; it thinks and acts around these words.

    They count until they are cleared, a task begins or ends or is stopped, or for as many
    decisions as the node's parameter override_decisions says. What is no thought is refused, with
    what could be said, exit code 2. docs/thought.md has the parts.

    **Examples**
    `dtvla think the lemon` that one instead of what it reaches for
    `dtvla think the other bin`
    `dtvla think "move left and up; then grasp"`
    `dtvla think --clear`
    """
    if bool(words) == clear:
        raise UserError('say the words that it should think, or --clear')
    require_one_ros()
    from dtvla_ros.ros import talk
    print(talk.think(' '.join(words or ())))


@app.command()
def stop(clear: Annotated[bool, Option(
        '--clear', help='Release it and clear the fault.')] = False) -> None:
    """Press the e-stop of the command gate.

    Starting Python and finding the gate take seconds; SPACE in the terminal of `dtvla demo` and
    `dtvla play` stops at once. Neither replaces a hardware emergency stop.

    **Examples**
    `dtvla stop`
    `dtvla stop --clear`
    """
    require_one_ros()
    from dtvla_ros.ros import talk
    print(talk.clear() if clear else talk.stop())


@app.command()
def tasks() -> None:
    """List what the running policy may be told, and the scenes of the simulator.

    Other wordings are understood as one of these or refused: `dtvla tell` says which, `dtvla eval
    --instructions FILE --understand-only` of a whole list.

    **Example:** `dtvla tasks`
    """
    require_one_ros()
    from dtvla_ros.ros import talk
    listed = talk.tasks()
    if listed.get('simulator') == listed['policy']:
        del listed['simulator']
    for who, sentences in listed.items():
        print(f'{who}:' if sentences else f'{who}: names none, takes any sentence of its words')
        for sentence in sentences:
            print(f'  {sentence}')


@app.command()
def watch() -> None:
    """Watch the robot think: the present thought in place, until Ctrl-C.

    What it is told, refusals and stops stay above it, in colour. Piped, a line per thought.

    **Example:** `dtvla watch`
    """
    require_one_ros()
    from rich.console import Console

    from dtvla_ros.ros import talk
    talk.watch(Console(highlight=False))
