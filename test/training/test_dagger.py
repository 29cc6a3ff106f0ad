"""The policy drives, the expert relabels: a dataset that fine-tuning goes on with."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small import small_run
from support.tiny import CONFIG

import dtvla_sim
from dtvla_ros.data import layout
from dtvla_ros.data.collect import EpisodePlan
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.engine.engine import Decision
from dtvla_ros.errors import UserError
from dtvla_ros.thought import Thought
from dtvla_ros.training.dagger import (
    KIND,
    TAKEOVER,
    DaggerOptions,
    Overseer,
    RelabelJob,
    TakeoverJob,
    astray,
    relabel,
    shard_plans,
)
from dtvla_ros.training.sft import SftRun, Trainer
from dtvla_sim.experts.tabletop import ExpertStep

OPTIONS = DaggerOptions(episodes=2, driven=(0.05, 0.1), tasks=(
    'put_the_can_in_the_wooden_bin', 'push_the_green_cube_onto_the_yellow_mark'))
CHUNK, REPLAN = 4, 2


@pytest.mark.slow
def test_the_policy_drives_until_the_expert_takes_over():
    """Driven up and away, every label says where to go instead, and the end is a success."""
    away = np.tile(np.array([0, 1, 0.5, 0, 0, 0, 1], np.float32), (CHUNK, 1))
    seen = []

    def infer(observation):
        seen.append(observation)
        return Decision('', 'complete', away, (), np.zeros(0, np.int64))

    env = dtvla_sim.make('tabletop')
    plan = EpisodePlan(0, OPTIONS.tasks[0], 700_000, KIND)
    episode, alone = RelabelJob(plan, replace(OPTIONS, driven=(0.1, 0.1)), CHUNK, REPLAN).run(
        env, infer)
    driven, steps = round(0.1 * env.max_steps), episode.metadata['steps']
    waits = [' now wait ' in text for text in episode.columns[layout.REASONING]]
    assert waits[-5:] == [True] * 5 and not any(waits[:-5])
    assert len(seen) == -(-driven // REPLAN)
    assert not alone and steps > driven
    starts = np.arange(0, steps, OPTIONS.camera_every)
    assert len(episode) == len(starts)
    state = np.asarray(episode.columns[layout.STATE])[starts <= driven]
    assert state[-1, 1] - state[0, 1] > 0.1  # it went where the policy drove it
    assert state[-1, 6] < 0.01  # and closed the hand
    action = np.asarray(episode.columns[layout.ACTION])
    assert (action[starts < driven, 6] < 0).all()  # which the expert would not have
    assert action[starts < driven, 1].max() < 0.9  # nor gone there
    padding = np.asarray(episode.columns[layout.ACTION_IS_PAD])
    assert padding[starts < driven, REPLAN:].all()
    assert not padding[starts < driven - REPLAN, :REPLAN].any()
    assert not padding[(starts >= driven) & (starts < steps - CHUNK)].any()
    assert all(text.startswith('holding ') for text in episode.columns[layout.REASONING])
    env.close()


@pytest.mark.slow
def test_a_round_is_a_dataset_that_training_goes_on_with(tmp_path):
    init, out = small_run(tmp_path / 'init', 128, (16, 4)), tmp_path / 'round'
    info = relabel(init, out, OPTIONS, workers=1, replan_steps=REPLAN)
    assert info['total_episodes'] == 2 and info['total_tasks'] == 2
    reader = DatasetReader(out)
    assert reader.column(layout.ACTION_CHUNK)[0].shape == (CHUNK * 7,)
    stamp = (out / '.shards' / '00000').stat().st_mtime_ns
    assert relabel(init, out, OPTIONS, workers=1, replan_steps=REPLAN) == info
    assert (out / '.shards' / '00000').stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match='another camera_every'):
        relabel(init, out, replace(OPTIONS, camera_every=2), workers=1)

    trainer = Trainer(replace(CONFIG, validation_share=0.0),
                      SftRun((out,), tmp_path / 'more', init=init, steps=1))
    assert torch.isfinite(trainer.train_step(trainer.batches.train(0))['loss'])


def step(phase, *action):
    return ExpertStep(np.array(action, np.float32), '', phase)


AHEAD = step('reach', 1, 0, 0, 0, 0, 0, -1)


@pytest.mark.parametrize(('act', 'executed', 'gone'), [
    (AHEAD, (0.5, 0.9, 0, 0, 0, 0, -1), False),
    (AHEAD, (0.1, 0, 0, 0, 0, 0, -1), True),
    (AHEAD, (-1, 0, 0, 0, 0, 0, -1), True),
    (AHEAD, (1, 0, 0, 0, 0, 0, 1), True),
    (step('grasp', 0.05, 0, 0, 0, 0, 0, 1), (-0.1, 0, 0, 0, 0, 0, 1), False),
    (step('wait', 1, 0, 0, 0, 0, 0, -1), (-1, 0, 0, 0, 0, 0, 1), False)])
def test_a_policy_is_astray_that_does_not_go_the_expert_s_way(act, executed, gone):
    assert astray(act, np.array(executed, np.float32)) is gone


def test_the_expert_takes_over_in_time_and_hands_back_when_the_phase_is_past():
    overseer, still, along = Overseer(3), np.zeros(7), AHEAD.action
    drives = []
    for act, executed in (*[(AHEAD, still)] * 2, (AHEAD, along), *[(AHEAD, still)] * 3,
                          *[(AHEAD, along)] * 4, (step('lower', *along), along), (AHEAD, still)):
        overseer.watch(act, executed)
        drives.append(overseer.driving)
    assert drives == [False] * 5 + [True] * 5 + [False] * 2


@pytest.mark.slow
def test_the_expert_takes_over_by_what_it_sees_and_the_frames_say_so():
    """Of a policy that stands still the expert takes over again and again, and it is done."""
    still = np.zeros((CHUNK, 7), np.float32)
    mine = Thought('lemon', None, None, 'carry', 'blue bin', 50, 0, 'place',
                   ('forward', 'left', 'still')).compact()

    def infer(observation):
        return Decision(mine, 'complete', still, (), np.zeros(0, np.int64))

    env = dtvla_sim.make('tabletop')
    plan = EpisodePlan(0, OPTIONS.tasks[0], 700_000, TAKEOVER)
    options = replace(OPTIONS, takeover=5)
    episode, alone = TakeoverJob(plan, options, CHUNK, REPLAN).run(env, infer)
    env.close()
    person = np.asarray(episode.columns[layout.INTERVENTION])
    action = np.asarray(episode.columns[layout.ACTION])
    thoughts = np.array(episode.columns[layout.REASONING])
    assert not alone and episode.metadata[layout.SUCCESS] and not person[0]
    assert (np.diff(person.astype(int)) == 1).sum() > 2, 'it hands back, and takes over again'
    assert not action[~person, :6].any() and action[person, :6].any(axis=1)[:-1].all()
    assert set(action[~person, 6]) == {-1.0, 1.0}, 'the gripper as it was'
    assert set(thoughts[~person]) == {mine} and mine not in thoughts[person]
    assert (episode.columns[layout.PHASE][0], episode.metadata['kind']) == ('carry', TAKEOVER)
    padding = np.asarray(episode.columns[layout.ACTION_IS_PAD])
    chunk = np.asarray(episode.columns[layout.ACTION_CHUNK]).reshape(*padding.shape, 7)
    assert padding[~person].any() and not chunk[~person][~padding[~person], :6].any(), (
        'no chunk of the policy goes on with the expert')


def test_a_shard_keeps_to_a_task_where_each_has_its_own_scene():
    tasks, options = ('a', 'b', 'c'), replace(OPTIONS, episodes=20)
    together = [[p.task for p in shard_plans(options, tasks, n, True)] for n in range(3)]
    apart = [[p.task for p in shard_plans(options, tasks, n, False)] for n in range(3)]
    assert [t for shard in together for t in shard] == [tasks[k % 3] for k in range(20)]
    assert apart == [['a'] * 8, ['b'] * 8, ['c'] * 4]


@pytest.mark.parametrize(('options', 'named'), [
    ({'seed': 10}, 'kept for evaluation'), ({'driven': (0.9, 0.1)}, 'range')])
def test_a_bad_round_is_named(options, named):
    with pytest.raises(UserError, match=named):
        DaggerOptions(**options)
