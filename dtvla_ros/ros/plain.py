"""Messages as plain dictionaries and back, for YAML and JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dtvla_ros.ros.conversions import message_type

_ARRAY = re.compile(r'sequence<(?P<item>.+?)(?:, ?\d+)?>|(?P<fixed>.+)\[\d+\]')
_SCALARS = {'float': float, 'double': float, 'boolean': bool, 'string': str, 'wstring': str}


def to_plain(value: Any, longest: int | None = None) -> Any:
    """Return a message as dictionaries, lists and numbers.

    Sequences of more than ``longest`` values end in '...' when it is given.
    """
    if hasattr(value, 'get_fields_and_field_types'):
        return {name: to_plain(getattr(value, name), longest)
                for name in value.get_fields_and_field_types()
                if name != 'structure_needs_at_least_one_member'}
    if isinstance(value, bytes):
        return value[0] if len(value) == 1 else list(value)
    if isinstance(value, (str, bool, int, float)):
        return value
    if longest is not None and len(value) > longest:
        return [*to_plain(value[:longest]), f'... {len(value)} values']
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [to_plain(item, longest) for item in value]


def from_plain(message: Any, values: Any) -> Any:
    """Fill a message from a dictionary; fields that are not named keep their defaults.

    Raise ValueError naming the field that is wrong.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f'fields of {type(message).__name__} expected, such as '
                         f'{{{next(iter(message.get_fields_and_field_types()))}: ...}}, '
                         f'got {values!r}')
    kinds = message.get_fields_and_field_types()
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f'{type(message).__name__} has no field {name!r}; it has '
                             f'{", ".join(kinds)}')
        try:
            setattr(message, name, _convert(kinds[name], value))
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f'{name}: {error}') from error
    return message


def _convert(kind: str, value: Any) -> Any:
    array = _ARRAY.fullmatch(kind)
    if array:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f'a list expected, got {value!r}')
        item = array['item'] or array['fixed']
        return [_convert(item, entry) for entry in value]
    if kind == 'octet':
        return bytes([value])
    if '/' in kind:
        package, leaf = kind.split('/')
        return from_plain(message_type(f'{package}/msg/{leaf}')(), value)
    scalar = _SCALARS.get(kind.partition('<')[0], int)
    if isinstance(value, bool) is not (scalar is bool) or (
            isinstance(value, str) is not (scalar is str)):
        raise ValueError(f'{kind} expected, got {value!r}')
    if scalar is int and not isinstance(value, int):
        raise ValueError(f'{kind} expected, got {value!r}')
    return scalar(value)
