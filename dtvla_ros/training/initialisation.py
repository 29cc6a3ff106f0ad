"""What a fine-tuning run begins with: a new small policy, or an earlier one of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tokenizers import Tokenizer

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.validate import contract, shapes
from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared
from dtvla_ros.policy.checkpoint import EMBEDDING, load_weights, read_tensors, weight_files
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.lite0 import Lite0
from dtvla_ros.policy.manifest import PolicyManifest, sha256
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform, read_transform
from dtvla_ros.policy.vision import ConvTower, Lite0Stem
from dtvla_ros.policy.vocabulary import build_tokenizer, special_ids
from dtvla_ros.training.config import SftConfig, SftRun
from dtvla_ros.training.data import class_name, location_spans, object_names
from dtvla_ros.training.export import read_source

STEM = Path('models/stem/lite0.safetensors')  # as tools/lite0_stem makes it
STEM_SHA256 = 'e3c9a806ea5be65a0d37dc6797a227c87cc418f918046a828af2aee7f5e9a9df'


@dataclass(frozen=True, slots=True)
class Initialisation:
    """The transform of a run, and what an earlier policy gives it.

    ``model``: that policy's, where it is taken as it is. ``origin``: its manifest, where the
    policy made of it promises the same.
    """

    transform: PolicyTransform
    model: HybridDecoder | None = None
    origin: PolicyManifest | None = None


def initialise(config: SftConfig, run: SftRun, readers: Sequence[DatasetReader]) -> Initialisation:
    """Return what the run begins with, or goes on with.

    A vocabulary with location tokens is a small policy's and grows with the data; any other is
    taken as it is, with the policy. Raises ``UserError`` where frozen parts have no policy to come
    from, and for images of several shapes.
    """
    started = _started(config, run, readers)
    return replace(started, transform=sized(started.transform, readers, run.out))


def _started(config: SftConfig, run: SftRun, readers: Sequence[DatasetReader]) -> Initialisation:
    begun = read_transform(run.out) if (run.out / 'config.json').exists() else None
    if run.init is None or not run.init.is_dir():
        if config.freezes:
            raise UserError('train config: lora and rates of 0 keep parts of an earlier policy; '
                            'name its folder with --init')
        return Initialisation(begun or new_transform(config, readers))
    if begun and not config.freezes:
        return Initialisation(begun)
    model, before, manifest = read_source(run.init)
    released = not location_spans(before.tokenizer)
    transform = begun or (before if released else grown(before, dataset_words(readers)))
    if config.freezes and transform.config != before.config:
        raise UserError(f'{run.init}: {run.out} has another vocabulary or size, and frozen parts '
                        'can not follow; train it whole, or begin anew')
    if not begun:  # these demonstrations are what it learns to see
        transform = replace(transform, sizes={})
    return Initialisation(transform, model if released or config.freezes else None,
                          manifest if released else None)


def require_contract(readers: Sequence[DatasetReader], decoder: DecoderConfig,
                     actions: ActionContract) -> None:
    """Raise ``UserError`` for the first thing of a dataset that a policy could not learn."""
    for reader in readers:
        for problem, remedy in contract(reader, decoder, 'the policy', actions):
            raise UserError(f'{reader.root}: {problem}; {remedy}')


def sized(transform: PolicyTransform, readers: Sequence[DatasetReader],
          run: Path) -> PolicyTransform:
    """Return a transform that knows how large the first dataset's images are.

    Raises ``UserError`` where those of another dataset have another shape, or those with which
    the ``run`` began.
    """
    first = {camera: size for camera, size in readers[0].image_sizes.items()
             if camera in transform.config.vision.cameras}
    for reader in readers:
        for sizes, other in ((transform.sizes, run), (first, readers[0].root)):
            for problem, remedy in shapes(reader, sizes, str(other)):
                raise UserError(f'{reader.root}: {problem}; {remedy}')
    return replace(transform, sizes=first)


def new_transform(config: SftConfig, readers: Sequence[DatasetReader]) -> PolicyTransform:
    """Return the transform of a small policy made from scratch for these datasets."""
    tokenizer = build_tokenizer(sorted(dataset_words(readers)))
    decoder = DecoderConfig.nano(
        tokenizer.get_vocab_size(), special_ids(tokenizer), **asdict(config.model))
    told = readers[0].contract
    decoder = replace(decoder, action_dim=told.dim)
    require_contract(readers, decoder, told)
    actions = np.concatenate([np.asarray(r.column(layout.ACTION)) for r in readers])
    return PolicyTransform(
        decoder, tokenizer, ActionStatistics.of(actions, told.gripper_index), contract=told)


def dataset_words(readers: Sequence[DatasetReader]) -> set[str]:
    """Return every word of the datasets' instructions, thoughts and objects."""
    texts = {text for reader in readers
             for text in (*reader.tasks, *set(reader.column(layout.REASONING)))}
    texts |= {class_name(name) for name in object_names(readers)}
    return {word for text in texts for word in text.replace('_', ' ').split()}


def grown(transform: PolicyTransform, words: set[str]) -> PolicyTransform:
    """Return the transform with ``words`` and today's location tokens in its vocabulary."""
    old = transform.tokenizer.get_vocab()
    if words | set(build_tokenizer().get_vocab()) <= set(old):
        return transform
    tokenizer = build_tokenizer([*sorted(old, key=old.__getitem__), *sorted(words)])
    text = replace(transform.config.text, vocabulary=tokenizer.get_vocab_size())
    return replace(transform, tokenizer=tokenizer, config=replace(
        transform.config, text=text, ids=special_ids(tokenizer)))


@torch.no_grad()
def copy_weights(model: HybridDecoder, tokenizer: Tokenizer, source: Path) -> None:
    """Copy a weights file, or a run or policy folder word by word, into ``model``.

    Words that the source lacks begin at random. Raises ``UserError`` for any other difference.
    """
    if not source.is_dir():
        load_weights(model, source)
        return
    earlier, transform, _ = read_source(source)
    state = earlier.state_dict()
    rows = model.embed_tokens.weight.clone()  # [V, w]
    old = transform.tokenizer.get_vocab()
    for word, row in tokenizer.get_vocab().items():
        if word in old:
            rows[row] = state[EMBEDDING][old[word]]
    model.load_state_dict(state | {EMBEDDING: rows})


def copy_stem(model: HybridDecoder) -> None:
    """Copy EfficientNet-Lite0's weights into a model's stems, where they are of that kind.

    Raises ``UserError`` if the file is not the one that is known.
    """
    if not (nets := _pretrained(model)):
        return
    path, = weight_files(find_shared(STEM))
    if (found := sha256(path)) != STEM_SHA256:
        raise UserError(f'{path}: SHA-256 {found[:8]}..., expected {STEM_SHA256[:8]}...; take it '
                        'from the repository, or make it with tools/lite0_stem')
    tensors = read_tensors(path)
    for net in nets:
        net.load_state_dict({name: tensors[name] for name in net.state_dict()})


def freeze_stages(model: HybridDecoder, count: int) -> None:
    """Train the first stages of pretrained stems no further; UserError unless one is left."""
    nets = _pretrained(model)
    if not nets or model.config.vision.layers <= count:
        raise UserError(f'train config: frozen_stages {count} needs a stem of more pretrained '
                        'stages; set model.stem to lite0 and model.stages')
    for net in nets:
        net.freeze(count)


def _pretrained(model: HybridDecoder) -> list[Lite0]:
    stems = cast(ConvTower, model.vision).stems if model.config.vision.kind == 'lite0' else ()
    return [cast(Lite0Stem, stem).net for stem in stems]
