"""Changes the thought, or the scene, during an episode: ``dtvla steer`` and ``dtvla recover``.

Steering asks whether the arm does as its thought says. *Task*: the thought is that of another
task in the same scene; which of the two is done? *Direction*: the direction words of the thought
are flipped; do the actions flip, too? Recovery asks how often an object is picked up again that
was knocked out of the gripper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from dtvla_ros import files
from dtvla_ros.actions.contract import require_offsets
from dtvla_ros.correction import Correction
from dtvla_ros.engine.engine import Decision
from dtvla_ros.engine.policy import Policy
from dtvla_ros.evaluation.ablations import ablated, drawn, swapped_thought
from dtvla_ros.evaluation.command import identify, inspect_scene
from dtvla_ros.evaluation.report import RateTable, write_rates
from dtvla_ros.evaluation.results import (
    Rate,
    counted,
    evaluation_seed,
    plain_table,
    rate_cells,
    versions,
)
from dtvla_ros.evaluation.workers import EvalOptions, Job, load, task_of
from dtvla_ros.policy.transform import Observation
from dtvla_ros.policy.vocabulary import directions, turned_round
from dtvla_ros.rollout.env import Env
from dtvla_ros.rollout.episode import run_episode
from dtvla_ros.rollout.workers import run_jobs
from dtvla_ros.thought import Thought, as_sentence

MODES = ('full', 'masked')  # of recovery
BEFORE, AFTER = 2, 8  # thoughts kept around the knock


@dataclass(frozen=True, slots=True)
class Steering:
    """Outcome of one start state."""

    task: str
    other: str  # task, whose thought it was
    seed: int
    said: bool  # whether the task of the thought was done
    asked: bool  # whether that of the instruction was
    words: int  # of direction in the policy's own thoughts
    along: int  # with how many of them the actions agreed
    turned: int  # with how many of the opposite words, where the thought had those


@dataclass(frozen=True, slots=True)
class Recovery:
    """Outcome of one episode."""

    mode: str
    task: str
    seed: int
    knocked: bool  # its object out of the gripper
    success: bool
    steps: int
    thoughts: tuple[str, ...]  # around the knock
    at: int  # index of the first one after it


def steer(options: EvalOptions) -> dict[str, Any]:
    """Print how often thought and instruction are followed; return what is written."""
    def report(results: Sequence[Steering]) -> Outcome:
        summary = steering_summary(results)
        rows = list(zip((
            ('task', 'the thought (its task done)'),
            ('task', 'the instruction (its task done)'),
            ('direction', 'nothing changed: words agreed with'),
            ('direction', 'opposite words agreed with')),
            (rate for part in summary.values() for rate in part.values())))
        return show_followed(f'{options.scene.suite}: steered by the thought', (
            'changed in the thought', 'followed'), rows, summary, steering_sentence(summary))

    return measure(options, 'steered', make_steering_worker, [()], report)


def recover(options: EvalOptions, shown: int = 0) -> dict[str, Any]:
    """Print success after a knock by mode and ``shown`` recoveries; return what is written."""
    def report(results: Sequence[Recovery]) -> Outcome:
        summary, console = recovery_summary(results), Console()
        console.print(plain_table(
            f'{options.scene.suite}: knocked out of the gripper',
            ('thought', 'succeeds all the same', 'knocked', 'Wilson 95 %', 'never carried'),
            [(mode, *rate_cells(summary[mode]), str(summary[mode]['never_carried']))
             for mode in MODES]))
        texts = [(f'{result.task}, seed {result.seed}', '\n'.join(
            f'{"knocked" if k == result.at else "":>8}  {as_sentence(thought)}'
            for k, thought in enumerate(result.thoughts))) for result in examples(results, shown)]
        for heading, text in texts:
            console.print(f'{heading}:\n{text}')
        return Outcome(summary, recovery_sentence(summary), [RateTable(
            'Success after a knock', ('thought',), [((mode,), summary[mode]) for mode in MODES]),
        ], texts)

    return measure(options, 'knocked', make_recovery_worker, [(mode,) for mode in MODES], report)


class Outcome(NamedTuple):
    """What was found: for the JSON, in a sentence, as rates, and what else a page shows."""

    summary: dict[str, Any]
    sentence: str
    tables: Sequence[RateTable]
    texts: Sequence[tuple[str, str]] = ()


def show_followed(title: str, columns: tuple[str, str],
                  rows: Sequence[tuple[tuple[str, str], Mapping[str, Any]]],
                  summary: dict[str, Any], sentence: str) -> Outcome:
    """Print rates, each by two names, and return them as what was found."""
    Console().print(plain_table(title, (*columns, 'share', 'n', 'Wilson 95 %'),
                                [(*names, *rate_cells(rate)) for names, rate in rows], names=2))
    return Outcome(summary, sentence, [RateTable('What was followed', columns, rows)])


def measure(options: EvalOptions, what: str, make_worker: Callable[..., Any],
            variants: Sequence[tuple[str, ...]],
            report: Callable[[Any], Outcome]) -> dict[str, Any]:
    """Run (variant, task, seed) jobs in processes, report them, write page and JSON."""
    files.require_writable(options.json_file, options.html)
    first = evaluation_seed(options.seed)
    how, decided = identify(options)
    tasks, settings = inspect_scene(options.scene, options.tasks)
    wanted = [(*variant, task, seed) for task in tasks
              for seed in range(first, first + options.episodes) for variant in variants]
    done = dict(track(
        run_jobs(wanted, make_worker, (decided,), options.workers, task_of, options.ray),
        f'{options.scene.suite}, {what}', len(wanted), console=Console(stderr=True)))
    results = [done[job] for job in wanted]
    settings |= {'policy': how['policy'], 'files': how['files'],
                 'seeds': [first, first + options.episodes - 1], 'versions': versions()}
    outcome = report(results)
    print(outcome.sentence)
    write_rates(options.html, f'{options.scene.suite}: {what}', outcome.sentence, outcome.tables,
                settings, outcome.texts)
    summary = {**settings, **outcome.summary, 'episodes': [asdict(result) for result in results]}
    files.write_json(options.json_file, summary)
    return summary


def agreeing(thought: str, chunk: NDArray[np.floating]) -> int:
    """Return with how many direction words of a thought the actions [T, D] agree."""
    motion = np.asarray(chunk)[:, :3].sum(0)
    return sum(bool(motion[axis] * sign > 0) for axis, sign in directions(thought))


def turned(thought: str) -> Correction | None:
    """Return the correction that turns a thought's directions round, None where it has none."""
    opposite = Thought.parse(turned_round(thought))
    return None if opposite is None or opposite == Thought.parse(thought) else Correction(
        'the opposite', {'move': opposite.move})


