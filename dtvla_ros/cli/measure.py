"""``dtvla latency|soak|seam`` as typed; what they need is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dtvla_ros.cli.arguments import Json

app = typer.Typer()


@app.command()
def latency(
    rate: Annotated[list[float] | None, typer.Option(min=1.0,
        help='Control rate of the gate [Hz]; repeat for several. [default: 20 and 100]')] = None,
    count: Annotated[int, typer.Option(min=10, help='Pictures and commands measured.')] = 300,
    seconds: Annotated[float, typer.Option(min=1.0,
        help='How long each control rate is watched.')] = 10.0,
    priority: Annotated[int, typer.Option(min=0, max=90,
        help='Real-time priority (SCHED_FIFO) of everything measured; 0: none.')] = 0,
    json_file: Json = None,
) -> None:
    """Measure what the path from camera to arm costs on this machine, without a policy.

    A camera process to numpy in this one; a chunk through a real command gate; and how far the
    gate's commands come off their period. Runs on loopback in a ROS domain of its own, so no
    arm hears it. Leave the machine alone meanwhile: the load average is printed beside the
    numbers because a busy machine shows in p99 first.

    **Examples**

    `dtvla latency`

    `dtvla latency --rate 50 --seconds 30 --json out/latency.json`

    `sudo -E dtvla latency --priority 20` what is left when nothing ordinary may interrupt
    """
    from dtvla_ros.measure.latency import run_latency

    run_latency(rate or (20.0, 100.0), count, seconds, priority, json_file)


@app.command()
def soak(
    policy: Annotated[Path, typer.Option(help='Folder of the policy.')] = Path('models/nano'),
    minutes: Annotated[float, typer.Option(min=0.1, help='How long.')] = 10.0,
    warm_up: Annotated[float, typer.Option(min=0.0,
        help='Seconds before anything counts.')] = 60.0,
    json_file: Json = None,
) -> None:
    """Keep a kinematic arm moving under two 640x480 cameras at 30 Hz, and watch the nodes.

    The real policy and command gate run at 20 Hz as on a robot. Exit code 1 if a command came
    more than 50 ms late, the gate stopped, or a process grew by 5 MB after the warm-up.

    **Examples**

    `dtvla soak`

    `dtvla soak --minutes 1 --warm-up 20 --json out/soak.json`
    """
    from dtvla_ros.measure.soak import run_soak

    result = run_soak(policy, minutes, warm_up, json_file)
    if not result['passed']:
        raise typer.Exit(1)


@app.command()
def seam(
    policy: Annotated[Path, typer.Option(help='Folder of the policy.')] = Path('models/nano'),
    blend: Annotated[list[int] | None, typer.Option(min=0,
        help="The gate's blend_steps; repeat for several. [default: 0 and 6]")] = None,
    seconds: Annotated[float, typer.Option(min=5.0, help='How long each is watched.')] = 60.0,
    json_file: Json = None,
) -> None:
    """Measure the jump of the commanded velocity where one chunk gives way to the next.

    The simulated arm runs on the wall clock and the policy thinks meanwhile, as on a robot. The
    jump at a seam should be at most 1.2 times the median jump inside chunks.

    **Example**

    `dtvla seam --blend 0 --blend 4 --blend 6 --seconds 120`
    """
    from dtvla_ros.measure.seam import run_seam

    run_seam(policy, blend or (0, 6), seconds, json_file)
