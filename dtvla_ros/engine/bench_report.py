"""``dtvla bench``: choice of engines, printed tables, the document's table, the plot."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dtvla_ros.engine.bench import PUBLISHED, BenchOptions, run_bench
from dtvla_ros.engine.engine import Engine
from dtvla_ros.engine.providers import multiplies_bytes
from dtvla_ros.engine.published import GEOMETRIES
from dtvla_ros.errors import UserError
from dtvla_ros.files import require_writable, write_between, write_json

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


def bench(options: BenchOptions, compiled: bool | None = None, json_file: Path | None = None,
          plot_file: Path | None = None, into: Path | None = None) -> dict[str, Any]:
    """Measure, print, and write the JSON, the plot and the table of a document."""
    if options.geometry not in GEOMETRIES:
        raise UserError(f'--geometry {options.geometry}: there is {", ".join(GEOMETRIES)}')
    if options.device != 'cpu' and not (
            options.device.startswith('cuda') and torch.cuda.is_available()):
        raise UserError(f'--device {options.device}: not here; use cpu, or cuda on a machine '
                        'with an NVIDIA GPU and a CUDA build of torch')
    require_writable(json_file, plot_file, into)
    with tempfile.TemporaryDirectory() as folder:
        result = run_bench(options, _engine_maker(options, Path(folder), compiled))
    show(result, Console())
    write_json(json_file, result)
    if into is not None:
        write_between(into, BEGIN, END, markdown(result))
    if plot_file is not None:
        plot(result, plot_file)
    return result


def _engine_maker(options: BenchOptions, folder: Path, compiled: bool | None,
                  ) -> Callable[[str, Any], Engine]:
    """Return what builds a contender; ONNX graphs are exported into ``folder``."""
    from dtvla_ros.engine.export import write_graphs
    from dtvla_ros.engine.onnx_engine import OnnxEngine
    from dtvla_ros.engine.torch_engine import TorchEngine

    def make(name: str, model: Any) -> Engine:
        kind, weights = name.split()
        if kind == 'torch':
            # Alone it may take the weights over; beside others they are needed as they are.
            alone = not options.published and len(options.engines) == 1
            return TorchEngine(model, int8=weights == 'int8', release=alone, compile=compiled)
        (folder / weights).mkdir()
        write_graphs(model, folder / weights, weights)
        return OnnxEngine(folder / weights, model.config, options.threads,
                          floats=weights != 'fp32' and not multiplies_bytes())

    return make


def show(result: dict[str, Any], console: Console) -> None:
    """Print decisions with their ratios, then phases beside the machine's limits."""
    machine, runs = result['machine'], result['contenders']
    console.print(
        f'{result["options"]["geometry"]}: {result["parameters"] / 1e6:.1f} M parameters on '
        f'{machine["device"]}; it reads {machine["GB_per_s"]:.1f} GB/s and multiplies '
        f'{machine["GFLOP_per_s"]:.0f} GFLOP/s; load {machine["load"]:.1f}')
    decisions = Table('decision', 'engine', 'median ms', 'p99 ms', 'times faster',
                      'same thought', 'same actions', 'passes', title='Decisions')
    for kind, title in TITLES.items():
        for name, run in runs.items():
            if (row := run['decisions'].get(kind)) is None:
                continue
            beside = ('', '', '')
            if _beside_published(name, row):
                beside = (f'{row["times_faster"]:.2f}', 'yes' if row['same_thought'] else 'no',
                          f'{row["same_bins"]:.0%}')
            decisions.add_row(title, name, f'{row["p50_ms"]:.1f}', f'{row["p99_ms"]:.1f}',
                              *beside, str(row.get('drafting', {}).get('passes', '')))
    phases = Table('engine', 'phase', 'median ms', 'p99 ms', 'limit ms', 'GFLOP/s', 'GB/s',
                   title='Phases (limit: the larger of arithmetic and bytes at the rates above)')
    notes = []
    for name, run in runs.items():
        for phase, row in run['phases'].items():
            phases.add_row(name, phase, f'{row["p50_ms"]:.2f}', f'{row["p99_ms"]:.2f}', *(
                f'{row[key]:.{digits}f}' if key in row else ''
                for key, digits in (('limit_ms', 2), ('GFLOP_per_s', 0), ('GB_per_s', 1))))
        said = [text.format(run[key]) for key, text in (
            ('tokens_per_s', '{:.0f} thought tokens/s'),
            ('draft_to_masked', 'accepted draft / masked thought {:.2f}'),
            ('peak_memory_mb', 'peak device memory {:.0f} MB')) if key in run]
        if said:
            notes.append(f'{name}: {"; ".join(said)}')
    console.print(decisions, phases, *notes, sep='\n')
    console.print(f'peak memory of the process, all engines loaded: '
                  f'{result["peak_rss_mb"] / 1024:.2f} GB')


