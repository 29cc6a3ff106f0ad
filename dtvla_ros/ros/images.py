"""Camera images: serialized sensor_msgs messages to numpy and back, copied once at most.

Subscribe with ``raw=True`` and `parse_image`; publish what `serialize_image` returns: rclpy would
convert the pixels. Whatever is wrong with an image raises ImageError, nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

_ORDERS = {'rgb': (3, (0, 1, 2)), 'bgr': (3, (2, 1, 0)), 'rgba': (4, (0, 1, 2)),
           'bgra': (4, (2, 1, 0)), 'mono': (1, (0, 0, 0))}
_COLOR = {f'{name}{bits}': (f'u{bits // 8}', *order) for bits in (8, 16)
          for name, order in _ORDERS.items()}
_WRITTEN = {'rgb8': (3, np.uint8), 'bgr8': (3, np.uint8), 'mono8': (1, np.uint8),
            '32FC1': (1, np.float32)}
_NUMBERS = re.compile(r'(8|16|32|64)[USF]C\d*')  # encodings of OpenCV's matrices
_ENCAPSULATION = 4  # bytes of a serialized message that say how the rest is encoded
MAX_SIDE = 16384  # height or width believed [px]: a wrong header must not reserve memory
MAX_PIXELS = 2 ** 26  # of a compressed image that is decoded


class ImageError(ValueError):
    """An image message that cannot be what it says."""


class RawImage(NamedTuple):
    """Fields of a serialized sensor_msgs/Image; ``stamp`` [s], ``data`` a view of the message."""

    stamp: float
    frame_id: str
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: NDArray[np.uint8]


class RawCompressedImage(NamedTuple):
    """The same of a sensor_msgs/CompressedImage."""

    stamp: float
    frame_id: str
    format: str
    data: NDArray[np.uint8]


def _fields(message: bytes, kinds: str) -> Iterator[Any]:
    """Yield the fields of a plain CDR message: numbers as `struct` calls them, s texts, d data."""
    if len(message) < _ENCAPSULATION or message[0] != 0 or message[1] > 1:
        raise ImageError(f'{len(message)} bytes that are no plain CDR message')
    order, body, at = '<' if message[1] else '>', memoryview(message)[_ENCAPSULATION:], 0
    for kind in kinds:
        size = 1 if kind == 'B' else 4
        at += -at % size
        value = body[at:at + size]
        at += size
        if len(value) == size:
            value, = struct.unpack(order + ('I' if kind in 'sd' else kind), value)
            if kind in 'sd':
                size, value = value, body[at:at + value]
                at += size
        if at > len(body):
            raise ImageError(f'message of {len(body)} bytes is cut off: {size} bytes promised')
        yield (bytes(value).rstrip(b'\0').decode('utf-8', 'replace') if kind == 's' else
               np.asarray(value) if kind == 'd' else value)


def parse_image(message: bytes) -> RawImage:
    """Return the fields of a serialized sensor_msgs/Image. Raise ImageError if it is cut off."""
    sec, nanosec, *rest = _fields(message, 'iIsIIsBId')
    return RawImage(sec + nanosec * 1e-9, *rest)


def parse_compressed(message: bytes) -> RawCompressedImage:
    """Return the same of a serialized sensor_msgs/CompressedImage."""
    sec, nanosec, *rest = _fields(message, 'iIssd')
    return RawCompressedImage(sec + nanosec * 1e-9, *rest)


def _rows(message: Any, itemsize: int, channels: int) -> NDArray[np.uint8]:
    """Return the message's rows [H, W * channels * itemsize] without padding, uncopied."""
    height, width, step = message.height, message.width, message.step
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ImageError(f'size {width}x{height} is not between 1 and {MAX_SIDE}')
    row = width * channels * itemsize
    if step < row:
        raise ImageError(f'step {step} is less than the {row} bytes of a row')
    data = np.asarray(memoryview(message.data))
    needed = step * (height - 1) + row
    if data.size < needed:
        raise ImageError(f'{data.size} bytes of data, {needed} needed for {width}x{height}, '
                         f'step {step}')
    if data.size >= step * height:
        return data[:step * height].reshape(height, step)[:, :row]
    # The last row may come without its padding.
    return np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)


