"""``dtvla bench``: choice of engines, tables on the terminal and in a document, the plot."""

from __future__ import annotations

import re
import tempfile
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from dtvla_ros.engine.bench import PUBLISHED, BenchOptions, in_floats, run_bench
from dtvla_ros.engine.engine import Engine
from dtvla_ros.engine.export import write_graphs
from dtvla_ros.engine.load import load_policy
from dtvla_ros.engine.onnx_engine import OnnxEngine
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError
from dtvla_ros.files import require_writable, write_between, write_json, written_whole
from dtvla_ros.policy.manifest import GRAPHS, PolicyManifest

BEGIN, END = '<!-- measured by dtvla bench -->', '<!-- end of what was measured -->'
WEIGHTS = {'torch': ('fp32', 'int8'), 'onnx': ('fp32', 'int8', 'w8a8', 'int4')}
TITLES = {'fresh': 'fresh thought', 'draft': 'draft accepted', 'masked': 'masked thought'}
PHASES = ('see', 'prefill', 'think per token', 'verify', 'act')


def contenders(engines: str, weights: str, device: str) -> tuple[str, ...]:
    """Return names such as 'torch int8' for comma-separated choices; refuse what there is not.

    A GPU is measured with torch in bfloat16: the ONNX graphs are float32 ones.
    """
    names = []
    for engine in (e.strip() for e in engines.split(',') if e.strip()):
        if engine not in WEIGHTS:
            raise UserError(f'--engine {engine}: there is {", ".join(WEIGHTS)}')
        if device != 'cpu':
            names += ['torch bf16'] if engine == 'torch' else []
            continue
        for kind in (w.strip() for w in weights.split(',') if w.strip()):
            if kind not in WEIGHTS[engine]:
                raise UserError(f'--weights {kind}: the {engine} engine has '
                                f'{", ".join(WEIGHTS[engine])}')
            names.append(f'{engine} {kind}')
    if not names:
        raise UserError(f'--engine {engines} --device {device}: nothing to measure; a GPU is '
                        'measured with --engine torch')
    return tuple(names)


def contenders_of(policy: Path, engines: str) -> tuple[str, ...]:
    """Return names such as 'onnx int8' for those of the engines that can read a policy."""
    manifest = PolicyManifest.read(policy)
    able = {'onnx': GRAPHS[0] in manifest.files, 'torch': manifest.weights == 'fp32'}
    names = [name.strip() for name in engines.split(',')]
    found = tuple(f'{name} {manifest.weights}' for name in names if able.get(name))
    if not found or not able.keys() >= {*names}:
        raise UserError(f'--engine {engines}: {policy} is read by '
                        f'{", ".join(name for name in able if able[name])}')
    return found


