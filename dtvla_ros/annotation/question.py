"""The question about some key frames of an episode, the schema of its answer, and thoughts.

The words of the prompt and the schema are part of the hash under which answers are kept on disk:
a changed word asks, and pays for, everything again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from dtvla_ros.annotation.source import Array, Goal, Motion, Source
from dtvla_ros.thought import DESTINATION_PHASES, NOTHING, Thought
from dtvla_ros.thought import TROUBLES as TROUBLE_WORDS

# The grammar's phases, with what each means for whoever writes a label.
PHASES = {
    'reach': 'the open hand travels to above the object',
    'lower': 'the open hand goes down to the object',
    'grasp': 'the fingers close on the object',
    'lift': 'the held object is raised',
    'carry': 'the held object travels to above its destination',
    'place': 'the held object is lowered to its destination',
    'release': 'the fingers open and let the object go',
    'retreat': 'the hand leaves what it has let go',
    'retry': 'something went wrong: the hand opens and rises to begin again',
    'push': 'the object is pushed without a grasp',
    'wait': 'all is done, or nothing moves',
}
TROUBLES = ('none', *TROUBLE_WORDS)
FIELDS = ('holding', 'done', 'trouble', 'phase', 'object', 'next')
MAX_REASON = 200  # characters
JPEG_QUALITY = 90


class Semantics(BaseModel):
    """What proprioception cannot tell about a frame; holds until the next key frame."""

    model_config = ConfigDict(extra='forbid', frozen=True)

    holding: str = Field(description='what is between the closed fingers, or "nothing"')
    done: str = Field(description='the object finished last, or "nothing"')
    trouble: Literal['none', 'missed', 'dropped'] = Field(
        description='"missed": the last grasp closed on nothing; "dropped": the object fell')
    phase: str = Field(description='what the arm does from this frame on')
    object: str = Field(description='the thing this is done to; while it carries, places or '
                                    'pushes: the destination')
    next: str = Field(description='the phase that follows')
    reason: str = Field(default='', max_length=MAX_REASON,
                        description='why, in one short sentence about what is seen')

    def key(self) -> tuple[str, ...]:
        """Return the fields two labels are compared by."""
        return tuple(getattr(self, name) for name in FIELDS)


SYSTEM = '\n'.join((
    "You label key frames of a robot arm's recorded demonstration, so that a policy learns to "
    "think before it acts. The hand's motion and the gripper are measured and told to you: do "
    'not contradict them. A label holds from its key frame until the next one. Say only what '
    'the pictures and the motion show.',
    'phases:',
    *(f'- {name}: {meaning}' for name, meaning in PHASES.items()),
    'fields:',
    *(f'- {name}: {info.description}' for name, info in Semantics.model_fields.items()),
    'Answer with one JSON object {"frames": [...]}, one entry for each key frame, in order.'))
# (frame, label) pairs of an episode.
Labels = Sequence[tuple[int, Semantics]]


@cache
def answer_model(objects: tuple[str, ...], count: int) -> type[BaseModel]:
    """Return the model of an answer, its words limited to the grammar and the objects' names."""
    def limited(name: str, *allowed: str, **limits: Any) -> tuple[Any, Any]:
        words: Any = Literal[tuple(dict.fromkeys(allowed))] if allowed else str
        return words, Field(description=Semantics.model_fields[name].description, **limits)

    # Every field is required here: strict decoding modes refuse optional ones.
    frame = create_model(
        'Frame', __base__=Semantics, holding=limited('holding', NOTHING, *objects),
        done=limited('done', NOTHING, *objects), phase=limited('phase', *PHASES),
        object=limited('object', *objects), next=limited('next', *PHASES),
        reason=limited('reason', max_length=MAX_REASON))
    return create_model(
        'Answer', __config__=ConfigDict(extra='forbid'),
        frames=(list[frame], Field(min_length=count, max_length=count)))  # type: ignore[valid-type]


def read_answer(text: str, model: type[BaseModel]) -> list[Semantics]:
    """Return the labels in the first JSON object of an answer that is of the schema.

    What a model thinks aloud, words and a fence around it are passed over. ``ValueError`` names
    what is wrong where there is none.
    """
    answer = text.rpartition('</think>')[2]
    if '{' not in answer:
        answer = text
    for body in _objects(answer):
        with suppress(ValidationError):
            return _semantics(model.model_validate_json(body))
    begin, end = answer.find('{'), answer.rfind('}') + 1
    try:
        return _semantics(model.model_validate_json(answer[max(begin, 0):end or None]))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = '.'.join(map(str, first['loc'])) or 'the answer'
        more = f' (and {error.error_count() - 1} more)' if error.error_count() > 1 else ''
        raise ValueError(f'{where}: {first["msg"]}{more}') from None


def _objects(text: str) -> Iterator[str]:
    """Yield the JSON objects in a text, one after the other."""
    decoder, at = json.JSONDecoder(), 0
    while (at := text.find('{', at)) >= 0:
        try:
            end = decoder.raw_decode(text, at)[1]
        except (ValueError, RecursionError):
            at += 1
        else:
            yield text[at:end]
            at = end


def _semantics(answer: BaseModel) -> list[Semantics]:
    return [Semantics(**frame.model_dump()) for frame in cast(Any, answer).frames]


