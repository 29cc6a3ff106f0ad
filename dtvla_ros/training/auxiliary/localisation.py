"""Auxiliary losses and pre-training stages: object localisation and attention supervision.

On demonstrations alone a policy trained from scratch ignores its images for thousands of steps:
the gripper's own position predicts most tokens. The simulator knows every object's position, so a
small head on the image rows is asked for all of them (localisation), and the rows that predict a
location attend to the patch it falls in (attention).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, send_to_device
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, apply_rotary_pos_emb

from dtvla_ros.actions.grid import CM_RANGE
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.vision import ConvTower
from dtvla_ros.training.collate import Batch, Collator, prefetch
from dtvla_ros.training.config import SftConfig, warm_cosine
from dtvla_ros.training.data import AXES, NOWHERE
from dtvla_ros.training.loss import Metrics, Objective, ordinal_cross_entropy

NEAR = 3  # tokens, x and y together, between the location said and the object it is taken to mean
SMOOTHING = 0.98  # of the losses shown
WARMUP = 100
FLOOR = 0.05  # of the peak learning rate, at the end of a stage


class LocalisationLoss(nn.Module):
    """Asks the first camera's rows where every object is: one query each, for its x and y token.

    Smoothed cross-entropy of both tokens, mean over the unambiguous objects. Metric
    ``localised``: the share of them placed within one token on both axes.
    """

    def __init__(self, weight: float, decoder: DecoderConfig, objects: int, sigma: float):
        super().__init__()
        width = decoder.text.width
        self.weight, self.rows, self.sigma = weight, decoder.vision.tokens[0], sigma
        self.norm = nn.LayerNorm(width)
        self.question = nn.Parameter(torch.randn(objects, width) * width ** -0.5)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.words = nn.ModuleList(
            nn.Linear(width, CM_RANGE[a][1] - CM_RANGE[a][0] + 1) for a in AXES)

    def forward(self, batch: Batch, features: Tensor) -> tuple[Tensor, Metrics]:
        """Read positions off the first camera's rows of ``features``."""
        rows = self.norm(features[:, :self.rows])
        attention = (self.question @ self.key(rows).transpose(1, 2)).softmax(-1)  # [B, E, n]
        found = F.gelu(attention @ self.value(rows))  # [B, E, width]
        loss, near = features.new_zeros((), dtype=torch.float32), batch.unambiguous
        for k, axis in enumerate(self.words):
            logits, target = axis(found), batch.positions[..., k]  # [B, E, tokens], [B, E]
            away = torch.arange(logits.shape[-1], device=logits.device) - target[..., None]
            wanted = (-0.5 * (away / max(self.sigma, 1e-3)) ** 2).softmax(-1)
            losses = -(wanted * logits.float().log_softmax(-1)).sum(-1)
            loss = loss + losses.where(batch.unambiguous, 0.0).sum()
            near = near & ((logits.argmax(-1) - target).abs() <= 1)
        count = batch.unambiguous.sum().clamp_min(1)
        return loss / count, {'localised': (near.sum() / count).detach()}


def attention_targets(token_rows: Tensor, token_targets: Tensor, spans: Sequence[tuple[int, int]],
                      positions: Tensor, patches: Tensor) -> Tensor:
    """Return [3, K]: the sequence, row and column of each row that should attend.

    A row attends when it predicts an x token, and the next when it predicts the y token after it.
    ``token_rows`` [2, R] and ``token_targets`` [R] as in ``Batch``; ``spans``: (first, last) ids
    of the x and of the y tokens; ``positions`` [B, E, 2], ``patches`` [B, E]. A location means the
    nearest object at most ``NEAR`` tokens away; nothing is asked for when there is none, or when
    it is not in the image, whose patches are the first columns of every sequence.
    """
    (x_first, x_last), (y_first, y_last) = spans[:2]
    said, after = token_targets[:-1], token_targets[1:]
    pair = (said >= x_first) & (said <= x_last) & (after >= y_first) & (after <= y_last)
    step = token_rows[:, 1:] - token_rows[:, :-1]
    pair &= (step[0] == 0) & (step[1] == 1)
    at = pair.nonzero()[:, 0]  # [K / 2]
    sequence, row = token_rows[:, at]
    location = torch.stack([said[at] - x_first, after[at] - y_first], 1)  # [K / 2, 2]
    away, nearest = (positions[sequence] - location[:, None]).abs().sum(-1).min(1)
    column = patches[sequence, nearest]
    good = (away <= NEAR) & (column != NOWHERE)
    sequence, row, column = sequence[good], row[good], column[good]
    return torch.stack([sequence.repeat(2), torch.cat([row, row + 1]), column.repeat(2)])


