"""From a released checkpoint to a policy folder: a manifest with hashes beside its weights."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.errors import UserError
from dtvla_ros.policy import released
from dtvla_ros.policy.adapters import CONFIG as ADAPTER_CONFIG
from dtvla_ros.policy.adapters import Adapter, local_base, read_adapter
from dtvla_ros.policy.checkpoint import (
    Stored,
    empty_model,
    fit,
    read_headers,
    save_tensors,
    weight_files,
)
from dtvla_ros.policy.manifest import INDEX, MANIFEST, TOKENIZER, PolicyManifest
from dtvla_ros.policy.vocabulary import load_tokenizer


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What a checkpoint does not say itself.

    ``cameras`` in the order of training. ``statistics``: file instead of ``norm_stats.json``,
    ``suite_key`` names one of several sets in it. The policy goes to ``out``: with ``adapter``
    its merged weights, else the checkpoint's own files, hard links where the file system has
    them. ``out`` None: the manifest goes into the checkpoint's folder. ``force`` replaces a
    manifest, or a policy in ``out``.
    """

    cameras: tuple[str, ...] = CAMERAS
    name: str | None = None
    license: str = 'not stated'
    statistics: Path | None = None
    suite_key: str | None = None
    adapter: Path | None = None
    out: Path | None = None
    force: bool = False


def convert(path: Path | str, options: ConvertOptions) -> PolicyManifest:
    """Make a checkpoint a policy, by a manifest beside its weights; return it.

    ``path`` is a Hugging Face checkpoint folder, or an adapter folder whose base is here.
    Everything is checked before anything is written. Raises ``UserError`` naming the file,
    the value and the remedy.
    """
    folder, adapter_folder = Path(path), options.adapter
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; give a downloaded checkpoint folder')
    if (folder / ADAPTER_CONFIG).exists():
        if adapter_folder is not None:
            raise UserError(f'{folder}: is an adapter itself; give its base checkpoint')
        folder, adapter_folder = local_base(folder), folder
    target = _target(folder, adapter_folder, options)
    released.refuse_pickles(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    config = released.read_config(folder / released.CONFIG, tokenizer, options.cameras)
    released.check_tokenizer(config, tokenizer, folder / TOKENIZER)
    statistics_file = _statistics_file(folder, adapter_folder, options.statistics)
    statistics = released.read_statistics(statistics_file, options.suite_key, config.action_dim)
    headers = read_headers(folder)
    fit(headers, empty_model(config)).check(folder)
    adapter = None
    if adapter_folder is not None:
        adapter = read_adapter(adapter_folder)
        adapter.check(headers)
    action, images = released.contracts(config)
    apart = target != folder
    weights = target.with_name(target.name + '.part') if apart else folder
    try:
        if apart:
            shutil.rmtree(weights, ignore_errors=True)
            weights.mkdir(parents=True)
            if adapter is None:
                _link_weights(folder, weights)
            else:
                _write_merged(folder, headers, adapter, weights)
            for name in (INDEX, TOKENIZER, released.CONFIG):
                if (folder / name).exists():
                    shutil.copyfile(folder / name, weights / name)
            shutil.copyfile(statistics_file, weights / released.STATISTICS)
        manifest = PolicyManifest(
            name=options.name or target.resolve().name, license=options.license, config=config,
            statistics=statistics, files=_hashes(_policy_files(weights)), state_in_prompt=False,
            preamble=released.PREAMBLE, max_thought_tokens=released.MAX_THOUGHT, action=action,
            images=images)
        part = weights / (MANIFEST + '.part')
        part.write_text(manifest.to_json())
        part.replace(weights / MANIFEST)
        if apart:
            if target.exists():
                shutil.rmtree(target)
            weights.rename(target)
    finally:
        if apart:
            shutil.rmtree(weights, ignore_errors=True)
    return manifest


def _target(folder: Path, adapter: Path | None, options: ConvertOptions) -> Path:
    """Return the folder that becomes the policy; nothing in it is lost unasked."""
    target = options.out or folder
    if adapter is not None and options.out is None:
        raise UserError(f'{adapter}: merged weights need a folder of their own; give --out')
    if options.out is not None:
        sources = [folder.resolve(), *([] if adapter is None else [adapter.resolve()])]
        if target.resolve() in sources:
            raise UserError(f'{target}: --out is the folder of the checkpoint or of the adapter; '
                            'choose another')
        if target.exists() and any(target.iterdir()) and not (target / MANIFEST).exists():
            raise UserError(f'{target}: holds files but no policy; choose another folder')
    if (target / MANIFEST).exists() and not options.force:
        raise UserError(f'{target / MANIFEST}: exists already; replace it with --force')
    return target


def _statistics_file(folder: Path, adapter: Path | None, given: Path | None) -> Path:
    if given is not None:
        return given
    for place in (adapter, folder):
        if place is not None and (place / released.STATISTICS).exists():
            return place / released.STATISTICS
    raise UserError(f'{folder / released.STATISTICS}: no such file, and actions mean nothing '
                    'without their statistics; give them with --statistics')


def _link_weights(base: Path, part: Path) -> None:
    """Give the weights a second name; another file system gets a copy."""
    for file in weight_files(base):
        source = file.resolve()  # a download's cache holds links to its blobs
        try:
            (part / file.name).hardlink_to(source)
        except OSError:
            shutil.copyfile(source, part / file.name)


def _write_merged(base: Path, headers: dict[str, Stored], adapter: Adapter, part: Path) -> None:
    """Write the merged weights in the base's files and names, one file in memory at a time."""
    with tqdm(total=len(headers), desc='merging', unit='tensor', disable=None) as bar:
        for file in weight_files(base):
            tensors = {}
            for name, stored in headers.items():
                if stored.file == file:
                    tensors[name] = adapter.merged(name, stored.read()).contiguous()
                    bar.update()
            save_tensors(tensors, part / file.name)


def _policy_files(folder: Path) -> list[Path]:
    index = [folder / INDEX] if (folder / INDEX).exists() else []
    return [*index, *weight_files(folder), folder / TOKENIZER]


def _hashes(files: Sequence[Path]) -> dict[str, str]:
    """Return SHA-256 by name, with a progress bar over all bytes."""
    out = {}
    total = sum(path.stat().st_size for path in files)
    with tqdm(total=total, desc='hashing', unit='B', unit_scale=True, disable=None) as bar:
        for path in files:
            digest = hashlib.sha256()
            with path.open('rb') as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    bar.update(len(block))
            out[path.name] = digest.hexdigest()
    return out