def make_steering_worker(options: EvalOptions) -> Callable[[Job], Steering]:
    """Return what steers one start state; simulator and policy are built once."""
    env = options.scene.make()
    policy, replan = load(options, env)
    require_offsets(policy.transform.contract, str(options.policy), 'dtvla steer')

    def run(job: Job) -> Steering:
        task, seed = job
        other, said, asked = _other_task(env, policy, task, seed, replan)
        policy.reset()
        words = along = against = 0

        def probe(observation: Observation) -> Decision:
            nonlocal words, along, against
            decision = policy.infer(observation)
            if opposite := turned(decision.reasoning):
                words += len(directions(decision.reasoning))
                along += agreeing(decision.reasoning, decision.chunk[:replan])
                given = policy.infer(observation, None, opposite)
                against += agreeing(given.reasoning, given.chunk[:replan])
            return decision

        run_episode(env, probe, task, seed, replan)
        return Steering(task, other, seed, said, asked, words, along, against)

    return run


def _other_task(env: Env, policy: Policy, task: str, seed: int,
                replan: int) -> tuple[str, bool, bool]:
    """Run a task on the thoughts of another one; return that one, and which of the two is done.

    There is time for the longer of both.
    """
    env.reset(seed=seed, options={'task': task})
    limit = env.max_steps
    others = [name for name in env.alternatives() if name != task and not env.done(name)]
    if not others:
        return '', False, False
    policy.reset()
    other, said = drawn(others, seed), False
    instruction = env.instructions[other]
    env.reset(seed=seed, options={'task': other})
    limit = max(limit, env.max_steps)
    misled = swapped_thought(policy, lambda: instruction)

    def infer(observation: Observation) -> Decision:
        nonlocal said
        said = said or env.done(other)
        return misled(observation)

    result = run_episode(env, infer, task, seed, replan, limit)
    return other, said or env.done(other), result.success


