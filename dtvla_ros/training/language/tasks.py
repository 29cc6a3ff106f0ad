"""Draws tasks, and others that differ from a task in one thing."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dtvla_ros.errors import UserError
from dtvla_ros.training.language.grammar import (
    ANCHOR,
    COLOURED,
    SWITCHING,
    VERBS,
    Goal,
    Grammar,
    Noun,
    Placed,
    Task,
    meaning,
)


class Dice(random.Random):
    """Where all draws come from."""

    def chance(self, share: float) -> bool:
        """Return True with the probability ``share``."""
        return self.random() < share


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks that belong together, and what they are about: ``places`` by the kind of a goal."""

    tasks: tuple[Task, ...]
    objects: tuple[Noun, ...]
    places: dict[str, tuple[Noun, ...]]

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> Group:
        goals = [goal for task in tasks for goal in task if goal.place]
        places = {kind: tuple(dict.fromkeys(
            goal.place for goal in goals if goal.kind == kind and goal.place)) for kind in VERBS}
        return cls(tuple(tasks), tuple(dict.fromkeys(o for goal in goals for o in goal.objects)),
                   {kind: found for kind, found in places.items() if found})


class TaskSampler:
    """Draws tasks: half of them are those of ``grammar.tasks``, or made of their things.

    ``group``: the tasks of the grammar that those now drawn are near; `begin` chooses it.
    ``spelled``: how policies spell the grammar's tasks.
    """

    def __init__(self, grammar: Grammar, dice: Dice):
        """Raise UserError for a task of the grammar whose things or kind it does not have."""
        self.words, self._dice = grammar, dice
        self.spelled: dict[Task, str] = {}
        self.groups = [Group.of([self.own(text, goals) for text, goals in group.items()])
                       for group in grammar.tasks.values()]
        self.group = self.groups[0]
        # What may stand in for something else in a sentence that two tasks share.
        self._names = functools.lru_cache(None)(grammar.names_of)

    def begin(self) -> None:
        """Choose a group."""
        self.group = self._dice.choice(self.groups)

    def task(self) -> Task:
        """Return a task."""
        draw = self._dice.random()
        return (self._dice.choice(self.group.tasks) if draw < 0.4 else
                self._near_task() if draw < 0.5 else self._any_task())

    def another(self, task: Task, close: bool) -> Task:
        """Return another task that differs in one thing; ``close``: by one of the tasks' own."""
        close = close and bool(self.group.places)
        for _ in range(50):
            k = self._dice.randrange(len(task))
            rest = task[:k] + task[k + 1:]
            changed = self._changed(task[k], close)
            if changed is None:
                more = self._dice.choice(self.group.tasks) if close else self._any_task()
                other = (*task, more[0])
            else:
                other = (*rest, changed)
            sound = all(len({noun.name for noun in goal.nouns}) == len(goal.nouns)
                        for goal in other)
            if sound and self.differ(other, task):
                return other
        return self._any_task()

    def own(self, text: str, goals: list[list[Any]]) -> Task:
        """Return a task of the grammar, and keep how it is spelt; UserError if it is none."""
        kinds = {**dict.fromkeys(VERBS, 3), **dict.fromkeys(SWITCHING, 2)}  # and their parts
        if wrong := next((goal for goal in goals if kinds.get(str(goal[0])) != len(goal)), None):
            raise UserError(f'tasks: {text}: {wrong} is no goal; write [kind, [objects], place], '
                            f'the kind one of {", ".join(VERBS)}, or [kind, [object]] with '
                            f'{", ".join(SWITCHING)}')
        task = tuple(Goal(kind, tuple(map(self._noun, objects)),
                          self._noun(place[0], 'fixtures') if place else None)
                     for kind, objects, *place in goals)
        self.spelled[task] = text
        return task

    def _noun(self, name: str, first: str = 'things') -> Noun:
        """Return a thing by its name; ``first``: the list it is taken from if it is in several."""
        words = self.words
        lists = {'things': [words.things], 'fixtures': [*words.fixtures.values(), words.switches]}
        groups = [group for group, known in lists.items() if any(name in names for names in known)]
        if groups:
            return Noun(name, first if first in groups else groups[0])
        for relation in words.where:
            found = re.fullmatch('(.+) ' + ANCHOR.sub('(.+)', relation), name)
            if found:
                thing, *anchors = map(self._noun, found.groups())
                return Placed.at(thing, relation, anchors)
        colour, _, shape = name.partition(' ')
        group = next((group for group in COLOURED if shape in getattr(words, group)), '')
        if not group or colour not in words.colours:
            raise UserError(f'tasks: there is no "{name}" among things, fixtures and '
                            f'switches, nor as a colour and one of {", ".join(COLOURED)}; add '
                            'it there')
        return Noun(name, group)

    def _coloured(self, group: str) -> Noun:
        colour = self._dice.choice([*self.words.colours])
        return Noun(f'{colour} {self._dice.choice([*getattr(self.words, group)])}', group)

    def _any_object(self) -> Noun:
        thing = (self._coloured('shapes') if self._dice.chance(0.3) else
                 Noun(self._dice.choice([*self.words.things]), 'things'))
        return self._somewhere(thing) if self._dice.chance(0.1) else thing

    def _somewhere(self, thing: Noun) -> Placed:
        """Return a thing told by its place."""
        relation = self._dice.choice([*self.words.where])
        return self._near_others(thing, relation)

    def _near_others(self, thing: Noun, relation: str) -> Placed:
        """Return a thing told by a relation to other things."""
        anchors: list[Noun] = []
        while len(anchors) < len(ANCHOR.findall(relation)):
            kind = 'in' if relation.startswith('in the') else 'on'
            anchor = self._dice.choice([
                Noun(self._dice.choice([*self.words.things]), 'things'), self._coloured('shapes'),
                Noun(self._dice.choice([*self.words.fixtures[kind]]), 'fixtures')])
            if anchor.name not in [thing.name, *(other.name for other in anchors)]:
                anchors.append(anchor)
        return Placed.at(thing, relation, anchors)

    def any_place(self, kind: str) -> Noun:
        group, share = {'in': ('containers', 0.6), 'stack': ('shapes', 1.0),
                        'to': ('spots', 0.8), 'on': ('', 0.0), 'by': ('', 0.0)}[kind]
        if self._dice.chance(share):
            return self._coloured(group)
        if kind == 'stack' or (kind == 'to' and self._dice.chance(0.5)):
            kind = 'on'
        return Noun(self._dice.choice([*self.words.fixtures[kind]]), 'fixtures')

    def _switch(self, kind: str) -> Goal:
        opens = kind in ('open', 'close')
        name = self._dice.choice(self.words.openable if opens else [*self.words.switches])
        return Goal(kind, (Noun(name, 'fixtures'),))

    def _near_task(self) -> Task:
        """Return any task, known or not, made of the things of the known ones."""
        group = self.group
        if not group.places:  # they are opened, closed and switched only
            return self._any_task()
        kind = self._near_kind()
        many = 2 if kind == 'in' and self._dice.chance(0.3) else 1
        things = [*group.objects, *(group.places.get('in', ()) if self._dice.chance(0.15) else [])]
        objects = tuple(self._dice.sample(things, min(many, len(things))))
        place = self._dice.choice(group.places[kind])
        return self._near_task() if place in objects else (Goal(kind, objects, place),)

    def _near_kind(self) -> str:
        return self._dice.choice([
            kind for kind in ['in'] * 6 + ['stack', 'to', 'on', 'on', 'by']
            if kind in (self.group.places or VERBS)])

    def _any_task(self) -> Task:
        draw = self._dice.random()
        if draw < 0.12:
            return (self._switch(self._dice.choice(
                ['open', 'open', 'close', 'close', 'turn on', 'turn off'])),)
        kind = self._dice.choice([*['in'] * 9, *['on'] * 5, *['stack'] * 3, *['to'] * 3])
        objects = [self._any_object()]
        if kind in ('in', 'on') and self._dice.chance(0.2):
            objects.append(self._any_object())
        goal = Goal(kind, tuple(objects), self.any_place(kind))
        if len({noun.name for noun in goal.nouns}) < len(goal.nouns):
            return self._any_task()
        if not self._dice.chance(0.1):
            return (goal,)
        other = self._switch(self._dice.choice(['turn on', 'turn on', 'open', 'close']))
        return (goal, other) if other.kind == 'close' else (other, goal)

    def _changed(self, goal: Goal, close: bool) -> Goal | None:
        """Return a goal that differs in one thing; None: it should get company."""
        draw, place = self._dice.random(), goal.place
        if place is None:
            if draw < 0.4:
                return replace(goal, kind=SWITCHING[goal.kind][0])
            return self._switch(goal.kind)
        if goal.kind == 'stack' and self._dice.chance(0.35):  # the other way round
            return replace(goal, objects=(place,), place=goal.objects[0])
        if draw < 0.28:
            k = self._dice.randrange(len(goal.objects))
            objects = [*goal.objects]
            objects[k] = self._other_object(objects[k], close)
            return replace(goal, objects=tuple(objects))
        if draw < 0.52:
            return replace(goal, place=self._other_place(goal.kind, place, close))
        if draw < 0.60 and place.group in COLOURED:  # said without what tells it apart
            return replace(goal, place=self._otherwise(place))
        if draw < 0.65:
            return replace(goal, objects=tuple(map(self._otherwise, goal.objects)))
        if draw < 0.79 and len(goal.objects) == 1:
            return replace(goal, objects=(place,), place=goal.objects[0])
        if draw < 0.79:  # what was the place is one of the objects
            return replace(goal, objects=(place, goal.objects[0]), place=goal.objects[1])
        if draw < 0.83 and (recoloured := self._recoloured(goal)) is not None:
            return recoloured
        if draw < 0.88 and len(goal.objects) == 2:
            return replace(goal, objects=(self._dice.choice(goal.objects),))
        if draw < 0.92 and len(goal.objects) == 1 and goal.kind != 'stack':
            return replace(goal, objects=(
                goal.objects[0], self._other_object(goal.objects[0], close)))
        if draw < 0.96:
            return None
        kind = self._near_kind()
        return Goal(kind, goal.objects[:1],
                    self._dice.choice(self.group.places[kind]) if close else self.any_place(kind))

    def _recoloured(self, goal: Goal) -> Goal | None:
        """Return a goal whose things have exchanged their colours: the red can, the blue cube."""
        nouns = [*goal.nouns]
        if any(isinstance(noun, Placed) for noun in nouns):
            return None
        colours, names = zip(*(noun.parts for noun in nouns))
        turned = colours[1:] + colours[:1]
        if turned == colours:
            return None
        mixed = [Noun(f'{c} {n}'.strip(), 'bare') for c, n in zip(turned, names)]
        return replace(goal, objects=tuple(mixed[:-1]), place=mixed[-1])

    def _otherwise(self, noun: Noun) -> Noun:
        """Return a thing without its colour or its place, another thing with a colour."""
        if isinstance(noun, Placed):
            return noun.thing
        if noun.group in COLOURED:
            return Noun(noun.parts[1], 'bare')
        return Noun(f'{self._dice.choice([*self.words.colours])} {noun.name}', 'bare')

    def _other_object(self, noun: Noun, close: bool) -> Noun:
        if isinstance(noun, Placed) and self._dice.chance(0.8):
            return self.elsewhere(noun)
        if close and self._dice.chance(0.7):
            return self._dice.choice(self.group.objects)
        if self._dice.chance(0.08):
            return self._somewhere(noun)
        if noun.group != 'shapes' or self._dice.chance(0.5):
            return self._any_object()
        colour, shape = noun.parts
        other = self._coloured('shapes').parts
        return Noun(f'{other[0]} {shape}' if self._dice.chance(0.5) else f'{colour} {other[1]}',
                    'shapes')

    def _other_place(self, kind: str, place: Noun, close: bool) -> Noun:
        if close and kind in self.group.places and self._dice.chance(0.45):
            return self._dice.choice(self.group.places[kind])
        if place.group not in COLOURED or self._dice.chance(0.25):
            return self.any_place(kind)
        return Noun(f'{self._dice.choice([*self.words.colours])} {place.parts[1]}', place.group)

    def elsewhere(self, noun: Placed) -> Noun:
        """Return a thing like one that is told by its place, at another."""
        thing, relation, draw = noun.thing, noun.relation, self._dice.random()
        if draw < 0.55:
            near = [other for other in self.group.objects if other != noun
                    and isinstance(other, Placed) and other.thing == thing]
            if near and self._dice.chance(0.7):
                return self._dice.choice(near)
            return self._somewhere(thing)
        if draw < 0.75:
            return self._near_others(thing, relation)
        if draw < 0.85 and len(noun.anchors) == 1:
            return Placed.at(noun.anchors[0], relation, [thing])
        return Placed.at(self._other_object(thing, False), relation, noun.anchors)

    def differ(self, a: Task, b: Task) -> bool:
        """Return whether two tasks ask for different things, and no words may mean both."""
        if meaning(a) == meaning(b):
            return False
        nouns = [[noun for goal in task for noun in goal.nouns] for task in (a, b)]
        return len(nouns[0]) != len(nouns[1]) or not all(
            self._names(x) & self._names(y) for x, y in zip(*nouns))
