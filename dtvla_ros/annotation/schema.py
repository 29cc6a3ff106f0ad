"""What a label says, as a pydantic model and as the JSON schema a language model must fill."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

NOTHING = 'nothing'
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
TROUBLES = ('none', 'missed', 'dropped')
FIELDS = ('holding', 'done', 'trouble', 'phase', 'object', 'next')
MAX_REASON = 200  # characters


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


Model = TypeVar('Model', bound=BaseModel)


@cache
def answer_model(things: tuple[str, ...], count: int) -> type[BaseModel]:
    """Return the model of an answer for ``count`` key frames about ``things``.

    Its ``frames`` are `Semantics` whose words are limited to the grammar and the things' names.
    """
    def words(*allowed: str) -> Any:
        return Literal[tuple(dict.fromkeys(allowed))]

    def described(name: str) -> Any:
        return Field(description=Semantics.model_fields[name].description)

    # Every field is required here: strict decoding modes refuse optional ones.
    limited = create_model(
        'Frame', __base__=Semantics,
        holding=(words(NOTHING, *things), described('holding')),
        done=(words(NOTHING, *things), described('done')),
        phase=(words(*PHASES), described('phase')),
        object=(words(*things) if things else str, described('object')),
        next=(words(*PHASES), described('next')),
        reason=(str, Field(max_length=MAX_REASON,
                           description=Semantics.model_fields['reason'].description)))
    return create_model(
        'Answer', __config__=ConfigDict(extra='forbid'),
        frames=(list[limited], Field(min_length=count, max_length=count)))  # type: ignore[valid-type]


def read_answer(text: str, model: type[BaseModel]) -> list[Semantics]:
    """Return the labels in a model's answer; a fence of backquotes around it is forgiven.

    Raises ``ValueError`` with one line that names what is wrong.
    """
    body = text.strip()
    if body.startswith('```') and body.endswith('```'):
        body = body[3:-3].removeprefix('json').strip()
    try:
        answer = model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = '.'.join(map(str, first['loc'])) or 'the answer'
        more = f' (and {error.error_count() - 1} more)' if error.error_count() > 1 else ''
        raise ValueError(f'{where}: {first["msg"]}{more}') from None
    return [Semantics(**frame.model_dump()) for frame in cast(Any, answer).frames]