def steering_summary(results: Sequence[Steering]) -> dict[str, Any]:
    """Return how often thought and instruction were followed, and words of direction."""
    steered = [r for r in results if r.other]
    words, along, turned = (sum(getattr(r, name) for r in results)
                            for name in ('words', 'along', 'turned'))
    return {'thing': {'said': Rate.of(r.said for r in steered).to_dict(),
                      'asked': Rate.of(r.asked for r in steered).to_dict()},
            'direction': {'own': Rate(along, words).to_dict(),
                          'opposite': Rate(turned, words).to_dict()}}


def steering_sentence(summary: Mapping[str, Any]) -> str:
    """Return what ``steering_summary`` found in a sentence."""
    said, asked, opposite = (
        summary['thing']['said'], summary['thing']['asked'], summary['direction']['opposite'])
    task = (f'Given the thought of another task, the arm did that task in {counted(said)} '
            f'episodes and its own in {asked["successes"]}' if said['n'] else
            'No scene had another task to think of')
    return (f'{task}; where the direction words of its thought were turned round, its motion '
            f'agreed with {counted(opposite)} of them.')


def make_recovery_worker(options: EvalOptions) -> Callable[[tuple[str, str, int]], Recovery]:
    """Return what runs (mode, task, seed) with a knock; simulator and policy are built once."""
    from dtvla_sim.forced_release import ForcedReleaseEnv

    env = ForcedReleaseEnv(options.scene.make())
    policy, replan = load(options, env)

    def run(job: tuple[str, str, int]) -> Recovery:
        mode, task, seed = job
        released: list[bool] = []  # before each thought
        result = run_episode(env, ablated(policy, mode, seed), task, seed, replan,
                             on_decision=lambda *_: released.append(env.released))
        kept: tuple[str, ...] = ()
        at = 0
        if any(released):
            knock = released.index(True)
            at = min(knock, BEFORE)
            kept = tuple(result.thoughts[knock - at:knock + AFTER])
        return Recovery(mode, task, seed, env.released or any(released), result.success,
                        result.steps, kept, at)

    return run


def recovery_summary(results: Sequence[Recovery]) -> dict[str, Any]:
    """Return success after a knock by mode, with Wilson intervals, and how many lost nothing."""
    by_mode = {mode: [r for r in results if r.mode == mode] for mode in MODES}
    return {mode: Rate.of(r.success for r in mine if r.knocked).to_dict() | {
        'episodes': len(mine), 'never_carried': sum(not r.knocked for r in mine)}
        for mode, mine in by_mode.items()}


def recovery_sentence(summary: Mapping[str, Any]) -> str:
    """Return what ``recovery_summary`` found in a sentence."""
    return ('Knocked out of the gripper, the object was brought where it belongs all the same in '
            f'{counted(summary["full"])} episodes with the thought, in '
            f'{counted(summary["masked"])} with an empty one.')


def examples(results: Sequence[Recovery], count: int) -> list[Recovery]:
    """Return recovered episodes of the full thought, of as many tasks as there are."""
    good = [r for r in results if r.mode == 'full' and r.knocked and r.success and r.thoughts]
    first = list({r.task: r for r in reversed(good)}.values())[::-1]
    return [*first, *(r for r in good if r not in first)][:count]
