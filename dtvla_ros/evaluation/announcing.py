"""Which failures a policy's confidence announced before the episode was over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dtvla_ros.conventions import CONTROL_RATE
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.results import Rate, confidences
from dtvla_ros.evaluation.workers import EvalOptions
from dtvla_ros.files import find_shared
from dtvla_ros.policy.confidence import Calibration, Doubt, least_mean
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.rollout.episode import EpisodeResult

FALSE_ALARMS = 0.05  # share of the successes


def require_calibrated(options: EvalOptions) -> Calibration:
    """Return a policy's calibration; UserError where it has none, or writes no thought."""
    if options.mode != 'full':
        raise UserError(f'--mode {options.mode}: only a policy that writes its own thought tells '
                        'its confidence; leave out --mode')
    fitted = PolicyManifest.read(find_shared(options.policy)).calibration
    if fitted is None:
        raise UserError(f'{options.policy}: its confidence is not calibrated; run dtvla calibrate '
                        f'{options.policy}')
    return fitted


def threshold(least: Sequence[float], false_alarms: float = FALSE_ALARMS) -> float:
    """Return the highest threshold below which at most a share of values lie; 0 for no value."""
    return sorted(least)[int(false_alarms * len(least))] if least else 0.0


def announced(cells: Mapping[str, Sequence[EpisodeResult]], calibration: Calibration,
              replan_steps: int) -> dict[str, Any]:
    """Return how many failures of disturbed episodes were announced, and by which threshold.

    An episode is announced once the mean confidence of the last decisions is below it (`Doubt`),
    and no more than `FALSE_ALARMS` of the successes are. What the policy refused is left out.
    Raises UserError where an episode tells no confidence.
    """
    rows = []
    for cell, episodes in cells.items():
        for episode in episodes if cell else ():
            if episode.refused:
                continue
            told = confidences(episode, calibration)
            if len(told) != episode.decisions:
                raise UserError(
                    f'{cell}, {episode.task}, seed {episode.seed}: its decisions tell no '
                    'confidence: give another folder with --resume, or calibrate the policy again')
            rows.append((cell, episode, told))
    limit = threshold([least_mean(told) for _, episode, told in rows if episode.success])
    alarms = [(episode, _first_below(told, limit)) for _, episode, told in rows]
    ahead = [(episode.steps - at * replan_steps) / CONTROL_RATE
             for episode, at in alarms if at is not None and not episode.success]
    return {
        'threshold': round(limit, 4),
        'announced': Rate.of(at is not None for e, at in alarms if not e.success).to_dict(),
        'false_alarms': Rate.of(at is not None for e, at in alarms if e.success).to_dict(),
        'median_seconds_ahead': round(float(np.median(ahead)), 1) if ahead else None,
        'episodes': [{'cell': cell, 'task': e.task, 'seed': e.seed, 'success': e.success,
                      'steps': e.steps, 'confidence': told} for cell, e, told in rows]}


def told_announced(found: Mapping[str, Any]) -> str:
    """Return the result of ``announced`` as a sentence."""
    failures, alarms = (Rate(found[k]['successes'], found[k]['n'])
                        for k in ('announced', 'false_alarms'))
    if not failures.n:
        return 'No disturbed episode failed, so that there was nothing to announce.'
    ahead = found['median_seconds_ahead']
    return (f'Of the disturbed episodes that failed {failures.counts} were announced'
            + (f', in the median {ahead:.1f} s before they were over' if ahead is not None else '')
            + f', by a mean confidence below {found["threshold"]:.2f}; of those that succeeded '
            f'{alarms.counts}.')


def _first_below(confidences: Sequence[float], limit: float) -> int | None:
    """Return the number of the decision at which a failure is announced, None without one."""
    doubt = Doubt()
    return next((k for k, value in enumerate(confidences) if doubt.add(value) < limit), None)
