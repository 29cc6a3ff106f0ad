"""A training step beside a plain one, and the step of a config at full size by phase.

Random weights and sequences, made where they are needed: no download, no dataset.
"""

from __future__ import annotations

import re
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import progress, show
from dtvla_ros.cli import main
from dtvla_ros.cli.arguments import Changes, Config, Json, group
from dtvla_ros.engine.bench import Watch, measure_limits
from dtvla_ros.engine.published import geometry, random_model
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.training.collate import Batch
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.loss import Metrics, Objective
from dtvla_ros.training.trainer import add_adapters, new_optimizer, recompute_layers

KINDS = ('plain', 'supervised')
INSTRUCTION = 40  # tokens of the prompt
app = group('train_step', 'Measure training steps on random weights.')


class PlainObjective(nn.Module):
    """The same model as a causal language model's trainer has it: logits of every row and word.

    [B, L, V], up-cast to float32, and one cross-entropy that ignores what is not supervised.
    """

    def __init__(self, model: HybridDecoder):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, share: float = 1.0) -> tuple[Tensor, Metrics]:
        """Return the mean cross-entropy over thought, tags and actions."""
        hidden = self.model(batch.input_ids, batch.attention_mask, batch.pixels())
        logits = self.model.token_logits(hidden).float()  # [B, L, V]
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.token_rows[0], batch.token_rows[1]] = batch.token_targets
        rows = batch.action_start[:, None] + torch.arange(batch.action_targets.shape[1])
        labels.scatter_(1, rows, batch.action_targets + self.model.config.ids.bins_first)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100), {}


