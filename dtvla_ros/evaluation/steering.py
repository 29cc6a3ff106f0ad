"""Does the arm do as the thought says? Change the thought, keep everything else, and look.

Two questions. *Thing*: the thought is that of another task in the same scene; which of the two
tasks is done, the thought's or the instruction's? *Direction*: the words for where the hand
should go are turned round; do the actions go the new way? A policy whose thought is decoration
does its instruction's task, and goes the old way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from dtvla_ros.engine.engine import Decision
from dtvla_ros.engine.policy import act_on
from dtvla_ros.policy.transform import Observation
from dtvla_ros.policy.vocabulary import directions, turned_round
from dtvla_ros.rollout.episode import run_episode

from .ablations import SwappedThought, ablated, drawn, sentence_of
from .statistics import Rate
from .workers import Job, PolicySetup, load


@dataclass(frozen=True, slots=True)
class Steering:
    """What came of one start state.

    ``said`` and ``asked``: whether the task of the thought, or of the instruction, was done.
    ``along`` and ``turned``: of ``words`` direction words in the policy's own thoughts, how many
    the actions went along with; and how many of the opposite words, when the thought had those.
    """

    task: str
    other: str
    seed: int
    said: bool
    asked: bool
    words: int
    along: int
    turned: int


def agreeing(thought: str, chunk: NDArray[np.floating]) -> int:
    """Return how many direction words of a thought the actions [T, D] go along with."""
    way = np.asarray(chunk)[:, :3].sum(0)
    return sum(bool(way[axis] * sign > 0) for axis, sign in directions(thought))


def make_steering_worker(setup: PolicySetup) -> Callable[[Job], Steering]:
    """Build simulator and policy once; serve start states."""
    env = setup.scene.make()
    policy, replan = load(setup)

    def serve(job: Job) -> Steering:
        task, seed = job
        other, said, asked = _thing(
            env, lambda sentence: SwappedThought(policy, lambda: sentence), task, seed, replan)
        infer = ablated(policy, 'full')
        words = along = turned = 0

        def probe(observation: Observation) -> Decision:
            nonlocal words, along, turned
            decision = infer(observation)
            opposite = turned_round(decision.reasoning)
            if decision.outcome == 'complete' and opposite != decision.reasoning:
                words += len(directions(opposite))
                along += agreeing(decision.reasoning, decision.chunk[:replan])
                given = act_on(policy.engine, policy.transform, observation,
                               policy.transform.encode_thought(opposite))
                turned += agreeing(opposite, given.chunk[:replan])
            return decision

        run_episode(env, probe, task, seed, replan)
        return Steering(task, other, seed, said, asked, words, along, turned)

    return serve


def _thing(env: Any, thinker: Callable[[str], SwappedThought], task: str, seed: int, replan: int,
           ) -> tuple[str, bool, bool]:
    """Run a task on the thoughts of another one; return that one, and which of the two is done."""
    env.reset(seed=seed, options={'task': task})
    others = [name for name in env.alternatives() if name != task and not env.done(name)]
    if not others:
        return '', False, False
    other = drawn(others, seed)
    misled = thinker(sentence_of(env, other))
    said = False

    def decide(observation: Observation) -> Decision:
        nonlocal said
        said = said or env.done(other)
        return misled.infer(observation)

    result = run_episode(env, decide, task, seed, replan)
    return other, said or env.done(other), result.success


def summarise(results: Iterable[Steering]) -> dict[str, Any]:
    """Return how often thought and instruction were followed, with Wilson intervals."""
    results = list(results)
    steered = [r for r in results if r.other]
    words = sum(r.words for r in results)
    return {
        'thing': {'said': Rate.of(r.said for r in steered).to_dict(),
                  'asked': Rate.of(r.asked for r in steered).to_dict()},
        'direction': {'own': Rate(sum(r.along for r in results), words).to_dict(),
                      'opposite': Rate(sum(r.turned for r in results), words).to_dict()},
    }


def table(title: str, summary: Mapping[str, Any]) -> Table:
    """Return what rich prints."""
    view = Table(title=title, title_justify='left')
    for column in ('changed in the thought', 'followed', 'share', 'n', 'Wilson 95 %'):
        view.add_column(column, justify='right' if column in ('share', 'n') else 'left')
    for what, name, followed in (
            ('thing', 'said', 'the thought (its task done)'),
            ('thing', 'asked', 'the instruction (its task done)'),
            ('direction', 'own', 'nothing changed: words agreed with'),
            ('direction', 'opposite', 'opposite words agreed with')):
        row = summary[what][name]
        low, high = row['wilson95']
        view.add_row(what, followed, f'{row["rate"]:.0%}', str(row['n']),
                     f'{low:.0%} - {high:.0%}')
    return view
