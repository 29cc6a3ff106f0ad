"""What a model is asked about some key frames of an episode."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel

from dtvla_ros.annotation.motion import Motion, phrase
from dtvla_ros.annotation.schema import NOTHING, PHASES, Semantics, answer_model
from dtvla_ros.annotation.source import Source
from dtvla_ros.annotation.task import Goal

JPEG_QUALITY = 90
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


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a rule needs instead of pictures: the motion, the goal, the frames asked about."""

    motion: Motion
    goal: Goal
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """One request: turns of a conversation, each a role and parts (text, or a JPEG as bytes).

    ``model``: the pydantic model of the answer; ``schema``: the same as JSON schema.
    """

    turns: tuple[tuple[str, tuple[str | bytes, ...]], ...]
    model: type[BaseModel]
    evidence: Evidence
    system: str = SYSTEM
    schema: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'schema', self.model.model_json_schema())

    @property
    def key(self) -> str:
        """The SHA-256 of everything that is asked, pictures and motion included."""
        digest = hashlib.sha256(self.system.encode())
        digest.update(self.evidence.motion.hand.tobytes() + repr(self.evidence.frames).encode())
        digest.update(json.dumps(self.schema, sort_keys=True).encode())
        for role, parts in self.turns:
            digest.update(f'\0{role}'.encode())
            for part in parts:
                content = part.encode() if isinstance(part, str) else part
                digest.update(b'\0' + hashlib.sha256(content).digest())
        return digest.hexdigest()

    @property
    def pictures(self) -> int:
        """How many pictures it shows."""
        return sum(isinstance(part, bytes) for _, parts in self.turns for part in parts)

    @property
    def characters(self) -> int:
        """How many characters of text it has, the schema included."""
        texts = [part for _, parts in self.turns for part in parts if isinstance(part, str)]
        return len(self.system) + len(json.dumps(self.schema)) + sum(map(len, texts))

    def corrected(self, answer: str, complaint: str) -> Question:
        """Return the question that asks again after an answer one can not use."""
        return replace(self, turns=(
            *self.turns, ('assistant', (answer or '(no answer)',)),
            ('user', (f'{complaint}\nAnswer again, the whole JSON object.',))))


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode a picture uint8 RGB [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=JPEG_QUALITY)
    return buffer.getvalue()


def windows(keyframes: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Cut an episode's key frames into runs of at most ``size``, as equal as can be."""
    pieces = -(-len(keyframes) // size)
    return [tuple(int(k) for k in part) for part in np.array_split(keyframes, pieces)]


def build_question(
    source: Source, episode: int, motion: Motion, keyframes: Sequence[int],
    frames: Sequence[int], before: Semantics | None, look: bool,
) -> Question:
    """Return the question about ``frames``, some of an episode's ``keyframes``.

    ``before``: the label of the key frame before them; ``look``: show the pictures.
    """
    goal, things = source.goal(episode), source.things(episode)
    ends = dict(zip(keyframes, [*keyframes[1:], len(motion)]))
    lines = [f'Instruction: {source.instruction(episode)}',
             f'Things: {", ".join(things) or "name them yourself, underscores for blanks"}']
    if before is not None:
        told = ', '.join(f'{k} {v}' for k, v in before.model_dump(exclude={'reason'}).items())
        lines.append(f'The key frame before these: {told}')
    else:
        lines.append(f'The episode begins with holding {NOTHING}, done {NOTHING}.')
    lines.append(f'{len(frames)} key frames:')
    parts: list[str | bytes] = ['\n'.join(lines)]
    shown = source.pictures(episode, frames) if look else [{} for _ in frames]
    for number, (frame, pictures) in enumerate(zip(frames, shown), 1):
        text = (f'{number}. at {frame / motion.fps:.1f} s, until {ends[frame] / motion.fps:.1f} '
                f's: {phrase(motion, frame, ends[frame])}')
        parts.append(text + (f'; {" and ".join(pictures)} camera:' if pictures else ''))
        parts += [jpeg(image) for image in pictures.values()]
    return Question(
        turns=(('user', tuple(parts)),), model=answer_model(things, len(frames)),
        evidence=Evidence(motion, goal, tuple(frames)))
