"""Workers on a Ray cluster of two node processes do what workers on this machine do."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from support.toy import ToyScene

from dtvla_ros.data.collect import CollectOptions, collect
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.command import evaluate_experts, evaluate_policy
from dtvla_ros.evaluation.workers import EvalOptions
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.workers import RayWorkers, open_envs

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


def test_two_machines_do_what_one_does_whatever_befalls_a_simulator(play, cluster, tmp_path):
    import ray

    path = tmp_path / 'fault'
    with closing(open_envs(ToyScene(), 2)) as envs:
        wanted, _ = play(envs)
    with closing(open_envs(ToyScene(fault=path), 2, 5.0, 'auto')) as envs:
        assert isinstance(envs, RayWorkers)
        where = {ray.get(slot.process.__ray_call__.remote(lambda _: ray.get_runtime_context(
            ).get_node_id())) for slot in envs._slots.values()}
        assert len(where) == 2  # each node process has one
        with pytest.raises(UserError, match='has 2 CPUs'):
            open_envs(ToyScene(), 3, ray='auto')
        for fault in ('', 'die', 'hang', 'raise'):
            if fault:
                path.write_text(f'right {fault}')
            assert play(envs) == (wanted, bool(fault))


def test_episodes_and_demonstrations_are_the_same_wherever_their_workers_are(cluster, tmp_path):
    def run(name, workers, ray):
        options = EvalOptions(NANO, SceneSetup('tabletop', max_steps=8), TASKS, 1, workers=workers,
                              ray=ray, videos=tmp_path / name, html=tmp_path / f'{name}.html')
        policy = evaluate_policy(options)['episodes']
        experts = evaluate_experts(replace(options, tasks=TASKS[:1], seed=7), True)['episodes']
        info = collect(tmp_path / f'{name}-data', CollectOptions(
            tasks=TASKS, episodes=4, observation_share=0.5, short_share=0.5, short_steps=4,
            image_size=32), workers, ray)
        films = sorted(path.name for path in (tmp_path / name).iterdir())
        data = sorted((tmp_path / f'{name}-data' / 'data').rglob('*.parquet'))
        return policy, experts, info, films, [path.read_bytes() for path in data]

    alone = run('alone', 1, None)
    assert run('cluster', 2, 'auto') == alone
    assert all(len(episode['commands']) == 16 for episode in alone[0])
    assert len(alone[3]) == 2  # a film of each: 8 steps are too few
    assert (tmp_path / 'cluster.html').read_text().count('<img') == 2
