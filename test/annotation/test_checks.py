"""Labels that cannot be right are found, and named."""

from __future__ import annotations

import json

import pytest

from dtvla_ros.annotation import checks
from dtvla_ros.annotation.question import Semantics, answer_model, read_answer
from dtvla_ros.annotation.rules import label_frames


@pytest.fixture
def case(source):
    """Return motion, goal, key frames and right labels."""
    motion, goal = source.motion(0), source.goal(0)
    labels = label_frames(motion, goal)
    frames = [0, 5, *map(int, motion.toggles), len(motion) - 1]
    frames = sorted(set(frames))
    return motion, goal, frames, [(k, labels[k]) for k in frames]


def found(case, labels):
    motion, goal, frames, _ = case
    return {(issue.frame, issue.check)
            for issue in checks.check_labels(motion, goal, frames, labels)}


def change(case, frame, **values):
    return [(k, label.model_copy(update=values) if k == frame else label)
            for k, label in case[3]]


def test_right_labels_have_no_finding(case):
    assert found(case, case[3]) == set()


def test_gaps_and_disorder(case):
    labels = case[3]
    assert found(case, labels[1:]) == {(0, checks.GAP)}  # and once for its key frame
    assert (labels[2][0], checks.GAP) in found(case, labels[:2] + labels[3:])
    assert (labels[1][0], checks.ORDER) in found(case, [labels[0], labels[2], *labels[1:]])
    assert (999, checks.GAP) in found(case, [*labels, (999, labels[-1][1])])


@pytest.mark.parametrize('frame, values, check', [
    (0, {'holding': 'can'}, checks.GRIPPER), ('grasp', {'phase': 'lower'}, checks.GRIPPER),
    (0, {'phase': 'carry'}, checks.GRIPPER), (5, {'object': 'lemon'}, checks.OBJECT),
    (5, {'done': 'blue_bin'}, checks.OBJECT)])
def test_labels_agree_with_the_gripper_and_the_instruction(case, frame, values, check):
    frame = int(case[0].toggles[0]) if frame == 'grasp' else frame
    assert (frame, check) in found(case, change(case, frame, **values))


def test_progress_never_goes_back(case):
    last = case[2][-1]
    labels = change(case, 0, done='can')
    assert (case[2][1], checks.DONE) in found(case, labels)
    assert (last, checks.PHASE) not in found(case, case[3])
    backwards = change(case, case[2][2], phase='reach', holding='nothing')
    backwards = [(k, label.model_copy(update={'phase': 'lower'}) if k == 5 else label)
                 for k, label in backwards]
    assert (case[2][2], checks.PHASE) in found(case, backwards)


def test_answers_are_read_strictly():
    model = answer_model(('can', 'bin'), 1)
    frame = {'holding': 'can', 'done': 'nothing', 'trouble': 'none', 'phase': 'carry',
             'object': 'bin', 'next': 'place', 'reason': 'it is lifted'}

    def answer(**changes):
        return json.dumps({'frames': [frame | changes]})

    assert read_answer(answer(), model) == [Semantics(**frame)]
    assert read_answer(f'```json\n{answer()}\n```', model) == [Semantics(**frame)]
    for text, wrong in ((answer(object='moon'), 'frames.0.object'),
                        (answer(extra=1), 'frames.0.extra'),
                        (answer(reason='x' * 500), 'frames.0.reason'),
                        ('{"frames": []}', 'frames'), ('{"frames": [', 'the answer')):
        with pytest.raises(ValueError, match=f'^{wrong}:'):
            read_answer(text, model)
    schema = model.model_json_schema()
    frame_schema = schema['$defs']['Frame']
    assert frame_schema['additionalProperties'] is False
    assert set(frame_schema['required']) == set(frame)
    assert frame_schema['properties']['object']['enum'] == ['can', 'bin']
