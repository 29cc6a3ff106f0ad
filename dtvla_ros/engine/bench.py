"""Times decisions of engines beside the published scheme and beside the machine's limits."""

from __future__ import annotations

import os
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.benchmark import Timer
from tqdm import tqdm

from dtvla_ros.engine.engine import Engine, SpeculativeStats
from dtvla_ros.engine.export import gate, write_graphs
from dtvla_ros.engine.onnx_engine import OnnxEngine
from dtvla_ros.engine.policy import write_thought
from dtvla_ros.engine.providers import describe, multiplies_bytes
from dtvla_ros.engine.published import PublishedScheme, Scene, geometry, random_model, scene
from dtvla_ros.engine.static_passes import Warmed
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import empty_model
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.policy.model import HybridDecoder

KINDS = ('fresh', 'draft', 'masked')
PUBLISHED = 'published'
# Of a weight.
BYTES = {'fp32': 4.0, 'bf16': 2.0, 'fp8': 1.0, 'int8': 1.0, 'w8a8': 1.0, 'int4': 0.6}
EXACT = ('fp32', 'bf16')
_CANDIDATES = ('fp32', 'int8', 'w8a8')  # for the fastest weights; int4 is for memory
_ROUNDS = 5  # decisions of each


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Options of a benchmark.

    ``policy``: a folder, measured as it is instead of a ``geometry`` of random weights.
    ``engines``: names such as 'torch fp32', 'torch int8', 'onnx int8'. ``rounds``: decisions of
    each kind and contender; contenders take turns, so that a busy moment hits all alike.
    ``record``: record the passes of torch engines, ``compile``: and compile the token loop's; on a
    GPU both are done always.
    """

    geometry: str = 'bench-60m'
    engines: tuple[str, ...] = ('torch fp32', 'torch int8')
    device: str = 'cpu'
    threads: int = 2
    rounds: int = 7
    text_tokens: int = 35
    thought_tokens: int = 73
    published: bool = True
    policy: Path | None = None
    record: bool = False
    compile: bool = False

    @property
    def cuda(self) -> bool:
        """Whether a GPU is measured."""
        return self.device.startswith('cuda')

    @property
    def dtype(self) -> torch.dtype:
        """Type of the random weights."""
        return torch.bfloat16 if self.cuda else torch.float32


def run_bench(options: BenchOptions,
              make_engine: Callable[[str, HybridDecoder | None], Engine]) -> dict[str, Any]:
    """Measure and return everything that is printed, JSON-ready.

    ``make_engine`` maps one of ``options.engines`` and the model, None of a policy, to an engine.
    """
    torch.set_num_threads(options.threads)
    model = None
    if options.policy is not None:
        config = PolicyManifest.read(options.policy).config
    else:
        config = geometry(options.geometry)
        model = random_model(config, options.device, options.dtype)
    view = scene(config, options.text_tokens)
    contenders: dict[str, Contender] = {}
    if model is not None and options.published and config.vision.kind == 'siglip':
        contenders[PUBLISHED] = Published(PublishedScheme(model), view, options)
    for name in options.engines:
        contenders[name] = Contender(make_engine(name, model), view, options)
    limits = measure_limits(options.device, options.dtype)
    take_turns(contenders, options)
    costs = phase_costs(config, options)
    return {
        'options': asdict(options) | {'policy': options.policy and str(options.policy)},
        'machine': {
            'device': (torch.cuda.get_device_name() if options.cuda else
                       f'{options.threads} of {os.cpu_count()} CPU cores, {describe()}'),
            'GB_per_s': limits.bytes_per_s / 1e9, 'GFLOP_per_s': limits.flops_per_s / 1e9,
            'load': os.getloadavg()[0], 'torch': torch.__version__},
        'parameters': sum(p.numel() for p in empty_model(config).parameters()),
        'contenders': {name: contender.summary(contenders.get(PUBLISHED), limits, costs,
                                               name.split()[-1])
                       for name, contender in contenders.items()},
        'peak_rss_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def take_turns(contenders: Mapping[str, Contender], options: BenchOptions) -> None:
    """Let all decide ``rounds`` times in every kind, after one round to warm up."""
    turns = [(contender, kind) for kind in KINDS for name, contender in contenders.items()
             if not (name == PUBLISHED and kind == 'draft')]
    for number, (contender, kind) in enumerate(tqdm(
            turns * (1 + options.rounds), desc='bench', unit='decision', leave=False)):
        if number == len(turns):
            for other in contenders.values():
                other.decisions.clear()
                other.phases.clear()
        if options.cuda:
            torch.cuda.reset_peak_memory_stats()
        contender.infer(kind)
        if options.cuda:
            contender.memory_mb = max(contender.memory_mb or 0.0,
                                      torch.cuda.max_memory_allocated() / 2 ** 20)


@dataclass(slots=True)
class Contender:
    """An engine, and seconds of its ``decisions`` by kind and of its ``phases`` by name."""

    engine: Any
    scene: Scene
    options: BenchOptions
    decisions: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    phases: dict[str, list[float]] = field(default_factory=dict)
    thoughts: dict[str, list[int]] = field(default_factory=dict)
    bins: dict[str, np.ndarray] = field(default_factory=dict)
    stats: dict[str, SpeculativeStats] = field(default_factory=dict)
    memory_mb: float | None = None
    warmed: Warmed | None = None

    def __post_init__(self) -> None:
        self.engine.suppress_tokens(self.scene.banned)
        compiled = self.options.cuda or self.options.compile
        if isinstance(self.engine, TorchEngine) and (compiled or self.options.record):
            self.warmed = self.engine.warm_up(self.options.thought_tokens, compiled)

    def infer(self, kind: str) -> None:
        watch = Watch(self.options.device, self.phases)
        start = watch.last
        self.thoughts[kind], scores = self._decide(kind, watch)
        self.bins[kind] = scores.argmax(-1)
        self.decisions[kind].append(watch.last - start)

    def _decide(self, kind: str, watch: Watch) -> tuple[list[int], np.ndarray]:
        engine, view, length = self.engine, self.scene, self.options.thought_tokens
        ids = engine.config.ids
        features = engine.encode_images(view.pixels)
        watch.lap('see')
        if kind == 'masked':
            _, cache = engine.prefill(view.prompt, features)
            watch.lap('prefill')
            tokens = pending = [ids.think, ids.think_end, ids.action]
        else:
            draft = self.thoughts['fresh'] if kind == 'draft' else []

            def done(written: list[int]) -> bool:
                if len(written) == 1 and not draft:
                    watch.lap('prefill')
                return len(written) >= length

            tokens, _, cache, self.stats[kind], _ = write_thought(
                engine, view.prompt, features, [], draft, done)
            watch.lap(*(('verify',) if draft else ('think per token', length - 1)))
            pending = tokens[-1:]
        scores = engine.decode_actions(cache, pending)
        watch.lap('act')
        return tokens, scores

    def summary(self, published: Contender | None, limits: Limits,
                costs: Mapping[str, Cost], weights: str) -> dict[str, Any]:
        """Return medians and ratios, JSON-ready; ``weights``: the kind that is read."""
        decisions, phases = ({name: _milliseconds(times) for name, times in taken.items()}
                             for taken in (self.decisions, self.phases))
        for kind, row in decisions.items():
            if published is not None:
                against = 'masked' if kind == 'masked' else 'fresh'
                theirs = _milliseconds(published.decisions[against])
                row['times_faster'] = theirs['p50_ms'] / row['p50_ms']
                row['same_thought'] = self.thoughts[kind] == published.thoughts[against]
                row['same_bins'] = float(np.mean(self.bins[kind] == published.bins[against]))
            if kind in self.stats:
                row['drafting'] = asdict(self.stats[kind])
        for phase in phases.keys() & costs.keys():
            row, cost = phases[phase], costs[phase]
            read = cost.parameters * BYTES[weights]
            row |= {'GFLOP_per_s': cost.flops / row['p50_ms'] / 1e6,
                    'GB_per_s': read / row['p50_ms'] / 1e6}
            # How fast integers could be multiplied was not measured.
            if weights in EXACT:
                row['limit_ms'] = 1e3 * max(cost.flops / limits.flops_per_s,
                                            read / limits.bytes_per_s)
        out: dict[str, Any] = {'decisions': decisions, 'phases': phases}
        if 'think per token' in phases:
            out['tokens_per_s'] = 1e3 / phases['think per token']['p50_ms']
        if {'draft', 'masked'} <= decisions.keys():
            out['draft_to_masked'] = decisions['draft']['p50_ms'] / decisions['masked']['p50_ms']
        if self.memory_mb is not None:
            out['peak_memory_mb'] = self.memory_mb
        if self.warmed is not None:
            out['warm_up'] = self.warmed._asdict()
        return out


class Watch:
    """Laps in seconds by phase, with the device waited for."""

    def __init__(self, device: str, phases: dict[str, list[float]]):
        self._cuda, self._phases, self.last = device.startswith('cuda'), phases, 0.0
        self.lap()

    def lap(self, phase: str = '', count: int = 1) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        last, self.last = self.last, time.perf_counter()
        if phase:
            self._phases.setdefault(phase, []).append((self.last - last) / count)


class Published(Contender):
    """The published scheme, which has two phases and knows no draft."""

    def __post_init__(self) -> None:
        pass

    def _decide(self, kind: str, watch: Watch) -> tuple[list[int], np.ndarray]:
        view, ids = self.scene, self.engine.config.ids
        tokens = [ids.think, ids.think_end, ids.action]
        if kind != 'masked':
            tokens = self.engine.generate(view.prompt, view.pixels, view.banned,
                                          self.options.thought_tokens)
            watch.lap('generate')
        scores = self.engine.act(view.prompt, tokens, view.pixels)
        watch.lap('act (whole pass)')
        return tokens, scores


def _milliseconds(times: list[float]) -> dict[str, Any]:
    return dict(zip(('min_ms', 'p50_ms', 'p99_ms'),
                    np.quantile(np.array(times) * 1e3, (0.0, 0.5, 0.99)).tolist()))


class Limits(NamedTuple):
    """What the machine can do: bytes per second read, operations per second multiplied."""

    bytes_per_s: float
    flops_per_s: float


def measure_limits(device: str, dtype: torch.dtype) -> Limits:
    """Measure reading a large array and multiplying large matrices, the best of several."""
    def best(work: Callable[[], Any]) -> float:
        timer = Timer('work()', globals={'work': work}, num_threads=torch.get_num_threads())
        return min(timer.timeit(1).mean for _ in range(5))

    size = 8192 if device.startswith('cuda') else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    big = torch.ones(1 << 26, device=device)  # 256 MB
    return Limits(big.nbytes / best(big.sum), 2.0 * size ** 3 / best(lambda: a @ a))


class Cost(NamedTuple):
    """Arithmetic of a phase and the weights it must read at least once."""

    flops: float
    parameters: float


def phase_costs(config: DecoderConfig, options: BenchOptions) -> dict[str, Cost]:
    """Return what each phase has to compute and to read."""
    prompt, thought = config.image_tokens + options.text_tokens, options.thought_tokens
    slots, tokens = config.slots, config.text.vocabulary - config.ids.bins
    return {
        'see': image_cost(config),
        'prefill': pass_cost(config, prompt, 0, 1, tokens),
        'think per token': pass_cost(config, 1, prompt + thought // 2, 1, tokens),
        'verify': pass_cost(config, prompt + thought - 1, 0, thought, tokens),
        'act': pass_cost(config, slots + 3, prompt + thought - 1, slots, config.ids.bins)}


def pass_cost(config: DecoderConfig, rows: int, past: int, read: int, columns: int) -> Cost:
    """Return the cost of a decoder pass of ``rows`` over ``past`` cached ones.

    ``read`` rows are scored against ``columns`` ids. Two operations per multiply-add.
    """
    text = config.text
    projections = text.head_dim * (2 * text.heads + 2 * text.kv_heads)
    weights = text.layers * text.width * (projections + 3 * text.mlp)
    attention = 4 * text.layers * text.heads * text.head_dim * rows * (past + rows)
    head = text.width * columns
    return Cost(2.0 * rows * weights + attention + 2.0 * read * head,
                weights + (head if read else 0))


def image_cost(config: DecoderConfig) -> Cost:
    """Return the cost of encoding all cameras with SigLIP; of other towers nothing is counted."""
    vision = config.vision
    if vision.kind != 'siglip':
        return Cost(0.0, 0.0)
    each = 4 * vision.width ** 2 + 2 * vision.width * vision.mlp
    ends = vision.width * (3 * vision.patch ** 2 + config.text.width)
    flops = sum(2.0 * count * (vision.layers * each + ends)
                + 4.0 * vision.layers * count ** 2 * vision.width for count in vision.tokens)
    return Cost(flops, vision.layers * each + vision.width * config.text.width)


def in_floats(weights: str) -> bool:
    """Return whether graphs of such weights are better loaded with their second set here."""
    return weights != 'fp32' and not multiplies_bytes()


def fastest_weights(model: HybridDecoder, thought_tokens: int) -> str:
    """Return the kind of weights that decides fastest on this CPU, of those that pass the gate.

    All take turns at whole decisions with a fresh thought, and the best of each counts.
    """
    model = model.float().cpu().eval()
    options = BenchOptions(thought_tokens=thought_tokens)
    contenders: dict[str, Contender] = {}
    with TemporaryDirectory() as base:
        for weights in _CANDIDATES:
            folder = Path(base) / weights
            folder.mkdir()
            try:
                write_graphs(model, folder, weights)
                gate(model, folder, weights)
            except UserError:
                continue
            contenders[weights] = Contender(
                OnnxEngine(folder, model.config, floats=in_floats(weights)),
                scene(model.config, options.text_tokens), options)
        for _ in range(_ROUNDS):
            for contender in contenders.values():
                contender.infer('fresh')
    if not contenders:
        raise UserError('no kind of weights passes the gate; export fp32 to see why')
    return min(contenders, key=lambda weights: min(contenders[weights].decisions['fresh']))
