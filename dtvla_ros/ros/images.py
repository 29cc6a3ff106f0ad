"""Camera images: serialized sensor_msgs messages to numpy and back, copied once at most.

Subscribe with ``raw=True`` and `parse_image` what comes; `Publisher.publish` takes the bytes of
`serialize_image`. rclpy would convert the pixels of a message on the way. Whatever is wrong with
an image raises ImageError with the reason; nothing else escapes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

_ORDERS = {'rgb': (3, (0, 1, 2)), 'bgr': (3, (2, 1, 0)), 'rgba': (4, (0, 1, 2)),
           'bgra': (4, (2, 1, 0)), 'mono': (1, (0, 0, 0))}
_COLOR = {f'{name}{bits}': (f'u{bits // 8}', *order) for bits in (8, 16)
          for name, order in _ORDERS.items()}
_WRITTEN = {'rgb8': (3, np.uint8), 'bgr8': (3, np.uint8), 'mono8': (1, np.uint8),
            '32FC1': (1, np.float32)}
_ENCAPSULATION = 4  # bytes of a serialized message that say how the rest is encoded
_LITTLE = b'\x00\x01\x00\x00'  # plain CDR, little endian
MAX_SIDE = 16384
"""Largest height or width believed [pixels]; a wrong header must not make us reserve memory."""
MAX_PIXELS = 2 ** 26
"""Largest compressed image decoded."""
_HEADER = 2 ** 18  # bytes searched for a JPEG's size; EXIF and ICC data come before it


class ImageError(ValueError):
    """An image message that cannot be what it says."""


@dataclass(frozen=True, slots=True)
class RawImage:
    """Fields of a serialized sensor_msgs/Image; ``data`` is a view of the message.

    ``stamp`` is in seconds; the others are named as in the message.
    """

    stamp: float
    frame_id: str
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RawCompressedImage:
    """Fields of a serialized sensor_msgs/CompressedImage; ``data`` is a view of the message."""

    stamp: float
    frame_id: str
    format: str
    data: NDArray[np.uint8]


class _Reader:
    """Reads the plain CDR of a serialized message from front to back."""

    def __init__(self, message: bytes) -> None:
        if len(message) < _ENCAPSULATION or message[0] != 0 or message[1] > 1:
            raise ImageError(f'{len(message)} bytes that are no plain CDR message')
        self._order = '<' if message[1] else '>'
        self._body = memoryview(message)[_ENCAPSULATION:]
        self._at = 0

    def number(self, kind: str = 'I', size: int = 4) -> int:
        self._at += -self._at % size
        try:
            value, = struct.unpack_from(self._order + kind, self._body, self._at)
        except struct.error:
            raise ImageError(f'message of {len(self._body)} bytes is cut off') from None
        self._at += size
        return int(value)

    def _take(self, count: int) -> memoryview:
        part = self._body[self._at:self._at + count]
        if len(part) < count:
            raise ImageError(f'message of {len(self._body)} bytes is cut off: {count} bytes from '
                             f'{self._at} on promised')
        self._at += count
        return part

    def stamp(self) -> float:
        sec = self.number('i')
        return sec + self.number() * 1e-9

    def text(self) -> str:
        return bytes(self._take(self.number())).rstrip(b'\0').decode('utf-8', 'replace')

    def bytes(self) -> NDArray[np.uint8]:
        part = self._take(self.number())
        return np.frombuffer(part, np.uint8) if len(part) else np.zeros(0, np.uint8)


def parse_image(message: bytes) -> RawImage:
    """Return the fields of a serialized sensor_msgs/Image, its pixels uncopied.

    Raise ImageError where it is cut off.
    """
    r = _Reader(message)
    return RawImage(r.stamp(), r.text(), r.number(), r.number(), r.text(), r.number('B', 1),
                    r.number(), r.bytes())


def parse_compressed(message: bytes) -> RawCompressedImage:
    """Return the fields of a serialized sensor_msgs/CompressedImage, its data uncopied.

    Raise ImageError where it is cut off.
    """
    r = _Reader(message)
    return RawCompressedImage(r.stamp(), r.text(), r.text(), r.bytes())


def _rows(message: Any, itemsize: int, channels: int) -> NDArray[np.uint8]:
    """Return the message's rows [H, W * channels * itemsize] without padding, uncopied."""
    height, width, step = message.height, message.width, message.step
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ImageError(f'size {width}x{height} is not between 1 and {MAX_SIDE}')
    row = width * channels * itemsize
    if step < row:
        raise ImageError(f'step {step} is less than the {row} bytes of a row')
    data = np.frombuffer(message.data, np.uint8) if len(message.data) else np.zeros(0, np.uint8)
    needed = step * (height - 1) + row
    if data.size < needed:
        raise ImageError(f'{data.size} bytes of data, {needed} needed for {width}x{height}, '
                         f'step {step}')
    if data.size >= step * height:
        return data[:step * height].reshape(height, step)[:, :row]
    # The last row may come without its padding.
    return np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)


