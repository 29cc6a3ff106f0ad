"""Frames of demonstrations with which an exported policy will prove itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from dtvla_ros.actions import osc
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.engine.proof import OBSERVATIONS, Proof
from dtvla_ros.errors import UserError
from dtvla_ros.policy.manifest import MANIFEST, PROOF, PolicyManifest
from dtvla_ros.policy.transform import Observation, PolicyTransform

LOG = logging.getLogger(__name__)


def own_observations(folder: Path, transform: PolicyTransform) -> Proof | None:
    """Return what a training run or a policy has to prove itself on. Raises ``UserError``."""
    path = folder / PROOF
    if (folder / MANIFEST).exists():
        manifest = PolicyManifest.read(folder)
        return Proof.read(manifest.verified(folder, PROOF), transform) if (
            PROOF in manifest.files) else None
    return Proof.read(path, transform) if path.exists() else None


def observations_for(run: Path, readers: Sequence[DatasetReader],
                     transform: PolicyTransform) -> Proof | None:
    """Return what a run should keep for its export; None where it has it, or none can be had."""
    if (run / PROOF).exists():
        return None
    try:
        return sample(readers, transform)
    except UserError as error:
        LOG.warning('%s; the exported policy will have nothing to prove itself on', error)
        return None


def sample(readers: Sequence[DatasetReader], transform: PolicyTransform) -> Proof:
    """Return frames spread over datasets as a policy observes them. Raises ``UserError``."""
    each = -(-OBSERVATIONS // len(readers))
    return Proof.of([observation for reader in readers
                     for observation in _observations(reader, transform, each)], transform)


def _observations(reader: DatasetReader, transform: PolicyTransform,
                  count: int) -> Iterator[Observation]:
    keys = {layout.camera_of(key): key for key in reader.camera_keys}
    cameras = transform.config.vision.cameras
    if missing := [name for name in cameras if name not in keys]:
        raise UserError(f'{reader.root}: has no camera {missing[0]!r}, only {", ".join(keys)}; '
                        'choose another dataset')
    states = reader.rows(layout.STATE) if transform.state_in_prompt else np.tile(
        np.hstack([np.zeros(3), osc.HOME.as_rotvec(), np.zeros(2)]), (sum(reader.lengths), 1))
    if states.shape[1] != len(layout.STATE_NAMES):
        raise UserError(f'{reader.root}: {layout.STATE} has {states.shape[1]} channels, expected '
                        f'{", ".join(layout.STATE_NAMES)}; choose another dataset')
    ends = np.cumsum(reader.lengths)
    for row in np.linspace(0, ends[-1] - 1, min(count, ends[-1])).astype(int).tolist():
        episode = int(np.searchsorted(ends, row, 'right'))
        frame = row - int(ends[episode]) + reader.lengths[episode]
        state = states[row]  # m, rad, m
        yield Observation(
            {name: reader.image(episode, frame, keys[name]) for name in cameras}, {}, state[:3],
            Rotation.from_rotvec(state[3:6]).as_quat(), float(state[6] - state[7]),
            reader.tasks[int(reader.column('task_index')[row])], 0.0)
