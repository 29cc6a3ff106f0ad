"""A thought corrected in mid-episode, as a person corrects it: ``dtvla steer --correct``.

*Thing*: the instruction asks for one thing, and while the hand is on its way there the thought is
corrected to another one, and where that goes; is that done? When it is and the hand has left it
the correction is cleared; is the instruction done now? *Direction*: the motion of every thought
is corrected to the opposite; do the actions agree with all of its words? Nobody acts on these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from dtvla_ros.actions.contract import require_offsets
from dtvla_ros.correction import Correction, parse_correction
from dtvla_ros.engine.engine import Decision
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.ablations import drawn
from dtvla_ros.evaluation.interventions import Outcome, agreeing, measure, show_followed, turned
from dtvla_ros.evaluation.results import Rate, counted
from dtvla_ros.evaluation.workers import EvalOptions, Job, load
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.policy.things import things, understand_correction
from dtvla_ros.policy.transform import Observation
from dtvla_ros.policy.vocabulary import directions
from dtvla_ros.rollout.env import Env
from dtvla_ros.rollout.episode import run_episode
from dtvla_ros.thought import FINISHED, Thought

BEFORE = 3  # decisions of its own
LEAVING = ('place', 'release', 'retreat')  # phases in which the hand is still at what is done


@dataclass(frozen=True, slots=True)
class Corrected:
    """Outcome of one start state."""

    task: str
    other: str  # task that it was corrected to, '' where there is none
    seed: int
    said: str  # correction
    done: bool  # whether the other task was done while that stood
    asked: bool  # whether that of the instruction was done after it was cleared
    decisions: int  # whose motion was turned round
    followed: int  # in how many of them the actions agreed with every word


def correct(options: EvalOptions) -> dict[str, Any]:
    """Print how often corrections are followed; return what is written."""
    def report(results: Sequence[Corrected]) -> Outcome:
        summary = correction_summary(results)
        rows = list(zip((
            ('thing', 'another thing: its task done'),
            ('thing', 'cleared: the task of the instruction done'),
            ('direction', 'the opposite motion: decisions that follow')), summary.values()))
        return show_followed(f'{options.scene.suite}: thoughts corrected', (
            'corrected in the thought', 'what was followed'), rows, summary,
            correction_sentence(summary))

    return measure(options, 'corrected', make_correction_worker, [()], report)


def make_correction_worker(options: EvalOptions) -> Callable[[Job], Corrected]:
    """Return what corrects one start state; simulator and policy are built once."""
    env = options.scene.make()
    policy, replan = load(options, env)
    require_offsets(policy.transform.contract, str(options.policy), 'dtvla steer --correct')
    names = PolicyManifest.read(options.policy).names

    def run(job: Job) -> Corrected:
        task, seed = job
        env.reset(seed=seed, options={'task': task})
        limit, others = env.max_steps, same_verb(env, task)
        other = drawn(others, seed) if others else ''
        said = ' to '.join(f'the {name}' for name in things(env.instructions[other])
                           ) if other else ''
        policy.reset()
        standing: Correction | None = None
        thought: Thought | None = None
        told = cleared = None  # control steps
        done, count, decisions, followed = False, 0, 0, 0

        def infer(observation: Observation) -> Decision:
            nonlocal standing, thought, told, cleared, done, count, decisions, followed
            step = round(observation.stamp * env.control_rate)
            if other and told is None and count >= BEFORE:
                with suppress(UserError):  # something is in the hand
                    standing = understand_correction(
                        parse_correction(said), list(env.instructions.values()), names,
                        env.instructions[task], thought)
                    told = step
            decision = policy.infer(observation, None, standing)
            if standing is not None and told is not None:
                done = done or env.done(other)
                known = Thought.parse(decision.reasoning)
                phase = known.phase if known is not None else ''
                if step - told >= limit or phase == FINISHED or (done and phase not in LEAVING):
                    standing, cleared = None, step
                    decision = policy.infer(observation)
            count, thought = count + 1, Thought.parse(decision.reasoning)
            if opposite := turned(decision.reasoning):
                given = policy.infer(observation, None, replace(
                    standing or opposite, fields={**(standing.fields if standing else {}),
                                                  **opposite.fields}))
                decisions += 1
                followed += agreeing(given.reasoning, given.chunk[:replan]) == len(
                    directions(given.reasoning))
            return decision

        result = run_episode(env, infer, task, seed, replan, 2 * limit + BEFORE * replan)
        return Corrected(task, other, seed, said, done, cleared is not None and result.success,
                         decisions, followed)

    return run


def same_verb(env: Env, task: str) -> list[str]:
    """Return the tasks of the scene that are not done and that a correction can name.

    It says which thing and where to, not what to do: the verb is that of the present task, and
    the thing none of that.
    """
    verb, mine = env.instructions[task].split()[0], things(env.instructions[task])

    def fits(name: str) -> bool:
        named = things(env.instructions[name])
        return (len(named) == 2 and named[0] not in mine
                and env.instructions[name].split()[0] == verb and not env.done(name))

    return [name for name in env.alternatives() if name != task and fits(name)]


def correction_summary(results: Sequence[Corrected]) -> dict[str, Any]:
    """Return how often the correction, then the instruction, and directions were followed."""
    told = [r for r in results if r.other]
    decisions, followed = (sum(getattr(r, name) for r in results)
                           for name in ('decisions', 'followed'))
    return {'thing': Rate.of(r.done for r in told).to_dict(),
            'cleared': Rate.of(r.asked for r in told).to_dict(),
            'direction': Rate(followed, decisions).to_dict()}


def correction_sentence(summary: Mapping[str, Any]) -> str:
    """Return what ``correction_summary`` found in a sentence."""
    thing, cleared, direction = (summary[key] for key in ('thing', 'cleared', 'direction'))
    task = (f'Corrected to another thing on its way, the arm did the task of that one in '
            f'{counted(thing)} episodes and, once that was cleared, its own in '
            f'{cleared["successes"]}' if thing['n'] else
            'No scene had another thing to correct to')
    return (f'{task}; motions corrected to the opposite were followed in {counted(direction)} '
            'decisions.')
