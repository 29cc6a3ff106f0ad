"""The grammar that sentences are drawn from, and the tasks that these are about.

It is a YAML file (`config/train/language.yaml`): names of things, verbs and prepositions, and
templates with slots: ``{O}`` the objects with article, ``{o}`` without, ``{D}`` and ``{d}`` the
destination, ``{v}``, ``{v.ing}``, ``{v.ed}`` the verb, ``{in}`` and ``{at}`` prepositions of
motion and of rest. A task is a tuple of goals. Things of a kind may be told apart by place: the
bowl next to the plate.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dtvla_ros.training.config import Config, known_keys

Lists = dict[str, list[str]]

# Of a goal's kind: verbs.
VERBS = {'in': 'put', 'on': 'set', 'stack': 'stack', 'to': 'push', 'by': 'set'}
SWITCHING = {'open': ('close', 'open'), 'close': ('open', 'closed'),
             'turn on': ('turn off', 'on'), 'turn off': ('turn on', 'off')}  # opposite, result
COLOURED = ('shapes', 'containers', 'spots')
ANCHOR = re.compile(r'\{[wx]\}')  # slot of a place for the thing that it is told by


@known_keys
@dataclass(frozen=True, slots=True)
class Grammar(Config):
    """The lists of the grammar; what each is for stands in the file."""

    tasks: dict[str, dict[str, list[list[str | list[str]]]]]
    where: Lists
    colours: Lists
    behind: list[str]
    shapes: Lists
    containers: Lists
    spots: Lists
    things: Lists
    fixtures: dict[str, Lists]
    openable: list[str]
    switches: Lists
    verbs: Lists
    prepositions: Lists
    state: Lists
    out: list[str]
    imperative: Lists
    statement: Lists
    question: Lists
    short: Lists
    reasons: Lists
    before: list[str]
    after: list[str]
    fillers: list[str]
    both: list[str]
    two_steps: list[str]
    choices: list[str]
    same_place: list[str]
    negations: list[str]
    negated_states: list[str]
    half_negated: list[str]
    misses: list[str]
    asks: list[str]
    others: list[str]
    talk: list[str]
    foreign: Lists

    example: ClassVar[str] = 'config/train/language.yaml'

    def names_of(self, noun: Noun) -> set[str]:
        """Return what a thing may be called; with it the place that one is told by."""
        if isinstance(noun, Placed):
            things = self.names_of(noun.thing)
            if noun.thing.group in COLOURED:
                things |= {name.split(' ', 1)[1] for name in things}
            anchors = itertools.product(*map(self.names_of, noun.anchors))
            return {f'{thing} {placed(noun.relation, sorted(names))}'
                    for names in anchors for thing in things}
        if noun.group in COLOURED:
            colour, shape = noun.parts
            return {f'{c} {s}' for c in (colour, *self.colours[colour])
                    for s in (shape, *getattr(self, noun.group)[shape])}
        if noun.group == 'fixtures':
            return {noun.name, *(name for lists in (*self.fixtures.values(), self.switches)
                                 for name in lists.get(noun.name, ()))}
        return {noun.name, *(self.things[noun.name] if noun.group == 'things' else ())}


@dataclass(frozen=True, slots=True)
class Noun:
    """A thing by the name a task gives it; ``group``: the list it is from, 'bare' for none."""

    name: str
    group: str

    @property
    def parts(self) -> tuple[str, str]:
        """Its colour, '' for one that is not of a `COLOURED` list, and what it is."""
        colour, _, shape = self.name.partition(' ')
        return (colour, shape) if self.group in COLOURED else ('', self.name)


@dataclass(frozen=True, slots=True)
class Placed(Noun):
    """A ``thing`` told from others of its kind by where it is, group 'placed'.

    ``relation``: a key of ``Grammar.where``, whose slots the ``anchors`` fill.
    """

    thing: Noun
    relation: str
    anchors: tuple[Noun, ...]

    @classmethod
    def at(cls, thing: Noun, relation: str, anchors: Sequence[Noun]) -> Placed:
        """Return a thing at a place; between two things it is the same in either order."""
        anchors = tuple(sorted(anchors, key=lambda anchor: anchor.name))
        name = f'{thing.name} {placed(relation, [anchor.name for anchor in anchors])}'
        return cls(name, 'placed', thing, relation, anchors)


def placed(way: str, names: Sequence[str]) -> str:
    """Return a way to say where something is, with names in its slots."""
    return way.format(**dict(zip('wx', names)))


@dataclass(frozen=True, slots=True)
class Goal:
    """What a task asks for: ``kind`` of `VERBS` with a place, or of `SWITCHING` without."""

    kind: str
    objects: tuple[Noun, ...]
    place: Noun | None = None

    @property
    def meaning(self) -> tuple[str, frozenset[str], str]:
        """What two goals share that ask for the same; to stack is to put on."""
        kind = 'on' if self.kind == 'stack' else self.kind
        return kind, frozenset(o.name for o in self.objects), self.place.name if self.place else ''

    @property
    def reversible(self) -> bool:
        """Whether the place could as well be the object: nothing but the words tells which."""
        places = ('containers', 'spots', 'fixtures')
        return self.place is not None and (
            self.place.group not in places or any(o.group in places for o in self.objects))

    @property
    def nouns(self) -> tuple[Noun, ...]:
        return (*self.objects, *((self.place,) if self.place else ()))


Task = tuple[Goal, ...]


def meaning(task: Task) -> frozenset[tuple[str, frozenset[str], str]]:
    """Return what two tasks share that ask for the same."""
    return frozenset(goal.meaning for goal in task)
