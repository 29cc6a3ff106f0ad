"""How fast engines decide, side by side with the published scheme, and how far from the limit."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dtvla_ros.engine.engine import Engine, SpeculativeStats
from dtvla_ros.engine.geometry import (
    Cost,
    Scene,
    geometry,
    pass_cost,
    random_model,
    scene,
    see_cost,
)
from dtvla_ros.engine.policy import write_thought
from dtvla_ros.engine.providers import describe
from dtvla_ros.engine.published import PublishedScheme
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.model import HybridDecoder

KINDS = ('fresh', 'draft', 'masked')
PUBLISHED = 'published'
BYTES = {'fp32': 4.0, 'bf16': 2.0, 'int8': 1.0, 'w8a8': 1.0, 'int4': 0.6}  # of a weight
EXACT = ('fp32', 'bf16')


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure.

    ``engines``: names such as 'torch fp32', 'torch int8', 'onnx int8'. ``rounds``: decisions of
    each kind and contender; contenders take turns, so that a busy moment hits all alike.
    """

    geometry: str = 'bench-60m'
    engines: tuple[str, ...] = ('torch fp32', 'torch int8')
    device: str = 'cpu'
    threads: int = 2
    rounds: int = 7
    text_tokens: int = 35
    thought_tokens: int = 73
    published: bool = True


@dataclass(slots=True)
class _Run:
    """Seconds of one contender: ``decisions`` by kind, ``phases`` by name."""

    decisions: dict[str, list[float]] = field(default_factory=dict)
    phases: dict[str, list[float]] = field(default_factory=dict)
    thoughts: dict[str, list[int]] = field(default_factory=dict)
    bins: dict[str, list[int]] = field(default_factory=dict)
    drafting: dict[str, SpeculativeStats] = field(default_factory=dict)
    memory_mb: float | None = None


class Watch:
    """Laps with the device waited for."""

    def __init__(self, device: str, phases: dict[str, list[float]]):
        self._wait: Callable[[], Any] = (
            torch.cuda.synchronize if device.startswith('cuda') else lambda: None)
        self._phases = phases
        self._wait()
        self.start = self._last = time.perf_counter()

    def lap(self, phase: str, count: int = 1) -> None:
        self._wait()
        now = time.perf_counter()
        self._phases.setdefault(phase, []).append((now - self._last) / count)
        self._last = now

    def total(self) -> float:
        return self._last - self.start


class _Contender:
    def __init__(self, engine: Engine, view: Scene, options: BenchOptions):
        self._engine, self._scene, self._options = engine, view, options
        self.run = _Run()
        engine.suppress_tokens(view.banned)

    def infer(self, kind: str) -> None:
        engine, view, run = self._engine, self._scene, self.run
        length = self._options.thought_tokens
        ids = engine.config.ids
        watch = Watch(self._options.device, run.phases if kind != 'warm' else {})
        features = engine.encode_images(view.pixels)
        watch.lap('see')
        if kind == 'masked':
            _, cache = engine.prefill(view.prompt, features)
            watch.lap('prefill')
            tokens = [ids.think, ids.think_end, ids.action]
            scores = engine.decode_actions(cache, tokens)
            watch.lap('act')
        else:
            draft = run.thoughts['fresh'] if kind == 'draft' else []

            def done(written: list[int]) -> bool:
                if len(written) == 1 and not draft:
                    watch.lap('prefill')
                return len(written) >= length

            tokens, cache, drafting = write_thought(
                engine, view.prompt, features, [], draft, done)
            if draft:
                watch.lap('verify')
            else:
                watch.lap('think per token', length - 1)
            scores = engine.decode_actions(cache, tokens[-1:])
            watch.lap('act')
            run.drafting[kind] = drafting
        run.thoughts[kind], run.bins[kind] = tokens, scores.argmax(-1).tolist()
        run.decisions.setdefault(kind, []).append(watch.total())


