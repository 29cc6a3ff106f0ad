"""The film and the sheet of moments that a demo leaves."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image

from dtvla_ros.caption import HEIGHT, TOP, WIDTH, Caption
from dtvla_ros.demo.display import CLOSING_FRAMES, SHEET_MOMENTS, Recorder
from dtvla_ros.errors import UserError


def pair(value: int):
    """Return the images of both cameras, one dark where the other is bright."""
    return {'primary': np.full((128, 128, 3), value, np.uint8),
            'wrist': np.full((64, 64, 3), 255 - value, np.uint8)}


def test_film_and_sheet_show_what_was_recorded(tmp_path):
    recorder = Recorder(tmp_path / 'demo.mp4', tmp_path / 'demo.png', 20 / 3)
    for task, success in (('stack', False), ('stack', True), ('push', True)):
        for step in range(5):
            value = 200 if success else 20
            recorder.add(pair(value), Caption(task, 'reach the cube', f'step {step}'))
        recorder.end_episode(task, success)
    recorder.close()
    with av.open(str(tmp_path / 'demo.mp4')) as film:
        frames = [f.to_ndarray(format='rgb24') for f in film.decode(video=0)]
        assert float(film.streams.video[0].average_rate) == pytest.approx(20 / 3, rel=1e-3)
    assert len(frames) == 3 * (5 + CLOSING_FRAMES)
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    assert [frames[k][200, 100].mean() for k in (0, 12)] == pytest.approx([20, 200], abs=8)
    sheet = np.asarray(Image.open(tmp_path / 'demo.png'))
    width = sheet.shape[1] // len(SHEET_MOMENTS)
    shown = sheet[sheet.shape[0] // 4, 60::width].mean(1)
    np.testing.assert_allclose(shown, 200, atol=3)  # the first task's success, not its failure


def test_a_stop_is_a_red_band_across_the_film_and_a_failure_has_its_reason(tmp_path):
    recorder = Recorder(tmp_path / 'demo.mp4', tmp_path / 'demo.png', 10.0)
    recorder.stop('before the first image')
    recorder.add(pair(20), Caption('stack', 'reach the cube', 'step 1'))
    recorder.stop('e-stop (SPACE at 16:45:47)')
    recorder.end_episode('stack', False, 'not done within 180 steps')
    recorder.close()
    with av.open(str(tmp_path / 'demo.mp4')) as film:
        frames = [f.to_ndarray(format='rgb24') for f in film.decode(video=0)]
    red = [bool((f[TOP // 2, ::8, 0].astype(int) - f[TOP // 2, ::8, 1] > 100).mean() > 0.6)
           for f in frames]
    assert red == [False] + [True] * 15 + [False] * CLOSING_FRAMES


def test_a_film_that_cannot_be_written_is_reported_and_of_nothing_nothing_is_left(tmp_path):
    Recorder(tmp_path / 'demo.mp4', tmp_path / 'demo.png', 5.0).close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'file').write_text('in the way')
    recorder = Recorder(tmp_path / 'file' / 'demo.mp4', tmp_path / 'demo.png', 5.0)
    recorder.add(pair(3), Caption('a', 'b', 'c'))
    with pytest.raises(UserError, match='cannot write .*demo.mp4'):
        recorder.close()
