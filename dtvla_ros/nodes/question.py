"""What the policy node asks a person when it is not sure enough to go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dtvla_ros.policy.confidence import PLACE, Doubt, least_sure
from dtvla_ros.thought import PHASES, STILL, Thought, said_place

UNSURE = 0.9  # probability of its words below which a field of the thought is asked about


class Question:
    """The question that stands, '' without one, and what leads to it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Let none stand, and forget the decisions so far."""
        self.text, self._doubt = '', Doubt()

    def due(self, confidence: float | None, least: float) -> bool:
        """Take a decision's confidence; return whether their mean is below ``least``."""
        return confidence is not None and self._doubt.add(confidence) < least


def question_of(thought: str, fields: Sequence[str], log_probs: Sequence[float],
                task: str) -> str:
    """Return a sentence that a person can answer, about a thought in compact words.

    ``fields`` and ``log_probs`` of its tokens. It asks about the least sure field, or how to go on
    with the task where the thought's words are sure, or not known.
    """
    field, probability = least_sure(fields, log_probs)
    said = Thought.parse(thought)
    if said is None or field not in _ASKING or probability >= UNSURE:
        return (f'I am not sure how to go on with "{task}"; tell me, correct my thought, or take '
                'over.')
    return _ASKING[field](said)


def _doing(thought: Thought) -> str:
    name = thought.object.replace('_', ' ')
    return f'{PHASES[thought.phase][0].lower()}{PHASES[thought.phase][1:]} the {name}'


def _object(thought: Thought) -> str:
    name = thought.object.replace('_', ' ')
    *more, kind = name.split()
    return f'Which {kind if more else "thing"}? I am unsure about the {name}.'


def _holding(thought: Thought) -> str:
    return (f'Do I hold the {thought.held}? I am not sure.' if thought.held else
            'Is my hand empty? I am not sure.')


def _done(thought: Thought) -> str:
    return (f'Am I done with the {thought.done}? I am not sure.' if thought.done else
            'Is nothing done yet? I am not sure.')


def _motion(thought: Thought) -> str:
    words = [word for word in thought.move if word != STILL]
    return 'Which way? I am unsure about ' + (
        f'moving {" and ".join(words)}.' if words else 'keeping still.')


_ASKING: dict[str, Callable[[Thought], str]] = {
    'held': _holding, 'done': _done, 'object': _object, 'move': _motion,
    'phase': lambda thought: f'What now? I am unsure about {_doing(thought)}.',
    PLACE: lambda thought: (f'Where is the {thought.object}? I am unsure about '
                            f'{said_place(thought.x, thought.y)}.'),
    'following': lambda thought: (f'What comes after {_doing(thought)}? I am unsure about '
                                  f'{thought.following}.')}
