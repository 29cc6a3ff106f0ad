"""Damaged policy folders: whatever opens one uses it, or says in one line why not."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from support.policies import observation, rehash
from support.small import small_policy

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.engine import bench_report
from dtvla_ros.engine.export import export_policy
from dtvla_ros.engine.load import load_policy
from dtvla_ros.engine.proof import Proof
from dtvla_ros.evaluation import command
from dtvla_ros.evaluation.workers import EvalOptions
from dtvla_ros.nodes import inference_worker
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.ros.settings import VlaSettings
from test.fuzz.mutations import damaged, one_line, one_line_of, seeds


@pytest.fixture(scope='module')
def policy(tmp_path_factory) -> Path:
    model, transform = small_policy(32)
    folder: Path = tmp_path_factory.mktemp('sound') / 'policy'
    export_policy(model, transform, folder, PolicyManifest(
        'small', 'MIT', transform.config, transform.statistics, {}, max_thought_tokens=3,
        tasks=('put the can in the wooden bin',), action=ActionContract(replan_steps=4)),
        observations=Proof.of([observation(seed, 32) for seed in range(4)], transform))
    return folder


def evaluate(folder: Path) -> None:
    """Do what ``dtvla eval`` does before it starts simulators."""
    command.identify(EvalOptions(policy=folder))


def bench(folder: Path) -> None:
    for name in bench_report.contenders_of(folder, 'torch,onnx'):
        load_policy(folder, name.split()[0])


def configure(folder: Path) -> None:
    inference_worker.load(VlaSettings(policy=str(folder)))


READERS = (evaluate, bench, configure, load_policy, lambda folder: load_policy(folder, 'torch'))


def test_a_damaged_policy(policy, tmp_path, total):
    for seed in seeds('policies', total):
        random = Random(seed)
        with damaged(policy, tmp_path, seed, random.choice(('*', '*.json'))) as (folder, what):
            if random.random() < 0.6:  # as if it had been exported so: the files are parsed
                for name in whole(folder):
                    rehash(folder, name)
            said = f'seed {seed}: {what}'
            one_line('inspect', folder, what=said)
            one_line_of(random.choice(READERS), folder, what=said)


def whole(folder: Path) -> list[str]:
    """Return what is there of the files a manifest lists, none if it cannot be read."""
    try:
        return [name for name in PolicyManifest.read(folder).files if (folder / name).is_file()]
    except Exception:
        return []
