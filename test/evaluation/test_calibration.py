"""The confidence of a policy: fitted on episodes kept apart, and what it announces."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import calibration, command
from dtvla_ros.evaluation.announcing import announced, threshold, told_announced
from dtvla_ros.evaluation.results import evaluation_seed, summarise
from dtvla_ros.evaluation.workers import EvalOptions
from dtvla_ros.policy.confidence import OF_ACTIONS, Calibration
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import EpisodeResult

NANO = Path(__file__).resolve().parents[2] / 'models/nano'
LEMON = 'put_the_lemon_in_the_blue_bin'
# Such that a decision's confidence is the logistic function of this feature.
PLAIN = Calibration(0.0, {'action_mean': 1.0}, 0.0, 1, 1, (2_000_000, 2_000_000), 'tabletop')


def odds(share):
    return float(np.log(share / (1.0 - share)))


def episode(success, shares, seed=2_000_000, task=LEMON, steps=60, **more):
    """Return an episode whose decisions have these confidences by `PLAIN`."""
    return EpisodeResult(task, seed, success, steps, len(shares), certainty={
        'action_mean': [odds(share) for share in shares]}, **more)


def test_the_fit_finds_what_made_the_successes():
    rng, n = np.random.default_rng(0), 20_000
    features = rng.normal([-0.2, -2.0], [0.1, 0.5], (n, 2))
    chance = 1.0 / (1.0 + np.exp(-(1.0 + 8.0 * features[:, 0] - 0.5 * features[:, 1])))
    samples = calibration.Samples(features, rng.random(n) < chance, np.arange(n) % 4, np.ones(n))
    bias, weights = calibration.fit(samples)
    assert [bias, *weights] == pytest.approx([1.0, 8.0, -0.5], abs=0.35)
    bins = calibration.reliability(calibration.left_out(samples), samples)
    assert calibration.expected_error(bins) < 0.02
    assert sum(row.decisions for row in bins) == n and len(bins) > 3


def test_every_episode_weighs_the_same_however_long_it_is():
    samples = calibration.Samples.of([episode(True, [0.6] * 2), episode(False, [0.6] * 18)],
                                     ['action_mean'])
    row, = calibration.reliability(np.full(20, 0.61), samples)
    assert row == pytest.approx((0.61, 0.5, 1.0, 20))
    assert calibration.expected_error([row]) == pytest.approx(0.11)


def test_what_tells_nothing_is_refused():
    same = calibration.Samples.of([episode(True, [0.6] * 2, 1), episode(True, [0.7] * 2, 2)],
                                  ['action_mean'])
    with pytest.raises(UserError, match='every episode succeeded.*--episodes'):
        calibration.left_out(same)
    with pytest.raises(UserError, match='the same seed.*--episodes 2'):
        calibration.left_out(same.where(same.seeds == 1))


@pytest.fixture
def policy(tmp_path):
    """Return a copy of the small policy that is not calibrated."""
    folder = Path(shutil.copytree(NANO, tmp_path / 'policy'))
    (folder / MANIFEST).write_text(replace(
        PolicyManifest.read(folder), calibration=None).to_json())
    return folder


def test_a_calibration_is_put_into_the_manifest_and_told_by_results(
        policy, tmp_path, monkeypatch, capsys):
    rng, seeds = np.random.default_rng(0), set()

    def played(options, jobs):
        for cell, task, seed in jobs:
            seeds.add(seed)
            success = cell != 'noise:3' or seed % 2 == 0
            told = rng.normal(-1.0 - (not success), 0.2, 20).tolist()
            yield (cell, task, seed), EpisodeResult(
                task, seed, success, 60, 20, certainty=dict.fromkeys(OF_ACTIONS, told))

    monkeypatch.setattr(command, '_policy_episodes', played)
    plot, json_file = tmp_path / 'out/plot.png', tmp_path / 'out/result.json'
    result = calibration.calibrate(EvalOptions(policy, tasks=(LEMON,), episodes=6,
                                               json_file=json_file), ['noise'], ['3'], plot)
    assert seeds == set(range(2_000_000, 2_000_006))
    fitted = PolicyManifest.read(policy).calibration
    assert fitted.seeds == (2_000_000, 2_000_005) and fitted.suite == 'tabletop'
    assert (fitted.episodes, fitted.decisions) == (12, 240) and fitted.error < 0.1
    sure, unsure = (dict.fromkeys(OF_ACTIONS, mean) for mean in (-1.0, -2.0))
    assert fitted.confidence(sure) > 0.9 and fitted.confidence(unsure) < 0.1
    said = ' '.join(capsys.readouterr().out.split())
    assert f'expected calibration error {fitted.error:.3f}, n = 12 episodes' in said
    assert f'dtvla export {policy} --out {policy}' in said, 'its graphs tell of no words'
    assert cv2.imread(str(plot)) is not None
    assert json.loads(json_file.read_text())['bins'] == result['bins']
    assert NANO.joinpath('decoder.onnx').read_bytes() == (policy / 'decoder.onnx').read_bytes()


def test_start_states_are_kept_apart():
    with pytest.raises(UserError, match='2000000 on are kept for dtvla calibrate'):
        evaluation_seed(2_000_000)
    with pytest.raises(UserError, match='benchmark.*leave it out'):
        calibration.calibrate(EvalOptions(NANO, SceneSetup('libero_10', 'benchmark')))


def test_a_result_holds_the_confidence_of_each_decision():
    found = [episode(True, [0.5, 0.75]), EpisodeResult(LEMON, 1, True, 50, 1)]
    told = summarise(found, [LEMON], PLAIN)['episodes']
    assert [row.get('confidence') for row in told] == [None, [0.5, 0.75]]
    assert 'confidence' not in summarise(found, [LEMON])['episodes'][1]


def test_failures_are_announced_by_what_five_of_a_hundred_successes_cross():
    successes = [episode(True, [0.9] * 6, seed) for seed in range(36)] + [
        episode(True, [0.9] * 3 + [k / 10] * 5, 40 + k) for k in range(5, 9)]
    failures = [
        episode(False, [0.9] * 5 + [0.1] * 15, 50), episode(False, [0.9] * 19 + [0.1], 51),
        episode(False, [0.9] * 20, 52), EpisodeResult(LEMON, 53, False, 0, refused='what?')]
    found = announced({'': [episode(False, [0.1] * 20)], 'noise:3': [*successes, *failures]},
                      PLAIN, 3)
    assert found['threshold'] == pytest.approx(0.7)
    assert (found['false_alarms']['successes'], found['false_alarms']['n']) == (2, 40)
    assert (found['announced']['successes'], found['announced']['n']) == (1, 3)
    # The mean of five is 0.58 at the seventh decision, 42 of 60 steps before the end.
    assert found['median_seconds_ahead'] == pytest.approx(42 / 20)
    assert '1/3 (6% - 79%) were announced, in the median 2.1 s' in told_announced(found)
    assert len(found['episodes']) == 43 and found['episodes'][-1]['confidence'] == [0.9] * 20
    with pytest.raises(UserError, match='tell no confidence'):
        announced({'noise:3': [EpisodeResult(LEMON, 1, True, 50, 9)]}, PLAIN, 3)
    assert threshold([]) == 0.0


def test_robustness_tells_what_was_announced(policy, tmp_path, monkeypatch, capsys):
    options = EvalOptions(policy, tasks=(LEMON,), episodes=2, json_file=tmp_path / 'result.json')
    with pytest.raises(UserError, match=f'not calibrated; run dtvla calibrate {policy}'):
        command.evaluate_robustness(options, ('noise',), ('3',), confidence=True)
    manifest = PolicyManifest.read(policy)
    (policy / MANIFEST).write_text(replace(manifest, calibration=PLAIN).to_json())
    monkeypatch.setattr(command, '_policy_episodes', lambda options, jobs: (
        (job, replace(episode(job[2] % 2 == 0, [0.9 if job[2] % 2 == 0 else 0.1] * 9, job[2]),
                      task=job[1])) for job in jobs))
    command.evaluate_robustness(options, ('noise',), ('3',), confidence=True)
    said = ' '.join(capsys.readouterr().out.split())
    assert 'that failed 1/1 (21% - 100%) were announced' in said
    told = json.loads((tmp_path / 'result.json').read_text())['confidence']
    assert [row['confidence'] for row in told['episodes']] == [[0.9] * 9, [0.1] * 9]
    with pytest.raises(UserError, match='--mode masked'):
        command.evaluate_robustness(replace(options, mode='masked'), ('noise',), ('3',), True)
