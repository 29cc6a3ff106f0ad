"""Released checkpoints: reads what lies beside the weights, makes them policy folders."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from tqdm import tqdm

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.conventions import CAMERAS
from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json, write_text
from dtvla_ros.policy import checkpoint
from dtvla_ros.policy import manifest as layout
from dtvla_ros.policy.adapters import CONFIG as ADAPTER_CONFIG
from dtvla_ros.policy.adapters import Adapter, local_base, read_adapter
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import INDEX, MANIFEST, TOKENIZER, PolicyManifest
from dtvla_ros.policy.vocabulary import SPECIAL_WORDS, load_tokenizer, word_id

CONFIG = 'config.json'
STATISTICS = 'norm_stats.json'
PREAMBLE = ('First output the thinking process in <think></think> tags and then output the final '
            'action in <action></action>.')
MAX_THOUGHT = 300  # tokens, as in the published reinforcement learning


def read_config(path: Path, tokenizer: Tokenizer | None = None,
                cameras: tuple[str, ...] = CAMERAS) -> DecoderConfig:
    """Read a checkpoint's ``config.json``.

    The pair that ends the prompt is not in that file: it is the tokenizer's, or Gemma's.
    """
    data = read_json(path)
    ids = {} if tokenizer is None else {
        key: word_id(tokenizer, SPECIAL_WORDS[key]) for key in ('semicolon', 'newline')}
    try:
        return DecoderConfig.from_huggingface({**data, 'config': data, 'ids': ids},
                                              cameras=cameras)
    except (UserError, TypeError, AttributeError, ValueError) as error:
        remedy = '' if isinstance(error, UserError) else '; copy it again'
        raise UserError(f'{path}: {error}{remedy}') from None


def check_tokenizer(config: DecoderConfig, tokenizer: Tokenizer, path: Path) -> None:
    """Raise unless a tokenizer writes the published prompt with the config's ids."""
    ids, size = config.ids, tokenizer.get_vocab_size()
    written = tokenizer.encode(f'{PREAMBLE}Task: push it;\n', add_special_tokens=False).ids
    tags = [ids.think, ids.think_end, ids.action, ids.action_end]
    wrong = [f'{word!r} is token {tokenizer.token_to_id(word)}, {CONFIG} says {getattr(ids, key)}'
             for key, word in SPECIAL_WORDS.items()
             if tokenizer.token_to_id(word) != getattr(ids, key)]
    if size > config.text.vocabulary:
        wrong.append(f'{size} tokens, {CONFIG} says {config.text.vocabulary}')
    if [i for i in written if i in tags] != tags or written[-2:] != [ids.semicolon, ids.newline]:
        wrong.append(f'does not write the published prompt, its ids are {written}')
    if wrong:
        raise UserError(f'{path}: {wrong[0]}; they belong to different checkpoints')


def read_statistics(path: Path, key: str | None = None,
                    dim: int | None = None) -> ActionStatistics:
    """Read ``norm_stats.json``: statistics of actions, or of several suites by name.

    ``key`` chooses the suite; it may be left out where there is one.
    """
    data: Mapping[str, Any] = read_json(path)
    if 'action' not in data and 'q01' not in data:
        suites = {name: part for name, part in data.items() if isinstance(part, Mapping)
                  and ('action' in part or 'q01' in part) and name != 'state'}
        if key not in suites and (key is not None or len(suites) != 1):
            raise UserError(f'{path}: holds statistics of {", ".join(suites) or "no actions"}; '
                            'choose one with --suite-key, or another file with --statistics')
        data = suites[key or next(iter(suites))]
    elif key is not None:
        raise UserError(f'{path}: holds one set of statistics, not {key!r}; leave the key out')
    try:
        return ActionStatistics.from_dict(data, dim)
    except UserError as error:
        raise UserError(f'{path}: {error}; give the right file with --statistics') from None


def published(name: str, license: str, config: DecoderConfig, statistics: ActionStatistics | None,
              files: Mapping[str, str]) -> PolicyManifest:
    """Return a manifest with the published prompt, whole chunks, LIBERO's mirrored images."""
    return PolicyManifest(
        name, license, config, cast(ActionStatistics, statistics), files, False, PREAMBLE,
        MAX_THOUGHT, ActionContract(replan_steps=config.chunk_steps),
        layout.ImageContract(mirrored=True))


