"""What a fine-tuning run begins with: a new small policy, or an earlier one of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform, read_transform
from dtvla_ros.policy.vocabulary import special_ids
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.finish import read_source
from dtvla_ros.training.plan import SftRun
from dtvla_ros.training.tokenized import place_spans
from dtvla_ros.training.warm_start import dataset_words, grown, vocabulary_for


def new_transform(config: SftConfig, readers: Sequence[DatasetReader]) -> PolicyTransform:
    """Return the transform of a small policy made from scratch for these datasets."""
    tokenizer = vocabulary_for(dataset_words(readers))
    m = config.model
    decoder = DecoderConfig.nano(
        tokenizer.get_vocab_size(), special_ids(tokenizer), width=m.width, layers=m.layers,
        image_size=m.image_size, tokens=m.tokens, cameras=m.cameras, channels=m.channels,
        chunk_steps=m.chunk_steps)
    actions = np.concatenate([np.asarray(r.column(layout.ACTION)) for r in readers])
    low, high = np.quantile(actions.astype(np.float64), (0.01, 0.99), axis=0)
    return PolicyTransform(decoder, tokenizer, ActionStatistics(tuple(low), tuple(high)))


@dataclass(frozen=True, slots=True)
class Start:
    """The transform of a run, and what an earlier policy gives it.

    ``model``: that policy's, where it is taken as it is. ``origin``: what it promises, where the
    policy made of it promises the same. ``news``: whether the data hold words it did not know.
    """

    transform: PolicyTransform
    model: HybridDecoder | None = None
    origin: PolicyManifest | None = None
    news: bool = False


def begin(config: SftConfig, run: SftRun, readers: Sequence[DatasetReader]) -> Start:
    """Return what the run begins with, or goes on with.

    A vocabulary with location words is a small policy's and grows with the data; any other is
    taken as it is, with the policy. Raises ``UserError`` where a part is to stay frozen and
    there is no policy to take it from.
    """
    resumed = (run.out / 'config.json').exists()
    if run.init is None or not run.init.is_dir():
        if config.freezes:
            raise UserError('train config: lora and rates of 0 keep parts of an earlier policy; '
                            'name its folder with --init')
        return Start(read_transform(run.out) if resumed
                     else new_transform(config, readers))
    if resumed and not config.freezes:
        return Start(read_transform(run.out))
    model, before, manifest = read_source(run.init)
    own = not place_spans(before.tokenizer)
    words = set() if own else dataset_words(readers)
    if resumed:
        transform = read_transform(run.out)
    else:
        transform = before if own else grown(before, words)
    if config.freezes and transform.config != before.config:
        raise UserError(f'{run.init}: {run.out} has another vocabulary or size, and frozen parts '
                        'can not follow; train it whole, or begin anew')
    taken = own or config.freezes
    return Start(transform, model if taken else None, manifest if own else None,
                 not words <= set(before.tokenizer.get_vocab()))
