"""From finished episodes to a table and a file."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from rich.table import Table

from dtvla_ros.rollout.episode import EpisodeResult

from .statistics import Rate, latency_summary

PACKAGES = (
    'dtvla_ros', 'numpy', 'mujoco', 'robosuite', 'hf-libero', 'bddl', 'gymnasium', 'onnxruntime',
    'tokenizers', 'torch', 'transformers', 'ros-rclpy', 'rosbags',
)


def versions() -> dict[str, str]:
    """Return what produced a result: Python, machine and the packages that are installed."""
    found = {'python': platform.python_version(), 'machine': platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def summarise(results: Sequence[EpisodeResult], tasks: Sequence[str]) -> dict[str, Any]:
    """Return success by task and in total, latency by phase and how many thoughts were cut."""
    by_task: dict[str, Any] = {}
    for task in tasks:
        mine = [r for r in results if r.task == task]
        steps = [r.steps for r in mine if r.success]
        by_task[task] = Rate.of(r.success for r in mine).to_dict()
        by_task[task]['mean_steps_of_successes'] = (
            round(sum(steps) / len(steps), 1) if steps else None)
    latency: dict[str, list[float]] = {}
    for result in results:
        for phase, values in result.latency.items():
            latency.setdefault(phase, []).extend(values)
    return {
        'tasks': by_task,
        'total': Rate.of(r.success for r in results).to_dict(),
        'latency': latency_summary(latency),
        'decisions': sum(r.decisions for r in results),
        'refused': refused(results),
        'cut_thoughts': sum(r.truncated for r in results),
        'episodes': [
            {'task': r.task, 'seed': r.seed, 'success': r.success, 'steps': r.steps,
             'commands': r.commands}
            for r in sorted(results, key=lambda r: (tasks.index(r.task), r.seed))
        ],
    }


def refused(results: Sequence[EpisodeResult]) -> int:
    """Return how many episodes the policy began with nothing: it did not take the sentence."""
    return sum(not r.steps for r in results)


def table(title: str, summary: Mapping[str, Any]) -> Table:
    """Return the success table as rich prints it."""
    view = Table(title=title, title_justify='left')
    view.add_column('task', overflow='fold')
    for column in ('success', 'n', 'Wilson 95 %', 'steps'):
        view.add_column(column, justify='right')
    for name, row in [*summary['tasks'].items(), ('total', summary['total'])]:
        low, high = row['wilson95']
        steps = row.get('mean_steps_of_successes')
        if name == 'total':
            view.add_section()
        view.add_row(
            name, f'{row["rate"]:.0%}', str(row['n']), f'{low:.0%} - {high:.0%}',
            f'{steps:.0f}' if steps else '')
    return view