class AttentionLoss(nn.Module):
    """Cross-entropy of the first head's attention in a decoder layer, over ``attention_targets``.

    Its mean, 0 when there are none. Metric ``attended``: their mean share of attention on the
    right patch (nan without rows). ``scores`` [B, L, L]: what that head took its softmax of in the
    layer's last pass, computed again from the layer's input by a hook.
    """

    def __init__(self, weight: float, spans: Sequence[tuple[int, int]], model: HybridDecoder,
                 layer: int):
        super().__init__()
        self.weight, self.spans = weight, spans
        self.scores: Tensor | None = None
        if not 0 <= layer < len(model.layers):
            raise UserError(f'train config: auxiliary.attention_layer {layer} is not one of '
                            f"the policy's layers 0..{len(model.layers) - 1}")
        model.layers[layer].register_forward_pre_hook(self._read, with_kwargs=True)

    def _read(self, module: nn.Module, inputs: tuple[Tensor, ...],
              options: dict[str, Any]) -> None:
        if options.get('past_key_values') is not None:
            return  # an evaluation writes a thought: nothing is supervised
        layer = cast(GemmaDecoderLayer, module)
        attention, size = layer.self_attn, layer.self_attn.head_dim
        x = layer.input_layernorm(inputs[0])
        query = F.linear(x, attention.q_proj.weight[:size])[:, None]  # [B, 1, n, d]
        key = F.linear(x, attention.k_proj.weight[:size])[:, None]
        query, key = apply_rotary_pos_emb(query, key, *options['position_embeddings'])
        scores = (query @ key.transpose(-1, -2))[:, 0].float() * attention.scaling
        self.scores = scores + options['attention_mask'][:, 0].float()

    def forward(self, batch: Batch, features: Tensor) -> tuple[Tensor, Metrics]:
        """Compare the scores of the last pass with the targets, and forget them."""
        assert self.scores is not None, 'the layer has run'
        sequence, row, column = attention_targets(
            batch.token_rows, batch.token_targets, self.spans, batch.positions,
            batch.target_patches)
        rows, self.scores = self.scores[sequence, row].float(), None  # [K, L]
        losses = F.cross_entropy(rows, column, reduction='none')
        return (losses.sum() / max(len(losses), 1),
                {'attended': losses.detach().neg().exp().mean()})


class Stage(NamedTuple):
    """A pre-training stage: its loss, which also gives the share it gets right, and schedule."""

    title: str
    loss: Callable[[Batch], tuple[Tensor, Tensor]]
    steps: int
    rate: float
    parameters: list[nn.Parameter]


def stages(objective: Objective, config: SftConfig) -> tuple[Stage, ...]:
    """Return both stages of a small policy.

    First the first camera's stem learns with the localisation head where objects are, then the
    decoder to write an object's location after its name.
    """
    model, keys = objective.model, config.auxiliary
    auxiliary = cast(dict[str, Any], objective.auxiliary)
    localisation = auxiliary['localisation']
    # Policies made from scratch have one stem per camera.
    stem, later = cast(ConvTower, model.vision).stems[0], sum(model.config.vision.tokens[1:])

    def localise(batch: Batch) -> tuple[Tensor, Tensor]:
        value, metrics = localisation(batch, stem(batch.pixels()[:, 0]))
        return value, metrics['localised']

    def caption(batch: Batch) -> tuple[Tensor, Tensor]:
        rows = stem(batch.pixels()[:, 0])
        features = torch.cat([rows, rows.new_zeros(len(rows), later, rows.shape[2])], 1)
        hidden = model.read(batch.input_ids, batch.attention_mask, features)
        logits = model.token_logits(hidden[batch.token_rows[0], batch.token_rows[1]])  # [R, V]
        near = (logits.argmax(-1) - batch.token_targets).abs() <= 1
        value = ordinal_cross_entropy(logits, batch.token_targets, objective.locations).mean()
        if 'attention' in auxiliary:
            attention = auxiliary['attention']
            value = value + attention.weight * attention(batch, features)[0]
        return value, near.view(-1, 2).all(1).float().mean()

    return (Stage('localisation', localise, keys.localisation_steps, keys.localisation_rate,
                  [*stem.parameters(), *localisation.parameters()]),
            Stage('location captioning', caption, keys.captioning_steps, config.learning_rate,
                  [*model.parameters()]))


