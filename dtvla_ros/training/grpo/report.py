"""A run of reinforcement learning as one HTML file, and in lines on the terminal."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from dtvla_ros.evaluation.statistics import Rate
from dtvla_ros.evaluation.video import Caption, draw_frame
from dtvla_ros.files import write_text
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.trajectory import Trajectory

REPORT = 'report.html'
CURVES = 'curves.png'
EXAMPLES = 'examples'
Row = Mapping[str, Any]

_PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1e23; background: #fff }
table { border-collapse: collapse; margin: 0 0 1.5rem }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #dde1e6 }
th:first-child, td:first-child { text-align: left }
figure { margin: 0 0 1.2rem } img { width: 100% } pre { white-space: pre-wrap }
</style></head><body>
<h1>$title</h1>
<p>$summary</p>
<img alt="curves" src="data:image/png;base64,$curves">
<h2>Where the time goes</h2>
<pre>$times</pre>
<h2>Iterations</h2>
$table
<h2>What it thinks</h2>
$examples
<h2>Recipe</h2>
<pre>$recipe</pre>
</body></html>
""")


def line(row: Row) -> str:
    """Return one iteration in a line."""
    text = (f'iteration {row["iteration"]}: {_rate(row["success"])} of those played, '
            f'{row["groups"]["kept"]} of {row["groups"]["tried"]} groups kept, '
            f'form {row["form"]:.2f}, {row["words"]:.1f} words')
    if 'progress' in row:
        text += f', {1000 * row["progress"]:.1f} mm nearer by a decision'
    if update := row['update']:
        text += (f', KL {update["kl"]:.4f}, clipped {update["clip_fraction"]:.3f}, '
                 f'steps agree {update["agreement"]:+.3f}, drift {update["drift"]:.0e}')
    text += f', {_speed([row]):.3f} rollouts/s' if row['episodes'] else ', played before'
    text += f', {row["seconds"]["learning"]:.0f} s to learn'
    if 'evaluation' in row:
        text += f'; held out {_rate(row["evaluation"])}'
    return text


def scalars(row: Row) -> Iterator[tuple[str, float]]:
    """Yield what TensorBoard shows of an iteration."""
    yield 'rollouts/success', row['success']['rate']
    for name in ('reward', 'form', 'progress', 'steps', 'words', 'cut'):
        if name in row:
            yield f'rollouts/{name}', row[name]
    yield 'rollouts/per_second', _speed([row])
    yield 'rollouts/groups_kept', row['groups']['kept'] / row['groups']['tried']
    for name, value in (row['update'] or {}).items():
        yield f'update/{name}', value
    if 'evaluation' in row:
        yield 'held_out/success', row['evaluation']['rate']


