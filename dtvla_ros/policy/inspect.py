"""What a folder or file holds, what it promises, and what is missing to run it.

Of weights only headers are read, so that this takes no longer for 6 GB than for 6 MB.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dtvla_ros.errors import UserError
from dtvla_ros.policy import adapters, released
from dtvla_ros.policy.checkpoint import (
    EMBEDDING,
    HEADS,
    Fit,
    Stored,
    empty_model,
    fit,
    our_name,
    read_headers,
    refuse_pickle,
)
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import GRAPHS, INDEX, MANIFEST, TOKENIZER, PolicyManifest, sha256
from dtvla_ros.policy.vocabulary import load_tokenizer

SMALL = 32 << 20  # bytes; files up to this size are hashed unasked
SCALED_TOGETHER = 128  # int8 weights that share a scale
PROMPT_TOKENS = 64  # beside the images': the published sentence and an instruction
_PARTS = (
    ('image projector', r'vision\.projector\.'), ('image tower', r'vision\.'),
    ('embedding and tied head', r'embed_tokens\.'), ('decoder layers', r'layers\.'),
    ('final norm', r'norm\.'), ('action slot codes', r'slot_codes'), ('other', ''))
_T = TypeVar('_T')


@dataclass(frozen=True, slots=True)
class Lack:
    """Something missing or wrong, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class FileState:
    """A file, its size, and what is known of its hash."""

    name: str
    size: int | None
    state: str


@dataclass(frozen=True, slots=True)
class Weights:
    """What the headers say: how many tensors, of which types, in whose names.

    ``missing``, ``unexpected``, ``wrong_shape``: how they fit the config, None without one.
    """

    tensors: int
    parameters: Mapping[str, int]
    types: Mapping[str, int]
    layout: str
    head: str
    missing: tuple[str, ...] | None = None
    unexpected: tuple[str, ...] | None = None
    wrong_shape: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that could be found out; what could not is None and has its line in ``lacks``.

    ``memory``: computed bytes of the weights by type, and what a decision reads and keeps.
    """

    path: str
    kind: str
    name: str = ''
    license: str = ''
    config: Mapping[str, Any] | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    statistics: Mapping[str, Any] | None = None
    action: Mapping[str, Any] | None = None
    images: Mapping[str, Any] | None = None
    prompt: Mapping[str, Any] | None = None
    adapter: Mapping[str, Any] | None = None
    weights: Weights | None = None
    files: tuple[FileState, ...] = ()
    engines: tuple[str, ...] = ()
    lacks: tuple[Lack, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        return asdict(self)


def inspect(path: Path | str, hashes: bool = False) -> Inspection:
    """Look at a policy, a checkpoint, an adapter or a safetensors file.

    ``hashes``: check the large files of a policy too. Raises ``UserError`` if ``path`` is none
    of them.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f'{path}: no such file or folder; give a policy, a checkpoint, an adapter '
                        'or a .safetensors file')
    if not path.is_dir():
        refuse_pickle(path)
        stored = read_headers(path)
        return Inspection(
            str(path), 'weights', weights=_weights(stored, None),
            files=(FileState(path.name, path.stat().st_size, 'no manifest'),),
            lacks=(Lack('a file of weights alone is no policy',
                        'inspect its folder, with config.json and tokenizer.json beside it'),))
    if (path / MANIFEST).exists():
        return _policy(path, hashes)
    if (path / adapters.CONFIG).exists():
        return _adapter(path)
    if (path / released.CONFIG).exists():
        return _checkpoint(path)
    raise UserError(f'{path}: holds no {MANIFEST}, {released.CONFIG} or {adapters.CONFIG}; give a '
                    'policy, a checkpoint, an adapter or a .safetensors file')