def image_to_numpy(message: Any) -> NDArray[np.uint8]:
    """Return sensor_msgs/Image as RGB uint8 [H, W, 3].

    ``message`` is a `RawImage` or a message. An rgb8 image stays a view of it, which may be
    read-only. Takes rgb, bgr, rgba, bgra and mono with 8 or 16 bits; of 16 the upper 8 are kept.
    Where cv_bridge is installed it decodes what else it knows (bayer, yuv422). Raise ImageError
    for anything else.
    """
    try:
        kind, channels, order = _COLOR[message.encoding]
    except KeyError:
        return _from_cv_bridge(message)
    dtype = np.dtype(('>' if message.is_bigendian else '<') + kind)
    rows = _rows(message, dtype.itemsize, channels)
    if dtype.itemsize == 2:
        rows = rows[:, (0 if message.is_bigendian else 1)::2]
    pixels = rows.reshape(message.height, message.width, channels)
    if order == (0, 1, 2):
        return pixels[..., :3]
    return np.ascontiguousarray(pixels[..., list(order)])


def _from_cv_bridge(message: Any) -> NDArray[np.uint8]:
    """Let ROS's own package decode an encoding; it trusts the header, so check that first."""
    _rows(message, 1, 1)
    try:
        from cv_bridge import CvBridge
    except Exception as error:  # a cv_bridge built for another numpy raises about anything
        raise ImageError(f'encoding {message.encoding!r:.60}: one of {", ".join(_COLOR)} '
                         f'expected; others need cv_bridge ({type(error).__name__}: {error})'
                         ) from error
    try:
        image = CvBridge().imgmsg_to_cv2(message, desired_encoding='rgb8')
    except Exception as error:
        raise ImageError(f'encoding {message.encoding!r:.60}: cv_bridge: {error}') from error
    if image.dtype != np.uint8 or image.shape != (message.height, message.width, 3):
        raise ImageError(f'encoding {message.encoding!r:.60}: cv_bridge made {image.dtype} '
                         f'{image.shape} of {message.width}x{message.height}')
    return image


def compressed_to_numpy(message: Any) -> NDArray[np.uint8]:
    """Return sensor_msgs/CompressedImage (jpeg, png) as RGB uint8 [H, W, 3].

    ``message`` is a `RawCompressedImage` or a message. Raise ImageError when the data is neither
    or cannot be decoded.
    """
    import cv2

    data = np.frombuffer(message.data, np.uint8) if len(message.data) else np.zeros(0, np.uint8)
    height, width = _promised_size(data[:_HEADER].tobytes())
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f'size {width}x{height} is not between 1 and {MAX_PIXELS} pixels')
    if data[:2].tobytes() == b'\xff\xd8' and b'\xff\xd9' not in data[-16:].tobytes():
        # OpenCV fills the missing rows with grey and only warns.
        raise ImageError(f'JPEG of {data.size} bytes is cut off: no end marker')
    if data[:1].tobytes() == b'\x89':
        _require_whole_chunks(data)
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f'{message.format!r:.60} data of {data.size} bytes: {error}') from error
    if bgr is None:
        raise ImageError(f'{message.format!r:.60} data of {data.size} bytes cannot be decoded')
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


TRANSPORTS: dict[str, tuple[Any, Callable[[bytes], Any], Callable[[Any], NDArray[np.uint8]]]] = {
    'raw': (Image, parse_image, image_to_numpy),
    'compressed': (CompressedImage, parse_compressed, compressed_to_numpy)}
