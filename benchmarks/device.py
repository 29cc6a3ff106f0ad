"""A large policy on a GPU: by phase, beside the card's limits, the published scheme and targets.

Steps are saved one by one, and a second call goes on behind the last one saved. Random weights
prove speed, and nothing about the quality of fp8.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from typer import Option

from benchmarks.common import show
from dtvla_ros.cli import main
from dtvla_ros.cli.arguments import Folder, group
from dtvla_ros.engine.bench import (
    PUBLISHED,
    BenchOptions,
    Contender,
    Limits,
    Published,
    measure_limits,
    phase_costs,
    take_turns,
)
from dtvla_ros.engine.export import compare
from dtvla_ros.engine.published import PublishedScheme, geometry, random_model, scene
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError
from dtvla_ros.files import write_json

# Milliseconds in the median, and MB, wanted of the released geometry on an H100 or H200.
TARGETS = {'torch bf16': {'masked': 10.0, 'draft': 13.0, 'fresh': 145.0, 'think per token': 1.8,
                          'peak_memory_mb': 7500.0},
           'torch fp8': {'masked': 8.0, 'draft': 10.0, 'fresh': 100.0, 'think per token': 1.2,
                         'peak_memory_mb': 5000.0}}
WEIGHTS = {'torch bf16': None, 'torch fp8': 'fp8'}
app = group()


class Steps:
    """What has been measured with some options, kept in a file."""

    def __init__(self, file: Path, options: BenchOptions):
        self._file, self._options = file, asdict(options)
        self.done: dict[str, Any] = {}
        if file.exists():
            before = json.loads(file.read_text())
            if before['options'] != json.loads(json.dumps(self._options)):
                raise UserError(f'{file}: measured with other options; give another --out')
            self.done = before['steps']

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Save what a step found."""
        self.done[name] = result
        write_json(self._file, {'options': self._options, 'steps': self.done})


def limits(options: BenchOptions) -> dict[str, Any]:
    """Return the machine, and what it can do."""
    found = measure_limits(options.device, options.dtype)
    return {'machine': torch.cuda.get_device_name() if options.cuda else f'{os.cpu_count()} cores',
            'torch': torch.__version__, **found._asdict()}


def published(options: BenchOptions) -> dict[str, Any]:
    """Return seconds, thoughts and bins of the published scheme."""
    config = geometry(options.geometry)
    model = random_model(config, options.device, options.dtype)
    contender = Published(PublishedScheme(model), scene(config, options.text_tokens), options)
    take_turns({PUBLISHED: contender}, options)
    return {'decisions': contender.decisions, 'thoughts': contender.thoughts,
            'bins': {kind: bins.tolist() for kind, bins in contender.bins.items()},
            'memory_mb': contender.memory_mb}


def ours(name: str, options: BenchOptions, done: dict[str, Any]) -> dict[str, Any]:
    """Return what the torch engine takes with its passes recorded, alone on the device."""
    config = geometry(options.geometry)
    model = random_model(config, options.device, options.dtype)
    view, parity = scene(config, options.text_tokens), None
    if WEIGHTS[name] is None:
        engine = TorchEngine(model, release=True)
    else:
        reference = TorchEngine(model)
        engine = TorchEngine(model, WEIGHTS[name], release=True)
        found = compare(reference, engine)
        parity = found._asdict()
        try:
            found.check(exact=False)
        except UserError as error:
            parity['refused'] = str(error)
        del reference
    del model
    _free(options)
    contender = Contender(engine, view, options)
    take_turns({name: contender}, options)
    theirs = Published(None, view, options)
    saved = done['published']
    theirs.decisions, theirs.thoughts = saved['decisions'], saved['thoughts']
    theirs.bins = {kind: np.array(bins) for kind, bins in saved['bins'].items()}
    weights = name.split()[-1] if options.cuda or parity else 'fp32'
    known = Limits(*(done['limits'][field] for field in Limits._fields))
    result = contender.summary(theirs, known, phase_costs(config, options), weights)
    if options.cuda:  # with what the recorded passes hold for themselves
        result['peak_memory_mb'] = torch.cuda.max_memory_reserved() / 2 ** 20
    return result | {'parity': parity, 'difference': difference(
        engine, view, contender.thoughts['fresh'], saved['thoughts']['fresh'])}


def difference(engine: TorchEngine, view: Any, thought: list[int],
               published: list[int]) -> dict[str, Any] | None:
    """Return where two thoughts part, and whether both words were as likely; None: nowhere.

    ``gap``: between the logits of both words, by us; ``step``: between two numbers of that size in
    bfloat16. A gap of no more than a step is a tie.
    """
    if thought == published:
        return None
    at = next((k for k, pair in enumerate(zip(thought, published)) if len(set(pair)) > 1),
              min(map(len, (thought, published))))
    if at >= min(len(thought), len(published)):
        return {'at': at, 'words': [], 'tie': False}
    logits = engine.logits(view.prompt, engine.encode_images(view.pixels), thought[:at])[-1]
    words = [thought[at], published[at]]
    gap = float(abs(logits[words[0]] - logits[words[1]]))
    step = float(2.0 ** (np.floor(np.log2(np.abs(logits[words]).max())) - 7))
    return {'at': at, 'words': words, 'gap': gap, 'step': step, 'tie': gap <= step}