@dataclass(frozen=True)
class Question:
    """One request: turns of a role and parts (text, or a JPEG as bytes).

    ``model``: pydantic, of the answer. ``motion``, ``goal``, ``frames``: for rules, not images.
    """

    turns: tuple[tuple[str, tuple[str | bytes, ...]], ...]
    model: type[BaseModel]
    motion: Motion
    goal: Goal
    frames: tuple[int, ...]

    @cached_property
    def schema(self) -> Mapping[str, Any]:
        """The answer's model as JSON schema."""
        return self.model.model_json_schema()

    @cached_property
    def key(self) -> str:
        """The SHA-256 of everything that is asked, images and motion included."""
        digest = hashlib.sha256(SYSTEM.encode())
        digest.update(self.motion.position.tobytes() + repr(self.frames).encode())
        digest.update(json.dumps(self.schema, sort_keys=True).encode())
        for role, parts in self.turns:
            digest.update(f'\0{role}'.encode())
            for part in parts:
                content = part.encode() if isinstance(part, str) else part
                digest.update(b'\0' + hashlib.sha256(content).digest())
        return digest.hexdigest()

    @property
    def system_with_schema(self) -> str:
        """The system's text for models that are not given the schema apart."""
        return f'{SYSTEM}\nThe JSON schema of the answer:\n{json.dumps(self.schema)}'

    @property
    def images(self) -> int:
        return sum(isinstance(part, bytes) for _, parts in self.turns for part in parts)

    @property
    def characters(self) -> int:
        """Number of characters of text, the schema included."""
        texts = [part for _, parts in self.turns for part in parts if isinstance(part, str)]
        return len(''.join((SYSTEM, json.dumps(self.schema), *texts)))

    def corrected(self, answer: str, complaint: str) -> Question:
        """Return the question that asks again after an unusable answer."""
        return replace(self, turns=(
            *self.turns, ('assistant', (answer or '(no answer)',)),
            ('user', (f'{complaint}\nAnswer again, the whole JSON object.',))))


def jpeg(image: NDArray[np.uint8], quality: int = JPEG_QUALITY, largest: int = 65535) -> bytes:
    """Encode an image uint8 RGB [H, W, 3], reduced to ``largest`` pixels a side."""
    encoded, buffer = Image.fromarray(image), io.BytesIO()
    encoded.thumbnail((largest, largest))
    encoded.save(buffer, 'JPEG', quality=quality)
    return buffer.getvalue()


def build_question(source: Source, episode: int, keyframes: Sequence[int], frames: Sequence[int],
                   before: Semantics | None, with_images: bool) -> Question:
    """Return the question about some key frames; ``before``: the label of the one before them."""
    motion, objects = source.motion(episode), source.objects(episode)
    ends = dict(zip(keyframes, [*keyframes[1:], len(motion)]))
    known = f'The episode begins with holding {NOTHING}, done {NOTHING}.'
    if before is not None:
        values = ', '.join(map(' '.join, zip(FIELDS, before.key())))
        known = f'The key frame before these: {values}'
    parts: list[str | bytes] = [
        f'Instruction: {source.reader.task(episode)}\n'
        f'Things: {", ".join(objects) or "name them yourself, underscores for blanks"}\n'
        f'{known}\n{len(frames)} key frames:']
    shown = source.images(episode, frames) if with_images else [{} for _ in frames]
    for number, (frame, images) in enumerate(zip(frames, shown), 1):
        text = (f'{number}. at {frame / motion.fps:.1f} s, until {ends[frame] / motion.fps:.1f} '
                f's: {motion.phrase(frame, ends[frame])}')
        parts.append(text + (f'; {" and ".join(images)} camera:' if images else ''))
        parts += [jpeg(image) for image in images.values()]
    return Question(
        turns=(('user', tuple(parts)),), model=answer_model(objects, len(frames)),
        motion=motion, goal=source.goal(episode), frames=tuple(frames))


def parse_thought(text: str) -> tuple[Semantics, Thought] | None:
    """Return a thought and its label; None if the text is not of the grammar."""
    if (thought := Thought.parse(text)) is None:
        return None
    fields: dict[str, Any] = {
        'holding': _named(thought.held), 'done': _named(thought.done),
        'trouble': thought.trouble or TROUBLES[0], 'phase': thought.phase,
        'object': _named(thought.object), 'next': thought.following}
    return Semantics(**fields), thought


def _named(name: str | None) -> str:
    return (name or NOTHING).replace(' ', '_')


def write_thought(label: Semantics, place: Array, move: Array, reason: bool = False) -> str:
    """Return the thought of a label, a place [3] m and an offset [3] m, both in base axes."""
    text = Thought.measured(
        held=label.holding, done=label.done, trouble=label.trouble.replace('none', ''),
        phase=label.phase, object=label.object, place=place, following=label.next,
        move=move).compact()
    return f'{label.reason.rstrip(".")}. {text}' if reason and label.reason else text


def write_thoughts(motion: Motion, labels: Sequence[Semantics], reason: bool = False) -> list[str]:
    """Return the thoughts of the labels of all frames of an episode, in order."""
    texts, end = [], len(labels) - 1  # where the phase of a frame ends
    for frame, label in reversed(list(enumerate(labels))):
        if label.phase != labels[min(frame + 1, len(labels) - 1)].phase:
            end = frame + 1
        texts.append(write_thought(label, place_of(motion, frame, label),
                                   motion.position[end] - motion.position[frame], reason))
    return texts[::-1]


def place_of(motion: Motion, frame: int, label: Semantics) -> Array:
    """Return where the object of a label is [3] m.

    Recorded places say it where there are any. Otherwise hindsight does: an object is where the
    gripper next closes or, once held, where the gripper is; a destination is where it next opens.
    """
    if label.object in motion.places:
        return motion.places[label.object][frame]
    if label.phase in ('grasp', 'lift', 'release') or label.holding == label.object:
        return motion.position[frame]
    opens = label.phase in DESTINATION_PHASES
    ends = (k for k in motion.toggles if k > frame and bool(motion.closing[k]) != opens)
    return motion.position[next(ends, -1)]
