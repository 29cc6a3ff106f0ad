"""Updates the policy from rollouts with advantages."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dtvla_ros.engine.batch import SampledDecision
from dtvla_ros.errors import UserError
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.rollout.batched import Images
from dtvla_ros.training.grpo import loss as losses
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.rollout import Trajectory

# What an update reports as means: over optimizer steps (loss, gradient's norm before clipping),
# executed tokens (see ``policy_loss``), sampled tokens (KL to the first policy, entropies; nats).
MEANS = ('loss', 'grad_norm', 'clip_fraction', 'lower_clip_fraction', 'approximate_kl', 'kl',
         'thought_entropy', 'action_entropy')
_COMPARED = 65536  # values of a weight whose gradients are compared


@dataclass(frozen=True, slots=True)
class Transition:
    """A decision to learn from, and the images it was sampled on, by camera [H, W, 3].

    ``executed``: actions of its chunk that moved the arm. ``episode_tokens``: thought tokens and
    executed action values of its episode.
    """

    decision: SampledDecision
    frames: Images
    executed: int
    advantage: float
    episode_tokens: int


def transitions(trajectories: Sequence[Trajectory],
                advantages: Sequence[Tensor]) -> list[Transition]:
    """Return every decision of every episode that has an advantage, of [decisions] each."""
    return [Transition(t.decisions[k], t.frames[k], t.executed(k), value, tokens)
            for t, values in zip(trajectories, advantages, strict=True) for tokens in [t.tokens]
            for k, value in enumerate(values.tolist()) if not math.isnan(value)]


def by_observation(rows: Sequence[Transition]) -> list[list[Transition]]:
    """Return the transitions in groups of one observation: all samples of a decision share it."""
    groups: defaultdict[int, list[Transition]] = defaultdict(list)
    for row in rows:
        groups[id(row.frames)].append(row)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Transitions as tensors; [B, L + S] has the columns of ``sequence_log_probs``.

    ``pixels`` [b, C, 3, H, W] in -1..1, of which row k was sampled on number ``image`` [B].
    ``sampled`` [B, L + S]: where a token was drawn. ``executed``: without the slots whose action
    never moved the arm, because of the next decision or the episode's end. ``old_log_probs``
    [B, L + S]: as sampled. ``advantages`` and ``episode_tokens`` [B], float64.
    """

    tokens: losses.TokenBatch
    pixels: Tensor
    image: Tensor
    sampled: Tensor
    executed: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    episode_tokens: Tensor

    @classmethod
    def of(cls, rows: Sequence[Transition], transform: PolicyTransform,
           device: torch.device | str) -> MicroBatch:
        """Collate transitions, those of one observation next to each other."""
        config = transform.config
        groups = by_observation(rows)
        rows = [row for group in groups for row in group]
        tokens = losses.collate([row.decision for row in rows], config.ids, device)
        slot = torch.arange(config.slots, device=device) // config.action_dim
        moved = slot < torch.tensor([[row.executed] for row in rows], device=device)  # [B, S]
        thought = torch.zeros(tokens.thought_mask.shape, device=device)
        thought[tokens.thought_mask] = torch.from_numpy(
            np.concatenate([row.decision.thought_log_probs for row in rows])).to(device)
        action = torch.from_numpy(np.stack([row.decision.action_log_probs for row in rows]))
        pixels = np.stack([transform.pixels(group[0].frames) for group in groups])
        return cls(
            tokens, torch.from_numpy(pixels).to(device),
            torch.tensor([k for k, group in enumerate(groups) for _ in group], device=device),
            torch.cat([tokens.thought_mask, torch.ones_like(moved)], 1),
            torch.cat([tokens.thought_mask, moved], 1),
            torch.cat([thought, action.to(device)], 1),
            *torch.tensor([(row.advantage, row.episode_tokens) for row in rows],
                          dtype=torch.float64, device=device).T)


