"""Camera messages to numpy, sound and malformed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image

from dtvla_ros.middleware.images import (
    ImageError,
    compressed_to_numpy,
    depth_to_numpy,
    image_to_numpy,
    numpy_to_compressed,
    numpy_to_image,
)
from dtvla_ros.ros import images

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


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('step', [0, 64])
def test_sixteen_bits_honour_byte_order(order: str, step: int) -> None:
    deep = RANDOM.integers(0, 65536, (5, 7, 3)).astype(f'{order}u2')
    high = (deep >> 8).astype(np.uint8)
    grey = deep[..., 0]
    for array, encoding, expected in (
            (deep, 'rgb16', high), (deep[..., ::-1], 'bgr16', high),
            (deep[..., [0, 1, 2, 0]], 'rgba16', high),
            (grey, 'mono16', np.stack([high[..., 0]] * 3, -1))):
        message = _message(array, encoding, step, is_bigendian=int(order == '>'))
        result = image_to_numpy(message)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, expected)
    message = _message(grey, 'mono16', step, is_bigendian=int(order == '>'))
    np.testing.assert_allclose(depth_to_numpy(message), grey / 1e3, rtol=1e-6)


def test_other_encodings_are_cv_bridges_business() -> None:
    grey = np.full((4, 6), 200, np.uint8)
    message = _message(grey, 'bayer_rggb8')
    if find_spec('cv_bridge') is None:
        with pytest.raises(ImageError, match='need cv_bridge'):
            image_to_numpy(message)
    else:
        np.testing.assert_array_equal(image_to_numpy(message), np.full((4, 6, 3), 200, np.uint8))


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
    ({'encoding': 'yuv555'}, 'encoding'), ({'encoding': ''}, 'encoding'),
    ({'step': 20}, 'step 20'), ({'height': 6}, 'bytes of data'), ({'height': 0}, 'size'),
    ({'width': 0}, 'size'), ({'width': 2**32 - 1}, 'size'), ({'data': b''}, '0 bytes of data'),
    ({'step': 2**32 - 1}, 'bytes of data')])
def test_malformed_images_say_why(change: dict[str, Any], reason: str) -> None:
    message = _message(FRAME, 'rgb8')
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ImageError, match=reason):
        image_to_numpy(message)


def test_compressed_there_and_back() -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None],
                             (64, 48, 3)).copy()
    smooth[..., 2] = 30
    message = numpy_to_compressed(smooth, Time(), 'cam', 95)
    result = compressed_to_numpy(message)
    assert result.shape == smooth.shape
    assert np.abs(result.astype(int) - smooth).max() < 12


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
