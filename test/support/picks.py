"""Episodes of an arm that puts a can in a bin, with the phase of every frame known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dtvla_ros.annotation.question import Semantics, write_thought
from dtvla_ros.data import layout
from dtvla_ros.data.layout import Episode
from support.tiny import write_dataset

STEP = 0.025  # [m] per frame
WIDE, ON_CAN = 0.08, 0.05  # [m]
TASK = 'put the can in the blue bin'
NEXT = {'reach': 'lower', 'lower': 'grasp', 'grasp': 'lift', 'lift': 'carry', 'carry': 'place',
        'place': 'release', 'release': 'retreat'}


def pick(seed: int, task: str = TASK, name: str = 'can', to: str = 'blue_bin') -> Episode:
    """Return an episode; the name's place, the bin's and the start depend on the seed."""
    rng = np.random.default_rng(seed)
    at = np.array([rng.uniform(0.35, 0.6), rng.uniform(-0.2, -0.05), 0.0])
    bin_at = np.array([rng.uniform(0.4, 0.6), rng.uniform(0.15, 0.35), 0.0])
    here, up = np.array([0.45, 0.0, 0.15]) + rng.uniform(-0.05, 0.05, 3), [0.0, 0.0, 0.12]
    wide, rows = WIDE, []
    for phase, goal, gripper, held_name in (
            ('reach', at + up, -1.0, 'nothing'), ('lower', at, -1.0, 'nothing'),
            ('grasp', ON_CAN, 1.0, 'nothing'), ('lift', at + up, 1.0, name),
            ('carry', bin_at + up, 1.0, name), ('place', bin_at + [0.0, 0.0, 0.04], 1.0, name),
            ('release', WIDE, -1.0, 'nothing')):
        still = isinstance(goal, float)  # the fingers move, for three frames
        path, before = (0.0 if still else goal - here), wide
        count = 3 if still else max(1, int(np.ceil(np.linalg.norm(path) / STEP)))
        for k in range(count):
            wide = before + (goal - before) * min(1.0, k / 2) if still else wide
            rows.append((here, wide, gripper, phase, held_name))
            here = here + path / count
    position, opening, gripper, phases, holding = map(list, zip(*rows))
    position = np.stack(position)
    held = np.array([name != 'nothing' for name in holding])
    last = np.flatnonzero(held)[-1]
    place = np.where(held[:, None], position, at)
    place[last:] = position[last]
    count = len(position)
    finger = np.array(opening) / 2
    state = np.column_stack([position, np.zeros((count, 3)), finger, -finger])
    action = np.column_stack([np.zeros((count, 6)), gripper])
    image = np.full((32, 32, 3), 180, np.uint8)
    image[:8, :8] = rng.integers(0, 256, 3)
    thoughts = []
    for k, phase in enumerate(phases):
        label = Semantics(holding=holding[k], done='nothing', trouble='none', phase=phase,
                          object=to if phase in ('carry', 'place') else name, next=NEXT[phase])
        where = bin_at if label.object == to else place[k]
        thoughts.append(write_thought(label, where, np.zeros(3)))
    return Episode(task, {key: np.repeat(image[None], count, 0) for key in layout.CAMERAS}, {
        layout.STATE: np.float32(state), layout.ACTION: np.float32(action),
        layout.PLACES: np.float32(np.hstack([place, np.tile(bin_at, (count, 1))])),
        layout.PHASE: phases, layout.REASONING: thoughts}, names={
        layout.STATE: ('x', 'y', 'z', 'rx', 'ry', 'rz', 'finger_left', 'finger_right'),
        layout.PLACES: [f'{n}.{axis}' for n in (name, to) for axis in 'xyz']})


def picks_dataset(root: Path, episodes: int, places: bool = True) -> Path:
    """Write a dataset of picks."""
    return write_dataset(root, [pick(seed) for seed in range(episodes)],
                         () if places else (layout.PLACES, layout.REASONING))


def answer_frames(count: int, **changes) -> dict:
    """Return a valid answer about ``count`` key frames, every one the same."""
    frame = {'holding': 'nothing', 'done': 'nothing', 'trouble': 'none', 'phase': 'wait',
             'object': 'can', 'next': 'wait', 'reason': 'it stands there'} | changes
    return {'frames': [frame] * count}
