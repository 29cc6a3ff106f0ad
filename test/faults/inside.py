"""Code that runs in a node's process before its main: faults that no topic can carry.

The test creates and removes a file; the code looks for it.
"""

from __future__ import annotations

from pathlib import Path


def clock_offset(file: Path) -> str:
    """Return code that adds the nanoseconds written in ``file`` to ROS's and the system's time."""
    return f"""
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
_real = Clock.now
def _shifted(self):
    now = _real(self)
    if self.clock_type == ClockType.STEADY_TIME:
        return now
    try:
        with open({str(file)!r}) as offset:
            return now + Duration(nanoseconds=int(offset.read() or 0))
    except FileNotFoundError:
        return now
Clock.now = _shifted
"""


def policy_faults(folder: Path) -> str:
    """Return code that makes decisions slow, endless or hungry, and loading a policy slow.

    While ``folder`` has a file 'slow' a decision waits, and 'waits' is made when one does; with
    'endless' no thought may end; with 'hungry' it asks for a pebibyte; with 'loading' no engine
    is built.
    """
    return f"""
import pathlib, time
import numpy as np
from dtvla_ros.engine import onnx_engine, policy
_folder, _decide = pathlib.Path({str(folder)!r}), policy.Policy.infer
_build = onnx_engine.OnnxEngine.__init__
def decide(self, *arguments):
    while (_folder / 'slow').exists():
        (_folder / 'waits').touch()
        time.sleep(0.005)
    if (_folder / 'hungry').exists():
        np.empty(2**50, np.uint8)
    ids = self.transform.config.ids
    banned = policy.banned_in_thought(ids, self.transform.config.text.vocabulary)
    banned[ids.think_end] = (_folder / 'endless').exists()
    self.engine.suppress_tokens(banned)
    return _decide(self, *arguments)
def build(self, *arguments, **named):
    while (_folder / 'loading').exists():
        time.sleep(0.01)
    _build(self, *arguments, **named)
policy.Policy.infer, onnx_engine.OnnxEngine.__init__ = decide, build
"""