def small_policy(width: int, layers: int) -> HybridDecoder:
    """Return a policy of the released layout, small but for its vocabulary."""
    if width % 8:
        raise UserError(f'--width {width}: give a multiple of 8')
    torch.manual_seed(0)
    released = geometry('deepthinkvla-3b')
    return HybridDecoder(replace(
        released,
        text=replace(released.text, width=width, layers=layers, head_dim=max(width // 8, 2),
                     mlp=4 * width),
        vision=replace(released.vision, width=width, layers=1, heads=4, mlp=4 * width)))


def random_batch(count: int, thought: int, config: DecoderConfig) -> Batch:
    """Return ``count`` random sequences: two images, a prompt, a thought, a chunk."""
    rng = torch.Generator().manual_seed(1)
    ids, slots, size = config.ids, config.slots, config.vision.image_size
    word, bin_ = -1, -2  # stand for random ids
    row = torch.tensor([
        *[ids.image] * config.image_tokens, ids.bos, *[word] * INSTRUCTION, ids.semicolon,
        ids.newline, ids.think, *[word] * thought, ids.think_end, ids.action, *[bin_] * slots,
        ids.action_end, ids.eos])
    words = torch.randint(5, min(200000, ids.bins_first), (count, len(row)), generator=rng)
    actions = torch.randint(ids.bins, (count, slots), generator=rng)
    sequence = torch.where(row == word, words, row)
    sequence[:, row == bin_] = actions + ids.bins_first
    begin = config.image_tokens + INSTRUCTION + 3
    start = begin + thought + 2
    supervised = torch.tensor([*range(begin, start + 1), len(row) - 2, len(row) - 1])
    nothing = torch.zeros(count, 0, dtype=torch.int64)
    return Batch(
        frames=torch.randint(256, (2, count, size, size, 3), generator=rng, dtype=torch.uint8),
        input_ids=sequence, attention_mask=torch.ones_like(sequence),
        token_rows=torch.cartesian_prod(torch.arange(count), supervised - 1).T,
        token_targets=sequence[:, supervised].flatten(),
        action_start=torch.full((count,), start), action_targets=actions,
        action_mask=torch.ones(count, slots, dtype=torch.bool), positions=nothing[..., None],
        unambiguous=nothing.bool(), target_patches=nothing)


def timed_steps(objective: nn.Module, config: SftConfig, batch: Batch,
                steps: int) -> tuple[dict[str, float], int]:
    """Train on a batch; return a step's median seconds by phase, and its FLOP as torch counts.

    A GPU is waited for after every phase; of a step's batches the times add up. The step whose
    operations are counted is not timed.
    """
    optimizer, device = new_optimizer(objective, config), batch.frames.device

    def step() -> dict[str, float]:
        laps: dict[str, list[float]] = {}
        watch = Watch(str(device), laps)
        for _ in range(config.accumulate):
            with torch.autocast(device.type, torch.bfloat16, config.precision == 'bf16'):
                loss = objective(batch, share=1.0 / config.accumulate)[0]
            watch.lap('forward')
            loss.backward()
            watch.lap('backward')
        nn.utils.clip_grad_norm_(objective.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        watch.lap('optimizer')
        return {phase: sum(times) for phase, times in laps.items()}

    with FlopCounterMode(display=False) as counter:
        step()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    taken = [step() for _ in progress(range(steps), desc='steps')]
    return ({phase: median(times[phase] for times in taken) for phase in taken[0]},
            counter.get_total_flops())


def measure(kind: str, batch: int, width: int, layers: int, thought: int, steps: int,
            threads: int) -> dict[str, float]:
    """Train in this process; return a step's median seconds and the peak memory [bytes]."""
    torch.set_num_threads(threads)
    model = small_policy(width, layers)
    config = SftConfig(action_sigma=0.0, thought_weight=1.0, precision='no')
    objective = Objective(model, config) if kind == 'supervised' else PlainObjective(model)
    seconds, _ = timed_steps(objective, config, random_batch(batch, thought, model.config), steps)
    # Linux lets a child inherit its parent's peak in `getrusage`, not in VmHWM [kB].
    peak = re.findall(r'VmHWM:\s*(\d+)', Path('/proc/self/status').read_text())
    return {'seconds': sum(seconds.values()), 'memory': 1024 * int(peak[0])}


Thought = Annotated[int, typer.Option(min=1, help='Tokens of the thought.')]
Steps = Annotated[int, typer.Option(min=1, help='Timed steps, after one that is not.')]


@app.command()
def compare(
    batch: Annotated[int, typer.Option(min=1, help='Sequences in a step.')] = 1,
    width: Annotated[int, typer.Option(min=8, help="The decoder's, a multiple of 8.")] = 64,
    layers: Annotated[int, typer.Option(min=1, help='Decoder layers.')] = 2,
    thought: Thought = 73,
    steps: Steps = 5,
    threads: Annotated[int, typer.Option(min=1, help='CPU threads.')] = 1,
    json_file: Json = None,
) -> None:
    """Measure a training step beside a plain one with full-vocabulary logits at every row.

    Both train the released layout with its 257,216 tokens at a small width, on the CPU, on the
    same random batch, each in a process of its own. Times are only good on an idle machine.
    """
    measured = {}
    for kind in KINDS:
        with ProcessPoolExecutor(1, get_context('spawn')) as pool:
            try:
                measured[kind] = pool.submit(
                    measure, kind, batch, width, layers, thought, steps, threads).result()
            except BrokenProcessPool:
                raise UserError(f'the {kind} step was killed; the plain one needs about 3 GB for '
                                'each sample of --batch') from None
    plain, ours = (measured[kind] for kind in KINDS)
    show(('step', 'samples/s', 'peak memory [GB]'), (
        (kind, f'{batch / row["seconds"]:.3f}', f'{row["memory"] / 1e9:.2f}')
        for kind, row in measured.items()),
        f'ratio: {plain["seconds"] / ours["seconds"]:.2f} x the speed, '
        f'{plain["memory"] / ours["memory"]:.2f} x less peak memory', json_file, measured)


def time_steps(config: SftConfig, name: str, steps: int, thought: int) -> dict[str, Any]:
    """Time a config's steps on the released layout of geometry ``name``, on a GPU if there is one.

    Thoughts have ``thought`` tokens. Returns ``seconds`` of a step by phase and their ``total``,
    for ``samples`` sequences of ``tokens`` rows; ``flops`` of a step and the machine's
    ``flops_per_s``; ``peak_bytes`` on the GPU (0 on a CPU); parameters ``trained`` of all
    ``parameters``. Raises ``UserError`` for a geometry without SigLIP, whose batches differ.
    """
    policy = geometry(name)
    if policy.vision.kind != 'siglip':
        raise UserError(f'--geometry {name}: has not the released layout')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = random_model(policy, device, seed=config.seed).requires_grad_(True).train()
    if config.lora.rank:
        add_adapters(model, config.lora)
        model.to(device)
    objective = Objective(model, config)
    if config.checkpointing:
        recompute_layers(model)
    batch = send_to_device(random_batch(config.batch_size, thought, policy), device)
    limits = measure_limits(
        device, torch.bfloat16 if config.precision == 'bf16' else torch.float32)
    seconds, flops = timed_steps(objective, config, batch, steps)
    return {
        'seconds': seconds, 'total': sum(seconds.values()),
        'samples': config.batch_size * config.accumulate, 'tokens': batch.input_ids.shape[1],
        'flops': flops, 'flops_per_s': limits.flops_per_s,
        'peak_bytes': torch.cuda.max_memory_allocated() if device == 'cuda' else 0,
        'trained': sum(p.numel() for p in objective.parameters() if p.requires_grad),
        'parameters': sum(p.numel() for p in objective.model.parameters())}


@app.command('time')
def time_command(
    config: Config = Path('config/train/deepthinkvla-3b-lora.yaml'),
    changes: Changes = None,
    geometry: Annotated[str, typer.Option(
        help='deepthinkvla-3b or bench-60m; random weights.')] = 'deepthinkvla-3b',
    thought: Thought = 73,
    steps: Steps = 5,
    json_file: Json = None,
) -> None:
    """Time a step of a config at full size, by phase, beside what it computes.

    Random weights are made on the spot, on the GPU where there is one: the 2.9 B policy needs
    24 GB there with adapters, 80 GB as a whole.

    **Example**

    `python -m benchmarks.train_step time --geometry bench-60m --steps 2 --set accumulate=1`
    """
    m = time_steps(SftConfig.read(config, changes or ()), geometry, steps, thought)
    limit = m['flops'] / m['flops_per_s']
    show(('of a step', 'ms'), (
        (phase, f'{1e3 * seconds:.1f}') for phase, seconds in (
            *m['seconds'].items(), ('step', m['total']), ('limit', limit))),
        f'{m["parameters"] / 1e6:.0f} M parameters, {m["trained"] / 1e6:.1f} M of them trained; '
        f'{m["samples"]} sequences of {m["tokens"]} rows a step, '
        f'{m["samples"] / m["total"]:.2f} samples/s; {m["flops"] / 1e12:.1f} TFLOP at '
        f'{m["flops_per_s"] / 1e12:.0f} TFLOP/s measured, reached {limit / m["total"]:.0%}; '
        f'GPU memory {m["peak_bytes"] / 1e9:.1f} GB at most', json_file, m)


if __name__ == '__main__':
    main(app)