@dataclass
class Pretraining:
    """How far the stages are.

    ``number``: the present one; ``step``: of it; ``begun``: when, on the run's clock [s];
    ``right``: the smoothed share that each stage gets right; ``slots``: of the present one's
    ``optimizer``, where a checkpoint left it.
    """

    number: int = 0
    step: int = 0
    begun: float = 0.0
    right: list[float] = field(default_factory=lambda: [0.0, 0.0])
    slots: dict[int, Any] = field(default_factory=dict)
    optimizer: torch.optim.Optimizer | None = None

    def numbers(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the optimizer."""
        return {name: getattr(self, name) for name in ('number', 'step', 'begun', 'right')}

    def progress(self, stage: Stage) -> float:
        return self.step / stage.steps if self.step < stage.steps else 1.0


def pretrain(objective: Objective, collator: Collator, config: SftConfig,
             accelerator: Accelerator, loaders: int = 1, at: Pretraining | None = None,
             progress: Callable[[Pretraining, Stage], float] = Pretraining.progress,
             tick: Callable[[], bool] = lambda: False) -> list[float]:
    """Run the stages from ``at`` on; return the smoothed share that each gets right.

    ``progress``: of the present stage, 0..1, on which the learning rate depends. ``tick`` is
    called after every step and returns whether to stop there, in the midst of a stage.
    """
    at = at or Pretraining()
    for number, stage in enumerate(stages(objective, config)):
        if number < at.number:
            continue
        if number > at.number:
            at.number, at.step = number, 0
        if not _train_stage(stage, at, progress, tick, collator, config, accelerator, loaders):
            break
    return at.right


def _train_stage(stage: Stage, at: Pretraining, progress: Callable[[Pretraining, Stage], float],
                 tick: Callable[[], bool], collator: Collator, config: SftConfig,
                 accelerator: Accelerator, loaders: int) -> bool:
    """Minimise a stage's loss with an AdamW of its own; return whether it was finished."""
    at.optimizer = optimizer = torch.optim.AdamW(
        [{'params': [p for p in stage.parameters if (p.ndim > 1) is wide],
          'weight_decay': config.weight_decay * wide} for wide in (True, False)],
        stage.rate, betas=config.betas, fused=True)
    optimizer.load_state_dict(optimizer.state_dict() | {'state': at.slots})
    at.slots = {}
    batches = prefetch(collator.localisation, at.step, loaders, accelerator.device)
    with closing(batches), tqdm(total=stage.steps, initial=at.step, desc=stage.title,
                                disable=not accelerator.is_main_process) as bar:
        while (done := progress(at, stage)) < 1.0:
            for group in optimizer.param_groups:
                group['lr'] = stage.rate * warm_cosine(at.step, WARMUP, done, FLOOR)
            with accelerator.autocast():
                loss, share = stage.loss(
                    send_to_device(next(batches), accelerator.device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(stage.parameters, config.gradient_clip)
            optimizer.step()
            if at.step % 10 == 0:
                # Ten steps are seen as one, so the weight of the past is that of ten.
                blend = SMOOTHING ** 10 if at.step else 0.0
                right = blend * at.right[at.number] + (1.0 - blend) * share.item()
                at.right[at.number] = right
                bar.set_postfix(loss=f'{loss.item():.3f}', within_one=f'{right:.2f}')
            at.step += 1
            bar.update()
            if tick():
                return False
    if accelerator.num_processes > 1:  # every process took the same steps, rounding apart
        for parameter in stage.parameters:
            parameter.data.copy_(broadcast(parameter.data))
    return True
