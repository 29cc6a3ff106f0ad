"""Camera messages to numpy, sound and malformed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla_ros.middleware import images
from dtvla_ros.middleware.images import (
    ImageError,
    compressed_to_numpy,
    depth_to_numpy,
    image_to_numpy,
    numpy_to_compressed,
    numpy_to_image,
)
from dtvla_ros.middleware.messages import CompressedImage, Image, Time

RANDOM = np.random.default_rng(1)
FRAME = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def _message(array: np.ndarray, encoding: str, step: int = 0, **fields: Any) -> Image:
    rows = np.ascontiguousarray(array).reshape(array.shape[0], -1).view(np.uint8)
    padded = np.zeros((rows.shape[0], max(step, rows.shape[1])), np.uint8)
    padded[:, :rows.shape[1]] = rows
    return Image(height=array.shape[0], width=array.shape[1], encoding=encoding,
                 step=padded.shape[1], data=padded.tobytes(), **fields)


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8'])
def test_there_and_back(encoding: str) -> None:
    array = FRAME if encoding == 'rgb8' else FRAME[..., ::-1]
    message = numpy_to_image(array, Time(sec=3), 'cam', encoding)
    assert (message.height, message.width, message.step) == (5, 7, 21)
    np.testing.assert_array_equal(image_to_numpy(message), FRAME)


@pytest.mark.parametrize('step', [0, 32, 33])
def test_encodings_and_row_padding(step: int) -> None:
    alpha = np.full((5, 7, 1), 9, np.uint8)
    grey = FRAME[..., 0]
    for array, encoding, expected in (
            (FRAME, 'rgb8', FRAME), (FRAME[..., ::-1], 'bgr8', FRAME),
            (np.concatenate([FRAME, alpha], 2), 'rgba8', FRAME),
            (np.concatenate([FRAME[..., ::-1], alpha], 2), 'bgra8', FRAME),
            (grey, 'mono8', np.stack([grey] * 3, -1))):
        result = image_to_numpy(_message(array, encoding, step))
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, expected)


def test_last_row_may_lack_its_padding() -> None:
    message = _message(FRAME, 'rgb8', 32)
    message.data = bytes(message.data)[:-(32 - 21)]
    np.testing.assert_array_equal(image_to_numpy(message), FRAME)


@pytest.mark.parametrize('order', ['<', '>'])
def test_depth_honours_byte_order(order: str) -> None:
    metres = RANDOM.random((4, 6)).astype(np.float32)
    big = int(order == '>')
    message = _message(metres.astype(f'{order}f4'), '32FC1', 40, is_bigendian=big)
    np.testing.assert_array_equal(depth_to_numpy(message), metres)
    millimetres = np.arange(24, dtype=f'{order}u2').reshape(4, 6)
    message = _message(millimetres, '16UC1', is_bigendian=big)
    np.testing.assert_allclose(depth_to_numpy(message), np.arange(24).reshape(4, 6) / 1e3,
                               atol=1e-7)


def test_depth_of_nothing_finite_is_refused() -> None:
    with pytest.raises(ImageError, match='finite'):
        depth_to_numpy(_message(np.full((2, 2), np.nan, np.float32), '32FC1'))
    some = np.array([[np.nan, 1.0]], np.float32)
    np.testing.assert_array_equal(depth_to_numpy(_message(some, '32FC1')), some)


@pytest.mark.parametrize(('change', 'reason'), [
    ({'encoding': 'yuv422'}, 'encoding'), ({'encoding': ''}, 'encoding'),
    ({'step': 20}, 'step 20'), ({'height': 6}, 'bytes of data'), ({'height': 0}, 'size'),
    ({'width': 0}, 'size'), ({'width': 2**32 - 1}, 'size'), ({'data': b''}, '0 bytes of data'),
    ({'step': 2**32 - 1}, 'bytes of data')])
def test_malformed_images_say_why(change: dict[str, Any], reason: str) -> None:
    message = _message(FRAME, 'rgb8')
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ImageError, match=reason):
        image_to_numpy(message)


@settings(max_examples=300, deadline=None)
@given(height=st.integers(0, 2**32 - 1) | st.integers(0, 9), width=st.integers(0, 9),
       step=st.integers(0, 2**32 - 1) | st.integers(0, 40), data=st.binary(max_size=300),
       encoding=st.sampled_from(['rgb8', 'bgra8', 'mono8', '32FC1', '16UC1', 'bayer_rggb8']),
       big=st.integers(0, 255))
def test_any_header_gives_an_image_or_an_image_error(
        height: int, width: int, step: int, data: bytes, encoding: str, big: int) -> None:
    message = Image(height=height, width=width, step=step, encoding=encoding, data=data,
                    is_bigendian=big)
    convert = depth_to_numpy if encoding in ('32FC1', '16UC1') else image_to_numpy
    try:
        assert convert(message).shape[:2] == (height, width)
    except ImageError as error:
        assert str(error)


def test_compressed_there_and_back() -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None],
                             (64, 48, 3)).copy()
    smooth[..., 2] = 30
    message = numpy_to_compressed(smooth, Time(), 'cam', 95)
    result = compressed_to_numpy(message)
    assert result.shape == smooth.shape
    assert np.abs(result.astype(int) - smooth).max() < 12


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 600), noise=st.binary(max_size=50))
def test_broken_jpeg_is_refused(cut: int, noise: bytes) -> None:
    whole = bytes(numpy_to_compressed(np.zeros((32, 32, 3), np.uint8), Time()).data)
    for data in (whole[:min(cut, len(whole) - 2)], noise):
        with pytest.raises(ImageError):
            compressed_to_numpy(CompressedImage(format='jpeg', data=data))


@pytest.mark.parametrize(('array', 'encoding'), [
    (FRAME.astype(np.float64), 'rgb8'), (FRAME[..., :2], 'rgb8'), (FRAME[..., 0], 'rgb8'),
    (FRAME, 'mono8'), (FRAME, '32FC1'), (np.zeros((0, 4, 3), np.uint8), 'rgb8'), (FRAME, 'rgb9')])
def test_wrong_arrays_are_refused(array: np.ndarray, encoding: str) -> None:
    with pytest.raises(ImageError):
        numpy_to_image(array, Time(), '', encoding)


def test_views_are_sent_as_they_look() -> None:
    flipped = FRAME[::-1, ::-1]
    np.testing.assert_array_equal(image_to_numpy(numpy_to_image(flipped, Time())), flipped)
    assert images.image_to_numpy(numpy_to_image(FRAME[:, :3], Time())).shape == (5, 3, 3)
