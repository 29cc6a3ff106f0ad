"""RGB frames to mp4 and back, with full colour resolution and cheap random access."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError

CODEC = 'libx264'
# Chroma is not subsampled: small coloured objects are what the policy has to find.
PIXEL_FORMAT = 'yuv444p'
# A key frame every second frame makes reading a random frame cost two decodes.
OPTIONS = {'crf': '14', 'preset': 'veryfast', 'g': '2', 'bf': '0'}


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: int) -> int:
    """Encode uint8 RGB frames [H, W, 3] at ``fps``; return how many were written."""
    count = 0
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(CODEC, rate=fps, options=OPTIONS)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = PIXEL_FORMAT
        stream.thread_count = 1
        for image in frames:
            if count == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
            frame.pts = count
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode(None))
    return count


def read_video(path: Path, start: float = 0.0) -> Iterator[NDArray[np.uint8]]:
    """Yield uint8 RGB frames [H, W, 3] from the frame shown at ``start`` [s] on.

    Raises ``UserError`` when the file is missing or is no video.
    """
    try:
        container = av.open(str(path))
    except (OSError, av.FFmpegError) as error:
        raise UserError(f'{path}: cannot read this video ({error}); collect again') from error
    with container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        assert stream.average_rate and stream.time_base
        half = 0.5 / float(stream.average_rate)
        if start > half:
            container.seek(int((start + half) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time >= start - half:
                yield frame.to_ndarray(format='rgb24').astype(np.uint8, copy=False)
