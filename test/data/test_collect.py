"""Collection records what the expert meant, and goes on where it was stopped."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
from support.tiny import tiny_episode
from typer.testing import CliRunner

from dtvla_ros.actions.grid import location_word
from dtvla_ros.cli import app
from dtvla_ros.data import collect as module
from dtvla_ros.data import layout
from dtvla_ros.data.collect import CollectOptions, EpisodePlan, collect, plan_episode
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.validate import validate
from dtvla_ros.data.writer import (
    finished_shards,
    merge_shards,
    missing_shards,
    require_same_options,
    shard_path,
    write_shard,
)
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env import SceneSetup
from dtvla_sim.tabletop.tasks import TASKS as TABLETOP

TASKS = ('a', 'b', 'c')
QUICK = CollectOptions(
    episodes=16, short_share=0.5, observation_share=0.5, short_steps=4, image_size=64)
PROGRAM = """
from pathlib import Path
from dtvla_ros.data.collect import CollectOptions, collect
if __name__ == '__main__':
    collect(Path({root!r}), {options!r}, 1)
"""


def test_a_chunk_ends_where_something_unforeseen_begins():
    made = layout.action_chunks(np.zeros((9, 7), np.float32), np.array([0, 2, 4]), 4, [4])
    np.testing.assert_array_equal(made[layout.ACTION_IS_PAD].astype(int).tolist(), [
        [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])


def test_a_longer_plan_begins_with_the_shorter_one_and_kinds_have_their_shares():
    """Scenes are shares of all, disturbances of the demonstrations."""
    plans = [plan_episode(CollectOptions(episodes=n), TASKS, 5) for n in (8, 800)]
    assert plans[0] == plans[1]

    def kinds(**shares):
        plans = [plan_episode(CollectOptions(**shares), TASKS, k).kind for k in range(2000)]
        return {kind: plans.count(kind) / len(plans) for kind in set(plans)}
    assert kinds().keys() == {'noisy', 'clean', 'drop', 'shove'}
    assert kinds(observation_share=1.0) == {'look': 1.0}
    assert kinds(done_share=1.0) == {'done': 1.0}
    half = [plan_episode(CollectOptions(randomised_share=0.5), TASKS, k) for k in range(2000)]
    assert 0.45 < np.mean([plan.randomised for plan in half]) < 0.55
    assert [replace(plan, randomised=False) for plan in half] == [
        plan_episode(CollectOptions(), TASKS, k) for k in range(2000)]
    assert kinds(switch_share=0.76, clean_share=0.0).keys() == {'drop', 'shove', 'switch'}
    mixed = kinds(observation_share=0.5, short_share=0.25, clean_share=0.5, release_share=0.0,
                  push_share=0.0)
    for kind, share in (('look', 0.5), ('short', 0.25), ('clean', 0.125), ('noisy', 0.125)):
        assert abs(mixed[kind] - share) < 0.04


@pytest.mark.parametrize('options, names', [
    ({'seed': 10}, '--seed 10'), ({'camera_every': 3}, '--camera-every 3'),
    ({'release_share': 0.9, 'clean_share': 0.9}, 'shares'),
    ({'observation_share': 0.9, 'short_share': 0.2}, 'short_share, observation_share')])
def test_bad_options_are_named(options, names):
    with pytest.raises(UserError, match=names):
        CollectOptions(**options)


def test_former_names_of_options_are_accepted(tmp_path, monkeypatch):
    """On the command line, where the help is silent about them, and in files written before."""
    seen = []

    def collected(out, options, *rest):
        seen.append(options)
        return {'total_episodes': 0, 'total_frames': 0, 'total_tasks': 0}
    monkeypatch.setattr('dtvla_ros.data.collect.collect', collected)
    run = CliRunner().invoke
    assert run(app, ['collect', '--look-share', '0.5', '--drop-share=0.2', '--shove-share', '0.1',
                     '--out', str(tmp_path)]).exit_code == 0
    assert seen == [CollectOptions(observation_share=0.5, release_share=0.2, push_share=0.1)]
    assert '--look-share' not in run(app, ['collect', '--help']).output

    options, path = asdict(seen[0]), tmp_path / 'collect.json'
    path.write_text(json.dumps({'look_share': options.pop('observation_share'), **options}))
    require_same_options(path, options | {'observation_share': 0.5}, {})
    with pytest.raises(UserError, match='another observation_share'):
        require_same_options(path, options | {'observation_share': 0.1}, {})


def test_datasets_of_before_are_added_to_only_as_they_were_made(tmp_path, monkeypatch):
    """Their demonstrations end with success, and their file does not say so."""
    monkeypatch.setattr(module.writer, 'missing_shards', lambda *rest: {})
    monkeypatch.setattr(module.writer, 'merge_shards', lambda root, **_: {'as': 'before'})
    before = asdict(QUICK) | {'tasks': list(TABLETOP)}
    del before['after_success'], before['done_share']
    (tmp_path / 'collect.json').write_text(json.dumps(before))
    assert collect(tmp_path, replace(QUICK, after_success=0)) == {'as': 'before'}
    with pytest.raises(UserError, match=r'another after_success \(0\); use the same'):
        collect(tmp_path, QUICK)


@pytest.fixture(scope='module')
def env():
    env = QUICK.scene.make()
    yield env
    env.close()


def test_a_demonstration_goes_on_after_success_and_the_arm_waits(env):
    """Its frames up to then are those of one that ends there."""
    task = 'put_the_can_in_the_wooden_bin'
    options = CollectOptions(camera_every=4, image_size=64)
    ended, = module.record(env, EpisodePlan(0, task, 0, 'noisy'),
                           replace(options, after_success=0))
    whole, = module.record(env, EpisodePlan(0, task, 0, 'noisy'), options)
    steps = ended.metadata['steps']
    assert whole.metadata == ended.metadata | {'steps': steps + 20}
    thoughts, first = whole.columns[layout.REASONING], len(ended)
    assert thoughts[:first] == ended.columns[layout.REASONING]
    assert not any(' now wait ' in text for text in thoughts[:first])
    assert all(' done can now wait can at x' in text and text.endswith(
        ' next wait move still still still') for text in thoughts[first:])
    assert whole.columns[layout.ACTION][first:].tolist() == [[0, 0, 0, 0, 0, 0, -1]] * 5
    for name in (layout.STATE, layout.ACTION):
        np.testing.assert_array_equal(whole.columns[name][:first], ended.columns[name])


def test_a_demonstration_begins_in_the_midst_of_another_task(env):
    """On the way to its thing, and where it is done; with an empty hand."""
    task, options, seen = 'put_the_lemon_in_the_blue_bin', CollectOptions(
        camera_every=4, image_size=64), set()
    fresh, = module.record(env, EpisodePlan(0, task, 0, 'clean'), options)
    height = fresh.columns[layout.STATE][0, 2]
    for seed in range(12):
        made, = module.record(env, EpisodePlan(seed, task, seed, 'switch'), options)
        assert made.metadata['kind'] == 'switch' and made.metadata['success']
        assert made.task == env.instructions[task]
        words = made.columns[layout.REASONING]
        assert words[0].startswith('holding nothing ') and ' lemon at ' in words[0]
        assert np.ptp(made.columns[layout.STATE][0, 6:]) > 0.06, 'the hand is open'
        if done := [name for name in TABLETOP if name != task and env.done(name)]:
            seen.add('done')
        elif made.columns[layout.STATE][0, 2] < height - 0.02:
            seen.add('on the way')
        if seen == {'done', 'on the way'}:
            return
    pytest.fail(f'in twelve scenes only {seen}, the last with {done}')


@pytest.mark.parametrize('task', TABLETOP)
def test_where_a_task_is_done_already_the_expert_waits_and_nearly_is_not_done(env, task):
    options, seen = CollectOptions(camera_every=4, image_size=64, done_share=1.0), set()
    for seed in range(20):
        own, *others = module.record(env, EpisodePlan(seed, task, seed, 'done'), options)
        assert own.metadata['kind'] == 'done' and len(own) == 6
        assert {e.metadata['kind'] for e in others} == {'look'}
        assert len({e.task for e in (own, *others)}) == len(TABLETOP)
        waits = [' now wait ' in text for text in own.columns[layout.REASONING]]
        assert own.metadata['success'] == waits[-1]
        seen.add(waits[0])
        if seen == {True, False}:
            return
    pytest.fail(f'{task}: in twenty scenes it was always, or never, done')


@pytest.mark.parametrize('kind', ['look', 'done'])
def test_a_randomised_episode_shows_the_same_scene_otherwise(env, kind):
    options = CollectOptions(camera_every=4, image_size=64)
    plan = EpisodePlan(3, 'put_the_can_in_the_wooden_bin', 3, kind)
    plain, other = (module.record(env, replace(plan, randomised=looks), options)[0]
                    for looks in (False, True))
    assert other.metadata == plain.metadata | {'randomised': True}
    assert other.columns[layout.REASONING] == plain.columns[layout.REASONING]
    np.testing.assert_array_equal(other.columns[layout.PLACES], plain.columns[layout.PLACES])
    assert np.abs(other.columns[layout.POINTS] - plain.columns[layout.POINTS]).max() > 0.01
    assert all(np.abs(a.astype(float) - b).mean() > 8.0 for a, b in zip(
        other.images.values(), plain.images.values(), strict=True))


def test_resume_after_a_kill(tmp_path):
    """A killed collection loses only what was in progress; the dataset is then complete."""
    program = tmp_path / 'program.py'
    program.write_text(PROGRAM.format(root=str(tmp_path), options=QUICK))
    process = subprocess.Popen([sys.executable, str(program)], stderr=subprocess.DEVNULL)
    try:
        begun = time.monotonic()  # a busy machine takes a minute for what else takes five seconds
        while not finished_shards(tmp_path) and time.monotonic() - begun < 300:
            assert process.poll() is None, 'the collection ended by itself'
            time.sleep(0.1)
        assert finished_shards(tmp_path) == [0]
    finally:
        process.kill()
        process.wait()
    first = next(shard_path(tmp_path, 0).glob('*.mp4')).stat().st_mtime_ns
    assert not (tmp_path / layout.INFO).exists()

    info = collect(tmp_path, QUICK, 1)
    assert first in [path.stat().st_mtime_ns for path in tmp_path.rglob('file-000.mp4')]
    assert {path.name for path in (tmp_path / '.shards').rglob('*.*')} == {'shard.json'}
    assert finished_shards(tmp_path) == [0, 1]
    reader = DatasetReader(tmp_path)
    assert info['fps'] == 10
    kinds = [plan_episode(QUICK, TASKS, k).kind for k in range(16)]
    assert info['total_episodes'] == (
        kinds.count('short') + len(TABLETOP) * kinds.count('look'))
    for number in (0, len(reader.episodes) - 1):
        episode = reader.episode(number)
        assert kinds[episode.metadata['index']] == episode.metadata['kind']
        np.testing.assert_array_equal(
            episode.columns[layout.ACTION_CHUNK][:, :7], episode.columns[layout.ACTION])
        assert all(image.std() > 5 for image in episode.images.values()), 'a camera saw nothing'
    assert all(' at x' in thought for thought in reader.column(layout.REASONING))
    asked = [reader.episode(k) for k in range(len(reader.episodes))
             if reader.metadata(k)['index'] == kinds.index('look')]
    assert len({episode.task for episode in asked}) == len(TABLETOP)
    for episode in asked:
        before, at = episode.columns[layout.REASONING][0].split(' at ')[:2]
        index = episode.names[layout.PLACES].index(f'{before.split()[-1]}.x')
        there = episode.columns[layout.PLACES][0, index:index + 2]
        assert at.split()[:2] == [location_word(a, v) for a, v in zip('xy', there, strict=True)]
    height = reader.column(layout.STATE)[:, 2]
    assert height.min() > -0.12 and height.max() < 0.6, 'below the table, or too high'
    with pytest.raises(UserError, match='seed'):
        collect(tmp_path, replace(QUICK, seed=1), 1)


def test_an_episode_that_the_expert_fails_is_recorded_again(monkeypatch, tmp_path):
    plans = []

    def record(env, plan, options):
        plans.append(plan)
        return [] if plan.index == 1 and len(plans) < 4 else [tiny_episode(plan.index)]
    monkeypatch.setattr(module, 'record', record)
    monkeypatch.setattr(SceneSetup, 'make', lambda self: None)
    recording = module.make_recorder(QUICK, TASKS, True)((0, range(3)))
    told = []
    while True:
        try:
            told.append(next(recording))
        except StopIteration as end:
            shard = json.loads(end.value['shard.json'])
            break
    assert told == [True] * 3 and shard['tried'] == len(shard['episodes']) == 3
    assert [plan.index for plan in plans] == [0, 1, 1, 1, 2]
    assert [plan.seed for plan in plans][::4] == [0, 2]
    assert len({plan.seed for plan in plans}) == 5 and max(p.seed for p in plans) < 100_000


def test_as_many_episodes_as_asked_for_are_planned(tmp_path):
    assert {k: len(plan) for k, plan in missing_shards(tmp_path, 36, 8).items()} == {
        0: 8, 1: 8, 2: 8, 3: 8, 4: 4}
    for number, tried in ((0, None), (1, 8), (2, 4)):  # one as written before
        write_shard(tmp_path, number, [tiny_episode(number)], 10, tried=tried)
    assert missing_shards(tmp_path, 20, 8) == {}
    assert missing_shards(tmp_path, 24, 8) == {2: range(16, 24)}
    first = merge_shards(tmp_path)
    assert {path.name for path in (tmp_path / '.shards').rglob('*.*')} == {'shard.json'}
    assert merge_shards(tmp_path) == first
    write_shard(tmp_path, 2, [tiny_episode(k) for k in (2, 3)], 10, tried=8)
    assert merge_shards(tmp_path)['total_episodes'] == 4
    assert validate(tmp_path) == []
    next(tmp_path.rglob('file-001.mp4')).unlink()
    write_shard(tmp_path, 3, [tiny_episode(4)], 10, tried=8)
    with pytest.raises(UserError, match='file-001.mp4: no such file; delete .*00001'):
        merge_shards(tmp_path)
