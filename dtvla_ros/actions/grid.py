"""Location words: centimetres in the robot's base frame, written as single tokens.

Thoughts and prompts name positions with the same words, so that the model can compare them. The
simulator's experts write them, and it may import nothing of ours but actions.
"""

from __future__ import annotations

import numpy as np

CM_RANGE = {'x': (20, 80), 'y': (-45, 45), 'z': (-15, 45)}  # inclusive, base frame (REP 103)
TILT_STEP_DEG = 3
TILT_LIMIT_DEG = {'x': 30, 'y': 30, 'z': 96}
# Two millimetres tell fingers around a bowl's rim from fingers around nothing.
OPENING_STEP_MM, OPENING_MM = 2, (0, 80)


def location_word(axis: str, metres: float) -> str:
    """Return the word of a coordinate in metres, e.g. ``('y', -0.118)`` -> ``'y-12'``."""
    low, high = CM_RANGE[axis]
    cm = int(np.clip(round(metres * 100.0), low, high))
    return f'{axis}{cm}' if axis == 'x' else f'{axis}{cm:+d}'


def tilt_word(axis: str, radians: float) -> str:
    """Return the word of a rotation about a base axis away from the home orientation."""
    steps = TILT_LIMIT_DEG[axis] // TILT_STEP_DEG
    k = int(np.clip(round(np.degrees(radians) / TILT_STEP_DEG), -steps, steps))
    return f'r{axis}{k * TILT_STEP_DEG:+d}'


def opening_word(metres: float) -> str:
    """Return the word of a gripper opening (distance between the finger pads) in metres."""
    step = round(metres * 1000.0 / OPENING_STEP_MM)
    return f'g{int(np.clip(step * OPENING_STEP_MM, *OPENING_MM))}mm'


def word_groups() -> dict[str, list[str]]:
    """Return every location word, grouped by quantity, neighbours in order."""
    groups = {axis: [location_word(axis, cm / 100.0) for cm in range(low, high + 1)]
              for axis, (low, high) in CM_RANGE.items()}
    for axis, limit in TILT_LIMIT_DEG.items():
        groups[f'r{axis}'] = [tilt_word(axis, np.radians(degrees))
                              for degrees in range(-limit, limit + 1, TILT_STEP_DEG)]
    low, high = OPENING_MM
    groups['g'] = [opening_word(mm / 1000.0) for mm in range(low, high + 1, OPENING_STEP_MM)]
    return groups
