"""Inspects policies, checkpoints and adapters: contents, sizes, and what is missing to run them.

Of weights only headers are read, so that this takes no longer for 6 GB than for 6 MB.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console, Group
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json
from dtvla_ros.issues import Issue
from dtvla_ros.policy import adapters, checkpoint, convert
from dtvla_ros.policy.checkpoint import HEADS, PICKLES, Fit, Stored, our_name
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import (
    GRAPHS,
    INDEX,
    MANIFEST,
    PROOF,
    TOKENIZER,
    PolicyManifest,
)
from dtvla_ros.policy.shapes import shown
from dtvla_ros.policy.vocabulary import load_tokenizer

SMALL = 32 << 20  # bytes; files up to this size are hashed unasked
SCALED_TOGETHER = 128  # int8 weights that share a scale
PROMPT_TOKENS = 64  # beside the images': the published sentence and an instruction
_PARTS = (
    ('image projector', r'vision\.projector\.'), ('image tower', r'vision\.'),
    ('embedding and tied head', r'embed_tokens\.'), ('decoder layers', r'layers\.'),
    ('final norm', r'norm\.'), ('action slot codes', r'slot_codes'), ('other', ''))
_COLOURS = {'verified': 'green', 'missing': 'red', 'differs': 'red', 'never opened': 'yellow'}
_SHOWN = 8  # of a list, before the rest is counted
_T = TypeVar('_T')


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that could be found out; what could not is None and has its line in ``issues``.

    ``memory``: computed bytes of the weights by type, and what a decision reads and keeps.
    ``weights``: how many, of which types, in whose names, and how they fit the config, where there
    is one. ``files``: name, size [bytes], and the state of the hash. ``proof``: whether a policy
    has recorded observations to prove itself on.
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
    weights: Mapping[str, Any] | None = None
    files: tuple[Mapping[str, Any], ...] = ()
    engines: tuple[str, ...] = ()
    proof: str = ''
    issues: tuple[Issue, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON; ``lacks`` is the former name of ``issues``."""
        return asdict(self) | {'lacks': [
            {'what': issue.problem, 'remedy': issue.remedy} for issue in self.issues]}


class _Issues(list[Issue]):
    """Collects what is missing; a ``UserError`` says both what and what to do."""

    def add(self, problem: str, remedy: str) -> None:
        self.append(Issue(problem, remedy))

    def get(self, make: Callable[[], _T], remedy: str = '') -> _T | None:
        try:
            return make()
        except UserError as error:
            problem, _, advice = str(error).partition('; ')
            self.add(problem, remedy or advice or 'copy it again')
            return None


def inspect(path: Path | str, hashes: bool = False) -> Inspection:
    """Look at a policy, a checkpoint, an adapter or a safetensors file.

    ``hashes``: check the large files of a policy too. Raises ``UserError`` if ``path`` is none
    of them.
    """
    path = Path(path)
    if path.is_file():
        return Inspection(
            str(path), 'weights', weights=_weights(checkpoint.read_headers(path), None),
            files=(_file(path, 'no manifest'),),
            issues=(Issue('a file of weights alone is no policy',
                          'inspect its folder, with config.json and tokenizer.json beside it'),))
    if (path / MANIFEST).exists():
        return _policy(path, hashes)
    for name, look in ((adapters.CONFIG, _adapter), (convert.CONFIG, _checkpoint)):
        if (path / name).exists():
            return look(path)
    what = (f'holds no {MANIFEST}, {convert.CONFIG} or {adapters.CONFIG}' if path.exists()
            else 'no such file or folder')
    raise UserError(f'{path}: {what}; give a policy, a checkpoint, an adapter or a .safetensors '
                    'file')


def _policy(folder: Path, hashes: bool) -> Inspection:
    manifest = PolicyManifest.read(folder)
    issues = _Issues()
    files = []
    for name in manifest.files:
        path = folder / name
        state = 'not checked'
        if hashes or not path.is_file() or path.stat().st_size <= SMALL:
            found = issues.get(partial(manifest.verified, folder, name))
            state = 'verified' if found else 'differs' if path.is_file() else 'missing'
        files.append(_file(path, state))
    if TOKENIZER not in manifest.files:
        issues.add(f'{MANIFEST} lists no {TOKENIZER}', 'export or convert the policy again')
    elif (folder / TOKENIZER).exists():
        issues.get(lambda: load_tokenizer(folder / TOKENIZER))
    weights, fits = _fit(folder, manifest.config, issues)
    if weights and not {stored.file.name for stored in weights.values()} <= set(manifest.files):
        issues.add(f'{MANIFEST} does not list all weights', 'convert the policy again')
    graphs = all(name in manifest.files for name in GRAPHS)
    proof = (f'recorded; dtvla inspect {folder} --prove runs it' if PROOF in manifest.files else
             f'none; dtvla export {folder} --observations DATASET --proof-only records one')
    return Inspection(
        str(folder), 'policy', weights=_weights(weights, fits), files=tuple(files),
        issues=tuple(issues), engines=('onnx', 'torch') if graphs else ('torch',), proof=proof,
        **_contents(manifest))