def image_to_numpy(message: Any) -> NDArray[np.uint8]:
    """Return sensor_msgs/Image (a message or `RawImage`) as RGB uint8 [H, W, 3].

    An rgb8 image stays a view, maybe read-only. Takes rgb, bgr, rgba, bgra and mono with 8 or 16
    bits (the upper 8 are kept); else cv_bridge decodes it, or ImageError is raised. Depths and
    other numbers are no image: '16UC1', '32FC1'.
    """
    _require_colours(message.encoding)
    if message.encoding not in _COLOR:
        return _from_cv_bridge(message)
    kind, channels, order = _COLOR[message.encoding]
    dtype = np.dtype(('>' if message.is_bigendian else '<') + kind)
    rows = _rows(message, dtype.itemsize, channels)
    if dtype.itemsize == 2:
        rows = rows[:, (0 if message.is_bigendian else 1)::2]
    pixels = rows.reshape(message.height, message.width, channels)
    return pixels[..., :3] if order == (0, 1, 2) else np.ascontiguousarray(pixels[..., order])


def _require_colours(encoding: str) -> None:
    if _NUMBERS.fullmatch(encoding) or 'compressedDepth' in encoding:
        raise ImageError(f'encoding {encoding!r:.60} holds depths or other numbers, no colours: '
                         'name the topic of a colour camera')


def _from_cv_bridge(message: Any) -> NDArray[np.uint8]:
    """Let ROS's own package decode an encoding; it trusts the header, so check that first."""
    _rows(message, 1, 1)
    try:
        from cv_bridge import CvBridge

        image = CvBridge().imgmsg_to_cv2(message, desired_encoding='rgb8')
    except Exception as error:  # a cv_bridge built for another numpy raises about anything
        raise ImageError(f'encoding {message.encoding!r:.60}: one of {", ".join(_COLOR)} expected;'
                         f' others need cv_bridge ({type(error).__name__}: {error!s:.200})'
                         ) from error
    if image.dtype != np.uint8 or image.shape != (message.height, message.width, 3):
        raise ImageError(f'encoding {message.encoding!r:.60}: cv_bridge made {image.dtype} '
                         f'{image.shape} of {message.width}x{message.height}')
    return image


def compressed_to_numpy(message: Any) -> NDArray[np.uint8]:
    """Return a CompressedImage (jpeg, png; message or raw) as RGB uint8 [H, W, 3].

    Raise ImageError when the data is neither or cannot be decoded, and for depths as
    `image_to_numpy` does: by the format's encoding, or a grey PNG of 16 bits that says none.
    """
    import cv2

    # As image_transport writes it: 'bgr8; jpeg compressed bgr8', '16UC1; compressedDepth png'.
    encoding, _, way = message.format.partition(';')
    _require_colours('compressedDepth' if 'compressedDepth' in way else encoding.strip())
    data = np.asarray(memoryview(message.data))
    told = f'{message.format!r:.60} data of {data.size} bytes'
    mode = _require_sound(data.tobytes(), told)
    if mode.startswith('I') and encoding.strip() != 'mono16':
        _require_colours('16UC1')
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f'{told}: {error}') from error
    if bgr is None:
        raise ImageError(f'{told} cannot be decoded')
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


TRANSPORTS: dict[str, tuple[Any, Callable[[bytes], Any], Callable[[Any], NDArray[np.uint8]]]] = {
    'raw': (Image, parse_image, image_to_numpy),
    'compressed': (CompressedImage, parse_compressed, compressed_to_numpy)}
"""Message type, parser and decoder of each way to send images."""


