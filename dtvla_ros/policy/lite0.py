"""The first stages of EfficientNet-Lite0, an ImageNet classifier, for images in -1..1.

Batch norms are folded into the convolutions before them, which are trained on as they then are,
and the classifier's own scaling of images is folded into the first one (``tools/lite0_stem``).
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dtvla_ros.policy.config import LITE0_FIRST, LITE0_STAGES

# The classifier scales images of 0..255 by (x - 127) / 128 and pads them with 0 after that.
BLANK = 127.0 / 127.5 - 1.0


def _halved(x: Tensor, kernel: int, value: float = 0.0) -> Tensor:
    """Pad an even grid so that a convolution of stride 2 halves it, as TensorFlow does."""
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    return F.pad(x, [before, after, before, after], value=value)


class Block(nn.Module):
    """An inverted residual block: wider, a convolution by channel, narrower again."""

    def __init__(self, before: int, channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = before * expansion
        # Without expansion the input has passed a ReLU6, which a second one does not change.
        self.expand = nn.Conv2d(before, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride,
                                   kernel // 2 if stride == 1 else 0, groups=wide)
        self.project = nn.Conv2d(wide, channels, 1)
        self.kernel, self.halves = kernel, stride == 2
        self.residual = stride == 1 and before == channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, channels, H, W], or half as high and wide."""
        y = F.relu6(self.expand(x))
        y = F.relu6(self.depthwise(_halved(y, self.kernel) if self.halves else y))
        y = self.project(y)
        return x + y if self.residual else y


class Lite0(nn.Module):
    """So many stages, with ``channels`` at last, on a grid ``stride`` times coarser."""

    def __init__(self, stages: int):
        super().__init__()
        self.first = nn.Conv2d(3, LITE0_FIRST, 3, 2)
        self.stride = 2
        blocks, before = [], LITE0_FIRST
        for stage in LITE0_STAGES[:stages]:
            self.stride *= stage.stride
            sizes = [before, *[stage.channels] * stage.blocks]
            blocks += [Block(a, b, stage.kernel, 1 if k else stage.stride, stage.expansion)
                       for k, (a, b) in enumerate(pairwise(sizes))]
            before = stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.channels = before

    def freeze(self, stages: int) -> None:
        """Train the first stages no further, and not the convolution before them."""
        blocks = sum(stage.blocks for stage in LITE0_STAGES[:stages])
        for part in (self.first, self.blocks[:blocks]):
            part.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> [B, channels, H / stride, W / stride]."""
        return self.blocks(F.relu6(self.first(_halved(image, 3, BLANK))))
