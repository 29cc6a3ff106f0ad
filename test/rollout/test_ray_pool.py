"""Simulators on a Ray cluster of two node processes answer as those in a local pool do."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from support.small import small_policy
from support.toy import ToyScene

from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env_pool import LocalPool
from dtvla_ros.rollout.env_worker import EpisodeJob
from dtvla_ros.rollout.ray_pool import RayPool
from dtvla_ros.training.grpo.rollout import Rollout, RolloutEngine

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


def play(pool, sampler):
    jobs = [Rollout(EpisodeJob(task, 5, 2), (k,)) for k, task in enumerate(['left', 'right'] * 2)]
    found = {}
    engine = RolloutEngine(pool)
    engine.run(sampler, lambda: jobs.pop(0) if jobs else None, lambda t: found.update({t.key: t}))
    return found, engine.times.lost


@pytest.mark.slow
@pytest.mark.parametrize('fault', ['', 'die', 'hang', 'raise'])
def test_two_machines_play_what_one_does(cluster, tmp_path, fault):
    import ray

    model, transform = small_policy()
    sampler = BatchSampler(model, transform, max_thought_tokens=4, thought_temperature=1.0,
                           action_temperature=1.0)
    path = tmp_path / 'fault'
    if fault:
        path.write_text(f'right {fault}')
    with closing(RayPool(ToyScene(fault=path), 2, timeout=15.0)) as pool:
        where = {ray.get(actor.__ray_call__.remote(
            lambda _: ray.get_runtime_context().get_node_id())) for actor in pool._actors.values()}
        assert len(where) == 2  # each node process has one
        found, lost = play(pool, sampler)
        with pytest.raises(UserError, match='has 2 CPUs'):
            RayPool(ToyScene(), 3)
    assert lost == bool(fault)
    with closing(LocalPool(ToyScene(), 2)) as pool:
        wanted, _ = play(pool, sampler)
    assert found.keys() == wanted.keys() and len(wanted) == 4
    for key, want in wanted.items():
        assert (found[key].steps, found[key].success) == (want.steps, want.success)
        for mine, other in zip(found[key].decisions, want.decisions, strict=True):
            assert mine.thought_tokens == other.thought_tokens
            assert np.array_equal(mine.action_tokens, other.action_tokens)
        for mine, other in zip(found[key].frames, want.frames, strict=True):
            assert all(np.array_equal(mine[name], other[name]) for name in other)
