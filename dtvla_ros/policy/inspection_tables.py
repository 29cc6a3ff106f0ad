"""An inspection as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from dtvla_ros.policy.inspect import Inspection, Weights

_COLOURS = {'verified': 'green', 'missing': 'red', 'differs': 'red', 'never opened': 'yellow'}
_SHOWN = 5  # names of weights listed before the rest is counted


def show(found: Inspection, console: Console | None = None) -> None:
    """Print everything that was found out; the last table says what is missing."""
    tables: list[Any] = [_facts('', {
        'path': found.path, 'kind': found.kind, 'name': found.name or None,
        'licence': found.license or None, 'engines': ', '.join(found.engines) or None})]
    if found.config:
        config = found.config
        tables += [
            _geometry(found), _facts('Memory, computed', {
                what: decimal(size) for what, size in found.memory.items()}),
            _facts('Special ids', config['ids']),
            _facts('Action contract', {
                **(found.action or {}), 'chunk': f'{config["chunk_steps"]} steps of '
                                                 f'{config["action_dim"]} numbers'}),
            _facts('Images and prompt', {
                'cameras': ', '.join(config['vision']['cameras']),
                'size': f'{config["vision"]["image_size"]} px', **(found.images or {}),
                **(found.prompt or {})})]
    if found.statistics:
        tables.append(_statistics(found.statistics))
    if found.adapter:
        tables.append(_facts('LoRA adapter', found.adapter))
    if found.weights:
        tables.append(_weights(found.weights))
    if found.files:
        tables.append(_files(found))
    tables.append(_lacks(found))
    (console or Console()).print(Group(*tables))


def _table(title: str, *columns: str, header: bool = True) -> Table:
    table = Table(title=title, title_justify='left', show_header=header)
    for column in columns:
        table.add_column(column, overflow='fold')
    return table


def _facts(title: str, facts: Mapping[str, Any]) -> Table:
    table = _table(title, '', '', header=False)
    for key, value in facts.items():
        if value is not None:
            table.add_row(key.replace('_', ' '), escape(_text(value)))
    return table


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ', '.join(f'{key} {part}' for key, part in value.items()) or 'nothing'
    if isinstance(value, list | tuple):
        return ', '.join(map(str, value)) or 'nothing'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return str(value) if value != '' else '(empty)'


def _geometry(found: Inspection) -> Table:
    assert found.config is not None
    table = _table('Geometry', 'part', 'parameters', 'sizes')
    text, vision = found.config['text'], found.config['vision']
    sizes = {
        'image tower': {**vision, 'cameras': len(vision['cameras']),
                        'tokens': '+'.join(map(str, vision['tokens']))},
        'embedding and tied head': {'vocabulary': text['vocabulary'], 'width': text['width']},
        'decoder layers': {key: value for key, value in text.items() if key != 'vocabulary'}}
    for part, count in found.parameters.items():
        facts = {key.replace('_', ' '): value for key, value in sizes.get(part, {}).items()
                 if value not in (0, (), [])}
        table.add_row(part, f'{count:,}', escape(_text(facts)) if facts else '')
    return table


def _statistics(statistics: Mapping[str, Iterable[float]]) -> Table:
    table = _table('Action statistics', 'channel', 'q01', 'q99')
    for channel, (low, high) in enumerate(zip(statistics['q01'], statistics['q99'], strict=True)):
        table.add_row(str(channel), f'{low:.5g}', f'{high:.5g}')
    return table


def _weights(weights: Weights) -> Table:
    facts: dict[str, Any] = {
        'found': f'{weights.tensors} tensors, {weights.parameters["total"]:,} parameters',
        'types': weights.types, 'names': weights.layout, 'head': weights.head}
    for what in ('missing', 'unexpected', 'wrong_shape'):
        names = getattr(weights, what)
        if names is None:
            continue
        rest = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
        facts[what] = f'{len(names)}: {", ".join(names[:_SHOWN])}{rest}' if names else 'none'
    return _facts('Weights', facts)


def _files(found: Inspection) -> Table:
    table = _table('Files', 'name', 'size', 'hash')
    for file in found.files:
        colour = _COLOURS.get(file.state, 'default')
        size = '' if file.size is None else decimal(file.size)
        table.add_row(escape(file.name), size, f'[{colour}]{file.state}[/]')
    return table


def _lacks(found: Inspection) -> Table | str:
    if not found.lacks:
        return '[green]Nothing is missing: it can run.[/]'
    table = _table('Missing before it runs', 'what', 'remedy')
    for lack in found.lacks:
        table.add_row(escape(lack.what), escape(lack.remedy))
    return table
