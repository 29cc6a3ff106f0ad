"""Raw CDR through Cyclone DDS's own library, without its Python serialiser.

Calls go through ctypes, which releases the interpreter lock: a slow peer then blocks only the
thread that writes. None of this is public API of the wheel, so its version is pinned.
"""

from __future__ import annotations

import ctypes as ct
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from cyclonedds import internal
from cyclonedds.core import (
    DDSException,
    Entity,
    GuardCondition,
    InstanceState,
    Qos,
    ReadCondition,
    SampleState,
    ViewState,
)
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.internal import dds_c_t
from cyclonedds.sub import DataReader

from dtvla_ros.errors import UserError

ANY = SampleState.Any | ViewState.Any | InstanceState.Any
FOREVER = (1 << 63) - 1
_SDK_DATA = 2
_ZERO_COPY_FROM = 16384  # bytes; below this a copy is cheaper than the bookkeeping
_PADDING = (ct.c_ubyte * 4)()


class _Iovec(ct.Structure):
    _fields_ = [('base', ct.c_void_p), ('len', ct.c_size_t)]


class TransportError(RuntimeError):
    """Cyclone DDS refused a call."""


def _load() -> ct.CDLL:
    library = internal.DDS._dll_handle
    entity, pointer = ct.c_int32, ct.c_void_p
    signatures: dict[str, tuple[list[Any], Any]] = {
        'dds_get_entity_sertype': ([entity, ct.POINTER(pointer)], ct.c_int32),
        'ddsi_serdata_from_ser_iov':
            ([pointer, ct.c_int, ct.c_size_t, ct.POINTER(_Iovec), ct.c_size_t], pointer),
        'ddsi_serdata_size': ([pointer], ct.c_uint32),
        'ddsi_serdata_to_ser_ref':
            ([pointer, ct.c_size_t, ct.c_size_t, ct.POINTER(_Iovec)], pointer),
        'ddsi_serdata_to_ser_unref': ([pointer, ct.POINTER(_Iovec)], None),
        'ddsi_serdata_unref': ([pointer], None),
        'dds_writecdr': ([entity, pointer], ct.c_int32),
        'dds_takecdr': ([entity, ct.POINTER(pointer), ct.c_uint32,
                         ct.POINTER(dds_c_t.sample_info), ct.c_uint32], ct.c_int32),
        'dds_get_guid': ([entity, pointer], ct.c_int32),
        'dds_get_matched_subscriptions': ([entity, pointer, ct.c_size_t], ct.c_int32),
        'dds_get_matched_publications': ([entity, pointer, ct.c_size_t], ct.c_int32),
        'dds_create_waitset': ([entity], entity),
        'dds_waitset_attach': ([entity, entity, ct.c_ssize_t], ct.c_int32),
        'dds_waitset_detach': ([entity, entity], ct.c_int32),
        'dds_waitset_wait':
            ([entity, ct.POINTER(ct.c_ssize_t), ct.c_size_t, ct.c_int64], ct.c_int32),
        'dds_set_guardcondition': ([entity, ct.c_bool], ct.c_int32),
        'dds_delete': ([entity], ct.c_int32),
    }
    for name, (arguments, result) in signatures.items():
        # A private handle per function: Cyclone's own wrappers set other argument types.
        address = ct.cast(getattr(library, name), ct.c_void_p).value
        _CALLS[name] = ct.CFUNCTYPE(result, *arguments)(address)  # type: ignore[misc,arg-type]
    return library


_CALLS: dict[str, Callable[..., Any]] = {}
_LIBRARY = _load()


def _call(name: str, *arguments: object) -> int:
    code = _CALLS[name](*arguments)
    if code < 0:
        raise TransportError(f'{name} returned {code}')
    return code


def guid(entity: Entity) -> bytes:
    """Return the 16 bytes of an entity's GUID."""
    buffer = (ct.c_ubyte * 16)()
    _call('dds_get_guid', entity._ref, ct.addressof(buffer))
    return bytes(buffer)


def matched_count(endpoint: Entity, kind: str) -> int:
    """Return how many 'subscriptions' or 'publications' an endpoint is matched with."""
    return _call(f'dds_get_matched_{kind}', endpoint._ref, None, 0)


class RawWriter:
    """Writes serialised samples with one writer; safe from any thread."""

    def __init__(self, writer: Entity) -> None:
        """Wrap a cyclonedds DataWriter."""
        self._writer = writer
        sertype = ct.c_void_p()
        _call('dds_get_entity_sertype', writer._ref, ct.byref(sertype))
        self._sertype = sertype

    def write(self, *parts: memoryview | bytes | bytearray | np.ndarray) -> None:
        """Send the concatenation of ``parts`` (the first starts with the CDR header).

        Raise TransportError when the writer is gone.
        """
        if not hasattr(self._writer, '_ref'):
            raise TransportError('cannot publish: the publisher was destroyed')
        views = [np.frombuffer(part, np.uint8) for part in parts if len(part)]
        total = sum(view.size for view in views)
        padding = -total % 4
        vectors = (_Iovec * (len(views) + 1))()
        for vector, view in zip(vectors, views):
            vector.base, vector.len = view.ctypes.data, view.size
        vectors[len(views)].base, vectors[len(views)].len = ct.addressof(_PADDING), padding
        count = len(views) + bool(padding)
        serdata = _CALLS['ddsi_serdata_from_ser_iov'](
            self._sertype, _SDK_DATA, count, vectors, total + padding)
        if not serdata:
            raise TransportError('a sample was not accepted as CDR of its type')
        _call('dds_writecdr', self._writer._ref, serdata)


