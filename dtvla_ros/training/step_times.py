"""How long a recipe's step takes at a policy's full size, by phase, beside what it must compute.

Random weights and sequences, made where they are needed: no download, no dataset.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

from dtvla_ros.engine.bench import Limits, Watch, measure_limits
from dtvla_ros.engine.geometry import geometry, pass_cost, random_model, see_cost
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.training.bench import TrainBench, batch_of
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.lora import add_adapters
from dtvla_ros.training.objective import Objective
from dtvla_ros.training.parts import freeze, new_optimizer, recompute_layers

PHASES = ('forward', 'backward', 'optimizer')


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Medians over steps of ``samples`` sequences with ``tokens`` rows each.

    ``seconds`` of all of a step's batches by phase, ``peak_bytes`` on the GPU (0 on a CPU),
    ``flops`` a step must compute, ``limits`` of the machine, ``learnt`` of all ``parameters``.
    """

    seconds: dict[str, float]
    samples: int
    tokens: int
    flops: float
    limits: Limits
    peak_bytes: int
    learnt: int
    parameters: int

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self) | {'total': self.total}

    def lines(self) -> list[str]:
        """Return what is printed of it."""
        limit = self.flops / self.limits.flops_per_s
        return [
            f'{self.parameters / 1e6:.0f} M parameters, {self.learnt / 1e6:.1f} M of them '
            f'learnt; {self.samples} sequences of {self.tokens} rows a step',
            *(f'{phase:10} {1e3 * self.seconds[phase]:9.1f} ms' for phase in PHASES),
            f'{"step":10} {1e3 * self.total:9.1f} ms   {self.samples / self.total:.2f} samples/s',
            f'{"limit":10} {1e3 * limit:9.1f} ms   {self.flops / 1e12:.1f} TFLOP at '
            f'{self.limits.flops_per_s / 1e12:.0f} TFLOP/s measured; reached '
            f'{limit / self.total:.0%}',
            *([f'{"memory":10} {self.peak_bytes / 1e9:9.1f} GB at most']
              if self.peak_bytes else [])]


def step_flops(config: SftConfig, policy: DecoderConfig, rows: int, said: int) -> float:
    """Return what a sequence of ``rows`` costs in a step, ``said`` words of it being learnt.

    A backward pass is one product for the inputs' gradients, where anything before it is learnt,
    and one for the weights', where they are; checkpointing computes the layers once more.
    """
    lora = config.lora.rank > 0
    layers = pass_cost(policy, rows, 0, 0, 0).flops
    heads = (pass_cost(policy, 1, 0, said, policy.text.vocabulary).flops
             + pass_cost(policy, 1, 0, policy.slots, policy.ids.bins).flops
             - 2.0 * pass_cost(policy, 1, 0, 0, 0).flops)
    whole = config.rates.decoder > 0.0 and not lora
    again = 1.0 if config.checkpointing else 0.0
    eyes = see_cost(policy).flops * (3.0 + again if config.rates.vision else 1.0)
    return eyes + layers * (2.0 + whole + again) + heads * (2.0 + whole)


def random_objective(config: SftConfig, policy: DecoderConfig,
                     device: torch.device | str = 'cpu') -> Objective:
    """Return what a recipe trains, with random weights made on ``device``."""
    model = random_model(policy, str(device)).requires_grad_(True).train()
    if config.lora.rank:
        add_adapters(model, config.lora)
        model.to(device)
    objective = Objective(model, config, ())
    freeze(objective, config)
    if config.checkpointing:
        recompute_layers(model)
    return objective


def time_steps(config: SftConfig, name: str = 'deepthinkvla-3b', steps: int = 5,
               thought: int = 73) -> StepTimes:
    """Time a recipe's steps on the released layout of geometry ``name``.

    Thoughts have ``thought`` words. Where torch finds a GPU it is used, and waited for after
    every phase. Raises ``UserError`` for a geometry without SigLIP, whose batches differ.
    """
    policy = geometry(name)
    if policy.vision.kind != 'siglip':
        raise UserError(f'--geometry {name}: has not the released layout')
    set_seed(config.seed)
    accelerator = Accelerator(mixed_precision=config.precision)
    device = accelerator.device
    objective = random_objective(config, policy, device)
    optimizer = new_optimizer(objective, config)
    batch = batch_of(TrainBench(batch=config.batch_size, thought=thought), policy).to(device)
    limits = measure_limits(
        str(device), torch.bfloat16 if config.precision == 'bf16' else torch.float32)
    taken: list[dict[str, float]] = []
    for step in tqdm(range(steps + 1), desc='steps', leave=False):
        if device.type == 'cuda' and step == 1:
            torch.cuda.reset_peak_memory_stats()
        laps: dict[str, list[float]] = {}
        watch = Watch(str(device), laps)
        for _ in range(config.accumulate):
            with accelerator.autocast():
                loss = objective(batch, share=1.0 / config.accumulate).loss
            watch.lap('forward')
            loss.backward()
            watch.lap('backward')
        torch.nn.utils.clip_grad_norm_(objective.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        watch.lap('optimizer')
        taken.append({phase: sum(laps[phase]) for phase in PHASES})
    rows = batch.input_ids.shape[1]
    samples = config.batch_size * config.accumulate
    return StepTimes(
        {phase: median(one[phase] for one in taken[1:]) for phase in PHASES}, samples, rows,
        samples * step_flops(config, policy, rows, batch.token_targets.shape[0]
                             // config.batch_size),
        limits, torch.cuda.max_memory_allocated() if device.type == 'cuda' else 0,
        sum(p.numel() for p in objective.parameters() if p.requires_grad),
        sum(p.numel() for p in objective.model.parameters()))