def where_time_goes(history: Sequence[Row]) -> str:
    """Return rollouts per second, iterations per hour and the shares of the time."""
    rows = [row for row in history if 'seconds' in row]
    if not rows:
        return 'nothing was played'
    total = {name: sum(row['seconds'][name] for row in rows) for name in rows[0]['seconds']}
    whole = max(total['playing'] + total['learning'], 1e-9)
    played = max(total['playing'], 1e-9)
    simulating = max(total['stepping'] + total['drawing'], 1e-9)
    others = total.get('others', 0.0)  # an older run did not tell
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
    """Write first, middle and last look of a success and of a failure, as far as there are."""
    for name, wanted in (('success', True), ('failure', False)):
        trajectory = next((t for t in played if t.success is wanted), None)
        if trajectory is None:
            continue
        last = len(trajectory.decisions) - 1
        for place, k in (('a', 0), ('b', last // 2), ('c', last)):
            decision = trajectory.decisions[k]
            frame = draw_frame(trajectory.frames[k], Caption(
                trajectory.job.task.replace('_', ' '),
                transform.decode_thought(decision.thought_tokens),
                f'iteration {iteration}, decision {k + 1} of {last + 1}', wanted))
            path = run / EXAMPLES / f'{name}-{place}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(path, quality=80)


def write_report(run: Path, history: Sequence[Row], config: GrpoConfig) -> None:
    """Write ``report.html`` of a run, which needs no other file, and its curves alone."""
    rows = [row for row in history if 'success' in row]
    held = [row for row in history if 'evaluation' in row]
    summary = f'{len(rows)} iterations. '
    if held:
        summary += (f'Held-out success, greedy: {_rate(held[0]["evaluation"])} before, '
                    f'{_rate(held[-1]["evaluation"])} after iteration {held[-1]["iteration"]}. ')
    examples = [f'<figure><img alt="{escape(path.stem)}" src="data:image/jpeg;base64,'
                f'{base64.b64encode(path.read_bytes()).decode()}"></figure>'
                for path in sorted((run / EXAMPLES).glob('*.jpg'))]
    picture = curves(rows, held)
    (run / CURVES).write_bytes(picture)
    write_text(run / REPORT, _PAGE.substitute(
        title=f'GRPO: {escape(run.name)}', summary=escape(summary),
        curves=base64.b64encode(picture).decode(),
        times=escape(where_time_goes(history)), table=_table(rows),
        examples='\n'.join(examples) or '<p>Nothing yet.</p>',
        recipe=escape('\n'.join(f'{k}: {v}' for k, v in config.to_dict().items()))))


def curves(rows: Sequence[Row], held: Sequence[Row]) -> bytes:
    """Return the curves over iterations as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure((14, 9), layout='constrained')
    axes = figure.subplots(3, 3).ravel()
    x = [row['iteration'] for row in rows]
    _band(axes[0], x, [row['success'] for row in rows], 'played', '#7c93b5')
    _band(axes[0], [row['iteration'] for row in held], [row['evaluation'] for row in held],
          'held out, greedy', '#16407a')
    axes[0].set_ylim(0, 1)
    learnt = [row for row in rows if row['update']]
    at = [row['iteration'] for row in learnt]

    def updates(*names: str) -> dict[str, list[float]]:
        return {name.replace('_', ' '): [row['update'].get(name, np.nan) for row in learnt]
                for name in names}  # an older run did not tell all of them

    if all('progress' in row for row in rows):
        last = ('way that a decision gains [mm]', x, {'': [1e3 * r['progress'] for r in rows]})
    else:
        last = ('share of groups kept', x, {
            '': [row['groups']['kept'] / row['groups']['tried'] for row in rows]})
    panels: list[tuple[str, list[int], dict[str, list[float]]]] = [
        ('reward and its parts', x, {
            'reward': [row['reward'] for row in rows], 'well formed': [r['form'] for r in rows],
            'success': [row['success']['rate'] for row in rows]}),
        ('KL [nats per token]', at, {
            'to the start (k3)': [row['update']['kl'] for row in learnt],
            'by the update (k1)': [row['update']['approximate_kl'] for row in learnt]}),
        ('entropy [nats per token]', at, updates('thought_entropy', 'action_entropy')),
        ('share of tokens clipped', at, updates('clip_fraction', 'lower_clip_fraction')),
        ('gradient: norm, agreement of steps', at, updates('gradient', 'agreement')),
        ('rollouts per second', x, {'': [_speed([row]) for row in rows]}),
        ('lengths', x, {'control steps': [row['steps'] for row in rows],
                        'words of a thought': [row['words'] for row in rows]}),
        last]
    for ax, (title, where, lines) in zip(axes[1:], panels, strict=True):
        for name, values in lines.items():
            ax.plot(where, values, marker='.', label=name)
        ax.set_title(title)
        if any(lines):
            ax.legend(frameon=False)
    axes[0].set_title('success, 95 % Wilson band')
    axes[0].legend(frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format='png', dpi=90)
    return out.getvalue()


def _band(ax: Any, x: Sequence[int], rates: Sequence[Row], label: str, colour: str) -> None:
    if not rates:
        return
    low, high = np.transpose([rate['wilson95'] for rate in rates])
    ax.plot(x, [rate['rate'] for rate in rates], marker='.', label=label, color=colour)
    ax.fill_between(x, low, high, alpha=0.2, color=colour, linewidth=0)


def _rate(value: Row) -> str:
    return str(Rate(value['successes'], value['n']))


def _speed(rows: Sequence[Row]) -> float:
    """Return episodes played per second; those read from disk do not count."""
    return (sum(row['episodes'] for row in rows)
            / max(sum(row['seconds']['playing'] for row in rows), 1e-9))


def _table(rows: Sequence[Row]) -> str:
    head = ('iteration', 'played', 'held out', 'groups kept', 'reward', 'well formed', 'KL',
            'clipped', 'steps', 'words', 'drift')
    lines = [''.join(f'<th>{name}</th>' for name in head)]
    for row in rows:
        update = row['update']
        cells = (
            str(row['iteration']), _rate(row['success']),
            _rate(row['evaluation']) if 'evaluation' in row else '',
            f'{row["groups"]["kept"]}/{row["groups"]["tried"]}', f'{row["reward"]:.2f}',
            f'{row["form"]:.2f}', *((f'{update["kl"]:.4f}', f'{update["clip_fraction"]:.3f}')
                                    if update else ('', '')),
            f'{row["steps"]:.0f}', f'{row["words"]:.1f}',
            f'{update["drift"]:.0e}' if update else '')
        lines.append(''.join(f'<td>{escape(cell)}</td>' for cell in cells))
    return '<table>' + '\n'.join(f'<tr>{text}</tr>' for text in lines) + '</table>'
