"""Camera messages to numpy, sound and malformed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image

from dtvla_ros.ros import images

RANDOM = np.random.default_rng(1)
FRAME = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def _message(array: np.ndarray, encoding: str, step: int = 0, **fields: Any) -> Image:
    """Return an image whose rows are padded up to ``step`` bytes."""
    rows = np.ascontiguousarray(array).reshape(array.shape[0], -1).view(np.uint8)
    padded = np.zeros((rows.shape[0], max(step, rows.shape[1])), np.uint8)
    padded[:, :rows.shape[1]] = rows
    return Image(height=array.shape[0], width=array.shape[1], encoding=encoding,
                 step=padded.shape[1], data=padded.tobytes(), **fields)


@pytest.mark.parametrize(('encoding', 'array'), [
    ('rgb8', FRAME), ('bgr8', FRAME[..., ::-1]), ('mono8', FRAME[..., 0]),
    ('32FC1', FRAME[..., 0].astype(np.float32)),
    ('rgb8', FRAME[::-1, ::-1]), ('rgb8', FRAME[:, :3])])  # views are sent as they look
@pytest.mark.parametrize('frame_id', ['', 'cam', 'came', 'kamera \u00f6'])
def test_there_and_back(encoding: str, array: np.ndarray, frame_id: str) -> None:
    """Our bytes are rclpy's, both ways."""
    data = images.serialize_image(array, Time(sec=3, nanosec=5), frame_id, encoding)
    theirs = deserialize_message(data, Image)
    assert (theirs.header.stamp, theirs.header.frame_id) == (Time(sec=3, nanosec=5), frame_id)
    assert (theirs.height, theirs.width, theirs.encoding) == (*array.shape[:2], encoding)
    for ours in (images.parse_image(data), images.parse_image(serialize_message(theirs))):
        assert (ours.stamp, ours.frame_id) == (3 + 5e-9, frame_id)
        for name in ('height', 'width', 'encoding', 'is_bigendian', 'step'):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.data.tobytes() == bytes(theirs.data) == array.tobytes()
        if encoding != '32FC1':
            np.testing.assert_array_equal(*map(images.image_to_numpy, (ours, theirs)))


def test_truncated_messages_say_so_but_the_last_row_may_lack_its_padding() -> None:
    data = images.serialize_image(FRAME, Time(), 'cam')
    for length in range(len(data)):
        with pytest.raises(images.ImageError, match='cut off|no plain CDR'):
            images.parse_image(data[:length])
    images.parse_image(data)
    message = _message(FRAME, 'rgb8', 32)
    message.data = bytes(message.data)[:-(32 - 21)]
    np.testing.assert_array_equal(images.image_to_numpy(message), FRAME)


@pytest.mark.parametrize('quality', [40, 95])
@pytest.mark.parametrize('more', [b'', bytes(600), RANDOM.bytes(199), b'\xff' * 40,
                                  b'\xff\xd8\xff\xe0\x00\x10JFIF'])
