"""A training step beside a plain one that takes full-vocabulary logits at every row.

Each runs in a process of its own, so that its peak memory is its own. Both compute the same
network on the same batch; the plain one is what a causal language model's trainer does: logits
[B, L, V], up-cast to float32, and one cross-entropy that ignores what is not supervised.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import DecoderConfig, SpecialIds, TextConfig, VisionConfig
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.training.collate import Batch
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.objective import Objective
from dtvla_ros.training.parts import new_optimizer

KINDS = ('plain', 'supervised')
IDS = SpecialIds(pad=0, eos=1, bos=2, semicolon=3, newline=4, image=257152, think=257153,
                 think_end=257154, action=257155, action_end=257156, bins_first=254976,
                 bins_last=257023)
VOCABULARY = 257157
INSTRUCTION = 40  # words of the prompt


@dataclass(frozen=True, slots=True)
class TrainBench:
    """What is measured: the released layout and vocabulary at a small width.

    ``thought``: its words; ``steps``: timed ones, after one that is not.
    """

    batch: int = 1
    width: int = 64
    layers: int = 2
    thought: int = 73
    steps: int = 5
    threads: int = 1

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1 or self.width % 8:
            raise UserError('train bench: sizes must be positive, and the width a multiple of 8')


@dataclass(frozen=True, slots=True)
class Measured:
    """One implementation: median time of a step [s] and largest resident set [bytes]."""

    seconds: float
    memory: int


def bench(options: TrainBench) -> dict[str, Measured]:
    """Measure both implementations, one after the other."""
    return {kind: _apart(kind, options) for kind in KINDS}


def _apart(kind: str, options: TrainBench) -> Measured:
    done = subprocess.run(
        [sys.executable, '-m', __name__, kind, json.dumps(asdict(options))],
        stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise UserError(f'train bench: the {kind} step ended with code {done.returncode}; the '
                        'plain one needs about 3 GB for each sample of --batch')
    return Measured(**json.loads(done.stdout))


class PlainObjective(nn.Module):
    """The same model with logits over the whole vocabulary at every row."""

    def __init__(self, model: HybridDecoder):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over thought, tags and actions."""
        hidden = self.model(batch.input_ids, batch.attention_mask, batch.pixels())
        logits = self.model.token_logits(hidden).float()  # [B, L, V]
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.token_rows[0], batch.token_rows[1]] = batch.token_targets
        rows = batch.action_start[:, None] + torch.arange(batch.action_targets.shape[1])
        labels.scatter_(1, rows, batch.action_targets + self.model.config.ids.bins_first)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def policy(options: TrainBench) -> HybridDecoder:
    """Return a policy of the released layout, small but for its vocabulary."""
    width = options.width
    torch.manual_seed(0)
    return HybridDecoder(DecoderConfig(
        text=TextConfig(width=width, layers=options.layers, heads=8, kv_heads=1,
                        head_dim=max(width // 8, 2), mlp=4 * width, vocabulary=VOCABULARY),
        vision=VisionConfig(kind='siglip', cameras=CAMERAS, tokens=(256, 256),
                            image_size=224, width=width, layers=1, heads=4, mlp=4 * width,
                            patch=14),
        ids=IDS))


def batch_of(options: TrainBench, config: DecoderConfig) -> Batch:
    """Return random sequences: two images, a prompt, a thought, a chunk."""
    rng = torch.Generator().manual_seed(1)
    count, ids, slots = options.batch, config.ids, config.slots
    plain = min(200000, ids.bins_first)
    words = torch.randint(5, plain, (count, INSTRUCTION + options.thought), generator=rng)
    actions = torch.randint(ids.bins, (count, slots), generator=rng)

    def column(*tokens: int) -> Tensor:
        return torch.tensor(tokens).expand(count, -1)

    prompt = [column(*[ids.image] * config.image_tokens, ids.bos), words[:, :INSTRUCTION],
              column(ids.semicolon, ids.newline)]
    thought = [column(ids.think), words[:, INSTRUCTION:], column(ids.think_end, ids.action)]
    begin = sum(part.shape[1] for part in prompt)
    start = begin + options.thought + 2
    sequence = torch.cat([*prompt, *thought, actions + ids.bins_first,
                          column(ids.action_end, ids.eos)], 1)
    columns = torch.cat([torch.arange(begin, start + 1),
                         torch.arange(start + slots + 1, start + slots + 3)])
    rows = torch.arange(count).repeat_interleave(len(columns))
    columns = columns.repeat(count)
    nothing = torch.zeros(count, 0, dtype=torch.int64)
    size = config.vision.image_size
    return Batch(
        frames=torch.randint(256, (2, count, size, size, 3), generator=rng, dtype=torch.uint8),
        input_ids=sequence, attention_mask=torch.ones_like(sequence),
        token_rows=torch.stack([rows, columns - 1]), token_targets=sequence[rows, columns],
        action_start=torch.full((count,), start), action_targets=actions,
        action_mask=torch.ones(count, slots, dtype=torch.bool), places=nothing[..., None],
        told_apart=nothing.bool(), patches=nothing)


def measure(kind: str, options: TrainBench) -> Measured:
    """Train for some steps in this process."""
    torch.set_num_threads(options.threads)
    model = policy(options)
    config = SftConfig(action_sigma=0.0, thought_weight=1.0, pointing_weight=0.0)
    objective = Objective(model, config, ()) if kind == 'supervised' else PlainObjective(model)
    optimizer = new_optimizer(objective, config)
    batch = batch_of(options, model.config)
    times = []
    for _ in range(options.steps + 1):
        begun = time.perf_counter()
        report = objective(batch)
        optimizer.zero_grad()
        (report if isinstance(report, Tensor) else report.loss).backward()
        optimizer.step()
        times.append(time.perf_counter() - begun)
    return Measured(median(times[1:]), _peak())


def _peak() -> int:
    """Return this process's largest resident set [bytes].

    Linux lets a child inherit its parent's figure in ``getrusage``, not in ``VmHWM``.
    """
    status = Path('/proc/self/status')
    if status.exists():
        line = next(text for text in status.read_text().splitlines() if text.startswith('VmHWM'))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == 'darwin' else 1024)


if __name__ == '__main__':
    print(json.dumps(asdict(measure(sys.argv[1], TrainBench(**json.loads(sys.argv[2]))))))
