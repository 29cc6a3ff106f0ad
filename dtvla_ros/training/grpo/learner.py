"""From episodes with advantages to better weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from dtvla_ros.engine.batch import SampledDecision, collate
from dtvla_ros.errors import UserError
from dtvla_ros.policy.likelihood import Written, likelihood
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.rollout.env_worker import Images
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.loss import PolicyLoss, aggregate, kl_estimate, policy_loss
from dtvla_ros.training.grpo.trajectory import Trajectory

_PROBED = 65536  # values of a weight whose gradients are compared


@dataclass(frozen=True, slots=True)
class Row:
    """One decision to learn from; ``executed``: actions of its chunk that moved the arm.

    ``episode_tokens``: words and executed action values of the whole episode.
    """

    decision: SampledDecision
    frames: Images
    advantage: float
    executed: int
    episode_tokens: int


def rows_of(trajectories: Sequence[Trajectory], advantages: Sequence[Tensor]) -> list[Row]:
    """Return every decision of every episode that has an advantage, of [decisions] each."""
    return [Row(decision, frames, float(value[k]), trajectory.executed(k), tokens)
            for trajectory, value, tokens in zip(
                trajectories, advantages, map(_tokens_of, trajectories), strict=True)
            for k, (decision, frames) in enumerate(
                zip(trajectory.decisions, trajectory.frames, strict=True))
            if not value[k].isnan()]


def looks_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows by what was seen; draws of one decision share it."""
    looks: dict[int, list[Row]] = {}
    for row in rows:
        looks.setdefault(id(row.frames), []).append(row)
    return list(looks.values())


def _tokens_of(trajectory: Trajectory) -> int:
    """Return how many words and executed action values an episode has."""
    return sum(len(decision.thought_log_probs) + decision.chunk.shape[1] * trajectory.executed(k)
               for k, decision in enumerate(trajectory.decisions))


@dataclass(frozen=True, slots=True)
class Tokens:
    """Values of the tokens a policy chose, [B, L + S]: the thought's columns, then the slots.

    ``chosen``: which of the columns hold a token at all; ``acted``: without the slots whose
    action was never executed, because the policy looked again or the episode was over.
    """

    written: Written
    chosen: Tensor
    acted: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], transform: PolicyTransform,
           device: torch.device | str) -> Tokens:
        config = transform.config
        written = collate([row.decision for row in rows], config.ids, device)
        slot = torch.arange(config.slots, device=device) // config.action_dim
        executed = torch.tensor([row.executed for row in rows], device=device)
        moved = slot < executed[:, None]  # [B, S]
        return cls(written, torch.cat([written.thought_mask, torch.ones_like(moved)], 1),
                   torch.cat([written.thought_mask, moved], 1))

    def placed(self, thoughts: Sequence[NDArray[np.float32]],
               actions: Sequence[NDArray[np.float32]]) -> Tensor:
        """Return ragged values of chosen words and [B][S] of actions in their columns."""
        mask = self.written.thought_mask
        columns = torch.zeros(mask.shape, device=mask.device)
        columns[mask] = torch.from_numpy(np.concatenate(thoughts)).to(mask.device)
        return torch.cat([columns, torch.from_numpy(np.stack(actions)).to(mask.device)], 1)