def _policy(folder: Path, hashes: bool) -> Inspection:
    manifest = PolicyManifest.read(folder)
    lacks = _Lacks()
    files = tuple(_state(folder, name, digest, hashes) for name, digest in manifest.files.items())
    for file in files:
        if file.state in ('missing', 'differs'):
            lacks.add(f'{file.name}: {file.state}', 'copy the policy again')
    if TOKENIZER not in manifest.files:
        lacks.add(f'{MANIFEST} lists no {TOKENIZER}', 'export or convert the policy again')
    weights, fits = _fit(folder, manifest.config, lacks)
    if weights and not {stored.file.name for stored in weights.values()} <= set(manifest.files):
        lacks.add(f'{MANIFEST} does not list all weights', 'convert the policy again')
    graphs = all(name in manifest.files for name in GRAPHS)
    return Inspection(
        str(folder), 'policy', manifest.name, manifest.license,
        config=manifest.config.to_dict(), parameters=_parameters(manifest.config),
        memory=_memory(manifest.config, manifest.max_thought_tokens),
        statistics=manifest.statistics.to_dict(), action=asdict(manifest.action),
        images=asdict(manifest.images), prompt={
            'preamble': manifest.preamble, 'state_in_prompt': manifest.state_in_prompt,
            'max_thought_tokens': manifest.max_thought_tokens},
        weights=_weights(weights, fits), files=files,
        engines=('onnx', 'torch') if graphs else ('torch',), lacks=lacks.found)


def _checkpoint(folder: Path) -> Inspection:
    lacks = _Lacks()
    tokenizer = lacks.get(lambda: load_tokenizer(folder / TOKENIZER),
                          'copy tokenizer.json from the download')
    config = released.read_config(folder / released.CONFIG, tokenizer)
    if tokenizer:
        lacks.get(lambda: released.check_tokenizer(config, tokenizer, folder / TOKENIZER))
    file = folder / released.STATISTICS
    statistics = None
    if file.exists():
        statistics = lacks.get(lambda: released.read_statistics(file, dim=config.action_dim))
    else:
        lacks.add(f'{file}: no such file', f'dtvla convert {folder} --statistics FILE')
    lacks.get(lambda: released.refuse_pickles(folder))
    weights, fits = _fit(folder, config, lacks)
    lacks.add(f'{folder / MANIFEST}: no such file', f'dtvla convert {folder}')
    action, images = released.contracts(config)
    return Inspection(
        str(folder), 'checkpoint', folder.resolve().name, config=config.to_dict(),
        parameters=_parameters(config), memory=_memory(config, released.MAX_THOUGHT),
        statistics=statistics.to_dict() if statistics else None, action=asdict(action),
        images=asdict(images), prompt={
            'preamble': released.PREAMBLE, 'state_in_prompt': False,
            'max_thought_tokens': released.MAX_THOUGHT},
        weights=_weights(weights, fits), files=_listing(folder), lacks=lacks.found)


def _adapter(folder: Path) -> Inspection:
    lacks = _Lacks()
    config = released.read_json(folder / adapters.CONFIG)
    stored = lacks.get(lambda: read_headers(folder / adapters.WEIGHTS)) or {}
    lacks.get(lambda: adapters.read_config(folder / adapters.CONFIG))
    lacks.get(lambda: released.refuse_pickles(folder))
    base = str(config.get('base_model_name_or_path') or '')
    if not Path(base).is_dir() or not base:
        lacks.add(f'its base checkpoint {base!r} is no folder here',
                  f'download it, then dtvla convert BASE --adapter {folder} --out POLICY')
    else:
        lacks.add('an adapter is no policy', f'dtvla convert {folder} --out POLICY')
    targets = sorted({re.sub(r'\.lora_.*', '', name) for name in stored if '.lora_' in name})
    kinds = Counter(target.rsplit('.', 1)[-1] for target in targets)
    return Inspection(
        str(folder), 'adapter', folder.resolve().name, adapter={
            'type': config.get('peft_type'), 'base': base, 'r': config.get('r'),
            'lora_alpha': config.get('lora_alpha'), 'use_rslora': bool(config.get('use_rslora')),
            'adapted': dict(kinds), 'trained whole': [n for n in stored if '.lora_' not in n]},
        weights=_weights(stored, None), files=_listing(folder), lacks=lacks.found)


class _Lacks:
    """Collects what is missing; a ``UserError`` says both what and what to do."""

    def __init__(self) -> None:
        self.found: tuple[Lack, ...] = ()

    def add(self, what: str, remedy: str) -> None:
        self.found += (Lack(what, remedy),)

    def get(self, make: Callable[[], _T], remedy: str = '') -> _T | None:
        try:
            return make()
        except UserError as error:
            what, _, advice = str(error).partition('; ')
            self.add(what, remedy or advice or 'copy it again')
            return None


