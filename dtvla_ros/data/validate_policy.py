"""Whether a dataset speaks the language of a policy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.thoughts import thoughts_of
from dtvla_ros.data.v21 import open_dataset
from dtvla_ros.data.validate import Finding
from dtvla_ros.errors import UserError
from dtvla_ros.policy.folder import transform_of
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest
from dtvla_ros.policy.transform import PolicyTransform, read_transform


def open_policy(folder: Path) -> tuple[PolicyTransform, int | None]:
    """Return the transform of a policy or of a training run, and its longest thought [ids].

    Nothing is loaded but configuration and tokenizer. Raises ``UserError``.
    """
    if not (folder / MANIFEST).exists():
        return read_transform(folder), None
    manifest = PolicyManifest.read(folder)
    return transform_of(folder, manifest), manifest.max_thought_tokens


def fits_policy(root: Path, policy: Path, tokenizer: Path | None = None) -> list[Finding]:
    """Return what of a dataset a policy could not learn. Raises ``UserError`` for the policy."""
    transform, longest = open_policy(policy)
    reader = open_dataset(root)
    return [*_contract(reader, transform, policy), *_instructions(reader, transform),
            *_thoughts(reader, transform, longest, policy, tokenizer)]


def _contract(reader: DatasetReader, transform: PolicyTransform, policy: Path,
              ) -> Iterator[Finding]:
    config, features, file = transform.config, reader.info['features'], (
        str(reader.root / layout.INFO))
    cameras = {layout.CAMERAS.get(key, key) for key in reader.camera_keys}
    for name in config.vision.cameras:
        if name not in cameras:
            yield Finding(file, f'no camera {name!r} among {", ".join(sorted(cameras))}; '
                          f'{policy} looks through it', 'name it with dtvla data convert --rename')
    action = features.get(layout.ACTION)
    if action is None or action['shape'] != [config.action_dim]:
        yield Finding(file, f'{layout.ACTION} of shape {action and action["shape"]}, {policy} '
                      f'makes {config.action_dim} numbers', 'use a policy of that size')
        return
    if layout.ACTION_CHUNK not in features:
        yield Finding(file, f'no feature {layout.ACTION_CHUNK}', 'run dtvla data convert')
        return
    stored = int(np.prod(features[layout.ACTION_CHUNK]['shape'])) // config.action_dim
    if stored < config.chunk_steps:
        yield Finding(file, f'chunks of {stored} actions, {policy} makes {config.chunk_steps}',
                      f'convert or collect with --chunk {config.chunk_steps}')


def _instructions(reader: DatasetReader, transform: PolicyTransform) -> Iterator[Finding]:
    for number, task in enumerate(reader.tasks):
        try:
            transform.check_instruction(task)
        except UserError as error:
            yield Finding(str(reader.root / 'meta'), f'task {number}: {error}',
                          'say it in words of the policy')


def _thoughts(reader: DatasetReader, transform: PolicyTransform, longest: int | None,
              policy: Path, tokenizer: Path | None) -> Iterator[Finding]:
    try:
        thoughts = thoughts_of(reader, tokenizer)
    except UserError as error:
        yield Finding.of(error)
        return
    if thoughts is None:
        yield Finding(str(reader.root / layout.INFO), f'no feature {layout.REASONING}',
                      'annotate the dataset, or train a policy without thoughts')
        return
    episode = np.repeat(np.arange(len(reader.episodes)),
                        [row['length'] for row in reader.episodes])
    first: dict[str, int] = {}
    wrong: dict[str, int] = {}

    @cache
    def look(text: str) -> str | None:
        try:
            length = len(transform.encode_thought(text)) - 1  # the opening tag is given
        except UserError as error:
            return str(error)
        if longest is not None and length > longest:
            return f'thought of {length} ids, the policy stops at {longest}'
        return None

    for k, text in enumerate(thoughts):
        problem = look(text)
        if problem is not None:
            wrong[problem] = wrong.get(problem, 0) + 1
            first.setdefault(problem, k)
    for problem, count in sorted(wrong.items(), key=lambda pair: -pair[1]):
        number = int(episode[first[problem]])
        frame = first[problem] - reader.episodes[number]['dataset_from_index']
        remedy = ('give the policy room for it (max_thought_tokens)' if 'stops at' in problem
                  else f'say it in words of {policy}, or train with a tokenizer that has them')
        yield Finding(str(reader.data_path(number)),
                      f'{problem}: {count} frames, first episode {number}, frame {frame}', remedy)