class PolicyPass(nn.Module):
    """Log-probs and entropies of what was written, at the temperatures it was drawn at."""

    banned: Tensor

    def __init__(self, model: HybridDecoder, banned: Tensor, config: GrpoConfig):
        super().__init__()
        self.model = model
        self.register_buffer('banned', banned, persistent=False)
        self._thought, self._action = config.thought_temperature, config.action_temperature

    def forward(self, written: Written, pixels: Tensor,
                look: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropies [B, L + S].

        ``pixels`` [b, C, 3, H, W] in -1..1; ``look`` [B]: which of them a row was written on.
        """
        found = likelihood(
            self.model, written, self.model.encode_images(pixels)[look], banned=self.banned,
            thought_temperature=self._thought, action_temperature=self._action, entropy=True)
        assert found.thought_entropy is not None and found.action_entropy is not None
        return (torch.cat([found.thought, found.action], 1),
                torch.cat([found.thought_entropy, found.action_entropy], 1))


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens and episodes that the losses are divided by, over all processes."""

    words: float
    executed: float
    actions: float
    episodes: float

    @property
    def acted(self) -> float:
        """Tokens that had a part in what happened."""
        return self.words + self.executed

    @property
    def chosen(self) -> float:
        """Tokens that were drawn."""
        return self.words + self.actions


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """Means over the tokens of one iteration; ``gradient``: mean norm before clipping.

    ``clip_fraction``, ``lower_clip_fraction`` and ``approximate_kl`` as in ``PolicyLoss``, the
    last two entropies [nats]; ``kl``: to the reference [nats]. ``agreement``: mean cosine between
    the gradients of two optimizer steps, 0 where there is one; about 0, they are noise, and more
    episodes a step are needed.
    ``drift``: largest difference [nats] between a log-prob as sampled and as recomputed before
    the first update. It is rounding, or sampler and learner do not run the same policy.
    """

    loss: float
    kl: float
    clip_fraction: float
    lower_clip_fraction: float
    approximate_kl: float
    thought_entropy: float
    action_entropy: float
    gradient: float
    agreement: float
    drift: float


class Learner:
    """Policy, frozen reference and optimizer.

    Under ``accelerate launch`` every process learns from its own episodes and the gradients are
    added up: the normalisers are those of all processes together, so that a token weighs the
    same wherever and in whichever slice it is learnt.
    """

    def __init__(self, model: HybridDecoder, transform: PolicyTransform, banned: Tensor,
                 config: GrpoConfig, accelerator: Accelerator):
        self.config, self.transform, self.accelerator = config, transform, accelerator
        self.model = model.to(accelerator.device)
        self.reference = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.policy = PolicyPass(self.model, banned, config).to(accelerator.device)
        self.frozen = PolicyPass(self.reference, banned, config).to(accelerator.device)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad], config.learning_rate,
            betas=config.betas, weight_decay=config.weight_decay)
        self.step = 0  # optimizer steps taken

    def update(self, rows: Sequence[Row], episodes: int, iteration: int) -> UpdateReport | None:
        """Take ``epochs * minibatches`` optimizer steps; None if no process has anything.

        ``episodes``: how many the rows belong to. Of the rows ``learn_share`` are learnt from.
        """
        config, width = self.config, self.transform.config.action_dim
        if config.learn_share < 1.0:
            drawn = np.random.default_rng([config.seed, iteration]).random(len(rows))
            rows = [row for row, draw in zip(rows, drawn, strict=True)
                    if draw < config.learn_share]
        looks = looks_of(rows)
        counts = Counts(*self.summed([
            sum(len(r.decision.thought_log_probs) for r in rows),
            width * sum(r.executed for r in rows),
            sum(len(r.decision.action_log_probs) for r in rows), episodes]))
        if not counts.episodes:
            return None
        sums = _Sums()
        for epoch in range(config.epochs):
            rng = np.random.default_rng([config.seed, iteration, epoch])
            for number, part in enumerate(
                    np.array_split(rng.permutation(len(looks)), config.minibatches)):
                self.optimizer.zero_grad()
                for piece in self._pieces([looks[k] for k in part]):
                    self._backward(piece, counts, sums, fresh=epoch == number == 0)
                sums.gradient += self._step(sums.directions)
        return self._report(sums, counts)

    def try_out(self, rows: list[Row]) -> None:
        """Do what an update does with one micro-batch, and forget it."""
        self._backward(rows, Counts(1.0, 1.0, 1.0, 1.0), _Sums(), fresh=False)
        self.optimizer.zero_grad()

    def _pieces(self, looks: list[list[Row]]) -> Iterator[list[Row]]:
        """Yield micro-batches of decisions about equally long, those of one look together."""
        looks.sort(key=lambda rows: max(len(row.decision.thought_tokens) for row in rows))
        piece: list[Row] = []
        for rows in looks:
            if piece and len(piece) + len(rows) > self.config.micro_batch:
                yield piece
                piece = []
            piece = piece + rows
        if piece:
            yield piece

    def _backward(self, rows: list[Row], counts: Counts, sums: _Sums, fresh: bool) -> None:
        """Add one micro-batch's gradient; ``fresh``: no step was taken since the sampling."""
        config, device = self.config, self.accelerator.device
        looks = looks_of(rows)
        rows = [row for look in looks for row in look]
        pixels = torch.from_numpy(
            np.stack([self.transform.pixels(look[0].frames) for look in looks])).to(device)
        seen = torch.tensor([k for k, look in enumerate(looks) for _ in look], device=device)
        tokens = Tokens.of(rows, self.transform, device)
        old = tokens.placed([r.decision.thought_log_probs for r in rows],
                            [r.decision.action_log_probs for r in rows])
        advantages = torch.tensor(
            [[r.advantage / self._divisor(r, counts)] for r in rows], device=device).expand_as(old)
        with self.accelerator.autocast():
            with torch.no_grad():
                wanted, _ = self.frozen(tokens.written, pixels, seen)
            log_probs, entropy = self.policy(tokens.written, pixels, seen)
        share = 1.0 / config.minibatches  # of the iteration's tokens, in one optimizer step
        report = policy_loss(
            log_probs, old, advantages, tokens.acted, clip_low=config.clip_low,
            clip_high=config.clip_high, dual_clip=config.dual_clip, total=share)
        kl = kl_estimate(log_probs, wanted)
        distance = aggregate(kl, tokens.chosen, 'token-mean', share * counts.chosen)
        loss = report.loss + config.kl_weight * distance
        self.accelerator.backward(loss)
        with torch.no_grad():
            sums.add(tokens, report, loss, kl, entropy)
            if fresh:
                sums.drift = max(sums.drift, float(
                    (log_probs - old).masked_fill(~tokens.chosen, 0.0).abs().max()))

    def _divisor(self, row: Row, counts: Counts) -> float:
        """Return what the loss of a row's tokens is divided by; a sequence is an episode."""
        if self.config.aggregation == 'token-mean':
            return counts.acted
        if self.config.aggregation == 'seq-mean-token-sum':
            return counts.episodes
        return counts.episodes * self.config.learn_share * row.episode_tokens

    def _step(self, directions: Directions) -> float:
        """Add up the gradients of all processes and take a step; return their norm."""
        parameters = [p for group in self.optimizer.param_groups for p in group['params']]
        for p in parameters:
            if p.grad is None:  # a process without episodes
                p.grad = torch.zeros_like(p)
        if self.accelerator.num_processes > 1:
            flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            flat = self.accelerator.reduce(flat, reduction='sum')
            for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
                p.grad = part.view_as(p)
        directions.add(parameters)
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip))
        if not math.isfinite(norm):
            raise UserError(f'the gradient is {norm} at optimizer step {self.step}; lower '
                            'learning_rate and start anew')
        for group in self.optimizer.param_groups:
            group['lr'] = self.config.learning_rate * min(
                1.0, (self.step + 1) / max(self.config.warmup_steps, 1))
        self.optimizer.step()
        self.step += 1
        return norm

    def _report(self, sums: _Sums, counts: Counts) -> UpdateReport:
        config = self.config
        loss, kl, clipped, bounded, change, words, actions = self.summed(
            [sums.loss, sums.kl, sums.clipped, sums.bounded, sums.change, sums.words,
             sums.actions])
        drift = self.accelerator.gather(
            torch.tensor([sums.drift], device=self.accelerator.device))
        acted = counts.acted * config.epochs
        steps = config.epochs * config.minibatches
        return UpdateReport(
            loss / steps, kl / (counts.chosen * config.epochs), clipped / acted, bounded / acted,
            change / acted, words / (counts.words * config.epochs),
            actions / (counts.actions * config.epochs), sums.gradient / steps,
            sums.directions.agreement, float(drift.max()))

    def summed(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(tensor, reduction='sum').tolist()


class Directions:
    """Whether gradients point the same way, told from some values of every weight."""

    def __init__(self) -> None:
        self._sum = torch.zeros(1)
        self._squares, self._count = 0.0, 0

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        flat = torch.cat([p.grad.flatten()[:_PROBED].float() for p in parameters
                          if p.grad is not None])
        self._sum = self._sum.to(flat.device) + flat
        self._squares += float(flat.square().sum())
        self._count += 1

    @property
    def agreement(self) -> float:
        """Mean product of two different gradients over their mean square."""
        if self._count < 2 or not self._squares:
            return 0.0
        return (float(self._sum.square().sum()) - self._squares) / (
            (self._count - 1) * self._squares)


@dataclass
class _Sums:
    """What ``UpdateReport`` is made of, added up over tokens (the loss, over steps)."""

    loss: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    bounded: float = 0.0
    change: float = 0.0
    words: float = 0.0
    actions: float = 0.0
    gradient: float = 0.0
    drift: float = 0.0
    directions: Directions = field(default_factory=Directions)

    def add(self, tokens: Tokens, report: PolicyLoss, loss: Tensor, kl: Tensor,
            entropy: Tensor) -> None:
        acted = float(tokens.acted.sum())
        width = tokens.written.input_ids.shape[1]
        self.loss += float(loss)
        self.kl += float(kl.masked_fill(~tokens.chosen, 0.0).sum())
        self.clipped += acted * float(report.clip_fraction)
        self.bounded += acted * float(report.lower_clip_fraction)
        self.change += acted * float(report.approximate_kl)
        self.words += float(entropy[:, :width].sum())
        self.actions += float(entropy[:, width:].sum())