def _require_sound(data: bytes, told: str) -> str:
    """Return Pillow's mode of a JPEG or PNG; ImageError unless it is whole and of a fair size.

    OpenCV reserves what headers promise, and fills the missing rows of a JPEG with grey.
    """
    try:
        with Pillow.open(BytesIO(data), formats=('JPEG', 'PNG')) as head:  # decodes nothing
            (width, height), kind, mode = head.size, head.format, head.mode
            if kind == 'PNG':
                head.verify()
    except Exception as error:  # Pillow raises about anything
        why = '' if isinstance(error, UnidentifiedImageError) else f': {error!s:.200}'
        raise ImageError(f'{told}: no sound JPEG or PNG{why}') from error
    if height * width > MAX_PIXELS:
        raise ImageError(f'{told}: {width}x{height} is more than {MAX_PIXELS} pixels')
    if kind != 'PNG' and b'\xff\xd9' not in data[-16:] and not _has_end(data):
        raise ImageError(f'{told} is cut off: no end marker')
    return mode


def _has_end(jpeg: bytes) -> bool:
    """Return whether a JPEG has its end marker, whatever follows it.

    The same two bytes may stand in a segment, for instance as the end of a thumbnail.
    """
    at = 2
    while (at := jpeg.find(b'\xff', at)) >= 0 and at + 1 < len(jpeg):
        marker = jpeg[at + 1]
        if marker == 0xd9:
            return True
        # Stuffed bytes, restarts and filling stand alone, all else has a length.
        alone = marker in (0x00, 0x01, 0xff) or 0xd0 <= marker <= 0xd8
        at += 1 if alone else 2 + int.from_bytes(jpeg[at + 2:at + 4], 'big')
    return False


def _serialized(message: Any, data: memoryview) -> bytes:
    """Serialize a message whose last field, which is empty, is to hold ``data``."""
    return b''.join((serialize_message(message)[:-4], struct.pack('<I', data.nbytes), data))


def serialize_image(array: NDArray[Any], stamp: Time, frame_id: str = '',
                    encoding: str = 'rgb8') -> bytes:
    """Return a serialized sensor_msgs/Image; raise ImageError if array and encoding disagree.

    uint8 [H, W, 3] ('rgb8', 'bgr8'), uint8 [H, W] ('mono8') or float32 [H, W] ('32FC1').
    """
    if encoding not in _WRITTEN:
        raise ImageError(f'encoding {encoding!r}: one of {", ".join(_WRITTEN)} expected')
    channels, dtype = _WRITTEN[encoding]
    shape = array.shape[2:] or (1,)
    if array.dtype != dtype or array.ndim not in (2, 3) or shape != (channels,) or not array.size:
        raise ImageError(f'{encoding} takes {np.dtype(dtype)} [H, W{", 3" * (channels == 3)}], '
                         f'got {array.dtype} {array.shape}')
    array = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
    return _serialized(Image(
        header=Header(stamp=stamp, frame_id=frame_id), height=array.shape[0],
        width=array.shape[1], encoding=encoding, step=array.strides[0]), array.data)


def to_jpeg(array: NDArray[np.uint8], quality: int = 90) -> NDArray[np.uint8]:
    """Return the bytes of a JPEG of RGB uint8 [H, W, 3]; raise ImageError for another array."""
    import cv2

    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ImageError(f'uint8 [H, W, 3] expected, got {array.dtype} {array.shape}')
    done, data = cv2.imencode('.jpg', cv2.cvtColor(array, cv2.COLOR_RGB2BGR),
                              [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ImageError(f'cannot encode {array.shape} as JPEG')
    return np.asarray(data)


def serialize_compressed(array: NDArray[np.uint8], stamp: Time, frame_id: str = '',
                         quality: int = 90) -> bytes:
    """Return a serialized sensor_msgs/CompressedImage, a JPEG of RGB uint8 [H, W, 3]."""
    return _serialized(CompressedImage(
        header=Header(stamp=stamp, frame_id=frame_id), format='rgb8; jpeg compressed bgr8'),
        to_jpeg(array, quality).data)
