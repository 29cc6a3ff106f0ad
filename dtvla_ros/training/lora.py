"""Low-rank adapters (peft): put into a policy for training, and kept as peft's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dtvla_ros.errors import UserError
from dtvla_ros.policy.adapters import OTHERS, PREFIX, WEIGHTS
from dtvla_ros.policy.checkpoint import save_tensors
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.training.config import AdapterConfig

if TYPE_CHECKING:
    from peft import LoraConfig

NAME = 'default'  # what peft calls an adapter that was given no name


def _peft_config(config: AdapterConfig, **more: Any) -> LoraConfig:
    """Return peft's config; its pattern matches the decoder's layers, not SigLIP's."""
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout,
        target_modules=rf'layers\.\d+\.\w+\.(?:{"|".join(config.targets)})', **more)


def add_adapters(model: HybridDecoder, config: AdapterConfig) -> None:
    """Put adapters beside the decoder's linear layers, in place; all else but towers is frozen."""
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(_peft_config(config), model, NAME)
    except ValueError as error:
        raise UserError(f'train config: lora targets {", ".join(config.targets)}: '
                        f'{str(error).splitlines()[0]}') from error
    model.vision.requires_grad_(True)


def save_adapters(tensors: dict[str, Tensor], whole: set[str], folder: Path,
                  config: AdapterConfig, base: Path) -> None:
    """Write the adapters of a model's ``tensors`` as peft does.

    ``whole``: names of the weights trained beside them. ``base``: the policy they adapt.
    """
    save_tensors({PREFIX + name.replace(f'.{NAME}.', '.'): tensor
                  for name, tensor in tensors.items() if '.lora_' in name}, folder / WEIGHTS)
    if others := {name: tensors[name] for name in sorted(whole) if '.lora_' not in name}:
        save_tensors(others, folder / OTHERS)
    _peft_config(config, inference_mode=True,
                 base_model_name_or_path=str(base.resolve())).save_pretrained(str(folder))
