"""Row 36: a camera that sends far more than anybody can look at."""

from __future__ import annotations

import numpy as np
import pytest

from dtvla_ros.ros.processes import resident_memory
from test.faults.rig import drop

GROWTH = 30.0  # of the policy's memory while frames wait in its reader [MB]


@pytest.mark.slow
def test_36_a_flood_of_images(rig, check, request):
    seconds = request.config.getoption('--flood-seconds', default=8)
    rig.begin('vla_node')
    rig.begin('command_gate')
    rig.ready()
    pid = rig.processes['vla_node'].pid
    # It is the camera that floods. Two publishers on one topic, one of images that DDS sends in
    # fragments and one of smaller ones, let Fast DDS 2.14's reader grow without end.
    rig.inject(image_primary=drop)
    flood = rig.launch('flood', 'test/faults/flood.py', '/image_primary', str(seconds))
    rig.wait(3.0)
    before = resident_memory(pid)
    rig.stamps.clear()
    rig.spin(lambda: flood.poll() is not None, seconds + 30, 'the end of the flood')
    rate = float(rig.log('flood'))
    jitter = np.abs(np.diff(rig.stamps) - 0.05)
    p99 = float(np.percentile(jitter, 99))
    assert rig.processes['vla_node'].poll() is None
    assert resident_memory(pid) - before < GROWTH
    assert rig.vla[0] in ('ACTING', 'THINKING', 'HOLDING', 'STOPPED')
    rig.ready()
    check(36, p99)
    check(36, said=f'p99; {rate:.0f} images/s, memory {resident_memory(pid) - before:+.0f} MB')