def _fit(folder: Path, config: DecoderConfig,
         lacks: _Lacks) -> tuple[dict[str, Stored], Fit | None]:
    stored = lacks.get(lambda: read_headers(folder), 'download it again')
    if stored is None:
        return {}, None
    found = fit(stored, empty_model(config))
    remedy = 'take config.json and all weights from one download'
    for what, names in (('missing', found.missing), ('unknown', found.unexpected)):
        if names:
            lacks.add(f'{len(names)} weights {what}, first {names[0]}', remedy)
    for name, shape, wanted in found.wrong_shape[:1]:
        lacks.add(f'{len(found.wrong_shape)} weights of a wrong shape, first {name}: {shape}, the '
                  f'config says {wanted}', remedy)
    return stored, found


def _weights(stored: Mapping[str, Stored], fits: Fit | None) -> Weights | None:
    if not stored:
        return None
    names = [name for name in stored if name not in HEADS]
    return Weights(
        tensors=len(stored),
        parameters=_by_part({our_name(name): stored[name].shape for name in names}),
        types=dict(Counter(tensor.dtype for tensor in stored.values())),
        layout=_layout(names), head='stored' if len(names) < len(stored) else 'tied, not stored',
        missing=fits.missing if fits else None, unexpected=fits.unexpected if fits else None,
        wrong_shape=tuple(f'{name} {shape}, the config says {wanted}'
                          for name, shape, wanted in fits.wrong_shape) if fits else None)


def _layout(names: list[str]) -> str:
    if any(name.startswith('base_model.') for name in names):
        return 'peft adapter'
    if any(name.startswith('model.') for name in names):
        return 'Hugging Face, new (transformers 4.52 and later)'
    if any(our_name(name) != name for name in names):
        return 'Hugging Face, old (as released)'
    return 'this package'


def _parameters(config: DecoderConfig) -> dict[str, int]:
    return _by_part({name: tuple(p.shape) for name, p in empty_model(config).state_dict().items()})


def _memory(config: DecoderConfig, thought: int) -> dict[str, int]:
    """Return bytes by what takes them, as computed from the sizes.

    int8 ONNX graphs hold one byte per weight of a matrix and a scale per block, and the head's
    rows twice: to be multiplied, and to be looked up. A CPU that multiplies no bytes keeps float32
    matrices beside them.
    """
    shapes = {name: tuple(p.shape) for name, p in empty_model(config).state_dict().items()}
    every = sum(math.prod(shape) for shape in shapes.values())
    matrices = sum(math.prod(shape) for name, shape in shapes.items()
                   if len(shape) == 2 and 'position' not in name)
    small = matrices + math.prod(shapes[EMBEDDING])
    text = config.text
    kept = 2 * text.layers * text.kv_heads * text.head_dim  # keys and values of one row
    rows = config.image_tokens + PROMPT_TOKENS + thought + config.chunk_steps * config.action_dim
    return {
        'float32': 4 * every, 'bfloat16': 2 * every,
        'int8 (onnx)': round(small * (1 + 4 / SCALED_TOGETHER)) + 4 * (every - matrices),
        'cache of a decision, bfloat16': 2 * kept * rows,
        'read per token of a thought, bfloat16': 2 * sum(
            math.prod(shape) for name, shape in shapes.items()
            if name.startswith(('layers.', 'embed_tokens.')))}


def _by_part(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return how many numbers each part of the network holds, and all of them."""
    counts: Counter[str] = Counter()
    for name, shape in shapes.items():
        counts[next(part for part, start in _PARTS if re.match(start, name))] += math.prod(shape)
    return {part: counts[part] for part, _ in _PARTS if counts[part]} | {
        'total': counts.total()}


def _state(folder: Path, name: str, digest: str, hashes: bool) -> FileState:
    path = folder / name
    if not path.is_file():
        return FileState(name, None, 'missing')
    size = path.stat().st_size
    if size > SMALL and not hashes:
        return FileState(name, size, 'not checked')
    return FileState(name, size, 'verified' if sha256(path) == digest else 'differs')


def _listing(folder: Path) -> tuple[FileState, ...]:
    used = {released.CONFIG, released.STATISTICS, TOKENIZER, INDEX, adapters.CONFIG}
    return tuple(
        FileState(path.name, path.stat().st_size,
                  'never opened' if path.suffix.lower() in released.PICKLES
                  else 'no manifest' if path.name in used or path.suffix == '.safetensors'
                  else 'not needed')
        for path in sorted(folder.iterdir()) if path.is_file())
