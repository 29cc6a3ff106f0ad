"""The whole way of a policy for another arm, or of poses: collected, trained, exported, run."""

from dataclasses import replace

import numpy as np
import pytest
from support.tiny import CONFIG

import dtvla_sim
from dtvla_ros.data.collect import CollectOptions, collect
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.engine.load import load_policy
from dtvla_ros.errors import UserError
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.rollout.episode import run_episode
from dtvla_ros.training.config import SftRun
from dtvla_ros.training.export import export
from dtvla_ros.training.sft import train_sft

LEMON = 'put_the_lemon_in_the_blue_bin'
ONE_CAMERA = replace(CONFIG, model=replace(CONFIG.model, cameras=('front',), tokens=(16,)),
                     shift=(1,))


@pytest.mark.slow
def test_five_joints_and_a_gripper_seen_by_one_camera(tmp_path):
    data, run = tmp_path / 'data', tmp_path / 'run'
    collect(data, CollectOptions('tabletop_joints', tasks=(LEMON,), episodes=8, image_size=32,
                                 short_share=1.0), workers=1)
    contract = DatasetReader(data).contract
    with pytest.raises(UserError, match="no camera 'primary' among front"):
        train_sft(CONFIG, SftRun((data,), run, steps=4))
    train_sft(ONE_CAMERA, SftRun((data,), run, steps=4))
    folder, _ = export(run, tmp_path / 'policy', replan_steps=2)
    action = PolicyManifest.read(folder).action
    assert replace(action, replan_steps=contract.replan_steps) == contract
    policy, _ = load_policy(folder)
    env = dtvla_sim.make('tabletop_joints', image_size=32)
    low, high = env.scene.arm._range
    chunks = []
    result = run_episode(env, policy.infer, LEMON, 0, 2, max_steps=4,
                         on_decision=lambda _, decision, __: chunks.append(decision.chunk))
    assert (result.steps, result.decisions) == (4, 2)
    chunk = np.array(chunks)[..., :5]  # positions of the demonstrations, not -1..1
    assert (chunk >= low - 0.1).all() and (chunk <= high + 0.1).all()
    assert chunk[..., 2].max() < -1.0  # the elbow is bent


@pytest.mark.slow
def test_poses_of_the_gripper(tmp_path):
    data, run = tmp_path / 'data', tmp_path / 'run'
    collect(data, CollectOptions('tabletop_poses', tasks=(LEMON,), episodes=8, image_size=32,
                                 short_share=1.0), workers=1)
    train_sft(CONFIG, SftRun((data,), run, steps=4))
    folder, _ = export(run, tmp_path / 'policy', replan_steps=2)
    reader = DatasetReader(data)
    action = PolicyManifest.read(folder).action
    assert replace(action, replan_steps=reader.contract.replan_steps) == reader.contract
    policy, _ = load_policy(folder)
    env = dtvla_sim.make('tabletop_poses', image_size=32)
    chunks = []
    result = run_episode(env, policy.infer, LEMON, 0, 2, max_steps=4,
                         on_decision=lambda _, decision, __: chunks.append(decision.chunk))
    assert (result.steps, result.decisions) == (4, 2)
    shown = np.asarray(reader.column('action'))[:, :6]  # poses of the demonstrations, not -1..1
    chunk = np.array(chunks)[..., :6]
    assert (chunk >= shown.min(0) - 0.05).all() and (chunk <= shown.max(0) + 0.05).all()
