"""What a sentence means to a policy: one of its tasks, or nothing that it can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared
from dtvla_ros.policy.instructions import known_as, nearest, refuse_instruction
from dtvla_ros.policy.language import FOLDER, Matcher, choose
from dtvla_ros.policy.manifest import PolicyManifest


@dataclass(frozen=True, slots=True)
class Understood:
    """The task that a sentence means, in the words of the policy.

    ``confidence``: from 0 to 1; 1 where the sentence is the task's own.
    """

    task: str
    confidence: float = 1.0


class NotUnderstood(UserError):
    """A sentence means none of the tasks; says why, and which task is nearest."""


class Understanding:
    """Understands tasks in free wording. Where there are none any sentence is its own task.

    ``tasks``: all that may be understood. ``whose``: where they are listed, for a refusal.
    ``matcher`` None: by their spelling only.
    """

    def __init__(self, tasks: Sequence[str], whose: str, matcher: Matcher | None = None) -> None:
        self.tasks, self._whose, self._matcher = tuple(tasks), whose, matcher

    def understand(self, text: str) -> Understood:
        """Return what a sentence means. Raises NotUnderstood."""
        if refused := refuse_instruction(text):
            raise NotUnderstood(refused)
        if not self.tasks:
            return Understood(text.strip())
        if (task := known_as(text, self.tasks)) is not None:
            return Understood(task)
        return self._infer(text)

    def _infer(self, text: str) -> Understood:
        """Return what a sentence that spells no task means. Raises NotUnderstood."""
        if self._matcher is None:
            raise NotUnderstood(f'it is not {self._whose}; nearest: "{nearest(text, self.tasks)}"')
        try:
            likely = self._matcher.probabilities(text, self.tasks)
        except UserError as error:
            raise NotUnderstood(str(error)) from None
        if (chosen := choose(likely, self._matcher.threshold)) is not None:
            return Understood(self.tasks[chosen], float(likely[chosen]))
        first, *others = (f'"{self.tasks[k]}"' for k in likely.argsort()[::-1])
        if likely.max() >= self._matcher.threshold:
            raise NotUnderstood(f'it could mean {first} or {others[0]}; say which')
        raise NotUnderstood(f'it asks for nothing {self._whose}, or for more than that; '
                            f'nearest: {first}')


def understanding_of(folder: Path, manifest: PolicyManifest,
                     allowed: Sequence[str] = ()) -> Understanding:
    """Return how a policy in ``folder`` understands sentences.

    It understands ``allowed``, those of its own tasks among them as its manifest spells them;
    without them all tasks of the manifest; any sentence if that names none. Raises UserError if
    the network that understands free wordings is damaged.
    """
    own, network = manifest.tasks, find_shared(FOLDER)
    tasks = [known_as(text, own) or text for text in allowed] or own
    whose = 'in allowed_instructions' if allowed else f'among the {len(own)} tasks of the policy'
    return Understanding(tasks, whose, Matcher(network) if tasks and network.is_dir() else None)
