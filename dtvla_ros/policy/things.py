"""The things that a policy's tasks are about, and which of them a correction names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dtvla_ros.correction import HOW, OPENING, Correction
from dtvla_ros.errors import UserError
from dtvla_ros.policy.instructions import spelling
from dtvla_ros.thought import DESTINATION_PHASES, Thought

OBJECT, DESTINATION = 'object', 'destination'
OTHER = 'other '
_THING = re.compile(
    r"\b(?:the|an?) ([a-z0-9_'-]+(?: [a-z0-9_'-]+)*?)(?= (?:in|on|onto|into|inside|to|of|from|at|"
    r'under|between|with|next|the|and (?:the|an?|it|put|place|push|open|close|turn|pick))\b|$)')


def things(task: str) -> tuple[str, ...]:
    """Return what an instruction names with an article, in its order, each once."""
    return tuple(dict.fromkeys(_THING.findall(spelling(task))))


def called(thing: str, names: Sequence[str]) -> str:
    """Return the only one of the names that ends with a thing, or with which it ends, or itself.

    The mark of an instruction is 'yellow mark', a thought calls it 'mark'.
    """
    if thing in names:
        return thing
    same = {name for name in names if f' {name}'.endswith(f' {thing}')
            or f' {thing}'.endswith(f' {name}')}
    return same.pop() if len(same) == 1 else thing


@dataclass(frozen=True, slots=True)
class Things:
    """The things of some tasks by what is done to them; a thing may have both parts.

    ``objects`` are handled, ``destinations`` are where those go: the last of a task's things.
    ``calls``: what a thing of the tasks is called among both.
    """

    objects: tuple[str, ...]
    destinations: tuple[str, ...]
    calls: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, tasks: Sequence[str], names: Sequence[str] = ()) -> Things:
        """Return the things of tasks, called by that of the ``names`` that means the same."""
        calls = {thing: called(thing, names) for task in tasks for thing in things(task)}
        named = [[calls[thing] for thing in things(task)] for task in tasks]
        return cls(tuple(dict.fromkeys(thing for task in named for thing in task[:-1] or task)),
                   tuple(dict.fromkeys(task[-1] for task in named if len(task) > 1)), calls)

    @property
    def all(self) -> tuple[str, ...]:
        """Every thing, objects first."""
        return tuple(dict.fromkeys((*self.objects, *self.destinations)))

    def named(self, said: str, here: Sequence[str]) -> str:
        """Return the thing that ``said`` names; ``here``: what it may be other than.

        Without any things every name is one. Raises UserError naming those that there are.
        """
        said = self.calls.get(said, said)
        if said in self.all or not (self.all or said.startswith(OTHER)):
            return said
        kind = said.removeprefix(OTHER)
        found = [thing for thing in self.all if f' {thing}'.endswith(f' {kind}')]
        if kind != said:
            present = next((thing for thing in here if thing in found), None)
            found = [thing for thing in found if present not in (None, thing)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f'thought: "{said}" could be {" or ".join(found)}; say which')
        raise UserError(f'thought: "{said}" is no thing of this policy\'s tasks: say one of '
                        f'{", ".join(self.all)}, or {HOW}')


def understand_correction(correction: Correction, tasks: Sequence[str], names: Sequence[str],
                          task: str, thought: Thought | None) -> Correction:
    """Return a correction with the names that a policy's thoughts have.

    ``tasks`` and ``names``: all of the policy, as its manifest has them. ``task``: the present
    one, ``thought``: the last one on it; by these it is known what 'the other bin' is other than,
    whether a thing is handled or a destination, and what is in the hand. A thing for which
    another task with the same verb asks goes where the present one says, unless that is told,
    too. Raises UserError for a thing that there is not, one that could be two, and what would
    open the hand on something.
    """
    seen = [] if thought is None else list(
        filter(None, (thought.object, thought.held, thought.done)))
    names = [*names, *seen]
    fields, known = dict(correction.fields), Things.of(tasks, names)
    mine = [called(thing, names) for thing in things(task)]
    here = [*seen[:1], *mine]
    for key in ('held', 'done', OBJECT, DESTINATION):
        if fields.get(key):
            fields[key] = known.named(fields[key], here)
    phase = fields.get('phase')
    if phase is None and OBJECT in fields and DESTINATION not in fields and _goes_there(
            fields[OBJECT], known, thought):
        fields[DESTINATION] = fields.pop(OBJECT)
    if phase in DESTINATION_PHASES and DESTINATION in fields and known.destinations and (
            fields[DESTINATION] not in known.destinations):
        raise UserError(f'thought: "{phase}" names where it goes, one of '
                        f'{", ".join(known.destinations)}; to handle another thing say '
                        f'"the {fields[DESTINATION]}"')
    held = fields.get('held', thought and thought.held)
    if held and phase != 'release' and (
            phase in OPENING or (phase is None and fields.get(OBJECT) not in (None, held))):
        raise UserError(f'thought: the hand holds the {held} and would drop it; say "release the '
                        f'{held}" before')
    place = fields.get(DESTINATION, mine[-1] if len(mine) > 1 else None)
    asks = _asking(fields.get(OBJECT), place, tasks, names, task)
    if asks and place:
        fields[DESTINATION] = place
    return replace(correction, fields=fields, asks=asks)


def _asking(thing: str | None, place: str | None, tasks: Sequence[str], names: Sequence[str],
            task: str) -> str:
    """Return another task with the present one's verb that asks for a thing, '' where none does.

    Of several the one that brings it to ``place``.
    """
    found = {}
    for other in tasks:
        named = [called(name, names) for name in things(other)]
        if len(named) == 2 and named[0] == thing and other.split()[0] == task.split()[0]:
            found[named[1]] = other
    asks = found.get(place or '', next(iter(found.values()), ''))
    return asks if asks != task else ''


def _goes_there(name: str, known: Things, thought: Thought | None) -> bool:
    """Return whether a thing named alone is a destination; one with both parts is by the phase."""
    if (name in known.objects) == (name in known.destinations):
        return thought is not None and thought.phase in DESTINATION_PHASES
    return name in known.destinations
