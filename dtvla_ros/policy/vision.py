"""Towers that turn camera images into rows of the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from dtvla_ros.policy.config import GROUPS, VisionConfig
from dtvla_ros.policy.lite0 import Lite0


def siglip_config(vision: VisionConfig) -> SiglipVisionConfig:
    """Return transformers' config of a 'siglip' tower."""
    return SiglipVisionConfig(
        hidden_size=vision.width, intermediate_size=vision.mlp, num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads, image_size=vision.image_size, patch_size=vision.patch,
        layer_norm_eps=vision.norm_eps, hidden_act='gelu_pytorch_tanh', vision_use_head=False)


class SiglipTower(nn.Module):
    """SigLIP and PaliGemma's linear projector, one tower for every camera.

    The rows enter the decoder as they are: PaliGemma divides them by sqrt(width) only because
    Gemma multiplies every embedding by it.
    """

    def __init__(self, config: VisionConfig, width: int):
        super().__init__()
        siglip = siglip_config(config)
        siglip._attn_implementation = 'sdpa'
        self.tower = SiglipVisionModel(siglip)
        self.projector = nn.Linear(config.width, width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, C, 3, H, W] -> [B, C * tokens, width]."""
        b, cameras = pixel_values.shape[:2]
        x = self.tower(pixel_values.flatten(0, 1)).last_hidden_state  # [B*C, tokens, vision]
        return self.projector(x).reshape(b, cameras * x.shape[1], -1)


def position_codes(side: int, width: int) -> Tensor:
    """Return [side * side, width]: sines and cosines of row and column, unit amplitude.

    Wavelengths run geometrically from two patches to four times the image (Vaswani et al. 2017,
    in two dimensions).
    """
    count = width // 4
    wavelength = 2.0 * (2.0 * side) ** (torch.arange(count) / max(count - 1, 1))  # [count]
    phase = 2.0 * torch.pi * torch.arange(side)[:, None] / wavelength  # [side, count]
    wave = torch.cat([phase.sin(), phase.cos()], 1)  # [side, 2 * count]
    out = torch.cat([wave.repeat_interleave(side, 0), wave.repeat(side, 1)], 1)
    return nn.functional.pad(out, (0, width - out.shape[1]))


class ConvStem(nn.Module):
    """A small convolutional stem trained from scratch: stride 4, then halved to the grid."""

    def __init__(self, image_size: int, tokens: int, channels: tuple[int, ...], width: int):
        super().__init__()
        halvings = (image_size // round(tokens ** 0.5)).bit_length() - 3
        last = len(channels) - 1
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 6, 4, 1), *_norm(channels[0])]
        before = channels[0]
        for k in range(1, halvings + 1):
            c = channels[min(k, last)]
            layers += [nn.Conv2d(before, c, 3, 2, 1), *_norm(c),
                       nn.Conv2d(c, c, 3, 1, 1), *_norm(c)]
            before = c
        self.net = nn.Sequential(*layers, nn.Conv2d(before, width, 1))
        # Convolutions do not tell where a patch lies, and a thought must name positions. Sines as
        # strong as the features: starting from nearly zero, as SigLIP does, vision is not used
        # at all for the first epochs.
        self.place = nn.Parameter(position_codes(round(tokens ** 0.5), width))

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, tokens, width]."""
        x = self.net(image)  # channels_last would cost a training step on CPU 15 % more here
        return x.flatten(2).transpose(1, 2) + self.place


def _norm(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(GROUPS, channels), nn.GELU()


class Lite0Stem(nn.Module):
    """EfficientNet-Lite0's first stages, and a projector that also coarsens their grid."""

    def __init__(self, image_size: int, tokens: int, stages: int, width: int):
        super().__init__()
        side = round(tokens ** 0.5)
        self.net = Lite0(stages)
        # Its features are ten times as strong as a row of the decoder.
        self.norm = nn.GroupNorm(GROUPS, self.net.channels)
        coarser = image_size // self.net.stride // side
        self.projector = nn.Conv2d(self.net.channels, width, coarser, coarser)
        self.place = nn.Parameter(position_codes(side, width))  # as of ConvStem

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, tokens, width]."""
        return self.projector(self.norm(self.net(image))).flatten(2).transpose(1, 2) + self.place


class ConvTower(nn.Module):
    """One stem per camera: views this different share nothing worth sharing."""

    def __init__(self, config: VisionConfig, width: int):
        super().__init__()
        size = config.image_size
        self.stems = nn.ModuleList(
            Lite0Stem(size, tokens, config.layers, width) if config.kind == 'lite0' else
            ConvStem(size, tokens, config.channels, width) for tokens in config.tokens)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, C, 3, H, W] -> [B, sum(tokens), width]."""
        return torch.cat([stem(pixel_values[:, c]) for c, stem in enumerate(self.stems)], 1)
