"""RGB frames to mp4 and back, with full colour resolution and cheap random access."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError
from dtvla_ros.files import unreadable

CODEC = 'libx264'
# Chroma is not subsampled: small coloured objects are what the policy has to find.
PIXEL_FORMAT = 'yuv444p'
# A key frame every second frame makes reading a random frame cost two decodes.
OPTIONS = {'crf': '14', 'preset': 'veryfast', 'g': '2', 'bf': '0'}
AGAIN = 'copy or record it again'
RATE = 0.01  # frames a second by which a video's rate may differ from its dataset's


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float) -> int:
    """Encode uint8 RGB frames [H, W, 3] at ``fps``; return how many were written."""
    count = 0
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(
            CODEC, rate=Fraction(fps).limit_denominator(1001), options=OPTIONS)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt, stream.thread_count = PIXEL_FORMAT, 1
        for count, image in enumerate(frames, 1):
            if count == 1:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
            frame.pts = count - 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return count


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a video's stream to read it. Raises ``UserError`` when it is missing or is no video."""
    try:
        container = av.open(str(path))
    except (OSError, ValueError, av.FFmpegError) as error:
        raise unreadable(path, error, AGAIN, 'no video that can be read') from None
    with container:
        if not container.streams.video or not container.streams.video[0].average_rate:
            raise UserError(f'{path}: this video has no images; {AGAIN}')
        try:
            yield container.streams.video[0]
        except (ValueError, av.FFmpegError) as error:
            if getattr(error, 'errno', None) == errno.ENOSPC:  # of what is written meanwhile
                raise
            raise unreadable(path, error, AGAIN, 'a damaged video') from None


def read_video(path: Path, start: float = 0.0, fps: float | None = None,
               ) -> Iterator[NDArray[np.uint8]]:
    """Yield RGB frames [H, W, 3] from the one shown ``start`` [s] after the first one on.

    Raises ``UserError``, also where it does not show ``fps`` frames a second.
    """
    with _opened(path) as stream:
        stream.thread_count = 1
        rate = float(stream.average_rate)
        if fps is not None and abs(rate - fps) > RATE:
            raise UserError(f'{path}: {other_rate(rate, fps)}')
        half = 0.5 / rate
        start += float((stream.start_time or 0) * stream.time_base)
        first, frames = _decode(stream, start + half, start - half)
        if first is None or first.time > start + half:
            # Some codecs cannot show every frame after a jump into the middle.
            first, frames = _decode(stream, 0.0, start - half)
        for frame in chain([] if first is None else [first], frames):
            yield frame.to_ndarray(format='rgb24').astype(np.uint8, copy=False)


def other_rate(rate: float, fps: float) -> str:
    """Return what to say of a video that is not of its dataset's rate, and what to do."""
    return f'{rate:g} images a second, the dataset has {fps:g}; encode it at the rate of the data'


def _decode(stream: Any, begin: float, earliest: float,
            ) -> tuple[av.VideoFrame | None, Iterator[av.VideoFrame]]:
    """Jump to ``begin`` [s]; return the first frame shown from ``earliest`` on, and the rest."""
    stream.container.seek(int(begin / stream.time_base), stream=stream)
    frames = stream.container.decode(stream)
    return next((frame for frame in frames
                 if frame.time is not None and frame.time >= earliest), None), frames


def probe(path: Path) -> dict[str, Any]:
    """Return size, codec, pixel format and rate, without decoding. Raises ``UserError``."""
    with _opened(path) as stream:
        return {'height': stream.height, 'width': stream.width,
                'codec': stream.codec.canonical_name, 'pix_fmt': stream.pix_fmt,
                'fps': float(stream.average_rate or 0),
                'extradata': stream.codec_context.extradata}


def count_frames(path: Path) -> int:
    """Return how many frames a video file holds, without decoding. Raises ``UserError``."""
    with _opened(path) as stream:
        return sum(packet.size > 0 for packet in stream.container.demux(stream))


def can_join(paths: Iterable[Path], fps: int) -> bool:
    """Return whether whole files of ``fps`` can be put into one without encoding them anew."""
    kinds = [probe(path) for path in paths]
    return all(kind == kinds[0] and kind['fps'] == fps for kind in kinds)


def join_videos(path: Path, files: Sequence[tuple[Path, int]], fps: int) -> int:
    """Write files that ``can_join`` one after the other into one; return the number of frames.

    ``files``: paths, and how many frames each holds. No image is encoded anew. Raises
    ``UserError`` when one holds another number.
    """
    done, target = 0, None
    with av.open(str(path), 'w') as out:
        for file, length in files:
            with _opened(file) as source:
                if target is None:
                    target = out.add_stream_from_template(source, opaque=True)
                # The last one is empty and marks the end.
                packets = [packet for packet in source.container.demux(source) if packet.size]
                if len(packets) != length:
                    raise UserError(
                        f'{file}: {len(packets)} frames for {length} rows of data; run dtvla data '
                        'validate, then copy or record this episode again')
                offset = round(done / fps / source.time_base) - (source.start_time or 0)
                for packet in packets:
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = target
                    out.mux(packet)
            done += length
    return done