class _Published:
    def __init__(self, model: HybridDecoder, view: Scene, options: BenchOptions):
        self._scheme, self._scene, self._options = PublishedScheme(model), view, options
        self.run = _Run()

    def infer(self, kind: str) -> None:
        view, run, ids = self._scene, self.run, self._scheme.config.ids
        watch = Watch(self._options.device, run.phases)
        if kind == 'masked':
            tokens = [ids.think, ids.think_end, ids.action]
        else:
            tokens = self._scheme.generate(view.prompt, view.pixels, view.banned,
                                           self._options.thought_tokens)
            watch.lap('generate')
        scores = self._scheme.act(view.prompt, tokens, view.pixels)
        watch.lap('act (whole pass)')
        run.thoughts[kind], run.bins[kind] = tokens, scores.argmax(-1).tolist()
        run.decisions.setdefault(kind, []).append(watch.total())


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine can do: bytes per second read, operations per second multiplied."""

    bytes_per_s: float
    flops_per_s: float


def measure_limits(device: str, dtype: torch.dtype) -> Limits:
    """Measure reading a large array and multiplying large matrices, the best of several."""
    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            watch = Watch(device, {})
            work()
            watch.lap('work')
            times.append(watch.total())
        return min(times)

    size = 8192 if device.startswith('cuda') else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    big = torch.ones(1 << 26, device=device)  # 256 MB
    return Limits(big.nbytes / best(big.sum), 2.0 * size ** 3 / best(lambda: a @ a))


def phase_costs(config: DecoderConfig, options: BenchOptions) -> dict[str, Cost]:
    """Return what each phase has to compute and to read."""
    prompt, thought = config.image_tokens + options.text_tokens, options.thought_tokens
    words = config.text.vocabulary - config.ids.bins
    return {
        'see': see_cost(config),
        'prefill': pass_cost(config, prompt, 0, 1, words),
        'think per token': pass_cost(config, 1, prompt + thought // 2, 1, words),
        'verify': pass_cost(config, prompt + thought - 1, 0, thought, words),
        'act': pass_cost(config, config.slots + 3, prompt + thought - 1, config.slots,
                         config.ids.bins),
    }


def run_bench(options: BenchOptions, make_engine: Callable[[str, HybridDecoder], Engine],
              ) -> dict[str, Any]:
    """Measure and return everything that is printed, JSON-ready.

    ``make_engine`` maps one of ``options.engines`` and the model to an engine.
    """
    torch.set_num_threads(options.threads)
    cuda = options.device.startswith('cuda')
    dtype = torch.bfloat16 if cuda else torch.float32
    config = geometry(options.geometry)
    model = random_model(config, options.device, dtype)
    view = scene(config, options.text_tokens)
    contenders: dict[str, Any] = {}
    if options.published and config.vision.kind == 'siglip':
        contenders[PUBLISHED] = _Published(model, view, options)
    for name in options.engines:
        contenders[name] = _Contender(make_engine(name, model), view, options)
    limits = measure_limits(options.device, dtype)
    for name, kind in _turns(contenders, 1, 'warm-up'):
        contenders[name].infer(kind)
    for contender in contenders.values():
        contender.run.decisions.clear()
        contender.run.phases.clear()
    for name, kind in _turns(contenders, options.rounds, 'bench'):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        contenders[name].infer(kind)
        if cuda:
            contenders[name].run.memory_mb = torch.cuda.max_memory_allocated() / 2 ** 20
    runs = {name: contender.run for name, contender in contenders.items()}
    return {
        'options': asdict(options), 'machine': _machine(options, limits),
        'parameters': sum(p.numel() for p in model.parameters()),
        'contenders': {name: _summary(run, runs.get(PUBLISHED), limits,
                                      phase_costs(config, options), name.split()[-1])
                       for name, run in runs.items()},
        'peak_rss_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _turns(contenders: dict[str, Any], rounds: int, title: str) -> Iterator[tuple[str, str]]:
    order = [(name, kind) for _ in range(rounds) for kind in KINDS for name in contenders
             if not (name == PUBLISHED and kind == 'draft')]
    yield from tqdm(order, desc=title, unit='decision', leave=False)


def _machine(options: BenchOptions, limits: Limits) -> dict[str, Any]:
    device = (torch.cuda.get_device_name() if options.device.startswith('cuda')
              else f'{options.threads} of {os.cpu_count()} CPU cores, '
                   f'{describe()}')
    return {'device': device, 'GB_per_s': limits.bytes_per_s / 1e9,
            'GFLOP_per_s': limits.flops_per_s / 1e9, 'load': os.getloadavg()[0],
            'torch': torch.__version__}


def _milliseconds(times: list[float]) -> dict[str, float]:
    low, middle, high = np.quantile(np.array(times) * 1e3, (0.0, 0.5, 0.99))
    return {'min_ms': float(low), 'p50_ms': float(middle), 'p99_ms': float(high)}


def _summary(run: _Run, published: _Run | None, limits: Limits, costs: dict[str, Cost],
             weights: str) -> dict[str, Any]:
    out: dict[str, Any] = {'decisions': {}, 'phases': {}}
    for kind, times in run.decisions.items():
        row: dict[str, Any] = _milliseconds(times)
        if published is not None:
            theirs = published.decisions['masked' if kind == 'masked' else 'fresh']
            row['times_faster'] = float(np.median(theirs) / np.median(times))
            against = 'masked' if kind == 'masked' else 'fresh'
            row['same_thought'] = run.thoughts[kind] == published.thoughts[against]
            row['same_bins'] = float(np.mean(
                np.array(run.bins[kind]) == np.array(published.bins[against])))
        if kind in run.drafting:
            row['drafting'] = asdict(run.drafting[kind])
        out['decisions'][kind] = row
    for phase, times in run.phases.items():
        row = _milliseconds(times)
        if phase in costs:
            seconds, cost = row['p50_ms'] / 1e3, costs[phase]
            read = cost.parameters * BYTES[weights]
            row |= {'GFLOP_per_s': cost.flops / seconds / 1e9, 'GB_per_s': read / seconds / 1e9}
            # How fast integers could be multiplied was not measured.
            if weights in EXACT:
                row['limit_ms'] = 1e3 * max(cost.flops / limits.flops_per_s,
                                            read / limits.bytes_per_s)
        out['phases'][phase] = row
    if 'think per token' in out['phases']:
        out['tokens_per_s'] = 1e3 / out['phases']['think per token']['p50_ms']
    if 'draft' in run.decisions and 'masked' in run.decisions:
        out['draft_to_masked'] = float(
            np.median(run.decisions['draft']) / np.median(run.decisions['masked']))
    if run.memory_mb is not None:
        out['peak_memory_mb'] = run.memory_mb
    return out
