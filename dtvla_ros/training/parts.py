"""What of a policy is learnt how fast, and what of its activations is kept."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from dtvla_ros.training.config import SftConfig


def part_of(name: str) -> str:
    """Return which of ``Rates`` a parameter of an ``Objective`` belongs to."""
    if name.startswith('model.vision.projector.'):
        return 'projector'
    return 'vision' if name.startswith('model.vision.') else 'decoder'


def freeze(objective: nn.Module, config: SftConfig) -> frozenset[str]:
    """Freeze the parts whose rate is 0; return the names of all that is frozen."""
    for name, parameter in objective.named_parameters():
        if getattr(config.rates, part_of(name)) == 0.0:
            parameter.requires_grad_(False)
    return frozenset(name for name, parameter in objective.named_parameters()
                     if not parameter.requires_grad)


def new_optimizer(objective: nn.Module, config: SftConfig) -> torch.optim.AdamW:
    """Return AdamW over what is not frozen; a group's ``factor`` scales its learning rate."""
    groups = []
    named = [(getattr(config.rates, part_of(name)), parameter)
             for name, parameter in objective.named_parameters() if parameter.requires_grad]
    for factor in dict.fromkeys(factor for factor, _ in named):
        mine = [parameter for own, parameter in named if own == factor]
        for decay, parameters in (
                (config.weight_decay, [p for p in mine if p.ndim > 1]),
                (0.0, [p for p in mine if p.ndim <= 1])):
            if parameters:
                groups.append({'params': parameters, 'weight_decay': decay, 'factor': factor})
    return torch.optim.AdamW(groups, config.learning_rate, betas=config.betas, fused=True)


def recompute_layers(model: nn.Module) -> None:
    """Keep only the inputs of each Gemma and SigLIP layer for the backward pass."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            layer = cast(Any, module)
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