"""Message type, parser and decoder of each way to send images."""


def _require_whole_chunks(png: NDArray[np.uint8]) -> None:
    """Raise ImageError unless all chunks of a PNG lie within its bytes, up to the last.

    OpenCV reserves what a chunk says it holds, gigabytes of it, before it reads.
    """
    place, kind = 8, b''
    while kind != b'IEND':
        if place + 12 > png.size:
            raise ImageError(f'PNG of {png.size} bytes is cut off: no end')
        length, kind = struct.unpack_from('>I4s', png.data, place)
        place += 12 + length
        if place > png.size:
            raise ImageError(f'PNG of {png.size} bytes is damaged: a chunk of {length} bytes')


def _promised_size(head: bytes) -> tuple[int, int]:
    """Return height and width a PNG's or JPEG's header promises.

    OpenCV reserves memory for them before it looks at the rest.
    """
    if head.startswith(b'\x89PNG\r\n\x1a\n') and len(head) >= 24:
        width, height = struct.unpack_from('>II', head, 16)
        return height, width
    if not head.startswith(b'\xff\xd8'):
        raise ImageError(f'{len(head)} bytes that are neither JPEG nor PNG')
    place = 2
    while place + 9 <= len(head) and head[place] == 0xff:
        marker, length = head[place + 1], struct.unpack_from('>H', head, place + 2)[0]
        if marker == 0xff:  # fill byte
            place += 1
        elif 0xc0 <= marker <= 0xcf and marker not in (0xc4, 0xc8, 0xcc):
            height, width = struct.unpack_from('>HH', head, place + 5)
            return height, width
        else:
            place += 2 + length
    raise ImageError('JPEG without a frame header')


def _text(value: str) -> bytes:
    data = value.encode() + b'\0'
    return struct.pack('<I', len(data)) + data


def _padded(head: bytes) -> bytes:
    return head + bytes(-len(head) % 4)


def serialize_image(array: NDArray[Any], stamp: Time, frame_id: str = '',
                    encoding: str = 'rgb8') -> bytes:
    """Return a serialized sensor_msgs/Image of an array; ``stamp`` is a Time message.

    uint8 [H, W, 3] ('rgb8', 'bgr8'), uint8 [H, W] ('mono8') or float32 [H, W] ('32FC1'). Raise
    ImageError if array and encoding disagree.
    """
    if encoding not in _WRITTEN:
        raise ImageError(f'encoding {encoding!r}: one of {", ".join(_WRITTEN)} expected')
    channels, dtype = _WRITTEN[encoding]
    shape = array.shape[2:] or (1,)
    if array.dtype != dtype or array.ndim not in (2, 3) or shape != (channels,) or not array.size:
        raise ImageError(f'{encoding} takes {np.dtype(dtype)} [H, W{", 3" * (channels == 3)}], '
                         f'got {array.dtype} {array.shape}')
    array = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
    head = _padded(struct.pack('<iI', stamp.sec, stamp.nanosec) + _text(frame_id))
    head += struct.pack('<II', array.shape[0], array.shape[1]) + _text(encoding) + b'\0'
    head = _padded(head) + struct.pack('<II', array.strides[0], array.nbytes)
    return b''.join((_LITTLE, head, array.data))


def serialize_compressed(array: NDArray[np.uint8], stamp: Time, frame_id: str = '',
                         quality: int = 90) -> bytes:
    """Return a serialized sensor_msgs/CompressedImage, a JPEG of RGB uint8 [H, W, 3]."""
    import cv2

    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ImageError(f'uint8 [H, W, 3] expected, got {array.dtype} {array.shape}')
    done, data = cv2.imencode('.jpg', cv2.cvtColor(array, cv2.COLOR_RGB2BGR),
                              [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ImageError(f'cannot encode {array.shape} as JPEG')
    head = _padded(struct.pack('<iI', stamp.sec, stamp.nanosec) + _text(frame_id))
    head = _padded(head + _text('rgb8; jpeg compressed bgr8')) + struct.pack('<I', data.size)
    return b''.join((_LITTLE, head, data.data))
