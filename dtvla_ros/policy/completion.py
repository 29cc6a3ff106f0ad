"""When a policy counts as having said that its task is complete."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.thought import Thought

# How long it must go on being said [s]: the chunk of the first decision that says it opens the
# gripper, arm and object come to rest, and a slip ends nothing.
SETTLING = 0.3
AFTER_SUCCESS = 20  # control steps in which it should be said: a second


def after_success(manifest: PolicyManifest, mode: str = 'full') -> int:
    """Return how many control steps an episode goes on to hear that it is done, 0 for none.

    Only a policy that was trained to say it, and thinks for itself, is waited for.
    """
    return AFTER_SUCCESS if manifest.says_done and mode == 'full' else 0


def decisions_in_a_row(replan_steps: int, rate: float) -> int:
    """Return in how many decisions it must be said, of one in ``replan_steps`` control steps.

    ``rate``: of those [Hz]. The first and the last of them are ``SETTLING`` apart, or farther.
    """
    return 1 + math.ceil(SETTLING * rate / replan_steps - 1e-9)


@dataclass
class Completion:
    """Follows the thoughts of one task; text that is not of the grammar is never finished.

    ``said``: in how many decisions in a row, up to the last one.
    """

    said: int = 0

    def add(self, thought: str, needed: int) -> bool:
        """Take a decision's thought; return whether it was said ``needed`` times in a row."""
        known = Thought.parse(thought)
        self.said = self.said + 1 if known is not None and known.finished else 0
        return self.said >= needed
