"""Whether a dataclass that was read from a file holds what its annotations say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from dtvla_ros.errors import UserError


def require_types(owner: Any) -> None:
    """Raise ``UserError`` unless every field of a dataclass holds what its annotation says.

    Files are read into them, and JSON knows other types. Dataclasses in it see to themselves.
    """
    for name, hint in get_type_hints(type(owner)).items():
        value = getattr(owner, name)
        if not _fits(value, hint):
            kind = getattr(hint, '__name__', '') if get_origin(hint) is None else str(hint)
            raise UserError(f'{name} is {repr(value)[:60]}, expected {kind}')


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(part, inner[0]) for part in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool) and (
            abs(value) < math.inf)
    return hint is Any or is_dataclass(hint) or isinstance(value, hint)
