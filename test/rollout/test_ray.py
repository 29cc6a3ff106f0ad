"""Workers on a Ray cluster of two node processes do what workers on this machine do."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from support.small import small_policy
from support.toy import ToyScene

from dtvla_ros.data.collect import CollectOptions, collect
from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.command import EvalOptions, evaluate_experts, evaluate_policy
from dtvla_ros.rollout.batched import BatchedRollouts, Rollout
from dtvla_ros.rollout.episode import EpisodeJob
from dtvla_ros.rollout.workers import RayWorkers, open_envs

pytestmark = pytest.mark.slow
NANO = Path(__file__).resolve().parents[2] / 'models/nano'
TASKS = 'push_the_green_cube_onto_the_yellow_mark', 'put_the_lemon_in_the_blue_bin'
# Loopback addresses, too, but not the one that Ray replaces by the machine's own.
MACHINES = '127.0.0.2', '127.0.0.3'


@pytest.fixture(scope='module')
def cluster():
    """Start a head and a second node process on the loopback, one CPU each."""
    ray = pytest.importorskip('ray', reason="needs pip install 'dtvla_ros[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('RAY_USAGE_STATS_ENABLED', '0')
        patch.setenv('RAY_worker_register_timeout_seconds', '600')  # on a busy machine
        head, other = ({'num_cpus': 1, 'node_ip_address': address, 'include_dashboard': False,
                        'object_store_memory': 100_000_000} for address in MACHINES)
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(**other)
        cluster.wait_for_nodes()
        ray.init(cluster.address, _node_ip_address=MACHINES[0], log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def run(envs, sampler):
    jobs = [Rollout(EpisodeJob(task, 5, 2), (k,)) for k, task in enumerate(['left', 'right'] * 2)]
    found = {}
    rollouts = BatchedRollouts(envs)
    rollouts.run(sampler, lambda: jobs.pop(0) if jobs else None,
                 lambda e, result: found.update({e.rollout.key: (e, result)}))
    return found, rollouts.times.lost


@pytest.mark.parametrize('fault', ['', 'die', 'hang', 'raise'])
def test_two_machines_do_what_one_does(cluster, tmp_path, fault):
    import ray

    model, transform = small_policy()
    sampler = BatchSampler(model, transform, max_thought_tokens=4, thought_temperature=1.0,
                           action_temperature=1.0)
    path = tmp_path / 'fault'
    if fault:
        path.write_text(f'right {fault}')
    with closing(open_envs(ToyScene(fault=path), 2, 15.0, 'auto')) as envs:
        assert isinstance(envs, RayWorkers)
        where = {ray.get(actor.__ray_call__.remote(
            lambda _: ray.get_runtime_context().get_node_id())) for actor in envs._actors.values()}
        assert len(where) == 2  # each node process has one
        found, lost = run(envs, sampler)
        with pytest.raises(UserError, match='has 2 CPUs'):
            open_envs(ToyScene(), 3, ray='auto')
    assert lost == bool(fault)
    with closing(open_envs(ToyScene(), 2)) as envs:
        wanted, _ = run(envs, sampler)
    assert found.keys() == wanted.keys() and len(wanted) == 4
    for key, (want, result) in wanted.items():
        got, other = found[key]
        assert (other.steps, other.success) == (result.steps, result.success)
        for (mine,), (theirs,) in zip(got.decisions, want.decisions, strict=True):
            assert mine.thought_tokens == theirs.thought_tokens
            assert np.array_equal(mine.action_tokens, theirs.action_tokens)
        for mine, theirs in zip(got.frames, want.frames, strict=True):
            assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


def test_an_evaluation_ends_the_same_wherever_its_workers_are(cluster, tmp_path):
    def evaluate(name, workers, ray):
        summary = evaluate_policy(EvalOptions(
            policy=NANO, tasks=TASKS, episodes=1, max_steps=20, workers=workers, ray=ray,
            videos=tmp_path / name, html=tmp_path / f'{name}.html'))
        return summary['episodes'], sorted(path.name for path in (tmp_path / name).iterdir())

    alone = evaluate('alone', 1, None)
    assert evaluate('cluster', 2, 'auto') == alone
    assert all(len(episode['commands']) == 16 for episode in alone[0])
    assert len(alone[1]) == 2  # a film of each: 20 steps are too few
    assert (tmp_path / 'cluster.html').read_text().count('<img') == 2


def test_experts_and_demonstrations_are_the_same_wherever_their_workers_are(cluster, tmp_path):
    def experts(workers, ray):
        return evaluate_experts(
            'tabletop', TASKS[:1], 2, True, workers, 7, None, None, ray)['episodes']

    assert experts(2, 'auto') == experts(1, None)
    options = CollectOptions(tasks=TASKS, episodes=16, observation_share=0.5, short_share=0.5,
                             short_steps=4, image_size=32)
    infos = [collect(tmp_path / name, options, workers, ray)
             for name, workers, ray in (('alone', 1, None), ('cluster', 2, 'auto'))]
    assert infos[0] == infos[1]
    alone, there = (sorted((tmp_path / name / 'data').rglob('*.parquet'))
                    for name in ('alone', 'cluster'))
    assert [path.read_bytes() for path in alone] == [path.read_bytes() for path in there]
