"""LIBERO's scenes are recorded as the tabletop's: what is here, what could be asked for, where."""

from contextlib import closing

import numpy as np
import pytest
from support.libero_here import needs_libero

import dtvla_sim
from dtvla_ros.data import collect as collecting
from dtvla_ros.data import layout
from dtvla_ros.data.collect import CollectOptions, EpisodePlan, collect, plan_episode, record
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError

pytestmark = needs_libero
MILK = 'pick_up_the_milk_and_place_it_in_the_basket'
OPTIONS = CollectOptions(suite='libero_object', image_size=64, starts='shuffle')


@pytest.fixture(scope='module')
def env():
    with closing(dtvla_sim.make('libero_object', image_size=64, starts='shuffle')) as environment:
        yield environment


def test_a_shard_stays_with_a_task():
    plans = [plan_episode(OPTIONS, ('a', 'b'), k, one_scene=False).task for k in range(24)]
    assert plans == ['a'] * 8 + ['b'] * 8 + ['a'] * 8


def test_a_look_asks_for_every_object_of_the_scene_that_has_a_task(env):
    episodes = record(env, EpisodePlan(0, MILK, 7, collecting.OBSERVATION), OPTIONS)
    names = {e.task for e in episodes}
    assert len(names) == len(episodes) > 3
    assert env.task.name == MILK
    assert env.scene.goals == [['in', 'milk_1', 'basket_1_contain_region']]
    for episode in episodes:
        thing = episode.task.removeprefix('pick up the ').split(' and place')[0]
        thought = episode.columns[layout.REASONING][0].replace('_', ' ')
        assert f'reach {thing} at' in thought
        places = dict(zip(episode.names[layout.PLACES], episode.columns[layout.PLACES][0],
                          strict=True))
        x = places[f'{thing.replace(" ", "_")}_1.x']
        assert f'at x{round(100 * float(x))} ' in thought
    absent = [n for n in env.object_names if n not in env.scene.objects]
    assert absent and all(np.isnan(places[f'{n}.x']) for n in absent)


def test_another_task_of_the_same_wish_is_no_alternative():
    with closing(dtvla_sim.make('libero_spatial', image_size=64)) as spatial:
        spatial.reset(seed=1)
        assert spatial.alternatives() == (spatial.task.name,)


@pytest.mark.parametrize('task', [
    'LIVING_ROOM_SCENE2_put_both_the_cream_cheese_box_and_the_butter_in_the_basket',
    'LIVING_ROOM_SCENE5_put_the_white_mug_on_the_left_plate_and_put_the_yellow_and_white_mug_on_'
    'the_right_plate'])
def test_where_things_are_in_place_already_the_expert_goes_on_with_what_is_left(task):
    options, seen = CollectOptions(suite='libero_10', image_size=64), set()
    with closing(dtvla_sim.make('libero_10', starts='jitter', image_size=64)) as env:
        goals = env.problems[task].goals
        for seed in range(12):
            own = record(env, EpisodePlan(seed, task, seed, collecting.DONE), options)[0]
            first = own.columns[layout.REASONING][0]
            assert own.metadata['kind'] == 'done' and len(own) < 12
            if ' now wait ' in first:
                seen.add('all')
            elif ' done nothing ' not in first:
                done, left = (first.split(f' {word} ')[1].split()[k] for word, k in (
                    ('done', 0), ('now', 1)))
                assert {done, left} == {goal[1].removesuffix('_1') for goal in goals}
                seen.add('one')
            if len(seen) == 2:
                return
    pytest.fail(f'in twelve scenes only {seen}')


def test_a_point_of_the_image_moves_with_its_thing(env):
    env.reset(seed=3, options={'task': MILK})
    k = env.object_names.index('milk_1')
    before = np.array(env.draw('agentview')).astype(int)
    first = collecting.image_points(env).reshape(-1, 2)[k]
    env.scene.data.qpos[env.scene.joint_address('milk_1') + 2] += 5.0  # out of the image
    env.scene.forward()
    changed = np.abs(np.array(env.draw('agentview')).astype(int) - before).sum(2) > 30
    rows, columns = np.nonzero(changed)
    assert abs(np.median(columns) - 64 * first[0]) < 4
    assert rows.min() - 2 < 64 * first[1] < rows.max() + 2


def test_collecting_writes_one_dataset_of_many_scenes(tmp_path):
    options = CollectOptions(
        suite='libero_object', starts='jitter', image_size=64, episodes=8, observation_share=0.9,
        camera_every=10, tasks=(MILK,))
    info = collect(tmp_path, options, 1)
    assert info['total_episodes'] >= 8
    places = DatasetReader(tmp_path).column(layout.PLACES)
    assert np.isnan(places).any(), 'no scene holds all ten objects'
    assert not np.isnan(places).all(1).any()
    assert 'basket_1.x' in info['features'][layout.PLACES]['names']
    with pytest.raises(UserError, match='starts "sideways"'):
        collect(tmp_path / 'other', CollectOptions(suite='libero_object', starts='sideways'), 1)