def convert(path: Path | str, *, cameras: tuple[str, ...] = CAMERAS, name: str | None = None,
            license: str = 'not stated', statistics: Path | None = None,
            suite_key: str | None = None, adapter: Path | None = None, out: Path | None = None,
            force: bool = False) -> PolicyManifest:
    """Make a checkpoint a policy, by a manifest beside its weights; return it.

    ``path`` is a Hugging Face checkpoint folder, or an adapter folder whose base is here;
    ``cameras`` in the order of training; ``statistics`` a file instead of ``norm_stats.json``,
    of whose sets ``suite_key`` names one. The policy goes to ``out``: with ``adapter`` its merged
    weights, else the checkpoint's own files, hard links where the file system has them; None: the
    manifest goes into the checkpoint's folder. ``force`` replaces a manifest or a policy there.
    Everything is checked before anything is written. Raises ``UserError`` naming the file,
    the value and the remedy.
    """
    folder, adapter_folder = Path(path), adapter
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; give a downloaded checkpoint folder')
    if (folder / ADAPTER_CONFIG).exists():
        if adapter_folder is not None:
            raise UserError(f'{folder}: is an adapter itself; give its base checkpoint')
        folder, adapter_folder = local_base(folder), folder
    if not (folder / CONFIG).exists():
        raise UserError(f'{folder}: ' + (
            f'is a policy already; dtvla inspect {folder} says whether it can run'
            if (folder / MANIFEST).exists() else
            f'holds no {CONFIG}; give the folder of a downloaded DeepThinkVLA checkpoint'))
    target = out or folder
    if adapter_folder is not None and out is None:
        raise UserError(f'{adapter_folder}: merged weights need a folder of their own; give --out')
    if out is not None:
        if out.resolve() in [source.resolve() for source in (folder, adapter_folder) if source]:
            raise UserError(f'{out}: --out is the folder of the checkpoint or of the adapter; '
                            'choose another')
        layout.require_free(out)
    if (target / MANIFEST).exists() and not force:
        raise UserError(f'{target / MANIFEST}: exists already; replace it with --force')
    checkpoint.refuse_pickles(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    config = read_config(folder / CONFIG, tokenizer, cameras)
    check_tokenizer(config, tokenizer, folder / TOKENIZER)
    file = statistics or next((place / STATISTICS for place in (adapter_folder, folder)
                               if place is not None and (place / STATISTICS).exists()), None)
    if file is None:
        raise UserError(f'{folder / STATISTICS}: no such file, and actions mean nothing without '
                        'their statistics; give them with --statistics')
    found = read_statistics(file, suite_key, config.action_dim)
    headers = checkpoint.read_headers(folder)
    checkpoint.fit(headers, checkpoint.empty_model(config)).check(folder)
    updates = None if adapter_folder is None else read_adapter(adapter_folder)
    if updates is not None:
        updates.check(headers)
    with nullcontext(folder) if target == folder else layout.new_folder(target) as made:
        if made != folder:
            _write_weights(folder, headers, updates, made)
            for kept in (INDEX, TOKENIZER, CONFIG):
                if (folder / kept).exists():
                    shutil.copyfile(folder / kept, made / kept)
            shutil.copyfile(file, made / STATISTICS)
        manifest = published(name or target.resolve().name, license, config, found, _hashes(made))
        write_text(made / MANIFEST, manifest.to_json())
    return manifest


def _write_weights(base: Path, headers: dict[str, checkpoint.Stored], adapter: Adapter | None,
                   folder: Path) -> None:
    """Write merged weights in the base's files and names, one file in memory at a time.

    Without an adapter the files get a second name; another file system gets a copy.
    """
    for file in tqdm(checkpoint.weight_files(base), desc='weights', unit='file', disable=None):
        source, target = file.resolve(), folder / file.name  # a cache holds links to its blobs
        if adapter is not None:
            checkpoint.save_tensors({name: adapter.merged(name, stored.read())
                          for name, stored in headers.items() if stored.file == file}, target)
            continue
        try:
            target.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, target)


def _hashes(folder: Path) -> dict[str, str]:
    files = [folder / name for name in (INDEX, TOKENIZER) if (folder / name).exists()]
    files += checkpoint.weight_files(folder)
    with tqdm(total=sum(path.stat().st_size for path in files), desc='hashing', unit='B',
              unit_scale=True, disable=None) as bar:
        return {path.name: layout.sha256(path, bar.update) for path in files}
