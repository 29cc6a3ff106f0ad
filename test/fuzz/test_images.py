"""An image with any header and any bytes is an array of its size or an ImageError."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image

from dtvla_ros.ros import images

SIZES = st.integers(0, 9) | st.sampled_from([16384, 16385, 2**16, 2**31, 2**32 - 1])
ENCODINGS = st.sampled_from([
    'rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'mono16', 'rgb16', 'bgra16', '32FC1', '16UC1',
    '8UC3', '64FC1', 'bayer_rggb8', 'bayer_gbrg16', 'yuv422', 'yuv422_yuy2', 'nv21', '']
) | st.text(max_size=8)
ITEMS = {'rgb8': 3, 'mono8': 1, 'mono16': 2, '16UC1': 2, '32FC1': 4, 'bgra8': 4}
SOON = timedelta(seconds=2)
LOG_LINE = 500  # characters a refusal may take in a log
RANDOM = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Require that a test reserves no gigabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def _judged(decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8] | None:
    """Return a copy of the image, or None where it was refused with a reason fit for a log."""
    try:
        result = decode()
    except images.ImageError as error:
        assert 0 < len(str(error)) < LOG_LINE
        return None
    assert result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3
    return result.copy()  # every value can really be read


def _convert(message: Any) -> NDArray[np.uint8] | None:
    """Judge it; the size must be what the header says."""
    result = _judged(lambda: images.image_to_numpy(message))
    assert result is None or result.shape == (message.height, message.width, 3)
    return result


@st.composite
def _lying(draw: Any) -> Image:
    """Draw a sound image of which one or two header fields lie, most often by a little."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    encoding = draw(st.sampled_from(sorted(ITEMS)))
    fields = {'height': height, 'width': width, 'step': width * ITEMS[encoding]}
    size = height * width * ITEMS[encoding]
    data = draw(st.binary(min_size=size, max_size=size))
    for name in draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2,
                              unique=True)):
        fields[name] = draw(st.just(max(0, fields[name] + draw(st.integers(-3, 3)))) | SIZES)
    return Image(encoding=draw(st.just(encoding) | ENCODINGS), data=data,
                 is_bigendian=draw(st.integers(0, 255)), **fields)


@settings(max_examples=800, deadline=SOON)
@given(message=_lying())
def test_headers_that_lie(message: Image) -> None:
    """The message itself and what rmw makes of it are judged alike."""
    as_message, parsed = _convert(message), images.parse_image(serialize_message(message))
    as_bytes = _convert(parsed)
    assert (as_message is None) == (as_bytes is None)
    if as_message is not None:
        np.testing.assert_array_equal(as_message, as_bytes)
        # Every value was really read from the message, not from beside it.
        assert message.step * (message.height - 1) + message.width <= len(message.data)


WHOLE = {
    'jpeg': images.parse_compressed(images.serialize_compressed(RANDOM, Time())).data.tobytes(),
    'png': cv2.imencode('.png', np.arange(768, dtype=np.uint8).reshape(16, 16, 3))[1].tobytes()}


def _decode(kind: str, data: bytes) -> NDArray[np.uint8]:
    return images.compressed_to_numpy(images.RawCompressedImage(
        0.0, '', kind, np.asarray(memoryview(data))))


@st.composite
def _damaged(draw: Any) -> tuple[str, bytes]:
    """Draw a format, and a file of one of both with one to four places spoiled."""
    kind = draw(st.sampled_from(sorted(WHOLE)))
    data = bytearray(WHOLE[kind])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data) - 1)) if data else 0
        if draw(st.booleans()) and data:
            data[place] = draw(st.integers(0, 255))
        else:
            del data[place:place + draw(st.integers(1, 40))]
    return draw(st.sampled_from([kind, '', 'jpeg', 'rgb8; jpeg compressed bgr8', '16UC1'])), (
        bytes(data))


def _changed(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new):]


def _png(height: int, width: int) -> bytes:
    """Return a PNG with another size in its header."""
    body = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + body
            + struct.pack('>I', zlib.crc32(body)) + WHOLE['png'][33:])


