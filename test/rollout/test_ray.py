"""Workers on a Ray cluster of two node processes do what workers on this machine do."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from support.small import small_policy
from support.toy import ToyScene

from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.batched import BatchedRollouts, Rollout
from dtvla_ros.rollout.episode import EpisodeJob
from dtvla_ros.rollout.workers import RayWorkers, open_envs

pytestmark = pytest.mark.slow
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
