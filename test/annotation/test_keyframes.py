"""Key frames lie where something changes, labels by rules say what; wrong ones are found."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.picks import picks_dataset

from dtvla_ros.annotation import checks
from dtvla_ros.annotation import keyframes as module
from dtvla_ros.annotation.keyframes import KeyframeOptions, find_keyframes
from dtvla_ros.annotation.rules import label_frames
from dtvla_ros.annotation.source import Motion, Source, hysteresis, parse_instruction
from dtvla_ros.errors import UserError


def test_hysteresis_ignores_noise_around_the_middle():
    level = np.array([0.0, 0.5, 0.6, 0.4, 0.7, 0.5, 0.4, 0.6, 0.2, 0.5])
    assert hysteresis(level).tolist() == [False] * 4 + [True] * 4 + [False] * 2
    assert hysteresis(np.array([0.6, 0.6])).tolist() == [True, True]


def moving(along, **changes):
    """Return the motion of an arm along x [m]; ``changes`` of what else it does."""
    position = np.pad(np.asarray(along, float)[:, None], [(0, 0), (0, 2)])
    return Motion(**{'position': position, 'closing': np.zeros(len(position), bool),
                     'opening': None, 'widest': 0.0, 'fps': 10.0} | changes)


def test_no_gap_is_longer_than_allowed():
    frames = list(find_keyframes(moving(np.zeros(101)), KeyframeOptions(max_gap=1.5)))
    assert (frames[0], frames[-1], len(frames)) == (0, 100, 8) and max(np.diff(frames)) <= 15


def test_a_pause_is_a_key_frame_and_toggles_are_always():
    closing = np.zeros(35, bool)
    closing[[5, 7]] = True  # shorter than any gap, and still not lost
    motion = moving(np.concatenate([np.linspace(0, 0.3, 15), np.full(5, 0.3),
                                    np.linspace(0.3, 0.6, 15)]), closing=closing)
    why = find_keyframes(motion, KeyframeOptions(max_gap=9))
    assert [k for k, w in why.items() if w == module.TOGGLE] == [5, 6, 7, 8]
    [pause] = [k for k, w in why.items() if w == module.PAUSE]
    assert 15 <= pause <= 20


def test_the_file_goes_on_where_it_was_cut(source, tmp_path):
    module.write_keyframes(source, tmp_path, KeyframeOptions())
    path = tmp_path / module.FILE
    whole = path.read_bytes()
    assert len(whole.splitlines()) == 13
    path.write_bytes(whole[:len(whole) // 2])  # in the middle of a line
    module.write_keyframes(source, tmp_path, KeyframeOptions())
    assert path.read_bytes() == whole
    with pytest.raises(UserError, match='max_gap'):
        module.write_keyframes(source, tmp_path, KeyframeOptions(max_gap=0.9))
    other = Source(picks_dataset(tmp_path / 'other', 2))
    with pytest.raises(UserError, match='another dataset'):
        module.read_keyframes(tmp_path, other)


def test_the_plot_is_an_image(source, tmp_path):
    pytest.importorskip('matplotlib')
    path = tmp_path / 'a' / 'plot.png'
    module.plot_keyframes(source, 1, KeyframeOptions(), path)
    assert path.read_bytes()[:4] == b'\x89PNG'
    with pytest.raises(UserError, match='no episode 99'):
        module.plot_keyframes(source, 99, KeyframeOptions(), path)


def test_phrases_come_from_the_motion(source):
    motion = source.motion(0)
    toggle = int(motion.toggles[0])
    assert toggle in find_keyframes(motion, KeyframeOptions())
    down = motion.phrase(0, toggle)
    assert down.startswith('move') and 'down' in down and down.endswith('gripper stays open')
    assert motion.phrase(toggle, toggle + 2) == 'stay, gripper closes'
    assert motion.phrase(toggle + 4, toggle + 7).endswith('up, gripper stays closed')


@pytest.mark.parametrize('sentence, verb, objects, destination', [
    ('put the red cube and the can in the blue bin', 'put', ('red_cube', 'can'), 'blue_bin'),
    ('push the green cube onto the yellow mark', 'push', ('green_cube',), 'mark'),
    ('Pick up the black bowl between the plate and the ramekin and place it on the plate.',
     'pick', ('black_bowl',), 'plate'),
    ('open the middle drawer of the cabinet', 'open', ('middle_drawer',), None),
    ('show me the can', '', ('can',), None)])
def test_instructions(sentence, verb, objects, destination):
    goal = parse_instruction(sentence, ('mark', 'can'))
    assert (goal.verb, goal.objects, goal.destination) == (verb, objects, destination)


def test_rules_agree_with_what_was_done(source):
    rates = checks.compare(source, None, range(len(source)))
    assert rates['phase'].value > 0.93 and rates['holding'].value > 0.95
    assert rates['object'].value > 0.93 and rates['place'].value > 0.9


def test_rules_need_no_places(tmp_path, source):
    blind = Source(picks_dataset(tmp_path / 'blind', 3, places=False))
    for episode in range(3):
        assert blind.motion(episode).places == {}
        seen, unseen = (label_frames(s.motion(episode), s.goal(episode)) for s in (source, blind))
        assert np.mean([a == b for a, b in zip(seen, unseen)]) > 0.95
    assert blind.objects(0) == ('can', 'blue_bin')
    with pytest.raises(UserError, match='reasoning'):
        blind.thoughts(0)


def test_a_dropped_object_is_a_retry():
    closing = np.zeros(40, bool)
    closing[5:20] = closing[30:] = True
    motion = moving(np.concatenate([np.zeros(12), np.linspace(0, 0.3, 28)]), closing=closing,
                    opening=np.where(closing, 0.05, 0.08), widest=0.08)
    places = {'can': motion.position, 'bin': np.full((40, 3), [0.3, 0, 0])}
    labels = label_frames(replace(motion, places=places),
                          parse_instruction('put the can in the bin', tuple(places)))
    after = labels[20]
    assert (after.phase, after.trouble, after.holding) == ('retry', 'dropped', 'nothing')
    assert labels[15].holding == 'can' and labels[39].done == 'nothing'


@pytest.fixture
def case(source):
    """Return an episode's key frames with right labels, and what finds wrong ones."""
    motion, goal = source.motion(0), source.goal(0)
    frames = sorted({0, 5, *map(int, motion.toggles), len(motion) - 1})
    right = [(k, label_frames(motion, goal)[k]) for k in frames]

    def found(labels=None, **changes):
        """Return frame and check of what is wrong; ``changes`` of the fields, frame by frame."""
        labels = labels or [(k, label.model_copy(update=changes.get(f'at{k}', {})))
                            for k, label in right]
        return {(e.frame, e.check) for e in checks.check_labels(motion, goal, frames, labels)}

    return SimpleNamespace(motion=motion, frames=frames, labels=right, found=found)