def test_bytes_after_the_end_of_a_jpeg_are_no_matter(quality: int, more: bytes) -> None:
    """A buffer of fixed size, or another image behind; a file cut off before them is refused."""
    image = RANDOM.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    whole = images.parse_compressed(
        images.serialize_compressed(image, Time(), quality=quality)).data.tobytes()
    first, second = (images.compressed_to_numpy(CompressedImage(format='jpeg', data=data))
                     for data in (whole, whole + more))
    np.testing.assert_array_equal(first, second)
    if more:
        cut = CompressedImage(format='jpeg', data=whole[:len(whole) // 2] + bytes(600))
        with pytest.raises(images.ImageError, match='cut off'):
            images.compressed_to_numpy(cut)


@pytest.mark.parametrize('settings', [[cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
                                      [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]])
def test_the_end_is_found_behind_every_kind_of_scan(settings: list[int]) -> None:
    image = RANDOM.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = cv2.imencode('.jpg', image, settings)[1].tobytes()
    thumbnail = b'\xff\xe1\x00\x06\xff\xd8\xff\xd9'  # the end of another image
    for cut, good in ((0, True), (2, False), (300, False)):
        made = data[:2] + thumbnail + data[2:len(data) - cut] + bytes(600)
        message = CompressedImage(format='jpeg', data=made)
        if good:
            assert images.compressed_to_numpy(message).shape == (48, 64, 3)
        else:
            with pytest.raises(images.ImageError, match='cut off'):
                images.compressed_to_numpy(message)


GREY = FRAME[..., 0]
RGBA = np.concatenate([FRAME, np.full((5, 7, 1), 9, np.uint8)], 2)


def _deep(order: str) -> list[tuple[np.ndarray, str, np.ndarray]]:
    """Return images of 16 bits in a byte order with encoding and expectation."""
    deep = RANDOM.integers(0, 65536, (5, 7, 3)).astype(f'{order}u2')
    high = (deep >> 8).astype(np.uint8)
    return [(deep, 'rgb16', high), (deep[..., ::-1], 'bgr16', high),
            (deep[..., [0, 1, 2, 0]], 'rgba16', high),
            (deep[..., 0], 'mono16', np.stack([high[..., 0]] * 3, -1))]


@pytest.mark.parametrize('step', [0, 32, 64])
@pytest.mark.parametrize(('array', 'encoding', 'expected'), [
    (FRAME, 'rgb8', FRAME), (FRAME[..., ::-1], 'bgr8', FRAME), (RGBA, 'rgba8', FRAME),
    (RGBA[..., [2, 1, 0, 3]], 'bgra8', FRAME), (GREY, 'mono8', np.stack([GREY] * 3, -1)),
    *_deep('<'), *_deep('>')])
def test_encodings_row_padding_and_byte_order(array: np.ndarray, encoding: str,
                                              expected: np.ndarray, step: int) -> None:
    result = images.image_to_numpy(_message(
        array, encoding, step, is_bigendian=int(array.dtype.str[0] == '>')))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


def test_other_encodings_are_cv_bridges_business() -> None:
    message = _message(np.full((4, 6), 200, np.uint8), 'bayer_rggb8')
    if find_spec('cv_bridge') is None:
        with pytest.raises(images.ImageError, match='need cv_bridge'):
            images.image_to_numpy(message)
    else:
        assert (images.image_to_numpy(message) == np.full((4, 6, 3), 200)).all()


@pytest.mark.parametrize(('change', 'reason'), [
    ({'encoding': 'yuv555'}, 'encoding'), ({'encoding': ''}, 'encoding'),
    ({'step': 20}, 'step 20'), ({'height': 6}, 'bytes of data'), ({'height': 0}, 'size'),
    ({'width': 0}, 'size'), ({'width': 2**32 - 1}, 'size'), ({'data': b''}, '0 bytes of data'),
    ({'step': 2**32 - 1}, 'bytes of data')])
def test_malformed_images_say_why(change: dict[str, Any], reason: str) -> None:
    message = _message(FRAME, 'rgb8')
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(images.ImageError, match=reason):
        images.image_to_numpy(message)


def test_compressed_there_and_back() -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None],
                             (64, 48, 3)).copy()
    smooth[..., 2] = 30
    data = images.serialize_compressed(smooth, Time(sec=1), 'cam', 95)
    theirs = deserialize_message(data, CompressedImage)
    for message in map(images.parse_compressed, (data, serialize_message(theirs))):
        assert (message.stamp, message.frame_id, message.format) == (1.0, 'cam', theirs.format)
        assert message.data.tobytes() == bytes(theirs.data)
        assert np.abs(images.compressed_to_numpy(message).astype(int) - smooth).max() < 12


def _png(array: np.ndarray, said: str, before: bytes = b'') -> CompressedImage:
    return CompressedImage(format=said, data=before + cv2.imencode('.png', array)[1].tobytes())


DEPTHS = RANDOM.integers(400, 4000, (5, 7)).astype(np.uint16)  # mm


@pytest.mark.parametrize('message', [
    _message(DEPTHS, '16UC1'), _message(DEPTHS.astype(np.float32), '32FC1'),
    _message(FRAME, '8UC3'), _png(DEPTHS, '16UC1; png compressed '), _png(DEPTHS, 'png'),
    _png(DEPTHS, ''), _png(DEPTHS, '16UC1;png compressed'),
    _png(DEPTHS, '16UC1; compressedDepth png', bytes(12)),
    _png(DEPTHS, '16UC1; compressedDepth rvl', bytes(12)),
    _png(DEPTHS, '32FC1; compressedDepth', bytes(12)),
    _png(FRAME[..., 0], '8UC1; jpeg compressed ')], ids=lambda m: str(
        getattr(m, 'encoding', None) or m.format))
def test_depths_are_no_image_however_they_are_sent(message: Any) -> None:
    decode = (images.image_to_numpy if isinstance(message, Image) else
              images.compressed_to_numpy)
    with pytest.raises(images.ImageError, match='depths.*no colours'):
        decode(message)


@pytest.mark.parametrize('said', ['mono16; png compressed ', 'mono8; png compressed ', 'png',
                                  'rgb8; png compressed bgr8', 'bgr8;png compressed bgr8'])
def test_grey_and_coloured_png_are_read(said: str) -> None:
    grey, deep = said.startswith('mono'), np.uint16(257) if '16' in said else np.uint8(1)
    array = FRAME[..., 0] if grey else FRAME[..., ::-1]
    np.testing.assert_array_equal(
        images.compressed_to_numpy(_png(array * deep, said)),
        np.stack([FRAME[..., 0]] * 3, -1) if grey else FRAME)


@pytest.mark.parametrize(('array', 'encoding'), [
    (FRAME.astype(np.float64), 'rgb8'), (FRAME[..., :2], 'rgb8'), (FRAME[..., 0], 'rgb8'),
    (FRAME, 'mono8'), (FRAME, '32FC1'), (np.zeros((0, 4, 3), np.uint8), 'rgb8'), (FRAME, 'rgb9')])
def test_wrong_arrays_are_refused(array: np.ndarray, encoding: str) -> None:
    with pytest.raises(images.ImageError):
        images.serialize_image(array, Time(), '', encoding)
