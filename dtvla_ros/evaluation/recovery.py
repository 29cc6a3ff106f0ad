"""Pick up again what was knocked out of the hand: how often, and does the thought help."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from dtvla_ros.rollout.episode import run_episode

from .ablations import ablated
from .statistics import Rate
from .workers import PolicySetup, load

MODES = ('full', 'masked')
BEFORE, AFTER = 2, 8  # thoughts kept around the knock


@dataclass(frozen=True, slots=True)
class Recovery:
    """One episode: whether its object was knocked out of the hand, and what came of it.

    ``thoughts``: those around the knock, the first one after it at index ``at``.
    """

    mode: str
    task: str
    seed: int
    knocked: bool
    success: bool
    steps: int
    thoughts: tuple[str, ...]
    at: int


def make_recovery_worker(setup: PolicySetup) -> Callable[[tuple[str, str, int]], Recovery]:
    """Build simulator and policy once; serve (mode, task, seed)."""
    from dtvla_sim.forced_release import ForcedReleaseEnv

    env = ForcedReleaseEnv(setup.scene.make())
    policy, replan = load(setup)

    def serve(job: tuple[str, str, int]) -> Recovery:
        mode, task, seed = job
        infer = ablated(policy, mode, seed)
        thoughts: list[str] = []
        lost: list[int] = []

        def note(_: Any, decision: Any, __: int) -> None:
            if env.released and not lost:
                lost.append(len(thoughts))
            thoughts.append(decision.reasoning)

        result = run_episode(env, infer, task, seed, replan, on_decision=note)
        first = max(0, lost[0] - BEFORE) if lost else 0
        kept = tuple(thoughts[first:lost[0] + AFTER]) if lost else ()
        return Recovery(mode, task, seed, env.released or bool(lost), result.success, result.steps,
                        kept, lost[0] - first if lost else 0)

    return serve


def summarise(results: Iterable[Recovery]) -> dict[str, Any]:
    """Return success after a knock by mode, with Wilson intervals, and how many lost nothing."""
    results = list(results)
    out: dict[str, Any] = {}
    for mode in MODES:
        mine = [r for r in results if r.mode == mode]
        hit = [r for r in mine if r.knocked]
        out[mode] = Rate.of(r.success for r in hit).to_dict() | {
            'episodes': len(mine), 'never_carried': len(mine) - len(hit)}
    return out


def examples(results: Sequence[Recovery], count: int) -> list[Recovery]:
    """Return recovered episodes of the full thought, of as many tasks as there are."""
    good = [r for r in results if r.mode == 'full' and r.knocked and r.success and r.thoughts]
    first = list({r.task: r for r in reversed(good)}.values())[::-1]
    return [*first, *(r for r in good if r not in first)][:count]


def table(title: str, summary: Mapping[str, Any]) -> Table:
    """Return what rich prints."""
    view = Table(title=title, title_justify='left')
    for column in ('thought', 'succeeds all the same', 'knocked', 'Wilson 95 %', 'never carried'):
        view.add_column(column, justify='left' if column == 'thought' else 'right')
    for mode in MODES:
        row = summary[mode]
        low, high = row['wilson95']
        view.add_row(mode, f'{row["rate"]:.0%}' if row['n'] else '-', str(row['n']),
                     f'{low:.0%} - {high:.0%}', str(row['never_carried']))
    return view
