"""Draws sentences that ask for a task, and such that do not, from a grammar of phrases.

The grammar is a YAML file (`config/train/language.yaml`): names of things, verbs and prepositions,
and templates with slots: ``{O}`` the objects with article, ``{o}`` without, ``{D}`` and ``{d}``
the destination, ``{v}``, ``{v.ing}``, ``{v.ed}`` the verb, ``{in}`` and ``{at}`` prepositions of
motion and of rest. A task is a tuple of goals. Things of a kind may be told apart by place: the
bowl next to the plate.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import Any, ClassVar, TypeVar

from dtvla_ros.errors import UserError
from dtvla_ros.training.config import Config, known_keys

T = TypeVar('T')
Lists = dict[str, list[str]]
Pair = tuple[str, str, bool]  # a sentence, a task's sentence, whether the first asks for it

# Of a goal's kind: verbs, and which templates and prepositions fit.
VERBS = {'in': 'put', 'on': 'set', 'stack': 'stack', 'to': 'push', 'by': 'set'}
PLACING = {'in': 'in', 'on': 'on', 'stack': 'on', 'to': 'to', 'by': 'by'}
SWITCHING = {'open': ('close', 'open'), 'close': ('open', 'closed'),
             'turn on': ('turn off', 'on'), 'turn off': ('turn on', 'off')}  # opposite, result
SLOT = re.compile(r'\{([A-Za-z.]+)\}')
# Words that agree with one object and with several.
AGREEING = {'it': ('it', 'them'), 'is': ('is', 'are'), 'goes': ('goes', 'go'),
            'belongs': ('belongs', 'belong'), 'has': ('has', 'have'), 'needs': ('needs', 'need'),
            'was': ('was', 'were'), 'ends': ('ends', 'end'), 'lands': ('lands', 'land'),
            'gets': ('gets', 'get'), 'does': ('does', 'do'), 'doesnt': ("doesn't", "don't"),
            'isnt': ("isn't", "aren't"), 'stays': ('stays', 'stay')}
FORMS = {'imperative': 0.4, 'statement': 0.28, 'question': 0.17, 'short': 0.15}
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
            colour, shape = noun.name.split(' ', 1)
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


IT = Noun('it', 'bare')  # what was spoken of


def _named(noun: Noun) -> str:
    return noun.name if noun is IT else f'the {noun.name}'


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


@dataclass(frozen=True, slots=True)
class _Group:
    """Tasks that belong together, and what they are about: ``places`` by the kind of a goal."""

    tasks: tuple[Task, ...]
    objects: tuple[Noun, ...]
    places: dict[str, tuple[Noun, ...]]

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> _Group:
        goals = [goal for task in tasks for goal in task if goal.place]
        places = {kind: tuple(dict.fromkeys(
            goal.place for goal in goals if goal.kind == kind and goal.place)) for kind in VERBS}
        return cls(tuple(tasks), tuple(dict.fromkeys(o for goal in goals for o in goal.objects)),
                   {kind: found for kind, found in places.items() if found})


@dataclass(frozen=True, slots=True)
class _Verb:
    base: str
    ing: str
    ed: str


class Sampler:
    """Draws tasks, sentences and pairs of them.

    Half of the tasks are those of ``grammar.tasks``, by groups, or made of a group's things.
    """

    def __init__(self, grammar: Grammar, seed: int):
        self.words, self._random = grammar, random.Random(seed)
        self._verbs = {kind: [_Verb(*verb.split('|')) for verb in verbs]
                       for kind, verbs in grammar.verbs.items() if '|' in verbs[0]}
        self._spelled: dict[Task, str] = {}
        self._groups = [_Group.of([self._own(text, goals) for text, goals in group.items()])
                        for group in grammar.tasks.values()]
        self._group = self._groups[0]  # whose things are near, drawn with every pair
        # What may stand in for something else in a sentence that two tasks share.
        self._names = functools.lru_cache(None)(grammar.names_of)

    def pair(self) -> Pair:
        """Return a sentence, a task's sentence, and whether the first asks for the second."""
        self._group = self._pick(self._groups)
        task, close = self.task(), self._chance(0.6)
        draw = self._random.random()
        if draw < 0.45:
            return self.command(task), self.sentence(task), True
        if draw < 0.68:
            pair = [task, self.another(task, close)]
            self._random.shuffle(pair)
            return self.command(pair[0]), self.sentence(pair[1]), False
        if draw < 0.73:
            others = (self._pick(self._group.tasks), *(self.task() for _ in range(9)))
            other = next((t for t in others if self._differ(t, task)), None)
            return self.pair() if other is None else (
                self.command(task), self.sentence(other), False)
        return self.no_command(task), self.sentence(task), False

    # What is asked for.

    def task(self) -> Task:
        """Return a task."""
        draw = self._random.random()
        return (self._pick(self._group.tasks) if draw < 0.4 else
                self._near_task() if draw < 0.5 else self._any_task())

    def another(self, task: Task, close: bool) -> Task:
        """Return another task that differs in one thing; ``close``: by one of the tasks' own."""
        for _ in range(50):
            k = self._random.randrange(len(task))
            rest = task[:k] + task[k + 1:]
            changed = self._changed(task[k], close)
            other = (*task, self._pick(self._group.tasks if close else [self._any_task()])[0]) if (
                changed is None) else (*rest, changed)
            sound = all(len({noun.name for noun in goal.nouns}) == len(goal.nouns)
                        for goal in other)
            if sound and self._differ(other, task):
                return other
        return self._any_task()

    def sentence(self, task: Task) -> str:
        """Return a task as a data set names it."""
        if task in self._spelled and self._chance(0.7):
            return self._spelled[task]
        return ' and '.join(map(self._canonical, self._pointing(task)))

    def _pointing(self, task: Task) -> Task:
        """Return a task whose second goal mostly calls what the first was about 'it'."""
        if len(task) != 2 or self._chance(0.3):
            return task
        first, second = task
        if second.place is None and second.objects == (first.place,):
            return first, replace(second, objects=(IT,))
        if first.place is None and first.objects == (second.place,):
            return first, replace(second, place=IT)
        return task

    def _canonical(self, goal: Goal) -> str:
        objects = ' and '.join(_named(noun) for noun in goal.objects)
        if goal.place is None:
            return f'{goal.kind} {objects}'
        one, place = len(goal.objects) == 1, _named(goal.place)
        if not one and self._chance(0.3):
            objects = 'both ' + objects
        if goal.kind == 'by':
            return f'put {objects} to {place}'
        if goal.kind in ('in', 'on'):
            to = f'{goal.kind} {place}'
            return self._pick([*[f'put {objects} {to}'] * 4, f'place {objects} {to}', *(
                [f'pick up {objects} and place it {to}', f'pick up {objects} and put it {to}']
                if one else [])])
        if goal.kind == 'stack':
            return self._pick([*[f'stack {objects} on {place}'] * 3,
                               f'put {objects} on {place}',
                               f'place {objects} on top of {place}'])
        return self._pick([*[f'push {objects} onto {place}'] * 3,
                           f'push {objects} to {place}', f'slide {objects} to {place}',
                           f'move {objects} to {place}'])

    def _own(self, text: str, goals: list[list[Any]]) -> Task:
        """Return a task of the grammar, and keep how it is spelt; UserError if it is none."""
        kinds = {**dict.fromkeys(VERBS, 3), **dict.fromkeys(SWITCHING, 2)}  # and their parts
        if wrong := next((goal for goal in goals if kinds.get(str(goal[0])) != len(goal)), None):
            raise UserError(f'tasks: {text}: {wrong} is no goal; write [kind, [objects], place], '
                            f'the kind one of {", ".join(VERBS)}, or [kind, [object]] with '
                            f'{", ".join(SWITCHING)}')
        task = tuple(Goal(kind, tuple(map(self._noun, objects)),
                          self._noun(place[0], 'fixtures') if place else None)
                     for kind, objects, *place in goals)
        self._spelled[task] = text
        return task

    def _noun(self, name: str, first: str = 'things') -> Noun:
        """Return a thing by its name; ``first``: the list it is taken from if it is in several."""
        words = self.words
        fixtures = {**{key: None for lists in words.fixtures.values() for key in lists},
                    **words.switches}
        groups = [group for group, names in (('things', words.things), ('fixtures', fixtures))
                  if name in names]
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
        colour = self._pick([*self.words.colours])
        return Noun(f'{colour} {self._pick([*getattr(self.words, group)])}', group)

    def _any_object(self) -> Noun:
        thing = (self._coloured('shapes') if self._chance(0.3) else
                 Noun(self._pick([*self.words.things]), 'things'))
        return self._somewhere(thing) if self._chance(0.1) else thing

    def _somewhere(self, thing: Noun) -> Placed:
        """Return a thing told by its place."""
        relation = self._pick([*self.words.where])
        return Placed.at(thing, relation, self._anchors(relation, thing))

    def _anchors(self, relation: str, thing: Noun) -> list[Noun]:
        """Return things to tell a place by, other ones than ``thing``."""
        anchors: list[Noun] = []
        while len(anchors) < len(ANCHOR.findall(relation)):
            kind = 'in' if relation.startswith('in the') else 'on'
            anchor = self._pick([
                Noun(self._pick([*self.words.things]), 'things'), self._coloured('shapes'),
                Noun(self._pick([*self.words.fixtures[kind]]), 'fixtures')])
            if anchor.name not in [thing.name, *(other.name for other in anchors)]:
                anchors.append(anchor)
        return anchors

    def _any_place(self, kind: str) -> Noun:
        group, share = {'in': ('containers', 0.6), 'stack': ('shapes', 1.0),
                        'to': ('spots', 0.8), 'on': ('', 0.0), 'by': ('', 0.0)}[kind]
        if self._chance(share):
            return self._coloured(group)
        if kind == 'stack' or (kind == 'to' and self._chance(0.5)):
            kind = 'on'
        return Noun(self._pick([*self.words.fixtures[kind]]), 'fixtures')

    def _switch(self, kind: str) -> Goal:
        opens = kind in ('open', 'close')
        name = self._pick(self.words.openable if opens else [*self.words.switches])
        return Goal(kind, (Noun(name, 'fixtures'),))

    def _near_task(self) -> Task:
        """Return any task, known or not, made of the things of the known ones."""
        group = self._group
        kind = self._near_kind()
        many = 2 if kind == 'in' and self._chance(0.3) else 1
        things = [*group.objects, *(group.places['in'] if self._chance(0.15) else [])]
        objects = tuple(self._random.sample(things, many))
        place = self._pick(group.places[kind])
        return self._near_task() if place in objects else (Goal(kind, objects, place),)

    def _near_kind(self) -> str:
        return self._pick([kind for kind in ['in'] * 6 + ['stack', 'to', 'on', 'on', 'by']
                           if kind in self._group.places])

    def _any_task(self) -> Task:
        draw = self._random.random()
        if draw < 0.12:
            return (self._switch(self._pick(['open', 'open', 'close', 'close', 'turn on',
                                             'turn off'])),)
        kind = self._pick([*['in'] * 9, *['on'] * 5, *['stack'] * 3, *['to'] * 3])
        objects = [self._any_object()]
        if kind in ('in', 'on') and self._chance(0.2):
            objects.append(self._any_object())
        goal = Goal(kind, tuple(objects), self._any_place(kind))
        if len({noun.name for noun in goal.nouns}) < len(goal.nouns):
            return self._any_task()
        if not self._chance(0.1):
            return (goal,)
        other = self._switch(self._pick(['turn on', 'turn on', 'open', 'close']))
        return (goal, other) if other.kind == 'close' else (other, goal)

    def _changed(self, goal: Goal, close: bool) -> Goal | None:
        """Return a goal that differs in one thing; None: it should get company."""
        draw, place = self._random.random(), goal.place
        if place is None:
            if draw < 0.4:
                return replace(goal, kind=SWITCHING[goal.kind][0])
            return self._switch(goal.kind)
        if goal.kind == 'stack' and self._chance(0.35):  # the other way round
            return replace(goal, objects=(place,), place=goal.objects[0])
        if draw < 0.28:
            k = self._random.randrange(len(goal.objects))
            objects = [*goal.objects]
            objects[k] = self._other_object(objects[k], close)
            return replace(goal, objects=tuple(objects))
        if draw < 0.52:
            return replace(goal, place=self._other_place(goal.kind, place, close))
        if draw < 0.60 and place.group in COLOURED:  # said without what tells it apart
            return replace(goal, place=Noun(place.name.split(' ', 1)[1], 'bare'))
        if draw < 0.65:
            return replace(goal, objects=tuple(map(self._otherwise, goal.objects)))
        if draw < 0.79 and len(goal.objects) == 1:
            return replace(goal, objects=(place,), place=goal.objects[0])
        if draw < 0.79:  # what was the place is one of the objects
            return replace(goal, objects=(place, goal.objects[0]), place=goal.objects[1])
        if draw < 0.83 and (recoloured := self._recoloured(goal)) is not None:
            return recoloured
        if draw < 0.88 and len(goal.objects) == 2:
            return replace(goal, objects=(self._pick(goal.objects),))
        if draw < 0.92 and len(goal.objects) == 1 and goal.kind != 'stack':
            return replace(goal, objects=(
                goal.objects[0], self._other_object(goal.objects[0], close)))
        if draw < 0.96:
            return None
        kind = self._near_kind()
        return Goal(kind, goal.objects[:1],
                    self._pick(self._group.places[kind]) if close else self._any_place(kind))

    def _recoloured(self, goal: Goal) -> Goal | None:
        """Return a goal whose things have exchanged their colours: the red can, the blue cube."""
        nouns = [*goal.nouns]
        if any(isinstance(noun, Placed) for noun in nouns):
            return None
        colours = [n.name.split(' ', 1)[0] if n.group in COLOURED else '' for n in nouns]
        names = [n.name.split(' ', 1)[1] if n.group in COLOURED else n.name for n in nouns]
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
            return Noun(noun.name.split(' ', 1)[1], 'bare')
        return Noun(f'{self._pick([*self.words.colours])} {noun.name}', 'bare')

    def _other_object(self, noun: Noun, close: bool) -> Noun:
        if isinstance(noun, Placed) and self._chance(0.8):
            return self._elsewhere(noun)
        if close and self._chance(0.7):
            return self._pick(self._group.objects)
        if self._chance(0.08):
            return self._somewhere(noun)
        if noun.group != 'shapes' or self._chance(0.5):
            return self._any_object()
        colour, shape = noun.name.split(' ', 1)
        other = self._coloured('shapes').name.split(' ', 1)
        return Noun(f'{other[0]} {shape}' if self._chance(0.5) else f'{colour} {other[1]}',
                    'shapes')

    def _other_place(self, kind: str, place: Noun, close: bool) -> Noun:
        if close and kind in self._group.places and self._chance(0.45):
            return self._pick(self._group.places[kind])
        if place.group not in COLOURED or self._chance(0.25):
            return self._any_place(kind)
        shape = place.name.split(' ', 1)[1]
        return Noun(f'{self._pick([*self.words.colours])} {shape}', place.group)

    def _elsewhere(self, noun: Placed) -> Noun:
        """Return a thing like one that is told by its place, at another."""
        thing, relation, draw = noun.thing, noun.relation, self._random.random()
        if draw < 0.55:
            near = [other for other in self._group.objects if other != noun
                    and isinstance(other, Placed) and other.thing == thing]
            return self._pick(near) if near and self._chance(0.7) else self._somewhere(thing)
        if draw < 0.75:
            return Placed.at(thing, relation, self._anchors(relation, thing))
        if draw < 0.85 and len(noun.anchors) == 1:
            return Placed.at(noun.anchors[0], relation, [thing])
        return Placed.at(self._other_object(thing, False), relation, noun.anchors)

    def _differ(self, a: Task, b: Task) -> bool:
        """Return whether two tasks ask for different things, and no words may mean both."""
        if meaning(a) == meaning(b):
            return False
        nouns = [[noun for goal in task for noun in goal.nouns] for task in (a, b)]
        return len(nouns[0]) != len(nouns[1]) or not all(
            self._names(x) & self._names(y) for x, y in zip(*nouns))

    # How it is said.

    def command(self, task: Task) -> str:
        """Return a sentence, or some, that ask for a task and nothing else."""
        if self._chance(0.06):
            text = self.sentence(task)
        elif len(task) == 1:
            text = self._request(task[0])
        else:
            text = functools.reduce(
                lambda first, second: self._pick(self.words.two_steps).format(
                    first=first, second=second),
                [self._request(goal, 'imperative') for goal in self._pointing(task)])
        if len(task) == 1 and task[0].place and self._chance(0.10):
            text = f'{self._fill(self._template(self.words.reasons, task[0]), task[0])} {text}'
        return self._decorated(text)

    def no_command(self, task: Task) -> str:
        """Return a sentence that asks for nothing, something else, or not to do a task."""
        words, draw = self.words, self._random.random()
        if draw > 0.90:
            return self._off_topic()
        if draw > 0.87:
            either = [self._request(t[0], 'imperative')
                      for t in (task, self.another(task, self._chance(0.6)))]
            self._random.shuffle(either)
            return self._decorated(self._pick(words.choices).format(
                first=either[0], second=either[1], place=self._say(self._any_place('in'))))
        goal = next((g for g in task if g.place), task[0])
        if goal.place is None:
            name, verb = self._the(self._say(goal.objects[0])), self._verbs[goal.kind][0]
            template = self._pick(words.negations)
            return self._decorated(template.format(
                i=f'{verb.base} {name}', g=f'{verb.ing} {name}'))
        lists = ((0.34, words.negations), (0.52, words.negated_states),
                 (0.67, words.misses), (0.75, words.asks), (0.84, words.others))
        template = next((self._pick(rows) for most, rows in lists if draw < most), '')
        if len(goal.objects) == 2 and 0.34 < draw < 0.38:
            a, b = self._random.sample([self._the(self._say(o)) for o in goal.objects], 2)
            template = self._pick(words.half_negated).replace('{a}', a).replace('{b}', b)
        if not template:
            beside = f'{self._pick(words.out)} the {self._say(goal.place)}'
            return self._decorated(f"{self._fill('{v} {O}', goal)} {beside}")
        verb = self._pick(self._verbs[VERBS[goal.kind]])
        asked = ('{v} {O}' if self._chance(0.15) else
                 self._template(words.imperative, goal) if self._chance(0.3) else
                 '{v} {O} {in} {D}')
        doing = '{v.ing} {O} {in} {D}' if self._chance(0.85) else '{v.ing} {O}'
        template = template.replace('{i}', asked).replace('{g}', doing)
        return self._decorated(self._fill(template, goal, verb))

    def _off_topic(self) -> str:
        foreign, pick = self.words.foreign, self._pick
        draw = self._random.random()
        if draw < 0.4:
            return self._slips(pick(self.words.talk))
        if draw < 0.8:
            parts = [pick(foreign[name]) for name in ('verbs', 'things', 'places')]
            return self._slips(pick([pick(foreign['phrases']), ' '.join(parts),
                                     ' '.join(parts[1:]), ' '.join(parts[:2])]))
        nonsense = [''.join(self._random.choices(ascii_lowercase, k=self._random.randint(2, 8)))
                    for _ in range(self._random.randint(1, 6))]
        if self._chance(0.5):
            nonsense[self._random.randrange(len(nonsense))] = pick(
                ['put', 'the', 'in', 'robot', *(o.name for o in self._group.objects)])
        return ' '.join(nonsense)

    def _request(self, goal: Goal, form: str | None = None) -> str:
        """Return one request for one goal."""
        if goal.place is None:
            verb, name = self._pick(self._verbs[goal.kind]), self._the(self._say(goal.objects[0]))
            result = SWITCHING[goal.kind][1]
            return self._pick([
                *[f'{verb.base} {name}'] * 3, f'could you {verb.base} {name}',
                f'would you mind {verb.ing} {name}', f'i want you to {verb.base} {name}',
                f'i need {name} {result}', f'make sure {name} is {result}',
                f'{name} should be {result}'])
        if len(goal.objects) == 2 and self._chance(0.45):
            a, b = self._random.sample([self._the(self._say(o)) for o in goal.objects], 2)
            return self._pick(self.words.same_place).format(
                a=a, b=b, D=self._the(self._say(goal.place)))
        form = form or self._random.choices([*FORMS], [*FORMS.values()])[0]
        template = self._template(getattr(self.words, form), goal)
        if form == 'short' and goal.reversible and not {*SLOT.findall(template)} & {'in', 'at'}:
            return self._request(goal)
        return self._fill(template, goal)

    def _template(self, lists: Mapping[str, list[str]], goal: Goal) -> str:
        own = lists.get(PLACING[goal.kind])
        return self._pick(lists['any'] if own is None or self._chance(0.6) else own)

    def _fill(self, template: str, goal: Goal, verb: _Verb | None = None) -> str:
        """Return a template with its slots filled for a goal that has a place."""
        verb = verb or self._pick(self._verbs[VERBS[goal.kind]])
        words, placing, place = self.words, PLACING[goal.kind], goal.place
        assert place is not None

        def objects(said: Callable[[Noun], str]) -> str:
            names = [said(noun) for noun in goal.objects]
            if len(names) == 1:
                return names[0]
            a, b = self._random.sample(names, 2)
            return self._pick(words.both).format(a=a, b=b)

        fills: dict[str, Callable[[], str]] = {
            'O': lambda: objects(lambda noun: self._the(self._say(noun))),
            'o': lambda: objects(lambda noun: self._say(noun, short=True)),
            'D': lambda: self._the(self._say(place)), 'd': lambda: self._say(place, short=True),
            'v': lambda: verb.base, 'v.ing': lambda: verb.ing, 'v.ed': lambda: verb.ed,
            'in': lambda: self._pick(words.prepositions[placing]),
            'at': lambda: self._pick(words.state[placing]),
            'x': lambda: self._pick(words.verbs['other']),
            **{name: functools.partial(self._pick, words.verbs[name])
               for name in ('take', 'carry', 'release')},
            **{name: functools.partial(str, forms[len(goal.objects) > 1])
               for name, forms in AGREEING.items()}}
        return SLOT.sub(lambda slot: fills[slot[1]](), template)

    def _say(self, noun: Noun, short: bool = False) -> str:
        """Return a thing as somebody calls it, without article."""
        words = self.words
        if isinstance(noun, Placed):
            anchors = self._random.sample(noun.anchors, len(noun.anchors))
            return (f'{self._kind(noun.thing)} '
                    + placed(self._pick(words.where[noun.relation]), [*map(self._say, anchors)]))
        if noun.group not in COLOURED:
            names = (words.things[noun.name] if noun.group == 'things' else
                     sorted(words.names_of(noun)))
            return noun.name if self._chance(0.35) else self._pick(names)
        if self._chance(0.3):
            return noun.name
        colour, shape = noun.name.split(' ', 1)
        name = shape if self._chance(0.4) else self._pick(getattr(words, noun.group)[shape])
        said = colour if self._chance(0.5) else self._pick(words.colours[colour])
        if self._chance(0.1) and name != 'one':
            return self._pick(words.behind).format(
                n=name, c=said, w='wood' if colour == 'wooden' else colour)
        return said if short and self._chance(0.12) else f'{said} {name}'

    def _kind(self, noun: Noun) -> str:
        """Return what a thing is called whose place tells it from others: often no colour."""
        if noun.group not in COLOURED or self._chance(0.5):
            return self._say(noun)
        return self._pick(getattr(self.words, noun.group)[noun.name.split(' ', 1)[1]])

    def _the(self, name: str) -> str:
        if name == IT.name:
            return name
        before, after = self._random.choices(
            [('the ', ''), ('that ', ''), ('this ', ''), ('', ''), ('my ', ''),
             ('the ', self._pick([' there', ' here', ' over there', ' on the table', ' you see']))
             ], [0.86, 0.04, 0.03, 0.03, 0.02, 0.02])[0]
        return before + name + after

    def _decorated(self, text: str) -> str:
        if self._chance(0.42):
            text = f'{self._pick(self.words.before)} {text}'
        if self._chance(0.38):
            after = self._pick(self.words.after)
            text += after if after[0] in ',.!?' else ' ' + after
        if self._chance(0.07):
            parts = text.split()
            for _ in range(self._pick([1, 2])):
                parts.insert(self._random.randrange(len(parts) + 1),
                             self._pick(self.words.fillers) + self._pick(['', ',']))
            text = ' '.join(parts)
        return self._slips(text)

    def _slips(self, text: str) -> str:
        """Return a text as somebody types it: without articles, misspelt, without marks."""
        if self._chance(0.06):
            text = re.sub(r'\b(the|a|that|this|my) ', '', text)
        if self._chance(0.15):
            parts = text.split()
            for _ in range(self._pick([1, 1, 2, 3])):
                k = self._random.randrange(len(parts))
                parts[k] = self._misspelt(parts[k])
            text = ' '.join(parts)
        draw = self._random.random()
        if draw < 0.3:
            text = re.sub(r"[.,;:!?']", '', text)
        elif draw < 0.5 and text[-1:].isalpha():
            text += self._pick('.!?')
        return text.lower()

    def _misspelt(self, word: str) -> str:
        if len(word) < 3:
            return word
        k = self._random.randrange(len(word) - 1)
        a, b = word[k], word[k + 1]
        return word[:k] + self._pick([
            b + a + word[k + 2:], word[k + 1:], a + a + word[k + 1:],
            self._pick(ascii_lowercase) + word[k + 1:]])

    def _pick(self, rows: Sequence[T]) -> T:
        return self._random.choice(rows)

    def _chance(self, share: float) -> bool:
        return self._random.random() < share