def former(options: BenchOptions, checkout: Path) -> dict[str, Any]:
    """Return what ``dtvla bench`` of another revision's checkout measures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'bench.json'
        words = ['--geometry', options.geometry, '--engine', 'torch', '--device', options.device,
                 '--weights', 'fp32', '--rounds', options.rounds, '--thought',
                 options.thought_tokens, '--no-published', '--json', out]
        done = subprocess.run(
            [sys.executable, '-m', 'dtvla_ros.cli', 'bench', *map(str, words)], cwd=checkout,
            env={**os.environ, 'PYTHONPATH': str(checkout.resolve())}, text=True,
            capture_output=True)
        if done.returncode:
            raise UserError(f'{checkout}: its dtvla bench failed: {done.stderr[-500:].strip()}')
        result: dict[str, Any] = json.loads(out.read_text())
    return next(iter(result['contenders'].values()))


def _free(options: BenchOptions) -> None:
    gc.collect()
    if options.cuda:
        torch.cuda.empty_cache()


def measure(out: Path, options: BenchOptions, seconds: float,
            checkout: Path | None = None) -> dict[str, Any]:
    """Measure what ``out`` does not hold yet; start no step after so many seconds."""
    if options.cuda and not torch.cuda.is_available():
        raise UserError(f'--device {options.device}: there is no such GPU here, or torch is a '
                        'build without CUDA; --device cpu --geometry bench-60m tries the script')
    torch.set_num_threads(options.threads)
    steps, began = Steps(out, options), time.monotonic()
    plan: dict[str, Callable[[], dict[str, Any]]] = {
        'limits': partial(limits, options), 'published': partial(published, options),
        **{name: partial(ours, name, options, steps.done) for name in WEIGHTS}}
    if checkout is not None:
        plan['former'] = partial(former, options, checkout)
    for name, step in plan.items():
        if name in steps.done:
            continue
        if time.monotonic() - began > seconds:
            print(f'{name} and what follows is left: over {seconds:g} s; the same command goes on')
            break
        started = time.monotonic()
        steps.add(name, step() | {'took_s': round(time.monotonic() - started, 1)})
        print(f'{name}: {steps.done[name]["took_s"]} s', flush=True)
        _free(options)
    return steps.done


def rows(done: dict[str, Any]) -> list[list[str]]:
    """Return lines of the table: contender, what, median, limit, target."""
    table = []
    for name in (*WEIGHTS, 'former'):
        run = done.get(name)
        if run is None:
            continue
        wanted = TARGETS.get(name, {})
        for what, row in (run['decisions'] | run['phases']).items():
            table.append([name, what, f'{row["p50_ms"]:.2f} ms',
                          f'{row["limit_ms"]:.2f}' if 'limit_ms' in row else '',
                          f'{wanted[what]:g}' if what in wanted else ''])
        if 'peak_memory_mb' in run:
            table.append([name, 'peak memory', f'{run["peak_memory_mb"]:.0f} MB', '',
                          f'{wanted["peak_memory_mb"]:g}' if wanted else ''])
    return table


def told(done: dict[str, Any]) -> list[str]:
    """Return what stands below the table: machine, differences from the published scheme, gate."""
    lines = [done['limits']['machine']] if 'limits' in done else []
    for name in WEIGHTS:
        run = done.get(name, {})
        if run.get('parity'):
            lines.append(f'{name}: {run["parity"].get("refused", "passes the parity gate")}')
        elif difference := run.get('difference'):
            lines.append(f'{name}: another thought from word {difference["at"]} on, '
                         f'{"a tie" if difference["tie"] else "NO TIE"}')
        elif run:
            lines.append(f'{name}: thoughts as published')
    return lines


@app.command()
def run(
    out: Annotated[Path, Option(dir_okay=False,
        help='What is measured is kept here.')] = Path('out/device.json'),
    geometry: Annotated[str, Option(help='With a SigLIP tower: bench-60m or deepthinkvla-3b.')
        ] = 'deepthinkvla-3b',
    device: Annotated[str, Option(help='cuda, or cpu to try the script.')] = 'cuda',
    rounds: Annotated[int, Option(min=1, help='Decisions of each kind.')] = 7,
    thought: Annotated[int, Option(min=2, help='Length of the thought.')] = 73,
    seconds: Annotated[float, Option(min=1.0, help='Start no step after so many.')] = 240.0,
    former: Annotated[Path | None, Folder(
        help="Another revision's checkout, measured beside.")] = None,
) -> None:
    """Measure by phase beside limits, targets and the published scheme; saved step by step."""
    options = BenchOptions(geometry=geometry, engines=tuple(WEIGHTS), device=device,
                           rounds=rounds, thought_tokens=thought, record=True)
    done = measure(out, options, seconds, former)
    show(('engine', 'what', 'median', 'limit', 'target'), rows(done), '\n'.join(told(done)),
         None, {})


if __name__ == '__main__':
    main(app)
