"""What goes into the network and what comes out of it, as words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.golden import tensors
from support.policies import INSTRUCTION, observation, untrained

from dtvla_ros.actions import osc
from dtvla_ros.actions.grid import word_groups
from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.policy.vocabulary import load_tokenizer, ordinal_groups
from dtvla_ros.thought import Thought
from dtvla_sim.tabletop.tasks import TASKS


@pytest.fixture(scope='module')
def transform() -> PolicyTransform:
    return untrained(layers=1)[1]


def _words(transform: PolicyTransform, ids: list[int]) -> list[str]:
    return [transform.tokenizer.id_to_token(i) for i in ids]


def test_prompt_layout(transform):
    ids, count = transform.config.ids, transform.config.image_tokens
    prompt = transform.prompt_ids('Put_the can in the wooden bin', observation())
    assert prompt[:count] == [ids.image] * count and prompt.count(ids.image) == count
    assert prompt[-2:] == [ids.semicolon, ids.newline]
    assert ' '.join(_words(transform, prompt[count:-1])) == (
        f'<bos> Task : {INSTRUCTION} ; state x45 y-12 z+3 rx+0 ry+0 rz+0 g40mm ;')
    tilted = Rotation.from_rotvec([0.0, np.radians(12), 0.0]) * osc.HOME  # about the base's axes
    seen = dataclasses.replace(observation(), ee_quaternion=tilted.as_quat())
    assert 'ry+12' in _words(transform, transform.prompt_ids(INSTRUCTION, seen))


def test_every_task_and_thought_has_its_words(transform):
    for task in TASKS.values():
        transform.prompt_ids(task.instruction, observation())
        for name in (n for goal in task.goals for n in (goal.object, goal.destination)):
            text = Thought.measured(
                held=name, done=name, trouble='missed', phase='reach', object=name,
                place=np.zeros(3), following='lower', move=np.array([0.1, -0.1, 0.0])).compact()
            assert transform.decode_thought(transform.encode_thought(text)) == (
                text.replace('_', ' '))
    with pytest.raises(UserError, match='unicorn'):
        transform.encode_thought('holding unicorn')


def test_ordinal_groups_are_the_axes_in_order(transform):
    groups = word_groups()
    for axis, (first, last) in zip('xyz', ordinal_groups(transform.tokenizer), strict=True):
        assert _words(transform, list(range(first, last + 1))) == groups[axis]


def test_a_broken_tokenizer_is_named(tmp_path):
    (path := tmp_path / 'tokenizer.json').write_text('{"version"')
    with pytest.raises(UserError, match='not a tokenizer file'):
        load_tokenizer(path)


@pytest.mark.parametrize(('instruction', 'word'), [
    ('', '0 characters'), ('  ', '0 characters'), ('put ' * 4000, 'characters'),
    ('put the can\x07 in', 'control'), ('put\nthe can', 'control'), ('put the <a3> in', '<a3>'),
    ('put the elephant in the bin', 'elephant'), ('put the <action> in', '<action>')])
def test_bad_instruction(transform, instruction, word):
    with pytest.raises(UserError, match=word):
        transform.prompt_ids(instruction, observation())


def test_bad_state(transform):
    for change in ({'ee_position': np.array([0.4, np.nan, 0.1])},
                   {'ee_quaternion': np.zeros(4)}, {'ee_position': np.zeros(2)}):
        with pytest.raises(UserError, match='gripper state'):
            transform.prompt_ids(INSTRUCTION, dataclasses.replace(observation(), **change))
    with pytest.raises(UserError, match='no observation'):
        transform.prompt_ids(INSTRUCTION)


def test_pixels(transform):
    images = observation().images
    pixels = transform.pixels(images)
    assert pixels.shape == (2, 3, 128, 128) and pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[0, :, 5, 9], images['primary'][5, 9] / 127.5 - 1, atol=1e-6)
    flat = {name: np.full((480, 640, 3), 51, np.uint8) for name in images}
    np.testing.assert_allclose(transform.pixels(flat), -0.6, atol=1e-6)


@pytest.mark.parametrize(('image', 'word'), [
    (np.full((128, 128, 3), np.nan, np.float32), 'NaN in float32'), (None, 'missing'),
    (np.zeros((128, 128, 3), np.float32), 'float32'),
    (np.zeros((128, 128), np.uint8), r'shape \(128, 128\)'),
    (np.zeros((0, 128, 3), np.uint8), 'shape')])
def test_bad_images(transform, image, word):
    images = observation().images | {'wrist': image}
    if image is None:
        del images['wrist']
    with pytest.raises(UserError, match=f"camera 'wrist'.*{word}"):
        transform.pixels(images)


def test_actions_round_trip(transform):
    statistics = transform.statistics
    x = np.random.default_rng(0).uniform(-0.7, 0.8, (8, 7))
    tokens = transform.encode_actions(x)
    assert tokens.shape == (56,)
    span = (np.array(statistics.q99) - np.array(statistics.q01)) / 2
    assert np.abs((transform.decode_actions(tokens) - x) / span).max() <= 1.5 * 2 / 255 + 1e-6
    with pytest.raises(UserError, match='chunk of shape'):
        transform.encode_actions(x[:7])


@pytest.mark.parametrize('mirrored', [True, False])
def test_pixels_are_the_published_ones(transform, mirrored):
    # There a frame is turned by 180 degrees: made upright, then left and right exchanged.
    case = {name: tensor.numpy() for name, tensor in tensors('case_image').items()}
    size, config = case['policy_uint8'].shape[0], transform.config
    vision = dataclasses.replace(config.vision, cameras=('only',), tokens=(1,), image_size=size,
                                 kind='siglip', width=8, layers=1, heads=1, mlp=8, patch=size)
    transform = dataclasses.replace(
        transform, mirrored=mirrored, config=dataclasses.replace(config, vision=vision))
    image = case['camera_uint8'][::-1]  # the simulator's rows come bottom up
    if not mirrored:
        image = image[:, ::-1]
    pixels = transform.pixels({'only': image})[0]  # [3, size, size]
    corner = case['pixel_values_corner']
    np.testing.assert_allclose(pixels[:, :corner.shape[1], :corner.shape[2]], corner, atol=1e-6)
    levels = pixels * 127.5 + 127.5
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    assert np.array_equal(levels.round().astype(np.uint8).transpose(1, 2, 0), case['policy_uint8'])
