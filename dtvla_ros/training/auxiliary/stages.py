"""First lessons of a policy that begins with nothing: to see where things are, and to say it.

Demonstrations alone teach neither for thousands of steps. Both lessons are dense: every picture
asks for every thing, and nothing else is paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm import tqdm

from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.vision import ConvTower
from dtvla_ros.training.auxiliary.attention import pointing_loss, pointing_targets
from dtvla_ros.training.collate import BatchMaker, Look
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.data_loader import ahead
from dtvla_ros.training.loss import ordinal_cross_entropy
from dtvla_ros.training.objective import Objective
from dtvla_ros.training.schedule import warm_cosine

SMOOTHING = 0.98  # of the losses shown
WARMUP = 100
FLOOR = 0.05  # of the peak learning rate, at the end of a lesson


def teach_eye(objective: Objective, batches: BatchMaker, config: SftConfig,
              accelerator: Accelerator, loaders: int = 1) -> float:
    """Train the first camera's stem with the place head; return the share placed rightly."""
    eye = _eye(objective.model)
    assert objective.head is not None, 'a dataset that knows places has a place head'

    def lesson(look: Look) -> tuple[Tensor, Tensor]:
        report = objective.seen(eye(look.pixels), look.places, look.told_apart)
        return report.loss, report.within_one

    return _teach('where things are', lesson, config.grounding_steps, config.grounding_rate,
                  [*eye.parameters(), *objective.head.parameters()], batches, config, accelerator,
                  loaders)


def teach_telling(objective: Objective, batches: BatchMaker, config: SftConfig,
                  accelerator: Accelerator, loaders: int = 1) -> float:
    """Train the decoder to write a thing's place after its name; return the share right."""
    model = objective.model
    later = sum(model.config.vision.tokens[1:])

    def lesson(look: Look) -> tuple[Tensor, Tensor]:
        rows = _eye(model)(look.pixels)
        features = torch.cat([rows, rows.new_zeros(len(rows), later, rows.shape[2])], 1)
        real = look.input_ids != model.config.ids.pad
        hidden = model.read(look.input_ids, real.long(), features)
        spans = objective.places[:2]
        targets = look.input_ids[:, 1:]
        asked = torch.zeros_like(targets, dtype=torch.bool)
        for span in spans:
            asked |= (targets >= span.first) & (targets <= span.last)
        asked[:, :targets.shape[1] - _thought_length(look, objective)] = False
        logits = model.token_logits(hidden[:, :-1][asked])  # [B * E * 2, V]
        wanted = targets[asked]
        near = (logits.argmax(-1) - wanted).abs() <= 1
        loss = ordinal_cross_entropy(logits, wanted, objective.places).mean()
        if objective.probe is not None:
            point = pointing_loss(objective.probe.take(), pointing_targets(
                asked.nonzero().T, wanted, objective.spans, look.places, look.patches))
            loss = loss + objective.pointing_weight * point.loss
        return loss, near.view(-1, 2).all(1).float().mean()

    return _teach('saying where', lesson, config.telling_steps, config.learning_rate,
                  list(model.parameters()), batches, config, accelerator,
                  loaders)


def _eye(model: HybridDecoder) -> nn.Module:
    """Return the first camera's stem: policies made from scratch have one per camera."""
    return cast(ConvTower, model.vision).stems[0]


def _thought_length(look: Look, objective: Objective) -> int:
    """Return how many of the last columns hold the thought (state words are no question)."""
    start = (look.input_ids[0] == objective.model.config.ids.think).nonzero()[0, 0]
    return int(look.input_ids.shape[1] - start)


def _teach(title: str, lesson: Callable[[Look], tuple[Tensor, Tensor]], steps: int, rate: float,
           parameters: Sequence[nn.Parameter], batches: BatchMaker, config: SftConfig,
           accelerator: Accelerator, loaders: int) -> float:
    groups = [{'params': [p for p in parameters if p.ndim > 1],
               'weight_decay': config.weight_decay},
              {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(groups, rate, betas=config.betas, fused=True)
    right = 0.0
    looks = ahead(batches.look, 0, loaders, accelerator.device)
    with closing(looks), tqdm(
            range(steps), desc=title, disable=not accelerator.is_main_process) as bar:
        for step, look in zip(bar, looks):
            for group in optimizer.param_groups:
                group['lr'] = rate * warm_cosine(step, WARMUP, step / steps, FLOOR)
            with accelerator.autocast():
                loss, share = lesson(look.to(accelerator.device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
            optimizer.step()
            if step % 10 == 0:
                # Ten steps are seen as one, so the weight of the past is that of ten.
                blend = SMOOTHING ** 10 if step else 0.0
                right = blend * right + (1.0 - blend) * share.item()
                bar.set_postfix(loss=f'{loss.item():.3f}', within_one=f'{right:.2f}')
    if accelerator.num_processes > 1:  # every process took the same lesson, rounding apart
        for parameter in parameters:
            parameter.data.copy_(broadcast(parameter.data))
    return right