class Learner:
    """Policy, frozen reference and optimizer.

    Under ``accelerate launch`` the gradients of all processes' episodes are added up, with common
    normalisers, so that a token weighs the same in whichever process and micro-batch it is learnt.
    """

    def __init__(self, model: HybridDecoder, transform: PolicyTransform, banned: Tensor,
                 config: GrpoConfig, accelerator: Accelerator):
        self.config, self.transform, self.accelerator = config, transform, accelerator
        self.model = model.to(accelerator.device)
        self.reference = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.banned = banned.to(accelerator.device)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad], config.learning_rate,
            betas=config.betas, weight_decay=config.weight_decay)
        self.step = 0  # optimizer steps taken

    def update(self, rows: Sequence[Transition], episodes: int,
               iteration: int) -> dict[str, float] | None:
        """Take ``num_iterations * num_minibatches`` optimizer steps on ``sample_fraction``.

        ``episodes``: how many the transitions belong to. Returns ``MEANS``, ``gradient_cosine``
        and ``log_prob_mismatch``: the largest difference [nats] between a log-prob as sampled and
        as recomputed before the first step, which is rounding, or sampler and learner do not run
        the same policy. None if no process has transitions.
        """
        config, width = self.config, self.transform.config.action_dim
        if config.sample_fraction < 1.0:
            drawn = np.random.default_rng([config.seed, iteration]).random(len(rows))
            rows = [row for row, x in zip(rows, drawn, strict=True) if x < config.sample_fraction]
        thought = sum(len(row.decision.thought_log_probs) for row in rows)
        totals = summed(self.accelerator, [
            thought + width * sum(row.executed for row in rows),
            thought + sum(len(row.decision.action_log_probs) for row in rows), episodes])
        if not totals[1]:
            return None
        groups, metrics = by_observation(rows), Metrics()
        for epoch in range(config.num_iterations):
            order = np.random.default_rng([config.seed, iteration, epoch]).permutation(len(groups))
            for number, part in enumerate(np.array_split(order, config.num_minibatches)):
                self.optimizer.zero_grad()
                for batch in self._micro_batches([groups[k] for k in part]):
                    self._backward(batch, totals, metrics, fresh=epoch == number == 0)
                self._step(metrics)
        return metrics.means(self.accelerator)

    def try_out(self, rows: Sequence[Transition]) -> None:
        """Do what an update does with one micro-batch, and forget it."""
        self._backward(rows, (1.0, 1.0, 1.0), Metrics(), fresh=False)
        self.optimizer.zero_grad()

    def _micro_batches(self, groups: list[list[Transition]]) -> Iterator[list[Transition]]:
        """Yield decisions about equally long, those of one observation together."""
        groups.sort(key=lambda rows: max(len(row.decision.thought_tokens) for row in rows))
        batch: list[Transition] = []
        for rows in groups:
            if batch and len(batch) + len(rows) > self.config.micro_batch:
                yield batch
                batch = []
            batch = batch + rows
        if batch:
            yield batch

    def log_probs(self, model: HybridDecoder, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropies [B, L + S] at the temperatures of the sampling."""
        return losses.sequence_log_probs(
            model, batch.tokens, model.encode_images(batch.pixels)[batch.image],
            banned=self.banned, thought_temperature=self.config.thought_temperature,
            action_temperature=self.config.action_temperature)

    def _backward(self, rows: Sequence[Transition], totals: Sequence[float], metrics: Metrics,
                  fresh: bool) -> None:
        """Add one micro-batch's gradient; ``fresh``: no step was taken since the sampling.

        ``totals``: executed tokens, sampled tokens and episodes over all processes.
        """
        config, (executed, sampled, episodes) = self.config, totals
        batch = MicroBatch.of(rows, self.transform, self.accelerator.device)
        with self.accelerator.autocast():
            with torch.no_grad():
                reference, _ = self.log_probs(self.reference, batch)
            log_probs, entropy = self.log_probs(self.model, batch)
        normalizer = losses.normalizers(config.loss_agg_mode, executed, episodes,
                                        config.sample_fraction * batch.episode_tokens)
        surrogate, diagnostics = losses.policy_loss(
            log_probs, batch.old_log_probs, batch.advantages[:, None], batch.executed, normalizer,
            epsilon=config.epsilon, epsilon_high=config.epsilon_high,
            clip_ratio_c=config.clip_ratio_c)
        kl = losses.kl_divergence(log_probs, reference).masked_fill(~batch.sampled, 0.0)
        share = 1.0 / config.num_minibatches  # of the iteration's tokens, in one optimizer step
        loss = surrogate / share + config.beta * (kl.sum() / (share * sampled))
        self.accelerator.backward(loss)
        with torch.no_grad():
            columns = batch.tokens.input_ids.shape[1]
            metrics.add('loss', loss, 0.0)  # a part of its step's
            for name, values in diagnostics.items():
                metrics.add(name, values[batch.executed].sum(), batch.executed.sum())
            metrics.add('kl', kl.sum(), batch.sampled.sum())
            thought, action = entropy[:, :columns], entropy[:, columns:]
            metrics.add('thought_entropy', thought.sum(), batch.tokens.thought_mask.sum())
            metrics.add('action_entropy', action.sum(), action.numel())
            if fresh:
                mismatch = (log_probs - batch.old_log_probs)[batch.sampled].abs().max()
                metrics.mismatch = max(metrics.mismatch, float(mismatch))

    def _step(self, metrics: Metrics) -> None:
        """Add up the gradients of all processes and take a step."""
        world = self.accelerator.num_processes
        parameters = [p for group in self.optimizer.param_groups for p in group['params']]
        for p in parameters:
            if p.grad is None:  # a process without episodes
                p.grad = torch.zeros_like(p)
            if world > 1:
                p.grad = self.accelerator.reduce(p.grad, reduction='sum')
        metrics.gradients.add(parameters)
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip))
        if not math.isfinite(norm):
            raise UserError(f'the gradient is {norm} at optimizer step {self.step}; lower '
                            'learning_rate and start anew')
        for group in self.optimizer.param_groups:
            group['lr'] = self.config.learning_rate * min(
                1.0, (self.step + 1) / max(self.config.warmup_steps, 1))
        self.optimizer.step()
        self.step += 1
        metrics.add('loss', 0.0, 1.0 / world)
        metrics.add('grad_norm', norm / world, 1.0 / world)


@dataclass
class GradientCosine:
    """Mean cosine between the gradients of two optimizer steps, from some values of every weight.

    About 0, the gradients are noise, and more episodes a step are needed.
    """

    _sum: Tensor | float = 0.0
    _squares: float = 0.0
    _count: int = 0

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Take the gradient of a step."""
        flat = torch.cat([p.grad.flatten()[:_COMPARED].float() for p in parameters
                          if p.grad is not None])
        self._sum = self._sum + flat
        self._squares += float(flat.square().sum())
        self._count += 1

    @property
    def mean(self) -> float:
        """Mean product of two different gradients over their mean square; 0 for one step."""
        if self._count < 2 or not self._squares:
            return 0.0
        both = float(torch.as_tensor(self._sum).square().sum())
        return (both - self._squares) / ((self._count - 1) * self._squares)


class Metrics:
    """Adds up what an update reports."""

    def __init__(self) -> None:
        self._totals = {name: np.zeros(2) for name in MEANS}  # sums and counts
        self.gradients = GradientCosine()
        self.mismatch = 0.0

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add ``total``, a sum over ``count`` tokens or steps, to one of ``MEANS``."""
        self._totals[name] += float(total), float(count)

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return everything over all processes."""
        sums, counts = np.reshape(
            summed(accelerator, np.concatenate([*self._totals.values()]).tolist()), (-1, 2)).T
        mismatch = accelerator.gather(torch.tensor([self.mismatch], device=accelerator.device))
        return dict(zip(MEANS, (sums / counts).tolist(), strict=True)) | {
            'gradient_cosine': self.gradients.mean, 'log_prob_mismatch': float(mismatch.max())}


def summed(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """Return the sums over all processes."""
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    return accelerator.reduce(tensor, reduction='sum').tolist()
