"""Labels that cannot be right are found, and named."""

from __future__ import annotations

import pytest

from dtvla_ros.annotation import checks
from dtvla_ros.annotation.rules import label_frames


class Case:
    """An episode's key frames with right labels."""

    def __init__(self, source):
        self.motion, self.goal = source.motion(0), source.goal(0)
        every = label_frames(self.motion, self.goal)
        self.frames = sorted({0, 5, *map(int, self.motion.toggles), len(self.motion) - 1})
        self.labels = [(k, every[k]) for k in self.frames]

    def found(self, labels=None, **changes):
        """Return frame and check of what is wrong; ``changes`` of the fields, frame by frame."""
        labels = labels or [(k, label.model_copy(update=changes.get(f'at{k}', {})))
                            for k, label in self.labels]
        return {(issue.frame, issue.check)
                for issue in checks.check_labels(self.motion, self.goal, self.frames, labels)}


@pytest.fixture
def case(source):
    return Case(source)


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