def _checkpoint(folder: Path) -> Inspection:
    issues = _Issues()
    tokenizer = issues.get(lambda: load_tokenizer(folder / TOKENIZER),
                           'copy tokenizer.json from the download')
    config = convert.read_config(folder / convert.CONFIG, tokenizer)
    if tokenizer:
        issues.get(lambda: convert.check_tokenizer(config, tokenizer, folder / TOKENIZER))
    file = folder / convert.STATISTICS
    statistics = issues.get(
        lambda: convert.read_statistics(file, dim=config.action_dim),
        '' if file.exists() else f'dtvla convert {folder} --statistics FILE')
    issues.get(lambda: checkpoint.refuse_pickles(folder))
    weights, fits = _fit(folder, config, issues)
    issues.add(f'{folder / MANIFEST}: no such file', f'dtvla convert {folder}')
    manifest = convert.published(folder.resolve().name, '', config, statistics, {})
    return Inspection(
        str(folder), 'checkpoint', weights=_weights(weights, fits), files=_listing(folder),
        issues=tuple(issues), **_contents(manifest))


def _adapter(folder: Path) -> Inspection:
    issues = _Issues()
    config = read_json(folder / adapters.CONFIG)
    stored = issues.get(lambda: checkpoint.read_headers(folder / adapters.WEIGHTS)) or {}
    issues.get(lambda: adapters.read_config(folder / adapters.CONFIG))
    issues.get(lambda: checkpoint.refuse_pickles(folder))
    base = str(config.get('base_model_name_or_path') or '')
    if base and Path(base).is_dir():
        issues.add('an adapter is no policy', f'dtvla convert {folder} --out POLICY')
    else:
        issues.add(f'its base checkpoint {base!r} is no folder here',
                   f'download it, then dtvla convert BASE --adapter {folder} --out POLICY')
    targets = sorted({re.sub(r'\.lora_.*', '', name) for name in stored if '.lora_' in name})
    kinds = Counter(target.rsplit('.', 1)[-1] for target in targets)
    return Inspection(
        str(folder), 'adapter', folder.resolve().name, adapter={
            'type': config.get('peft_type'), 'base': base, 'r': config.get('r'),
            'lora_alpha': config.get('lora_alpha'), 'use_rslora': bool(config.get('use_rslora')),
            'adapted': dict(kinds), 'trained whole': [n for n in stored if '.lora_' not in n]},
        weights=_weights(stored, None), files=_listing(folder), issues=tuple(issues))


def _contents(manifest: PolicyManifest) -> dict[str, Any]:
    return {'name': manifest.name, 'license': manifest.license,
            'statistics': manifest.statistics.to_dict() if manifest.statistics else None,
            'action': manifest.action.to_dict(), 'images': manifest.images.to_dict(),
            'prompt': {key: getattr(manifest, key) for key in (
                'preamble', 'state_in_prompt', 'max_thought_tokens', 'tasks',
                'says_done', 'done_margin')},
            **_sizes(manifest.config, manifest.max_thought_tokens)}


def _fit(folder: Path, config: DecoderConfig,
         issues: _Issues) -> tuple[dict[str, Stored], Fit | None]:
    """Return a folder's weights by stored name, and how they fit a config."""
    stored = issues.get(lambda: checkpoint.read_headers(folder), 'download it again')
    if stored is None:
        return {}, None
    found = checkpoint.fit(stored, checkpoint.empty_model(config))
    for problem in found.problems():
        issues.add(problem, 'take config.json and all weights from one download')
    return stored, found


def _weights(stored: Mapping[str, Stored], fits: Fit | None) -> dict[str, Any] | None:
    if not stored:
        return None
    names = [name for name in stored if name not in HEADS]
    layout = 'this package' if all(our_name(name) == name for name in names) else (
        'Hugging Face, old (as released)')
    for prefix, text in (('model.', 'Hugging Face, new (transformers 4.52 and later)'),
                         ('base_model.', 'peft adapter')):
        if any(name.startswith(prefix) for name in names):
            layout = text
    return {
        'tensors': len(stored),
        'parameters': _by_part({our_name(name): stored[name].shape for name in names}),
        'types': dict(Counter(tensor.dtype for tensor in stored.values())), 'layout': layout,
        'head': 'stored' if len(names) < len(stored) else 'tied, not stored',
        'missing': fits.missing if fits else None, 'unexpected': fits.unexpected if fits else None,
        'wrong_shape': [f'{name} {shape}, the config says {wanted}'
                        for name, shape, wanted in fits.wrong_shape] if fits else None}