def test_gaps_and_disorder(case):
    labels = case.labels
    assert case.found() == set()
    assert case.found(labels[1:]) == {(0, checks.GAP)}  # and once for its key frame
    assert (labels[2][0], checks.GAP) in case.found(labels[:2] + labels[3:])
    assert (labels[1][0], checks.ORDER) in case.found([labels[0], labels[2], *labels[1:]])
    assert (999, checks.GAP) in case.found([*labels, (999, labels[-1][1])])


@pytest.mark.parametrize('frame, values, check', [
    (0, {'holding': 'can'}, checks.GRIPPER), ('grasp', {'phase': 'lower'}, checks.GRIPPER),
    (0, {'phase': 'carry'}, checks.GRIPPER), (5, {'object': 'lemon'}, checks.OBJECT),
    (5, {'done': 'blue_bin'}, checks.OBJECT)])
def test_labels_agree_with_the_gripper_and_the_instruction(case, frame, values, check):
    frame = int(case.motion.toggles[0]) if frame == 'grasp' else frame
    assert (frame, check) in case.found(**{f'at{frame}': values})


def test_progress_never_goes_back(case):
    assert (5, checks.DONE) in case.found(at0={'done': 'can'})
    grasp = case.frames[2]
    assert (grasp, checks.PHASE) in case.found(
        at5={'phase': 'lower'}, **{f'at{grasp}': {'phase': 'reach', 'holding': 'nothing'}})
