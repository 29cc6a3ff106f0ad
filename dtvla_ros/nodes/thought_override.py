"""What a person puts into the policy's thoughts, for how long, and why it was refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtvla_ros.correction import Correction, parse_correction
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.inference_worker import InferenceWorker
from dtvla_ros.policy.instructions import refuse_instruction, shown
from dtvla_ros.policy.things import understand_correction
from dtvla_ros.thought import Thought

if TYPE_CHECKING:
    from dtvla_ros.policy.transform import PolicyTransform

NAMES = ('held', 'done', 'phase', 'object', 'destination', 'following')


@dataclass
class ThoughtOverride:
    """The correction that stands, None without one, and what was said of it.

    ``left``: decisions for which it counts, 0: until it is cleared. ``taken`` counts what was
    said and taken, an empty text included, ``refusals`` what was refused; ``rejected`` is the
    last refusal, '' once something was taken.
    """

    correction: Correction | None = None
    left: int = 0
    taken: int = 0
    refusals: int = 0
    rejected: str = ''

    def take(self, correction: Correction | None, decisions: int) -> None:
        """Let a correction stand for so many decisions, or none."""
        self.correction, self.left = correction, decisions if correction else 0
        self.taken, self.rejected = self.taken + 1, ''

    def reject(self, text: str, reason: str) -> str:
        """Note a refusal and return it in a line; what stood before stands."""
        self.refusals, self.rejected = self.refusals + 1, f'"{shown(text)}": {reason}'
        return f'thought override {self.rejected}'

    def clear(self) -> None:
        """Let nothing stand."""
        self.correction, self.left = None, 0

    def count(self, used: Correction | None) -> bool:
        """Count a decision; return whether it was the last for which the correction counts."""
        if used is None or used is not self.correction or not self.left:
            return False
        self.left -= 1
        if self.left == 0:
            self.clear()
        return self.correction is None

    def values(self) -> dict[str, object]:
        """Return what the node's state says of it."""
        return {'override': self.correction.said if self.correction else '',
                'override_left': self.left, 'overrides': self.taken,
                'override_refusals': self.refusals, 'override_rejected': self.rejected}


def understood(text: str, worker: InferenceWorker, task: str, last: str) -> Correction:
    """Return the correction that a text means to the policy of a worker that has loaded.

    ``task``: the present one; ``last``: its last thought of the grammar in the policy's words,
    else any, '' before the first. Raises UserError for what cannot be taken.
    """
    if refused := refuse_instruction(text):
        raise UserError(refused)
    policy, tasks = worker.policy, worker.manifest.tasks or worker.understanding.tasks
    if policy.mode != 'full':
        raise UserError(f'mode: {policy.mode}: this policy writes no thought; start it with full')
    if last and Thought.parse(last) is None:
        raise UserError("this policy's thoughts are not of the grammar; give it an instruction")
    correction = understand_correction(
        parse_correction(text), tasks, worker.manifest.names, task, Thought.parse(last))
    _require_words(policy.transform, correction)
    return correction


def _require_words(transform: PolicyTransform, correction: Correction) -> None:
    """Raise UserError for a word that the policy has not."""
    words = [correction.fields.get(key) for key in NAMES]
    transform.encode_thought(' '.join(filter(None, words)))
