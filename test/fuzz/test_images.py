"""An image with any header and any bytes is an array of its size or an ImageError."""

from __future__ import annotations

import struct
import zlib
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image

from dtvla_ros.middleware.images import (
    ImageError,
    compressed_to_numpy,
    depth_to_numpy,
    image_to_numpy,
    numpy_to_compressed,
)

SIZES = st.integers(0, 9) | st.sampled_from([16384, 16385, 2**16, 2**31, 2**32 - 1])
ENCODINGS = st.sampled_from([
    'rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'mono16', 'rgb16', 'bgra16', '32FC1', '16UC1',
    '8UC3', '64FC1', 'bayer_rggb8', 'bayer_gbrg16', 'yuv422', 'yuv422_yuy2', 'nv21', '']
) | st.text(max_size=8)
SOON = timedelta(seconds=2)


@settings(max_examples=500, deadline=SOON)
@given(height=SIZES, width=SIZES, step=SIZES | st.integers(0, 40), data=st.binary(max_size=400),
       encoding=ENCODINGS, big=st.integers(0, 255))
def test_any_header(height: int, width: int, step: int, data: bytes, encoding: str,
                    big: int) -> None:
    message = Image(height=height, width=width, step=step, encoding=encoding, data=data,
                    is_bigendian=big)
    for convert, dtype in ((image_to_numpy, np.uint8), (depth_to_numpy, np.float32)):
        try:
            result = convert(message)
        except ImageError as error:
            assert str(error)
        else:
            assert result.shape[:2] == (height, width)
            assert result.dtype == dtype


@st.composite
def _lying(draw: Any) -> Image:
    """Draw a sound image of which one or two header fields lie by a little."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    encoding = draw(st.sampled_from(['rgb8', 'mono8', 'mono16', '16UC1', '32FC1', 'bgra8']))
    item = {'rgb8': 3, 'mono8': 1, 'mono16': 2, '16UC1': 2, '32FC1': 4, 'bgra8': 4}[encoding]
    fields = {'height': height, 'width': width, 'step': width * item}
    data = draw(st.binary(min_size=height * width * item, max_size=height * width * item))
    for name in draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2)):
        fields[name] = max(0, fields[name] + draw(st.integers(-3, 3)))
    return Image(encoding=encoding, data=data, is_bigendian=draw(st.integers(0, 1)), **fields)


@settings(max_examples=400, deadline=SOON)
@given(message=_lying())
def test_headers_that_lie_a_little(message: Image) -> None:
    for convert in (image_to_numpy, depth_to_numpy):
        try:
            result = convert(message)
        except ImageError:
            continue
        assert result.shape[:2] == (message.height, message.width)
        # Every value was really read from the message, not from beside it.
        assert message.step * (message.height - 1) + message.width <= len(message.data)
        result.copy()


WHOLE = {kind: bytes(data) for kind, data in {
    'jpeg': numpy_to_compressed(
        np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8), Time()).data,
}.items()}


def _png() -> bytes:
    import cv2
    return cv2.imencode('.png', np.arange(768, dtype=np.uint8).reshape(16, 16, 3))[1].tobytes()


WHOLE['png'] = _png()


@st.composite
def _damaged(draw: Any) -> tuple[str, bytes]:
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


def test_a_chunk_that_promises_gigabytes_is_refused_before_they_are_reserved() -> None:
    import resource

    data = bytearray(WHOLE['png'])
    place = data.index(b'IDAT') - 4
    data[place] = 0xc2  # 3 GB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bad in (bytes(data), WHOLE['png'][:-12], WHOLE['png'][:40]):
        with pytest.raises(ImageError, match='PNG of'):
            compressed_to_numpy(CompressedImage(format='png', data=bad))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@settings(max_examples=300, deadline=SOON)
@given(damaged=_damaged() | st.tuples(st.text(max_size=5), st.binary(max_size=80)))
def test_damaged_files(damaged: tuple[str, bytes]) -> None:
    kind, data = damaged
    try:
        result = compressed_to_numpy(CompressedImage(format=kind, data=data))
    except ImageError as error:
        assert str(error)
    else:
        assert result.dtype == np.uint8
        assert result.ndim == 3
        assert result.shape[2] == 3


@settings(max_examples=60, deadline=SOON)
@given(cut=st.integers(0, len(WHOLE['jpeg']) - 3))
def test_a_cut_jpeg_is_never_half_a_picture(cut: int) -> None:
    try:
        compressed_to_numpy(CompressedImage(format='jpeg', data=WHOLE['jpeg'][:cut]))
    except ImageError:
        return
    raise AssertionError(f'{cut} of {len(WHOLE["jpeg"])} bytes were taken for an image')


@pytest.mark.parametrize(('height', 'width'), [(60000, 60000), (30000, 20000), (0, 5)])
def test_a_png_that_promises_the_moon(height: int, width: int) -> None:
    """OpenCV itself would reserve 1.8 GB for 30000x20000."""
    body = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    png = (b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + body
           + struct.pack('>I', zlib.crc32(body)) + WHOLE['png'][33:])
    with pytest.raises(ImageError, match=f'{width}x{height}'):
        compressed_to_numpy(CompressedImage(format='png', data=png))


def test_a_jpeg_that_promises_the_moon() -> None:
    data = bytearray(WHOLE['jpeg'])
    frame = data.index(b'\xff\xc0')
    data[frame + 5:frame + 9] = b'\xff\xff\xff\xff'
    with pytest.raises(ImageError, match='65535x65535'):
        compressed_to_numpy(CompressedImage(format='jpeg', data=bytes(data)))
