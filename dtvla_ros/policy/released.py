"""What lies beside the weights of a released checkpoint: config, tokenizer, statistics.

Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.conventions import CAMERAS
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import ActionContract, ImageContract
from dtvla_ros.policy.vocabulary import word_id

CONFIG = 'config.json'
STATISTICS = 'norm_stats.json'
PREAMBLE = ('First output the thinking process in <think></think> tags and then output the final '
            'action in <action></action>.')
MAX_THOUGHT = 300  # tokens, as in the published reinforcement learning
WORDS = {'image': '<image>', 'think': '<think>', 'think_end': '</think>', 'action': '<action>',
         'action_end': '</action>', 'semicolon': ';', 'newline': '\n', 'pad': '<pad>',
         'eos': '<eos>', 'bos': '<bos>'}
# What training leaves behind beside the weights: never opened, and nothing to worry about.
BOOKKEEPING = ('training_args.bin', 'optimizer', 'scheduler', 'scaler', 'rng_state')
PICKLES = ('.pt', '.pth', '.bin', '.pkl', '.pickle', '.ckpt', '.joblib', '.npy', '.npz')


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or damaged file is named."""
    if not path.is_file():
        raise UserError(f'{path}: no such file; copy it from the download')
    try:
        data = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f'{path}: not readable JSON ({error}); copy it again') from None
    if not isinstance(data, dict):
        raise UserError(f'{path}: holds no JSON object; copy it again')
    return data


def pickles(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold pickled weights, by name alone."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICKLES
                  and not path.name.startswith(BOOKKEEPING))


def refuse_pickles(folder: Path) -> None:
    """Raise if a folder holds pickled weights: none is read, so something may be missing."""
    for path in pickles(folder):
        raise UserError(
            f'{path}: pickle-like weights are refused unread; save its tensors as '
            f'{path.stem}.safetensors on a machine that may run its code, and move it away')


def read_config(path: Path, tokenizer: Tokenizer | None = None,
                cameras: tuple[str, ...] = CAMERAS) -> DecoderConfig:
    """Read a checkpoint's ``config.json``.

    The pair that ends the prompt is not in that file: it is the tokenizer's, or Gemma's.
    """
    data = read_json(path)
    ids = {} if tokenizer is None else {
        key: word_id(tokenizer, WORDS[key]) for key in ('semicolon', 'newline')}
    try:
        return DecoderConfig.from_huggingface({**data, 'config': data, 'ids': ids},
                                              cameras=cameras)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f'{path}: {error}; copy it again') from None


def check_tokenizer(config: DecoderConfig, tokenizer: Tokenizer, path: Path) -> None:
    """Raise unless a tokenizer writes the published prompt with the config's ids."""
    remedy = 'tokenizer and config belong to different checkpoints'
    for key, word in WORDS.items():
        found, wanted = tokenizer.token_to_id(word), getattr(config.ids, key)
        if found != wanted:
            raise UserError(f'{path}: {word!r} is token {found}, {CONFIG} says {wanted}; {remedy}')
    if tokenizer.get_vocab_size() > config.text.vocabulary:
        raise UserError(f'{path}: {tokenizer.get_vocab_size()} words, {CONFIG} says '
                        f'{config.text.vocabulary}; {remedy}')
    ids = config.ids
    written = tokenizer.encode(f'{PREAMBLE}Task: push it;\n', add_special_tokens=False).ids
    tags = [ids.think, ids.think_end, ids.action, ids.action_end]
    if [i for i in written if i in tags] != tags or written[-2:] != [ids.semicolon, ids.newline]:
        raise UserError(f'{path}: does not write the published prompt, its ids are {written}; '
                        f'{remedy}')


def read_statistics(path: Path, key: str | None = None,
                    dim: int | None = None) -> ActionStatistics:
    """Read ``norm_stats.json``: statistics of actions, or of several suites by name.

    ``key`` chooses the suite; it may be left out where there is one.
    """
    data: Mapping[str, Any] = read_json(path)
    suites = {name: part for name, part in data.items() if isinstance(part, Mapping)
              and name != 'action' and ('action' in part or 'q01' in part) and name != 'state'}
    if 'action' in data or 'q01' in data:
        if key is not None:
            raise UserError(f'{path}: holds one set of statistics, none is named {key!r}; leave '
                            'the key out')
    elif key is None and len(suites) > 1:
        raise UserError(f'{path}: holds statistics of {", ".join(suites)}; choose one with '
                        '--suite-key')
    elif not suites:
        raise UserError(f'{path}: holds no statistics of actions, only {", ".join(data)}; give '
                        'the right file with --statistics')
    elif key is not None and key not in suites:
        raise UserError(f'{path}: no statistics named {key!r}; there is: {", ".join(suites)}')
    else:
        data = suites[key or next(iter(suites))]
    try:
        return ActionStatistics.from_dict(data, dim)
    except UserError as error:
        raise UserError(f'{path}: {error}; give the right file with --statistics') from None


def contracts(config: DecoderConfig) -> tuple[ActionContract, ImageContract]:
    """Return what the published evaluation fixes: whole chunks, LIBERO's mirrored pictures."""
    return ActionContract(replan_steps=config.chunk_steps), ImageContract(mirrored=True)
