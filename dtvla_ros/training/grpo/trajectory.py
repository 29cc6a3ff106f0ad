"""A finished episode: observations, sampled tokens, executed actions and the outcome."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from dtvla_ros.engine.batch import SampledDecision
from dtvla_ros.rollout.batched import Images
from dtvla_ros.rollout.episode import EpisodeJob

RAGGED = ('prompt_tokens', 'thought_tokens', 'thought_log_probs')


@dataclass(frozen=True, slots=True)
class Trajectory:
    """An episode played to its end.

    ``key``: what its sampling was seeded with; in training (seed, number of the start, sample).
    ``frames``: images by camera [H, W, 3] of every decision. ``steps``: control steps taken.
    ``progress`` [m]: of every decision, where they were tried one by one (see ``branching``).
    """

    job: EpisodeJob
    key: tuple[int, ...]
    decisions: tuple[SampledDecision, ...]
    frames: tuple[Images, ...]
    success: bool
    steps: int
    progress: tuple[float, ...] = ()

    def executed(self, number: int) -> int:
        """Return how many actions of decision ``number`` moved the arm."""
        return min(self.steps - number * self.job.replan_steps, self.job.replan_steps)

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, in one step."""
        tensors: dict[str, NDArray[Any]] = {}
        for name in RAGGED:
            rows = [np.asarray(getattr(d, name)) for d in self.decisions]
            tensors[name] = np.concatenate(rows)
            tensors[f'{name}.count'] = np.array([len(row) for row in rows])
        for name in ('action_tokens', 'chunk', 'action_log_probs'):
            tensors[name] = np.stack([getattr(d, name) for d in self.decisions])
        for camera in self.frames[0]:
            tensors[f'frames.{camera}'] = np.stack([f[camera] for f in self.frames])
        metadata = {'job': asdict(self.job), 'key': self.key, 'success': self.success,
                    'steps': self.steps, 'progress': self.progress,
                    'outcome': [d.outcome for d in self.decisions]}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix('.part')
        save_file(tensors, part, {'trajectory': json.dumps(metadata)})
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """Read what ``save`` wrote."""
        with safe_open(path, 'np') as file:
            metadata = json.loads(file.metadata()['trajectory'])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        ragged = {name: np.split(tensors[name], tensors[f'{name}.count'].cumsum()[:-1])
                  for name in RAGGED}
        cameras = [n.removeprefix('frames.') for n in tensors if n.startswith('frames.')]
        decisions = tuple(SampledDecision(
            prompt_tokens=tuple(ragged['prompt_tokens'][k].tolist()),
            thought_tokens=tuple(ragged['thought_tokens'][k].tolist()), outcome=outcome,
            action_tokens=tensors['action_tokens'][k], chunk=tensors['chunk'][k],
            thought_log_probs=ragged['thought_log_probs'][k],
            action_log_probs=tensors['action_log_probs'][k])
            for k, outcome in enumerate(metadata['outcome']))
        frames = tuple({c: tensors[f'frames.{c}'][k] for c in cameras}
                       for k in range(len(decisions)))
        job = EpisodeJob(**metadata['job'])
        if job.workspace is not None:
            job = replace(job, workspace=tuple(map(tuple, job.workspace)))
        progress = metadata.get('progress', metadata.get('gains'))  # as an earlier version has it
        return cls(job, tuple(metadata['key']), decisions, frames,
                   metadata['success'], metadata['steps'], tuple(progress))