def bench(options: BenchOptions, json_file: Path | None = None, plot_file: Path | None = None,
          into: Path | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON, the plot and the table of a document."""
    if options.device != 'cpu' and not (
            options.device.startswith('cuda') and torch.cuda.is_available()):
        raise UserError(f'--device {options.device}: not here; use cpu, or cuda on a machine '
                        'with an NVIDIA GPU and a CUDA build of torch')
    require_writable(json_file, plot_file, into)

    def make(name: str, model: Any) -> Engine:
        kind, weights = name.split()
        if options.policy is not None:
            return load_policy(options.policy, kind, options.threads, options.device)[0].engine
        if kind == 'torch':
            # Alone it may take the weights over; beside others they are needed as they are.
            alone = not options.published and len(options.engines) == 1
            return TorchEngine(model, 'int8' if weights == 'int8' else None, alone)
        (Path(folder) / weights).mkdir()
        write_graphs(model, Path(folder) / weights, weights)
        return OnnxEngine(Path(folder) / weights, model.config, options.threads,
                          floats=in_floats(weights))

    with tempfile.TemporaryDirectory() as folder:
        result = run_bench(options, make)
    show(result, Console())
    write_json(json_file, result)
    if into is not None:
        write_between(into, BEGIN, END, markdown(result))
    if plot_file is not None:
        plot(result, plot_file)
    return result


def markdown(result: dict[str, Any]) -> str:
    """Return what is shown as Markdown."""
    text = StringIO()
    show(result, Console(file=text, width=10_000), box.MARKDOWN)
    return re.sub(r'\s*\n\s*\n+', '\n\n', text.getvalue()).strip()  # rich pads blank lines


def show(result: dict[str, Any], console: Console, lines: box.Box = box.HEAVY_HEAD) -> None:
    """Print decisions beside the published scheme's, then phases beside the machine's limits."""
    machine, runs = result['machine'], result['contenders']
    decisions, phases, notes = Table('engine', box=lines), Table('engine', box=lines), []
    for table, titles in ((decisions, (*TITLES.values(), 'accepted draft ÷ masked')),
                          (phases, PHASES)):
        for title in titles:
            table.add_column(title, justify='right')
    for name, run in runs.items():
        rows = [run['decisions'].get(kind, {}) for kind in TITLES]
        decisions.add_row(name, *(_decision(name, row) for row in rows), (
            f'{run["draft_to_masked"]:.2f}' if 'draft_to_masked' in run else ''))
        percentiles = ' / '.join(f'{row["p99_ms"]:.0f}' for row in rows if row)
        said = [f'p99 {percentiles} ms']
        if name != PUBLISHED:
            said += [f'passes {" / ".join(str(row["drafting"]["passes"]) for row in rows[:2])}',
                     f'{run["tokens_per_s"]:.0f} tokens/s']
            if 'same_thought' in rows[0]:
                said.append(f'{"the same" if rows[0]["same_thought"] else "ANOTHER"} thought and '
                            f'{rows[0]["same_bins"]:.0%} of the actions as published')
        notes.append(f'- {name}: {", ".join(said)}')
        if name != PUBLISHED:
            phases.add_row(name, *(
                '' if row is None else f'{row["p50_ms"]:.1f}' + (
                    f' ({row["limit_ms"]:.1f})' if 'limit_ms' in row else '')
                for row in map(run['phases'].get, PHASES)))
    peaks = [f'{name} {run["peak_memory_mb"]:.0f} MB on the device' for name, run in runs.items()
             if 'peak_memory_mb' in run]
    console.print(
        f'{_subject(result)}, {result["parameters"] / 1e6:.0f} M parameters, '
        f'{machine["device"]} ({machine["GB_per_s"]:.0f} GB/s, {machine["GFLOP_per_s"]:.0f} '
        f'GFLOP/s measured; load {machine["load"]:.1f}). Times faster than the published scheme, '
        'median milliseconds:\n', decisions, '', *notes, '\nBy phase, median milliseconds (in '
        'brackets the limit: the larger of arithmetic and bytes, at the measured rates):\n',
        phases, f'\nPeak memory: {"; ".join([*peaks, "the process with all engines"])} '
        f'{result["peak_rss_mb"] / 1024:.2f} GB', sep='\n', highlight=False)


def _decision(name: str, row: dict[str, Any]) -> str:
    faster = f'{row["times_faster"]:.2f}× ' if name != PUBLISHED and 'times_faster' in row else ''
    return f'{faster}{row["p50_ms"]:.0f} ms' if row else ''


def _subject(result: dict[str, Any]) -> str:
    return result['options']['policy'] or result['options']['geometry']


def plot(result: dict[str, Any], file: Path) -> None:
    """Draw the decisions of all kinds as bars on one axis, an engine in one colour."""
    from matplotlib.figure import Figure

    runs = result['contenders']
    figure = Figure(figsize=(9, 1.5 + 0.4 * len(TITLES) * len(runs)))
    axis, height = figure.subplots(), 0.8 / len(runs)
    for place, (name, run) in enumerate(runs.items()):
        rows = [run['decisions'].get(kind, {}) for kind in TITLES]
        bars = axis.barh([kind + place * height for kind in range(len(rows))],
                         [row.get('p50_ms', 0.0) for row in rows], height, label=name)
        axis.bar_label(bars, [_decision(name, row) for row in rows], padding=3, fontsize=8)
    axis.set_yticks([kind + 0.4 - height / 2 for kind in range(len(TITLES))],
                    list(TITLES.values()))
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_xlabel('median milliseconds per decision')
    axis.set_title(f'{_subject(result)}, {result["machine"]["device"]}', fontsize=10)
    axis.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0), fontsize=8)
    with written_whole(file) as part:
        figure.savefig(part, dpi=120, bbox_inches='tight')
