"""Reports a GRPO run: a line per iteration, TensorBoard, curves and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dtvla_ros.caption import Caption, draw_frame
from dtvla_ros.evaluation.results import Rate
from dtvla_ros.files import written_whole
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.report import write_page
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.rollout import Trajectory

REPORT = 'report.html'
CURVES = 'curves.png'
EXAMPLES = 'examples'
Row = Mapping[str, Any]

# Curves, by the names of ``scalars``; the first panel has Wilson bands instead.
PANELS: Mapping[str, str] = {
    'reward and its parts': 'rollouts/reward rollouts/format rollouts/success',
    'KL [nats per token]': 'update/kl update/approximate_kl',
    'entropy [nats per token]': 'update/thought_entropy update/action_entropy',
    'share of tokens clipped': 'update/clip_fraction update/lower_clip_fraction',
    'gradient: norm, cosine of steps': 'update/grad_norm update/gradient_cosine',
    'rollouts per second': 'rollouts/per_second',
    'control steps, thought tokens': 'rollouts/steps rollouts/thought_tokens',
    'share of groups kept; progress per decision [m]': 'rollouts/groups_kept rollouts/progress'}


def line(row: Row) -> str:
    """Return one iteration in a line."""
    told = ', '.join(f'{name.split("/")[1].replace("_", " ")} {value:.3g}'
                     for name, value in scalars(row).items() if not name.endswith('/success'))
    held = f'; held out {_rate(row["evaluation"])}' if 'evaluation' in row else ''
    return f'iteration {row["iteration"]}: {_rate(row["success"])} of those played; {told}{held}'


def scalars(row: Row) -> dict[str, float]:
    """Return an iteration's numbers by their names in TensorBoard."""
    return {
        'rollouts/success': row['success']['rate'], 'rollouts/per_second': _speed([row]),
        'rollouts/groups_kept': row['groups']['kept'] / row['groups']['tried'],
        **{f'rollouts/{name}': row[name] for name in (
            'reward', 'format', 'progress', 'steps', 'thought_tokens', 'truncated')
           if name in row},
        **{f'update/{name}': value for name, value in (row['update'] or {}).items()},
        **({'held_out/success': row['evaluation']['rate']} if 'evaluation' in row else {})}


def where_time_goes(history: Sequence[Row]) -> str:
    """Return rollouts per second, iterations per hour and the shares of the time."""
    rows = [row for row in history if 'seconds' in row]
    if not rows:
        return 'nothing was played'
    total = {name: sum(row['seconds'][name] for row in rows) for name in rows[0]['seconds']}
    whole, played, simulating = (max(sum(total[name] for name in names), 1e-9) for names in (
        ('playing', 'learning'), ('playing',), ('stepping', 'drawing')))
    others = total['others']
    rest = max(played - total['waiting'] - total['deciding'] - others, 0.0)
    return (f'{_speed(rows):.3f} rollouts/s ({sum(r["episodes"] for r in rows)} in '
            f'{played:.0f} s), {3600 * len(rows) / whole:.1f} iterations/h\n'
            f'playing {played / whole:.0%}, learning {total["learning"] / whole:.0%} of the time\n'
            f'of playing: deciding {total["deciding"] / played:.0%}, waiting for simulators '
            f'{total["waiting"] / played:.0%}, for other processes {others / played:.0%}, keeping '
            f'what was played {rest / played:.0%}\n'
            f'of simulating ({simulating:.0f} s, side by side): stepping '
            f'{total["stepping"] / simulating:.0%}, drawing and sending '
            f'{total["drawing"] / simulating:.0%}')


def keep_examples(run: Path, played: Sequence[Trajectory], transform: PolicyTransform,
                  iteration: int) -> None:
    """Write first, middle and last frame of a success and of a failure, as far as there are."""
    (run / EXAMPLES).mkdir(parents=True, exist_ok=True)
    for name, wanted in (('success', True), ('failure', False)):
        trajectory = next((t for t in played if t.success is wanted), None)
        if trajectory is None:
            continue
        last = len(trajectory.decisions) - 1
        for place, k in (('a', 0), ('b', last // 2), ('c', last)):
            frame = draw_frame(trajectory.frames[k], Caption(
                trajectory.job.task.replace('_', ' '),
                transform.decode_thought(trajectory.decisions[k].thought_tokens),
                f'iteration {iteration}, decision {k + 1} of {last + 1}', wanted))
            Image.fromarray(frame).save(run / EXAMPLES / f'{name}-{place}.jpg', quality=80)


def write_report(run: Path, history: Sequence[Row], config: GrpoConfig) -> None:
    """Write ``report.html`` of a run, which needs no other file, and its curves alone."""
    rows = [row for row in history if 'success' in row]
    held = [row for row in history if 'evaluation' in row]
    summary = f'{len(rows)} iterations. '
    if held:
        summary += (f'Held-out success, greedy: {_rate(held[0]["evaluation"])} before, '
                    f'{_rate(held[-1]["evaluation"])} after iteration {held[-1]["iteration"]}. ')
    draw_curves(run / CURVES, history)
    write_page(
        run / REPORT, 'grpo.html', title=f'GRPO: {run.name}', summary=summary,
        curves=run / CURVES, times=where_time_goes(history), config=asdict(config),
        examples=sorted((run / EXAMPLES).glob('*.jpg')), iterations=map(line, rows))


def draw_curves(path: Path, history: Sequence[Row]) -> None:
    """Draw the curves over iterations."""
    from matplotlib.figure import Figure

    figure = Figure((14, 9), layout='constrained')
    first, *axes = figure.subplots(3, 3).ravel()
    for key, label, colour in (('success', 'played', '#7c93b5'),
                               ('evaluation', 'held out, greedy', '#16407a')):
        if seen := [(row['iteration'], row[key]['rate'], *row[key]['wilson95'])
                    for row in history if key in row]:
            at, rate, low, high = np.transpose(seen)
            first.plot(at, rate, marker='.', label=label, color=colour)
            first.fill_between(at, low, high, alpha=0.2, color=colour, linewidth=0)
    first.set(title='success, 95 % Wilson band', ylim=(0, 1))
    rows = [row for row in history if 'success' in row]
    x, found = [row['iteration'] for row in rows], [scalars(row) for row in rows]
    for ax, (title, names) in zip(axes, PANELS.items(), strict=True):
        for name in names.split():
            values = [one.get(name, np.nan) for one in found]
            if not np.isnan(values).all():
                ax.plot(x, values, marker='.', label=name.split('/')[1].replace('_', ' '))
        ax.set_title(title)
    for ax in (first, *axes):
        if ax.lines:
            ax.legend(frameon=False)
    with written_whole(path) as part:
        figure.savefig(part, dpi=90)


def _rate(value: Row) -> str:
    return str(Rate(value['successes'], value['n']))


def _speed(rows: Sequence[Row]) -> float:
    """Return episodes played per second; those read from disk do not count."""
    return (sum(row['episodes'] for row in rows)
            / max(sum(row['seconds']['playing'] for row in rows), 1e-9))