def _sizes(config: DecoderConfig, thought: int) -> dict[str, Any]:
    """Return the config, its parameters and bytes of memory, of ``thought`` tokens, by part.

    int8 ONNX graphs hold one byte per weight of a matrix and a scale per block, and the head's
    rows twice: to be multiplied, and to be looked up.
    """
    model = checkpoint.empty_model(config)
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    parts = _by_part(shapes)
    every, embedding = parts['total'], parts['embedding and tied head']
    matrices = sum(math.prod(shape) for name, shape in shapes.items()
                   if len(shape) == 2 and 'position' not in name)
    text = config.text
    kept = 2 * text.layers * text.kv_heads * text.head_dim  # keys and values of one row
    rows = config.image_tokens + PROMPT_TOKENS + thought + config.slots
    return {'config': asdict(config), 'parameters': parts, 'memory': {
        'float32': 4 * every, 'bfloat16': 2 * every, 'int8 (onnx)': round(
            (matrices + embedding) * (1 + 4 / SCALED_TOGETHER)) + 4 * (every - matrices),
        'cache of a decision, bfloat16': 2 * kept * rows,
        'read per token of a thought, bfloat16': 2 * (parts['decoder layers'] + embedding)}}


def _by_part(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return how many numbers each part of the network holds, and all of them."""
    counts = dict.fromkeys((part for part, _ in _PARTS), 0)
    for name, shape in shapes.items():
        counts[next(part for part, start in _PARTS if re.match(start, name))] += math.prod(shape)
    return {part: n for part, n in counts.items() if n} | {'total': sum(counts.values())}


def _file(path: Path, state: str) -> dict[str, Any]:
    size = path.stat().st_size if path.is_file() else None
    return {'name': path.name, 'size': size, 'state': state}


def _listing(folder: Path) -> tuple[dict[str, Any], ...]:
    """Return the files of a folder without a manifest, and which of them are read."""
    used = {convert.CONFIG, convert.STATISTICS, TOKENIZER, INDEX, adapters.CONFIG}
    return tuple(_file(path, 'never opened' if path.suffix.lower() in PICKLES
                       else 'no manifest' if path.name in used or path.suffix == '.safetensors'
                       else 'not needed')
                 for path in sorted(folder.iterdir()) if path.is_file())


def show(found: Inspection, console: Console | None = None) -> None:
    """Print everything that was found out; the last table says what is missing."""
    sections: dict[str, Any] = {'': {
        'path': found.path, 'kind': found.kind, 'name': found.name, 'licence': found.license,
        'engines': found.engines, 'proof': found.proof}}
    images = dict(found.images or {})
    if sizes := images.pop('sizes', None):
        images['trained on'] = {camera: shown(size) for camera, size in sizes.items()}
    if config := found.config:
        sections |= {
            'Parameters': {part: f'{n:,}' for part, n in found.parameters.items()},
            'Decoder': {**config['text'], 'chunk_steps': config['chunk_steps'],
                        'action_dim': config['action_dim']},
            'Images': {**{key: value for key, value in config['vision'].items() if value},
                       **images},
            'Memory, computed': {what: decimal(n) for what, n in found.memory.items()},
            'Special ids': config['ids'], 'Action contract': found.action,
            'Prompt': found.prompt}
    sections['LoRA adapter'] = found.adapter
    if found.weights:
        sections['Weights'] = {
            **found.weights, 'parameters': f'{found.weights["parameters"]["total"]:,}'}
    tables: list[Table | str] = [
        _table(title, ('', ''), ((key.replace('_', ' '), escape(_text(value)))
                                 for key, value in rows.items() if value not in (None, '')))
        for title, rows in sections.items() if rows]
    if found.statistics:
        tables.append(_table('Action statistics', ('channel', 'q01', 'q99'), (
            (str(channel), f'{low:.5g}', f'{high:.5g}') for channel, (low, high) in enumerate(
                zip(found.statistics['q01'], found.statistics['q99'], strict=True)))))
    if found.files:
        tables.append(_table('Files', ('name', 'size', 'hash'), (
            (escape(name), '' if size is None else decimal(size),
             f'[{_COLOURS.get(state, "default")}]{state}[/]')
            for name, size, state in (file.values() for file in found.files))))
    tables.append('[green]Nothing is missing: it can run.[/]' if not found.issues else _table(
        'Missing before it runs', ('what', 'remedy'),
        ((escape(issue.problem), escape(issue.remedy)) for issue in found.issues)))
    (console or Console()).print(Group(*tables))


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """Return a table whose cells are rich markup."""
    table = Table(title=title, title_justify='left', show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow='fold')
    for row in rows:
        table.add_row(*row)
    return table


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = [f'{key} {part}' for key, part in value.items()]
    if isinstance(value, list | tuple):
        more = [f'{len(value) - _SHOWN} more'] if len(value) > _SHOWN else []
        return ', '.join(map(str, [*value[:_SHOWN], *more])) or 'none'
    return {True: 'yes', False: 'no'}[value] if isinstance(value, bool) else str(value)
