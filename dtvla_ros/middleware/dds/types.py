"""ROS types on the wire: classes, CDR, IDL structs and RIHS01 hashes."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

from cyclonedds.idl import IdlStruct, make_idl_struct
from cyclonedds.idl import types as idl
from rosbags.interfaces import Nodetype
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from .definitions import DEFAULTS, HASHES, SERVICES
from .message import Message, build_class, builder

_STORE = get_typestore(Stores.ROS2_JAZZY)
for _service, _texts in SERVICES.items():
    for _suffix, _text in zip(('Request', 'Response'), _texts):
        _name = f'{_service}_{_suffix}'
        # The parser files everything under msg/; services keep their own name.
        _STORE.register({_name: next(iter(get_types_from_msg(_text, _name).values()))})

_PRIMITIVES: dict[str, Any] = {
    'bool': bool, 'byte': idl.uint8, 'char': idl.uint8, 'octet': idl.uint8, 'uint8': idl.uint8,
    'int8': idl.int8, 'uint16': idl.uint16, 'int16': idl.int16, 'uint32': idl.uint32,
    'int32': idl.int32, 'uint64': idl.uint64, 'int64': idl.int64, 'float32': idl.float32,
    'float64': idl.float64}


class MalformedMessage(ValueError):
    """Bytes from the wire that are not the message they claim to be."""


class ServiceType(Protocol):
    """A service's two message classes, as rclpy's service classes have them."""

    __srvtype__: str
    Request: type[Message]
    Response: type[Message]


@cache
def message_class(name: str) -> type[Message]:
    """Return the class of 'pkg/msg/Type'; raise KeyError if the type is not known."""
    cls = build_class(name, _STORE.fielddefs[name], message_class, DEFAULTS.get(name, {}))
    # rosbags calls this with the decoded values.
    _STORE.types[name] = builder(cls)  # type: ignore[assignment]
    _STORE.cache.pop(name, None)
    return cls


@cache
def service_class(name: str) -> type[ServiceType]:
    """Return the class of 'pkg/srv/Type' with ``Request`` and ``Response``."""
    return type(name.split('/')[-1], (), {
        '__doc__': f'{name}.', '__srvtype__': name,
        'Request': message_class(f'{name}_Request'),
        'Response': message_class(f'{name}_Response')})


def known_types() -> list[str]:
    """Return the names of all message types that can be used."""
    return sorted(name for name in _STORE.fielddefs if '/msg/' in name)


def serialize(message: Message) -> memoryview:
    """Return little-endian CDR with its 4-byte header, unpadded."""
    return _STORE.serialize_cdr(message, message.__msgtype__, little_endian=True)


def deserialize(data: bytes | memoryview, cls: type[Message]) -> Message:
    """Return the message in ``data``; numeric arrays stay views of it.

    Raise MalformedMessage when the bytes do not fit the type.
    """
    try:
        return _STORE.deserialize_cdr(data, cls.__msgtype__)  # type: ignore[return-value]
    except (SerdeError, ValueError, IndexError) as error:
        raise MalformedMessage(f'{cls.__msgtype__}: {error}') from error


@cache
def ends_with_bytes(name: str) -> str | None:
    """Return the name of the last field if it is ``uint8[]`` (pictures), else None."""
    fields = _STORE.fielddefs[name][1]
    last = fields[-1] if fields else ('', (Nodetype.BASE, ('', 0)))
    return last[0] if last[1] == (Nodetype.SEQUENCE, ((Nodetype.BASE, ('uint8', 0)), 0)) else None


def dds_type_name(name: str) -> str:
    """Return the DDS type name of 'pkg/kind/Type'."""
    package, kind, leaf = name.split('/')
    return f'{package}::{kind}::dds_::{leaf}_'


def ros_type_name(name: str) -> str:
    """Return 'pkg/kind/Type' of a DDS type name, or '' if it is no ROS type."""
    parts = name.split('::')
    if len(parts) != 4 or parts[2] != 'dds_':
        return ''
    return f'{parts[0]}/{parts[1]}/{parts[3].removesuffix("_")}'


@cache
def idl_struct(name: str, with_request_header: bool = False) -> type[IdlStruct]:
    """Return the Cyclone DDS type; service types carry the caller's identity in front."""
    fields: dict[str, Any] = {}
    if with_request_header:
        fields = {'guid': idl.uint64, 'seq': idl.int64}
    for field, desc in _STORE.fielddefs[name][1]:
        fields[field] = _idl_field(desc)
    return make_idl_struct(name.replace('/', '_'), dds_type_name(name), fields)


def _idl_field(desc: Any) -> Any:
    kind, inner = desc
    if kind == Nodetype.BASE:
        base, bound = inner
        if base == 'string':
            return idl.bounded_str[bound] if bound else str  # type: ignore[misc]
        return _PRIMITIVES[base]
    if kind == Nodetype.NAME:
        return idl_struct(inner)
    item = _idl_field(inner[0])
    if kind == Nodetype.ARRAY:
        return idl.array[item, inner[1]]  # type: ignore[misc]
    if inner[1]:
        return idl.sequence[item, inner[1]]  # type: ignore[misc]
    return idl.sequence[item]  # type: ignore[misc]


@cache
def type_hash(name: str) -> bytes:
    """Return the endpoint USER_DATA that carries the type's RIHS01 hash."""
    return f'typehash={HASHES.get(name) or _STORE.hash_rihs01(name)};'.encode()
