"""Commands that evaluate: ``dtvla eval``, ``robustness``, ``calibrate``, ``steer`` and more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from dtvla_ros.cli.arguments import File, Folder, Given, call, group, names, takes
from dtvla_ros.errors import UserError

if TYPE_CHECKING:
    from dtvla_ros.evaluation.workers import EvalOptions

app = group()
Page = Annotated[Path, File('--html', help='The page of the result.')]
Families = Annotated[str | None, Option(help='Comma-separated: layout, camera, robot, language, '
    'light, texture, noise. [default: all]')]
Strengths = Annotated[str, Option(help='Comma-separated.')]
JournalFolder = Annotated[Path | None, Folder(
    '--resume', help='Folder of finished episodes, kept and continued.')]


def _options(given: Given) -> EvalOptions:
    from dtvla_ros.evaluation.workers import EvalOptions
    from dtvla_ros.rollout.env import SceneSetup
    scene = call(SceneSetup, given, perturb=given.get('perturb') or ())
    return call(EvalOptions, given, scene=scene)


@app.command('eval')
@takes('policy suite tasks episodes instructions understand_only mode engine device threads '
       'workers ray seed replan_steps starts perturb antialiasing shadows max_steps via realtime '
       'videos journal html json_file')
def evaluate(
    given: Given,
    episodes: Annotated[int | None, Option(min=1, help='Episodes per task, or of each wording in '
        '--instructions. [default: 50, or 1]')] = None,
    instructions: Annotated[Path | None, File(help='Tell the tasks in the words of this file '
        '(YAML: task: [wording, ...]), and what it says must be refused.')] = None,
    understand_only: Annotated[bool, Option('--understand-only', help='Print only how what '
        '--instructions says is understood; no simulation.')] = False,
    perturb: Annotated[list[str] | None, Option(help='Disturb the scene: family:strength, '
        'for instance camera:2; repeat for several (see dtvla robustness).')] = None,
    via: Annotated[str, Option(help='inprocess, or ros: simulator, policy and command gate '
        'as three processes.')] = 'inprocess',
    realtime: Annotated[bool, Option('--realtime',
        help='With --via ros: the scene does not wait while the policy thinks.')] = False,
    videos: Annotated[Path | None, Folder(help='Write a film of every failure here.')] = None,
    journal: Annotated[Path | None, File(
        '--resume', help='Journal of finished episodes, kept and continued.')] = None,
    html: Annotated[Path | None, File(
        help='Write a report with a still of every failure.')] = None,
) -> None:
    """Measure a policy's success per task, in lock-step: time waits for the policy.

    Start states are drawn from seeds no demonstration was ever recorded on. The table gives
    n, the success rate and its 95 % Wilson interval. Over ROS in lock-step the same seeds end
    the same way as in process; in real time thinking takes time, and the result says so.

    **Examples**
    `dtvla eval --policy models/nano --episodes 50 --json out/eval.json --html out/eval.html`
    `dtvla eval --mode masked --episodes 20` acts without a thought
    `dtvla eval --mode replay` repeats one demonstration blindly: what needs no eyes scores here
    `dtvla eval --episodes 10 --videos out/failures --resume out/eval.jsonl`
    `dtvla eval --via ros --realtime --episodes 5`
    `dtvla eval --perturb camera:2 --perturb light:1 --episodes 10`
    `dtvla eval --instructions wordings.yaml --understand-only` how they are understood, in seconds
    `dtvla eval --instructions wordings.yaml --html out/wordings.html` an episode of each
    `dtvla eval --suite libero_10 --policy my_policy --max-steps 620 --device cuda`
    """
    if understand_only:
        from dtvla_ros.evaluation.wordings import show_understanding
        for option, value in (('--html', html), ('--videos', videos), ('--resume', journal)):
            if value is not None:
                raise UserError(f'--understand-only runs no episode for {option}; leave it out')
        return call(show_understanding, given)
    from dtvla_ros.evaluation.command import evaluate_policy
    evaluate_policy(_options({**given, 'episodes': episodes or (1 if instructions else 50)}))


@app.command()
@takes('policy suite tasks episodes families strengths mode engine device threads workers ray '
       'seed replan_steps starts antialiasing shadows max_steps journal confidence html json_file')
def robustness(
    given: Given,
    episodes: Annotated[int, Option(min=1, help='Episodes per task, family and strength.')] = 10,
    families: Families = None,
    strengths: Strengths = '1,2,3',
    journal: JournalFolder = None,
    html: Page = Path('out/robustness.html'),
    confidence: Annotated[bool, Option('--confidence', help='Also print which failures the '
        "policy's confidence announced (after dtvla calibrate).")] = False,
) -> None:
    """Measure what disturbs a policy: seven families, as in LIBERO-Plus, at three strengths.

    Every cell of the table meets the same tasks and seeds, and so does the undisturbed scene
    below it. With `--confidence` a failure is announced once the mean confidence of five
    decisions is below the threshold that 5 % of the successful disturbed episodes cross.

    **Examples**
    `dtvla robustness --policy models/nano --episodes 10 --json out/robustness.json`
    `dtvla robustness --families camera,light --resume out/robustness --episodes 20`
    `dtvla robustness --confidence --json out/robustness.json`
    """
    from dtvla_ros.evaluation.command import evaluate_robustness
    evaluate_robustness(_options(given), names(families), names(strengths), confidence)


@app.command()
@takes('policy suite tasks episodes families strengths engine device threads workers ray '
       'replan_steps starts antialiasing shadows max_steps journal plot json_file')
def calibrate(
    given: Given,
    policy: Annotated[Path, Argument(file_okay=False, help='Folder of the policy.')],
    episodes: Annotated[int, Option(min=2, help='Episodes per task, family and strength.')] = 4,
    families: Families = None,
    strengths: Strengths = '1,2,3',
    journal: JournalFolder = None,
    plot: Annotated[Path, File(help='The reliability plot (PNG).')] = Path('out/confidence.png'),
) -> None:
    """Fit how sure a policy is: the chance of success, by the probabilities of a decision.

    Runs episodes as `dtvla robustness` does, at seeds that no training and no evaluation uses,
    and fits success by logistic regression on how probable the words of the thought, those of
    its place, and the actions were. The result goes into the policy's manifest; from then on
    every decision has a confidence, and `vla_node` can ask a person (`min_confidence`).

    **Examples**
    `dtvla calibrate models/nano --resume out/calibration`
    `dtvla calibrate my_policy --families layout,texture --episodes 10 --json out/calibration.json`
    """
    from dtvla_ros.evaluation.calibration import calibrate as run
    run(_options(given), names(families), names(strengths), plot)


@app.command()
@takes('policy suite tasks episodes correct starts workers ray seed html json_file')
def steer(given: Given,
          episodes: Annotated[int, Option(min=1, help='Start states per task.')] = 10,
          correct: Annotated[bool, Option('--correct', help='Correct single words of the thought '
              'as dtvla think does, and measure that instead.')] = False,
          html: Page = Path('out/steer.html')) -> None:
    """Measure whether the arm does as its thought says.

    Everything but the thought stays as it is. First it thinks what it would think of another
    task in the same scene: is that one done, or the one it was told? Then the words for where
    the gripper should go are flipped: do the actions flip, too? A policy whose thought is
    decoration ignores both.

    With `--correct` a person's correction is measured: on its way to one thing the thought is
    corrected to another, and where that goes; is that one done, and after clearing the one it was
    told? And the motion of every thought to the opposite: do the actions agree with all its words?

    **Examples**
    `dtvla steer --policy models/nano --episodes 20 --json out/steer.json`
    `dtvla steer --correct --episodes 30 --json out/correct.json --html out/correct.html`
    """
    if correct:
        from dtvla_ros.evaluation.corrections import correct as run_corrected
        run_corrected(_options(given))
        return
    from dtvla_ros.evaluation.interventions import steer as run
    run(_options(given))


@app.command()
@takes('policy suite tasks episodes starts workers ray seed shown html json_file')
def recover(
    given: Given,
    episodes: Annotated[int, Option(min=1, help='Start states per task and mode.')] = 17,
    shown: Annotated[int, Option(min=0, help='Recoveries told thought by thought.')] = 2,
    html: Page = Path('out/recover.html'),
) -> None:
    """Knock the object out of the gripper once in every episode; count who succeeds anyway.

    With the policy's own thought and with an empty one, on the same start states.

    **Example**
    `dtvla recover --policy models/nano --episodes 17 --json out/recover.json`
    """
    from dtvla_ros.evaluation.interventions import recover as run
    run(_options(given), shown)


@app.command()
def report(
    results: Annotated[list[Path], Argument(help='Files of dtvla eval --json.')],
    into: Annotated[Path | None, File(help='Document whose success table is replaced.')] = None,
    policy: Annotated[Path | None, Folder(
        help='Policy whose manifest gets the success table.')] = None,
    against: Annotated[list[Path] | None, File(help='Result of another policy, compared with on '
        'the start states that both began from; repeat for several.')] = None,
    html: Page = Path('out/report.html'),
) -> None:
    """Put the success of several modes side by side.

    One suite and start distribution: tasks by modes. Several: those by modes, totals in the cells.

    **Examples**
    `dtvla report out/full.json out/masked.json out/random.json out/replay.json`
    `dtvla report out/full.json out/replay.json --into README.md --policy models/nano`
    `dtvla report out/libero/my_policy/*.json` what `make libero-table` does at its end
    `dtvla report out/new.json --against out/old.json` won and lost starts, and a sign test
    """
    from dtvla_ros.evaluation.comparing import compare
    compare(results, into, policy, html, against or ())


@app.command()
@takes('suite tasks episodes noise workers ray seed starts json_file')
def experts(
    given: Given,
    episodes: Annotated[int, Option(min=1, help='Episodes per task.')] = 50,
    noise: Annotated[bool, Option('--noise',
        help='Disturb the executed action as collection does.')] = False,
    seed: Annotated[int | None, Option(min=0, help='First seed. [default: 0; with --starts '
        'benchmark the first evaluation seed]')] = None,
) -> None:
    """Measure the scripted experts that make the demonstrations.

    **Examples**
    `dtvla experts --suite tabletop --episodes 50`
    `dtvla experts --episodes 20 --noise --json out/experts.json`
    `dtvla experts --suite libero_object --starts random --episodes 50`
    """
    from dtvla_ros.evaluation.command import evaluate_experts
    evaluate_experts(_options(given), noise)