def markdown(result: dict[str, Any]) -> str:
    """Return decisions and phases as two tables."""
    machine, runs = result['machine'], result['contenders']
    lines = [
        f'{result["options"]["geometry"]}, {result["parameters"] / 1e6:.0f} M parameters, '
        f'{machine["device"]} ({machine["GB_per_s"]:.0f} GB/s, {machine["GFLOP_per_s"]:.0f} '
        'GFLOP/s measured). Times faster than the published scheme, median milliseconds:', '',
        f'| engine | {" | ".join(TITLES.values())} | accepted draft ÷ masked |',
        '|---|' + '---:|' * (len(TITLES) + 1)]
    for name, run in runs.items():
        cells = []
        for kind in TITLES:
            row = run['decisions'].get(kind)
            text = '' if row is None else f'{row["p50_ms"]:.0f} ms'
            if row is not None and _beside_published(name, row):
                text = f'**{row["times_faster"]:.2f}×** {text}'
            cells.append(text)
        ratio = f'{run["draft_to_masked"]:.2f}' if 'draft_to_masked' in run else ''
        lines.append(f'| {name} | {" | ".join(cells)} | {ratio} |')
    lines += ['', 'By phase, median milliseconds (in brackets the limit: the larger of arithmetic '
              'and bytes, at the measured rates):', '',
              f'| engine | {" | ".join(PHASES)} |', '|---|' + '---:|' * len(PHASES)]
    for name, run in runs.items():
        if name != PUBLISHED:
            rows = [run['phases'].get(phase) for phase in PHASES]
            lines.append(f'| {name} | ' + ' | '.join(
                '' if row is None else f'{row["p50_ms"]:.1f}' + (
                    f' ({row["limit_ms"]:.1f})' if 'limit_ms' in row else '')
                for row in rows) + ' |')
    return '\n'.join(lines)


def _beside_published(name: str, row: dict[str, Any]) -> bool:
    return name != PUBLISHED and 'times_faster' in row


def plot(result: dict[str, Any], file: Path) -> None:
    """Draw the decisions as bars."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(TITLES), figsize=(12, 4), sharey=True)
    for axis, (kind, title) in zip(axes, TITLES.items(), strict=True):
        runs = {n: r['decisions'][kind] for n, r in result['contenders'].items()
                if kind in r['decisions']}
        if kind == 'draft' and PUBLISHED in result['contenders']:
            runs = {PUBLISHED: result['contenders'][PUBLISHED]['decisions']['fresh'], **runs}
        bars = axis.barh(list(runs), [row['p50_ms'] for row in runs.values()])
        axis.bar_label(bars, [f'{row["p50_ms"]:.0f} ms' + (
            f'  ({row["times_faster"]:.1f}×)' if _beside_published(n, row) else '')
            for n, row in runs.items()], padding=3)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.35)
        axis.invert_yaxis()
    figure.suptitle(f'{result["options"]["geometry"]}, {result["machine"]["device"]}')
    figure.supxlabel('median milliseconds per decision')
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
