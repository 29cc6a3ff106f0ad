"""When a policy counts as having said that its task is complete."""

from __future__ import annotations

from dataclasses import dataclass

from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.thought import Thought

# Decisions in a row, nearly half a second: the chunk of the first one opens the gripper, arm and
# object come to rest, and a slip or two end nothing.
IN_A_ROW = 3


AFTER_SUCCESS = 20  # control steps in which it should be said: a second


def after_success(manifest: PolicyManifest, mode: str = 'full') -> int:
    """Return how many control steps an episode goes on to hear that it is done, 0 for none.

    Only a policy that was trained to say it, and thinks for itself, is waited for.
    """
    return AFTER_SUCCESS if manifest.says_done and mode == 'full' else 0


@dataclass
class Completion:
    """Follows the thoughts of one task; text that is not of the grammar is never finished."""

    said: int = 0  # in how many decisions in a row, up to the last

    def add(self, thought: str) -> bool:
        """Take a decision's thought; return whether the task counts as complete."""
        known = Thought.parse(thought)
        self.said = self.said + 1 if known is not None and known.finished else 0
        return self.said >= IN_A_ROW
