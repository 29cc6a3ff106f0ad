"""Camera messages to numpy and back, the same under rclpy and the DDS client.

Whatever is wrong with a message raises ImageError with the reason; nothing else escapes.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import BACKEND
from .messages import get_message

_ORDERS = {'rgb': (3, (0, 1, 2)), 'bgr': (3, (2, 1, 0)), 'rgba': (4, (0, 1, 2)),
           'bgra': (4, (2, 1, 0)), 'mono': (1, (0, 0, 0))}
_COLOR = {f'{name}{bits}': (f'u{bits // 8}', *order) for bits in (8, 16)
          for name, order in _ORDERS.items()}
_DEPTH = {'32FC1': ('f4', 1.0), '16UC1': ('u2', 1e-3), 'mono16': ('u2', 1e-3)}
MAX_SIDE = 16384
"""Largest height or width believed [pixels]; a wrong header must not make us reserve memory."""
MAX_PIXELS = 2 ** 26
"""Largest compressed image decoded."""
_HEADER = 2 ** 18  # bytes searched for a JPEG's size; EXIF and ICC data come before it


class ImageError(ValueError):
    """An image message that cannot be what it says."""


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

    An rgb8 image stays a view of the message, which may be read-only. Takes rgb, bgr, rgba, bgra
    and mono with 8 or 16 bits; of 16 the upper 8 are kept. Where cv_bridge is installed it
    decodes what else it knows (bayer, yuv422). Raise ImageError for anything else.
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
        raise ImageError(f'encoding {message.encoding!r}: one of {", ".join(_COLOR)} expected; '
                         f'others need cv_bridge ({type(error).__name__}: {error})') from error
    try:
        image = CvBridge().imgmsg_to_cv2(message, desired_encoding='rgb8')
    except Exception as error:
        raise ImageError(f'encoding {message.encoding!r}: cv_bridge: {error}') from error
    if image.dtype != np.uint8 or image.shape != (message.height, message.width, 3):
        raise ImageError(f'encoding {message.encoding!r}: cv_bridge made {image.dtype} '
                         f'{image.shape} of {message.width}x{message.height}')
    return image


def depth_to_numpy(message: Any) -> NDArray[np.float32]:
    """Return a 32FC1 (m) or 16UC1 (mm) sensor_msgs/Image as metres, float32 [H, W].

    Raise ImageError for another encoding and for an image without one finite value.
    """
    try:
        kind, scale = _DEPTH[message.encoding]
    except KeyError:
        raise ImageError(f'encoding {message.encoding!r}: one of {", ".join(_DEPTH)} '
                         'expected') from None
    dtype = np.dtype(('>' if message.is_bigendian else '<') + kind)
    rows = np.ascontiguousarray(_rows(message, dtype.itemsize, 1))
    depth = rows.view(dtype).astype(np.float32) * np.float32(scale)
    if not np.isfinite(depth).any():
        raise ImageError('no finite depth in the whole image')
    return depth


def compressed_to_numpy(message: Any) -> NDArray[np.uint8]:
    """Return sensor_msgs/CompressedImage (jpeg, png) as RGB uint8 [H, W, 3].

    Raise ImageError when the data is neither or cannot be decoded.
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
        raise ImageError(f'{message.format!r} data of {data.size} bytes: {error}') from error
    if bgr is None:
        raise ImageError(f'{message.format!r} data of {data.size} bytes cannot be decoded')
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


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


def _bulk(data: NDArray[np.uint8]) -> Any:
    """Return bytes as the middleware takes them fastest."""
    if BACKEND == 'dds':
        return data
    from array import array

    # rclpy copies anything but an array of its own type element by element.
    bulk = array('B')
    bulk.frombytes(data)  # type: ignore[arg-type]  # any buffer will do
    return bulk


def numpy_to_image(array: NDArray[Any], stamp: Any, frame_id: str = '',
                   encoding: str = 'rgb8') -> Any:
    """Return sensor_msgs/Image of an array; ``stamp`` is a Time message.

    uint8 [H, W, 3] ('rgb8', 'bgr8'), uint8 [H, W] ('mono8') or float32 [H, W] ('32FC1'). Raise
    ImageError if array and encoding disagree.
    """
    expected = {'rgb8': (3, np.uint8), 'bgr8': (3, np.uint8), 'mono8': (1, np.uint8),
                '32FC1': (1, np.float32)}
    if encoding not in expected:
        raise ImageError(f'encoding {encoding!r}: one of {", ".join(expected)} expected')
    channels, dtype = expected[encoding]
    shape = array.shape[2:] or (1,)
    if array.dtype != dtype or array.ndim not in (2, 3) or shape != (channels,) or not array.size:
        raise ImageError(f'{encoding} takes {np.dtype(dtype)} [H, W{", 3" * (channels == 3)}], '
                         f'got {array.dtype} {array.shape}')
    array = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
    header = get_message('std_msgs/msg/Header')(stamp=stamp, frame_id=frame_id)
    message = get_message('sensor_msgs/msg/Image')(
        header=header, height=array.shape[0], width=array.shape[1], encoding=encoding,
        is_bigendian=0, step=array.strides[0])
    # rclpy's constructor would copy it value by value; its setter does not.
    message.data = _bulk(array.reshape(-1).view(np.uint8))
    return message


def numpy_to_compressed(array: NDArray[np.uint8], stamp: Any, frame_id: str = '',
                        quality: int = 90) -> Any:
    """Return a JPEG sensor_msgs/CompressedImage of RGB uint8 [H, W, 3]."""
    import cv2

    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ImageError(f'uint8 [H, W, 3] expected, got {array.dtype} {array.shape}')
    done, data = cv2.imencode('.jpg', cv2.cvtColor(array, cv2.COLOR_RGB2BGR),
                              [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ImageError(f'cannot encode {array.shape} as JPEG')
    header = get_message('std_msgs/msg/Header')(stamp=stamp, frame_id=frame_id)
    message = get_message('sensor_msgs/msg/CompressedImage')(
        header=header, format='rgb8; jpeg compressed bgr8')
    message.data = _bulk(data.reshape(-1))
    return message
