"""Message classes with rclpy's manners, built from field definitions.

A field is checked when it is assigned, as strictly as rclpy checks it, so that code written
against these classes also runs on genuine ones. Numeric sequences are kept as numpy arrays.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys.base import normalize_fieldname

Check = Callable[[Any], Any]

_INTEGERS = {name: np.iinfo(name) for name in (
    'int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'uint64')}
_DTYPES = {'bool': 'bool', 'char': 'uint8', 'float32': 'float32', 'float64': 'float64',
           **{name: name for name in _INTEGERS}}
_MISPLACED = "'{0}' has no field '{1}'"


class Octet(bytes):
    """A ROS ``byte``: one byte, as rclpy hands it out, that also packs as an integer."""

    def __new__(cls, value: bytes | int) -> Octet:
        """Build from one byte or its number."""
        # As numbers: Python 3.10 would take an Octet for a length, because of __index__.
        return super().__new__(cls, [value] if isinstance(value, int) else list(value))

    def __index__(self) -> int:
        """Return the number, so that ``struct`` packs it."""
        return self[0]


class Message:
    """Base of every generated message class."""

    __slots__ = ('__weakref__',)
    __msgtype__: str = ''
    _fields: dict[str, tuple[Check, Callable[[], Any]]] = {}
    _types: dict[str, str] = {}

    def __init__(self, **values: Any) -> None:
        """Set the named fields, the others to their defaults."""
        for name, (_, default) in self._fields.items():
            if name in values:
                setattr(self, name, values.pop(name))
            else:
                object.__setattr__(self, name, default())
        if values:
            raise AttributeError(_MISPLACED.format(self.__msgtype__, next(iter(values))))

    def __setattr__(self, name: str, value: Any) -> None:
        """Check and set a field; raise TypeError or ValueError as rclpy would refuse it."""
        try:
            check = self._fields[name][0]
        except KeyError:
            raise AttributeError(_MISPLACED.format(self.__msgtype__, name)) from None
        try:
            value = check(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f'{self.__msgtype__}.{name}: {error}') from None
        object.__setattr__(self, name, value)

    @classmethod
    def get_fields_and_field_types(cls) -> dict[str, str]:
        """Return each field's type as rclpy spells it, such as 'sequence<double>'."""
        return dict(cls._types)

    def __eq__(self, other: object) -> bool:
        """Compare field by field."""
        if type(other) is not type(self):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name))
                   for name in self._fields)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Show the type and every field."""
        body = ', '.join(f'{name}={getattr(self, name)!r}' for name in self._fields)
        return f'{self.__msgtype__}({body})'


def _expect(kind: str, value: Any) -> TypeError:
    return TypeError(f'{kind} expected, got {type(value).__name__} {str(value)[:40]!r}')


def _check_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _expect('bool', value)
    return value


def _check_float(value: Any) -> float:
    if not isinstance(value, float):
        raise _expect('float', value)
    return float(value)


def _check_str(value: Any) -> str:
    if not isinstance(value, str):
        raise _expect('str', value)
    return value


def _check_byte(value: Any) -> Octet:
    if not isinstance(value, bytes) or len(value) != 1:
        raise _expect('one byte', value)
    return Octet(value)


def _check_integer(name: str) -> Check:
    low, high = int(_INTEGERS[name].min), int(_INTEGERS[name].max)

    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _expect('int', value)
        if not low <= value <= high:
            raise ValueError(f'{value} is outside {name}, {low} to {high}')
        return value
    return check


def _base_check(name: str) -> Check:
    checks = {'bool': _check_bool, 'float32': _check_float, 'float64': _check_float,
              'string': _check_str, 'wstring': _check_str,
              'byte': _check_byte, 'octet': _check_byte}
    return checks.get(name) or _check_integer('uint8' if name == 'char' else name)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _numeric_check(base: str, length: int | None) -> Check:
    """Check a numeric array; ``length`` is None for a sequence of any length."""
    dtype = np.dtype(_DTYPES.get(base, 'uint8'))
    item = _base_check(base) if base not in ('byte', 'octet') else _check_integer('uint8')

    def check(value: Any) -> np.ndarray:
        if isinstance(value, np.ndarray):
            # rclpy refuses numpy for sequences; bytes of pictures are the fast path's exception.
            if length is None and base != 'uint8':
                raise TypeError('a list or array.array expected, got numpy: use .tolist()')
            if value.dtype != dtype or value.ndim != 1:
                raise TypeError(f'a flat {dtype} array expected, got {value.dtype} '
                                f'of shape {value.shape}')
            result = np.ascontiguousarray(value)
        elif isinstance(value, array.array):
            result = np.array(value, dtype=dtype)
        elif dtype.itemsize == 1 and isinstance(value, (bytes, bytearray, memoryview)):
            result = np.frombuffer(value, dtype=dtype)
        elif _is_sequence(value):
            result = np.array([item(entry) for entry in value], dtype=dtype)
        else:
            raise _expect('a sequence', value)
        if length is not None and result.size != length:
            raise ValueError(f'{length} values expected, got {result.size}')
        return result
    return check


def _list_check(item: Check, length: int | None) -> Check:
    def check(value: Any) -> list[Any]:
        if not _is_sequence(value):
            raise _expect('a list', value)
        if length is not None and len(value) != length:
            raise ValueError(f'{length} values expected, got {len(value)}')
        return [item(entry) for entry in value]
    return check


def _field(desc: Any, resolve: Callable[[str], type[Message]],
           initial: Any) -> tuple[Check, Callable[[], Any]]:
    """Return the check and the default maker of one field."""
    kind, inner = desc
    if kind == Nodetype.BASE:
        name = inner[0]
        if initial is None:
            initial = {'bool': False, 'float32': 0.0, 'float64': 0.0, 'string': '',
                       'wstring': '', 'byte': Octet(0), 'octet': Octet(0)}.get(name, 0)
        return _base_check(name), lambda: initial
    if kind == Nodetype.NAME:
        cls = resolve(inner)

        def check(value: Any) -> Message:
            if not isinstance(value, cls):
                raise _expect(inner, value)
            return value
        return check, cls
    item, length = inner
    length = length if kind == Nodetype.ARRAY else None
    if item[0] == Nodetype.BASE and item[1][0] not in ('string', 'wstring'):
        dtype = _DTYPES.get(item[1][0], 'uint8')
        return _numeric_check(item[1][0], length), lambda: np.zeros(length or 0, dtype)
    item_check, item_default = _field(item, resolve, None)
    return (_list_check(item_check, length),
            lambda: [item_default() for _ in range(length or 0)])


def build_class(name: str, definition: Any, resolve: Callable[[str], type[Message]],
                defaults: dict[str, Any]) -> type[Message]:
    """Return the class of ROS type ``name`` ('pkg/msg/Type').

    ``definition`` is rosbags' (constants, fields); ``resolve`` gives the class of a nested type.
    """
    constants, fields = definition
    entries = {normalize_fieldname(field): _field(desc, resolve, defaults.get(field))
               for field, desc in fields}
    values = {key: Octet(value) if base in ('byte', 'octet') else value
              for key, base, value in constants}
    return type(name.split('/')[-1], (Message,), {
        '__slots__': tuple(entries), '__module__': name.replace('/', '.').rsplit('.', 1)[0],
        '__doc__': f'{name}.', '__msgtype__': name, '_fields': entries,
        '_types': {normalize_fieldname(field): _spell(desc) for field, desc in fields},
        **values})


def _spell(desc: Any) -> str:
    kind, inner = desc
    if kind == Nodetype.BASE:
        return {'bool': 'boolean', 'float32': 'float', 'float64': 'double', 'byte': 'octet',
                'char': 'uint8'}.get(inner[0], inner[0])
    if kind == Nodetype.NAME:
        return inner.replace('/msg/', '/')
    item = _spell(inner[0])
    return f'{item}[{inner[1]}]' if kind == Nodetype.ARRAY else f'sequence<{item}>'


def builder(cls: type[Message]) -> Callable[..., Message]:
    """Return what turns decoded field values, in order, into a message without checking them."""
    names = tuple(cls._fields)
    octets = {name for name, (check, _) in cls._fields.items() if check is _check_byte}
    put = object.__setattr__

    def build(*values: Any) -> Message:
        message = cls.__new__(cls)
        for name, value in zip(names, values):
            put(message, name, Octet(value) if name in octets else value)
        return message
    return build
