"""Runs ``dtvla calibrate``: what a policy's certainty is worth, by episodes kept apart for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from dtvla_ros import files
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import results
from dtvla_ros.evaluation.command import run_disturbed
from dtvla_ros.evaluation.results import Rate
from dtvla_ros.evaluation.workers import EvalOptions
from dtvla_ros.policy.confidence import FEATURES, OF_ACTIONS, Calibration
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest
from dtvla_ros.rollout.episode import EpisodeResult
from dtvla_sim import CALIBRATION_SEED_START, LIBERO_SUITES

FOLDS = 5  # of seeds; one after another is left out of the fit
BINS = 10  # of confidence, equally wide
RIDGE = 1e-3  # beside a mean loss, of features in units of their spread
Array = NDArray[np.float64]


class Samples(NamedTuple):
    """Decisions: features [n, F], whether their episode succeeded [n], its seed [n], weight [n].

    The weights of an episode add up to 1, so that a failure, which lasts longer, counts no more.
    """

    features: Array
    success: NDArray[np.bool_]
    seeds: NDArray[np.int64]
    weight: Array

    @classmethod
    def of(cls, episodes: Iterable[EpisodeResult], names: Sequence[str]) -> Samples:
        """Return the decisions of episodes that have one at least."""
        parts = [cls(np.column_stack([e.certainty[name] for name in names]),
                     np.full(e.decisions, e.success), np.full(e.decisions, e.seed),
                     np.full(e.decisions, 1.0 / e.decisions)) for e in episodes]
        return cls(*map(np.concatenate, zip(*parts)))

    def where(self, rows: NDArray[np.bool_]) -> Samples:
        """Return some of the decisions."""
        return Samples(self.features[rows], self.success[rows], self.seeds[rows],
                       self.weight[rows])


class Bin(NamedTuple):
    """Decisions of about one confidence: its mean, and the share whose episode succeeds."""

    confidence: float
    success: float
    share: float  # of all, by weight, as the two means
    decisions: int


def calibrate(options: EvalOptions, families: Sequence[str] = (),
              strengths: Sequence[str] = ('1', '2', '3'),
              plot: Path | None = None) -> dict[str, Any]:
    """Fit the confidence of a policy, put it into its manifest; return what is written.

    The episodes are those of ``evaluate_robustness``, at seeds of their own. Raises UserError as
    it does, and where all episodes succeed, or none.
    """
    files.require_writable(plot)
    scene = options.scene
    if scene.suite in LIBERO_SUITES:
        if scene.starts == 'benchmark':
            raise UserError("--starts benchmark: these are the evaluation's start states; leave "
                            'it out, or use another distribution')
        scene = replace(scene, starts=scene.starts or 'random')
    folder = files.find_shared(options.policy)
    _, settings, _, _, cells = run_disturbed(
        replace(options, scene=scene), families, strengths, CALIBRATION_SEED_START)
    episodes = [e for found in cells.values() for e in found if e.decisions]
    names = tuple(name for name in FEATURES
                  if all(len(e.certainty.get(name, ())) == e.decisions for e in episodes))
    if not (episodes and names):
        raise UserError(f'{options.journal}: its episodes do not tell how sure the policy was; '
                        'give another folder with --resume')
    samples = Samples.of(episodes, names)
    bins = reliability(left_out(samples), samples)
    bias, weights = fit(samples)
    first, last = settings['seeds']
    fitted = Calibration(
        round(bias, 5), dict(zip(names, np.round(weights, 5).tolist())),
        round(expected_error(bins), 4), len(episodes), len(samples.weight), (first, last),
        scene.suite)
    if plot is not None:
        draw(bins, fitted, plot)
    files.write_text(folder / MANIFEST, replace(
        PolicyManifest.read(folder), calibration=fitted).to_json())
    rate = Rate.of(e.success for e in episodes)
    if names == OF_ACTIONS:
        print(f'{options.policy}: its graphs do not tell how sure its words are, so that the '
              f'confidence rests on its actions alone; dtvla export {options.policy} --out '
              f'{options.policy} writes graphs that do')
    print(f'{options.policy}: expected calibration error {fitted.error:.3f}, n = '
          f'{fitted.episodes} episodes with {fitted.decisions} decisions; success {rate}')
    summary = {**settings, 'versions': results.versions(), 'calibration': asdict(fitted),
               'success': rate.to_dict(), 'bins': [row._asdict() for row in bins]}
    files.write_json(options.json_file, summary)
    return summary


def fit(samples: Samples) -> tuple[float, Array]:
    """Return bias and weights [F] of the logistic regression of success on the features.

    Raises UserError where all episodes succeed, or none.
    """
    success, weight = samples.success.astype(np.float64), samples.weight / samples.weight.sum()
    if success.min() == success.max():
        raise UserError(f'{"every" if success.all() else "no"} episode succeeded, so that nothing '
                        'tells failures from successes; give more --episodes, or other --families '
                        'and --strengths')
    mean, spread = samples.features.mean(0), samples.features.std(0) + 1e-9
    rows = np.column_stack([np.ones(len(success)), (samples.features - mean) / spread])
    ridge = np.append(0.0, np.full(len(mean), RIDGE))

    def loss(given: Array) -> tuple[float, Array]:
        odds = rows @ given
        value = weight @ (np.logaddexp(0.0, odds) - success * odds) + ridge @ given ** 2 / 2
        return float(value), rows.T @ (weight * (expit(odds) - success)) + ridge * given

    found = minimize(loss, np.zeros(rows.shape[1]), jac=True, method='BFGS').x
    weights = found[1:] / spread
    return float(found[0] - weights @ mean), weights


def left_out(samples: Samples) -> Array:
    """Return the confidence [n] of every decision by a fit on the seeds of other folds.

    Raises UserError where there is one seed, or where a fit has only failures or successes.
    """
    kinds = np.unique(samples.seeds)
    if len(kinds) < 2:
        raise UserError('all episodes have the same seed; give --episodes 2 or more')
    told = np.zeros(len(samples.weight))
    for fold in range(min(FOLDS, len(kinds))):
        out = np.isin(samples.seeds, kinds[fold::FOLDS])
        bias, weights = fit(samples.where(~out))
        told[out] = expit(samples.features[out] @ weights + bias)
    return told


def reliability(told: Array, samples: Samples) -> list[Bin]:
    """Return the decisions by their confidence [n]; bins without any are left out."""
    place, weight = np.minimum((told * BINS).astype(int), BINS - 1), samples.weight
    return [Bin(float(np.average(told[mine], weights=weight[mine])),
                float(np.average(samples.success[mine], weights=weight[mine])),
                float(weight[mine].sum() / weight.sum()), int(mine.sum()))
            for mine in (place == k for k in np.unique(place))]


def expected_error(bins: Sequence[Bin]) -> float:
    """Return the mean distance of confidence and success, weighted by the bins' shares."""
    return sum(row.share * abs(row.confidence - row.success) for row in bins)


def draw(bins: Sequence[Bin], fitted: Calibration, path: Path) -> None:
    """Write the reliability plot, success by confidence; points are as large as their share."""
    figure = Figure(figsize=(5, 5))
    axis = figure.subplots()
    told, success = [row.confidence for row in bins], [row.success for row in bins]
    axis.plot([0, 1], [0, 1], color='0.7', linestyle='--', label='as told')
    axis.plot(told, success, color='C0')
    axis.scatter(told, success, [20 + 600 * row.share for row in bins], 'C0',
                 label='decisions by confidence')
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel='confidence of a decision',
             ylabel='share whose episode succeeds')
    axis.set_title(f'{fitted.suite}: expected calibration error {fitted.error:.3f}, '
                   f'{fitted.episodes} episodes', fontsize=10)
    axis.legend(loc='upper left', fontsize=8)
    with files.written_whole(path) as part:
        figure.savefig(part, dpi=120, bbox_inches='tight')