def test_what_is_cut_off_or_promises_gigabytes_is_refused_before_they_are_reserved(
        little_memory: None) -> None:
    """OpenCV itself would reserve 1.8 GB for 30000x20000."""
    png, jpeg = WHOLE['png'], WHOLE['jpeg']
    size = jpeg.index(b'\xff\xc0') + 5
    for data in (
            _changed(png, png.index(b'IDAT') - 4, b'\xc2'),  # 3 GB in a chunk
            png[:-12], png[:40], _png(60000, 60000), _png(30000, 20000), _png(0, 5),
            _changed(jpeg, size, b'\xff' * 4), _changed(jpeg, size, b'\x75\x30' * 2),
            *(jpeg[:end] for end in range(len(jpeg) - 2))):
        with pytest.raises(images.ImageError):
            _decode('', data)


@settings(max_examples=300, deadline=SOON)
@given(damaged=_damaged() | st.tuples(st.text(max_size=5), st.binary(max_size=80)))
def test_damaged_files(damaged: tuple[str, bytes]) -> None:
    _judged(lambda: _decode(*damaged))


def _serialized() -> dict[str, tuple[bytes, bool]]:
    """Return sound messages as they come over the wire, and whether each is compressed."""
    stamp = Time(sec=7, nanosec=8)
    found = {
        'ours': (images.serialize_image(RANDOM, stamp, 'camera'), False),
        'ours, compressed': (images.serialize_compressed(RANDOM, stamp, 'camera'), True),
        'png': (serialize_message(CompressedImage(format='png', data=WHOLE['png'])), True)}
    for encoding in ('rgb8', 'bgra8', 'mono16', 'bayer_rggb8'):
        size = 6 * 4 * ITEMS.get(encoding, 1)
        found[encoding] = serialize_message(Image(
            height=6, width=4, encoding=encoding, step=size // 6, data=bytes(range(size)))), False
    return found


SERIALIZED = _serialized()
LENGTHS = st.integers(0, 40) | st.sampled_from(
    [255, 2**16, 2**24, images.MAX_PIXELS, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])


@st.composite
def _mutated(draw: Any) -> tuple[bytes, bool]:
    """Draw a serialized message with one byte, one length or its end changed."""
    whole, compressed = SERIALIZED[draw(st.sampled_from(sorted(SERIALIZED)))]
    data = bytearray(whole)
    what = draw(st.sampled_from(['byte', 'length', 'end', 'more']))
    near = st.integers(0, min(len(data), 120) - 1)  # where the header is
    if what == 'byte':
        data[draw(near | st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    elif what == 'length':
        place = 4 * (draw(near) // 4)
        data[place:place + 4] = struct.pack(draw(st.sampled_from('<>')) + 'I', draw(LENGTHS))
    elif what == 'end':
        del data[draw(near | st.integers(0, len(data) - 1)):]
    else:
        data += draw(st.binary(min_size=1, max_size=9))
    return bytes(data), compressed


@settings(max_examples=1500, deadline=SOON)
@given(message=_mutated() | st.tuples(st.binary(max_size=200), st.booleans()))
def test_one_thing_wrong_with_the_bytes_of_a_message_or_any_bytes(
        message: tuple[bytes, bool]) -> None:
    data, compressed = message
    if compressed:
        _judged(lambda: images.compressed_to_numpy(images.parse_compressed(data)))
    else:
        with suppress(images.ImageError):
            _convert(images.parse_image(data))


def test_a_name_of_a_megabyte_is_not_repeated_in_the_log() -> None:
    name = 'x' * 10**6
    assert _convert(images.RawImage(0.0, '', 24, 32, name, 0, 96, RANDOM.ravel())) is None
    assert _judged(lambda: _decode(name, WHOLE['jpeg'][:400] + b'\xff\xd9')) is None


def test_a_length_gone_wrong_reserves_no_memory(little_memory: None) -> None:
    """Each of the four lengths in a message, and the size, says 4 GB."""
    whole = images.serialize_image(RANDOM, Time(), 'camera')
    for place in range(4, 60, 4):
        with suppress(images.ImageError):
            changed = images.parse_image(_changed(whole, place, b'\xff' * 4))
            _convert(changed._replace(encoding='rgb8'))
