"""From a camera's frame to the network's pixels, against the published preparation.

There a frame is turned by 180 degrees: made upright, then left and right exchanged.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.decoders import small_decoder
from support.golden import tensors
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.policy.transform import PolicyTransform


@pytest.mark.parametrize('mirrored', [True, False])
def test_golden_image(mirrored):
    case = {name: tensor.numpy() for name, tensor in tensors('case_image').items()}
    size = case['policy_uint8'].shape[0]
    config = small_decoder().config
    vision = dataclasses.replace(config.vision, cameras=('only',), tokens=(1,), image_size=size,
                                 patch=size)
    config = dataclasses.replace(config, vision=vision)
    statistics = ActionStatistics((-1.0,) * config.action_dim, (1.0,) * config.action_dim)
    transform = PolicyTransform(config, Tokenizer(WordLevel({}, unk_token='')), statistics,
                                mirrored=mirrored)
    image = case['camera_uint8'][::-1]  # the simulator's rows come bottom up
    if not mirrored:
        image = image[:, ::-1]
    pixels = transform.pixels({'only': image})[0]  # [3, size, size]
    corner = case['pixel_values_corner']
    np.testing.assert_allclose(pixels[:, :corner.shape[1], :corner.shape[2]], corner, atol=1e-6)
    levels = (pixels * 0.5 + 0.5) * 255.0
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    assert np.array_equal(levels.round().astype(np.uint8).transpose(1, 2, 0),
                          case['policy_uint8'])