class RawReader:
    """Takes serialised samples from one reader."""

    def __init__(self, reader: DataReader[Any]) -> None:
        """Wrap a cyclonedds DataReader."""
        self.reader = reader
        self.condition = ReadCondition(reader, ANY)

    def take(self) -> tuple[memoryview, int] | None:
        """Return the next sample's CDR and its writer's handle, or None when there is none.

        A large sample is not copied: the view keeps DDS's own buffer alive. A reader that was
        closed has no more samples.
        """
        if not hasattr(self.reader, '_ref'):
            return None
        serdata = ct.c_void_p()
        info = dds_c_t.sample_info()
        while _call('dds_takecdr', self.reader._ref, ct.byref(serdata), 1, ct.byref(info), ANY):
            if info.valid_data:
                return _view(serdata.value), info.publication_handle
            _CALLS['ddsi_serdata_unref'](serdata)
        return None


def _view(serdata: int | None) -> memoryview:
    size = _CALLS['ddsi_serdata_size'](serdata)
    vector = _Iovec()
    reference = _CALLS['ddsi_serdata_to_ser_ref'](serdata, 0, size, ct.byref(vector))
    _CALLS['ddsi_serdata_unref'](serdata)
    if vector.len < _ZERO_COPY_FROM:
        data = ct.string_at(vector.base, vector.len)
        _CALLS['ddsi_serdata_to_ser_unref'](reference, ct.byref(vector))
        return memoryview(data)
    buffer = (ct.c_ubyte * vector.len).from_address(vector.base)
    weakref.finalize(buffer, _CALLS['ddsi_serdata_to_ser_unref'], reference,
                     ct.byref(vector)).atexit = False
    return memoryview(buffer).cast('B').toreadonly()


class WaitSet:
    """Blocks one thread until an attached entity has something for it."""

    def __init__(self, participant: DomainParticipant) -> None:
        """Create an empty wait set."""
        self._ref = _call('dds_create_waitset', participant._ref)
        self._attached: dict[int, Entity] = {}
        self._fired = (ct.c_ssize_t * 1)()

    def attach(self, entity: Entity) -> None:
        """Wait for a condition too."""
        _call('dds_waitset_attach', self._ref, entity._ref, entity._ref)
        self._attached[entity._ref] = entity
        self._fired = (ct.c_ssize_t * len(self._attached))()

    def detach(self, ref: int) -> None:
        """Stop waiting for a condition, by its handle; it may be deleted already."""
        if self._attached.pop(ref, None) is not None:
            _CALLS['dds_waitset_detach'](self._ref, ref)

    def wait(self, timeout_ns: int) -> list[Entity]:
        """Return the conditions that are true, or nothing after ``timeout_ns``."""
        count = _call('dds_waitset_wait', self._ref, self._fired, len(self._fired), timeout_ns)
        attached = self._attached
        return [attached[ref] for ref in self._fired[:min(count, len(self._fired))]
                if ref in attached]

    def close(self) -> None:
        """Free the wait set."""
        for ref in list(self._attached):
            self.detach(ref)
        _CALLS['dds_delete'](self._ref)


def trigger(guard: GuardCondition, value: bool) -> None:
    """Set a guard condition; cheap and safe from any thread."""
    _CALLS['dds_set_guardcondition'](guard._ref, value)


def join_domain(domain_id: int, config: str, qos: Qos) -> tuple[Domain, DomainParticipant]:
    """Join a domain; raise UserError with the remedy when that is refused."""
    try:
        # The domain must exist before the participant, or its settings do not count.
        domain = Domain(domain_id, config)
    except (DDSException, UnicodeEncodeError) as error:
        raise UserError(
            f'Cyclone DDS refuses its settings for ROS_DOMAIN_ID={domain_id} (its reason, if it '
            'gave one, is above): check CYCLONEDDS_URI, ROS_STATIC_PEERS and the network '
            'interface they name') from error
    try:
        return domain, DomainParticipant(domain_id, qos=qos)
    except DDSException as error:
        close_entity(domain)
        raise UserError(
            f'cannot join ROS_DOMAIN_ID={domain_id}: {error}; is CYCLONEDDS_URI right, and, if '
            'ROS_SECURITY_ENABLE is true, are the files of the enclave?') from error


def close_entity(entity: Entity | None) -> None:
    """Delete an entity now instead of when the garbage collector gets to it."""
    if entity is not None and hasattr(entity, '_ref'):
        entity.__del__()
        # The handle may be used again; a second delete must not hit its new owner.
        del entity._ref
