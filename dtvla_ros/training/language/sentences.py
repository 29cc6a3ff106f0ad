"""Draws sentences that ask for a task, and such that do not, in the phrases of a grammar."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from string import ascii_lowercase

from dtvla_ros.training.language.grammar import (
    COLOURED,
    SWITCHING,
    VERBS,
    Goal,
    Grammar,
    Noun,
    Placed,
    Task,
    placed,
)
from dtvla_ros.training.language.tasks import Dice, TaskSampler

Pair = tuple[str, str, bool]  # a sentence, a task's sentence, whether the first asks for it

# Which templates and prepositions fit a goal's kind.
PLACING = {'in': 'in', 'on': 'on', 'stack': 'on', 'to': 'to', 'by': 'by'}
SLOT = re.compile(r'\{([A-Za-z.]+)\}')
# Words that agree with one object and with several.
AGREEING = {'it': ('it', 'them'), 'is': ('is', 'are'), 'goes': ('goes', 'go'),
            'belongs': ('belongs', 'belong'), 'has': ('has', 'have'), 'needs': ('needs', 'need'),
            'was': ('was', 'were'), 'ends': ('ends', 'end'), 'lands': ('lands', 'land'),
            'gets': ('gets', 'get'), 'does': ('does', 'do'), 'doesnt': ("doesn't", "don't"),
            'isnt': ("isn't", "aren't"), 'stays': ('stays', 'stay')}
FORMS = {'imperative': 0.4, 'statement': 0.28, 'question': 0.17, 'short': 0.15}
IT = Noun('it', 'bare')  # what was spoken of


def _named(noun: Noun) -> str:
    return noun.name if noun is IT else f'the {noun.name}'


@dataclass(frozen=True, slots=True)
class _Verb:
    base: str
    ing: str
    ed: str


class Sampler:
    """Draws sentences about tasks, and pairs of a sentence and a task."""

    def __init__(self, grammar: Grammar, seed: int):
        self.words, self._dice = grammar, Dice(seed)
        self.tasks = TaskSampler(grammar, self._dice)
        self._verbs = {kind: [_Verb(*verb.split('|')) for verb in verbs]
                       for kind, verbs in grammar.verbs.items() if '|' in verbs[0]}

    def pair(self) -> Pair:
        """Return a sentence, a task's sentence, and whether the first asks for the second."""
        self.tasks.begin()
        task, close = self.tasks.task(), self._dice.chance(0.6)
        draw = self._dice.random()
        if draw < 0.45:
            return self.command(task), self.sentence(task), True
        if draw < 0.68:
            pair = [task, self.tasks.another(task, close)]
            self._dice.shuffle(pair)
            return self.command(pair[0]), self.sentence(pair[1]), False
        if draw < 0.73:
            own = self._dice.choice(self.tasks.group.tasks)
            others = (own, *(self.tasks.task() for _ in range(9)))
            other = next((t for t in others if self.tasks.differ(t, task)), None)
            return self.pair() if other is None else (
                self.command(task), self.sentence(other), False)
        return self.no_command(task), self.sentence(task), False

    def sentence(self, task: Task) -> str:
        """Return a task as a data set names it."""
        if task in self.tasks.spelled and self._dice.chance(0.7):
            return self.tasks.spelled[task]
        return ' and '.join(map(self._canonical, self._pointing(task)))

    def _pointing(self, task: Task) -> Task:
        """Return a task whose second goal mostly calls what the first was about 'it'."""
        if len(task) != 2 or self._dice.chance(0.3):
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
        if not one and self._dice.chance(0.3):
            objects = 'both ' + objects
        if goal.kind == 'by':
            return f'put {objects} to {place}'
        if goal.kind in ('in', 'on'):
            to = f'{goal.kind} {place}'
            return self._dice.choice([*[f'put {objects} {to}'] * 4, f'place {objects} {to}', *(
                [f'pick up {objects} and place it {to}', f'pick up {objects} and put it {to}']
                if one else [])])
        if goal.kind == 'stack':
            return self._dice.choice([*[f'stack {objects} on {place}'] * 3,
                               f'put {objects} on {place}',
                               f'place {objects} on top of {place}'])
        return self._dice.choice([*[f'push {objects} onto {place}'] * 3,
                           f'push {objects} to {place}', f'slide {objects} to {place}',
                           f'move {objects} to {place}'])

    def command(self, task: Task) -> str:
        """Return a sentence, or some, that ask for a task and nothing else."""
        if self._dice.chance(0.06):
            text = self.sentence(task)
        elif len(task) == 1:
            text = self._request(task[0])
        else:
            text = functools.reduce(
                lambda first, second: self._dice.choice(self.words.two_steps).format(
                    first=first, second=second),
                [self._request(goal, 'imperative') for goal in self._pointing(task)])
        if len(task) == 1 and task[0].place and self._dice.chance(0.10):
            text = f'{self._fill(self._template(self.words.reasons, task[0]), task[0])} {text}'
        return self._decorated(text)

    def no_command(self, task: Task) -> str:
        """Return a sentence that asks for nothing, something else, or not to do a task."""
        words, draw = self.words, self._dice.random()
        if draw > 0.90:
            return self._off_topic()
        if draw > 0.87:
            either = [self._request(t[0], 'imperative')
                      for t in (task, self.tasks.another(task, self._dice.chance(0.6)))]
            self._dice.shuffle(either)
            return self._decorated(self._dice.choice(words.choices).format(
                first=either[0], second=either[1], place=self._say(self.tasks.any_place('in'))))
        goal = next((g for g in task if g.place), task[0])
        if goal.place is None:
            name, verb = self._the(self._say(goal.objects[0])), self._verbs[goal.kind][0]
            template = self._dice.choice(words.negations)
            return self._decorated(template.format(
                i=f'{verb.base} {name}', g=f'{verb.ing} {name}'))
        lists = ((0.34, words.negations), (0.52, words.negated_states),
                 (0.67, words.misses), (0.75, words.asks), (0.84, words.others))
        template = next((self._dice.choice(rows) for most, rows in lists if draw < most), '')
        if len(goal.objects) == 2 and 0.34 < draw < 0.38:
            a, b = self._dice.sample([self._the(self._say(o)) for o in goal.objects], 2)
            template = self._dice.choice(words.half_negated).replace('{a}', a).replace('{b}', b)
        if not template:
            beside = f'{self._dice.choice(words.out)} the {self._say(goal.place)}'
            return self._decorated(f"{self._fill('{v} {O}', goal)} {beside}")
        verb = self._dice.choice(self._verbs[VERBS[goal.kind]])
        asked = ('{v} {O}' if self._dice.chance(0.15) else
                 self._template(words.imperative, goal) if self._dice.chance(0.3) else
                 '{v} {O} {in} {D}')
        doing = '{v.ing} {O} {in} {D}' if self._dice.chance(0.85) else '{v.ing} {O}'
        template = template.replace('{i}', asked).replace('{g}', doing)
        return self._decorated(self._fill(template, goal, verb))

    def _off_topic(self) -> str:
        foreign, pick = self.words.foreign, self._dice.choice
        draw = self._dice.random()
        if draw < 0.4:
            return self._slips(pick(self.words.talk))
        if draw < 0.8:
            parts = [pick(foreign[name]) for name in ('verbs', 'things', 'places')]
            return self._slips(pick([pick(foreign['phrases']), ' '.join(parts),
                                     ' '.join(parts[1:]), ' '.join(parts[:2])]))
        nonsense = [''.join(self._dice.choices(ascii_lowercase, k=self._dice.randint(2, 8)))
                    for _ in range(self._dice.randint(1, 6))]
        if self._dice.chance(0.5):
            nonsense[self._dice.randrange(len(nonsense))] = pick(
                ['put', 'the', 'in', 'robot', *(o.name for o in self.tasks.group.objects)])
        return ' '.join(nonsense)

    def _request(self, goal: Goal, form: str | None = None) -> str:
        """Return one request for one goal."""
        if goal.place is None:
            verb = self._dice.choice(self._verbs[goal.kind])
            name = self._the(self._say(goal.objects[0]))
            result = SWITCHING[goal.kind][1]
            return self._dice.choice([
                *[f'{verb.base} {name}'] * 3, f'could you {verb.base} {name}',
                f'would you mind {verb.ing} {name}', f'i want you to {verb.base} {name}',
                f'i need {name} {result}', f'make sure {name} is {result}',
                f'{name} should be {result}'])
        if len(goal.objects) == 2 and self._dice.chance(0.45):
            a, b = self._dice.sample([self._the(self._say(o)) for o in goal.objects], 2)
            return self._dice.choice(self.words.same_place).format(
                a=a, b=b, D=self._the(self._say(goal.place)))
        form = form or self._dice.choices([*FORMS], [*FORMS.values()])[0]
        template = self._template(getattr(self.words, form), goal)
        if form == 'short' and goal.reversible and not {*SLOT.findall(template)} & {'in', 'at'}:
            return self._request(goal)
        return self._fill(template, goal)

    def _template(self, lists: Mapping[str, list[str]], goal: Goal) -> str:
        own = lists.get(PLACING[goal.kind])
        return self._dice.choice(lists['any'] if own is None or self._dice.chance(0.6) else own)

    def _fill(self, template: str, goal: Goal, verb: _Verb | None = None) -> str:
        """Return a template with its slots filled for a goal that has a place."""
        verb = verb or self._dice.choice(self._verbs[VERBS[goal.kind]])
        words, placing, place = self.words, PLACING[goal.kind], goal.place
        assert place is not None

        def objects(said: Callable[[Noun], str]) -> str:
            names = [said(noun) for noun in goal.objects]
            if len(names) == 1:
                return names[0]
            a, b = self._dice.sample(names, 2)
            return self._dice.choice(words.both).format(a=a, b=b)

        fills: dict[str, Callable[[], str]] = {
            'O': lambda: objects(lambda noun: self._the(self._say(noun))),
            'o': lambda: objects(lambda noun: self._say(noun, short=True)),
            'D': lambda: self._the(self._say(place)), 'd': lambda: self._say(place, short=True),
            'v': lambda: verb.base, 'v.ing': lambda: verb.ing, 'v.ed': lambda: verb.ed,
            'in': lambda: self._dice.choice(words.prepositions[placing]),
            'at': lambda: self._dice.choice(words.state[placing]),
            'x': lambda: self._dice.choice(words.verbs['other']),
            **{name: functools.partial(self._dice.choice, words.verbs[name])
               for name in ('take', 'carry', 'release')},
            **{name: functools.partial(str, forms[len(goal.objects) > 1])
               for name, forms in AGREEING.items()}}
        return SLOT.sub(lambda slot: fills[slot[1]](), template)

    def _say(self, noun: Noun, short: bool = False) -> str:
        """Return a thing as somebody calls it, without article."""
        words = self.words
        if isinstance(noun, Placed):
            anchors = self._dice.sample(noun.anchors, len(noun.anchors))
            way = self._dice.choice(words.where[noun.relation])
            return f'{self._kind(noun.thing)} {placed(way, [*map(self._say, anchors)])}'
        if noun.group not in COLOURED:
            names = (words.things[noun.name] if noun.group == 'things' else
                     sorted(words.names_of(noun)))
            return noun.name if self._dice.chance(0.35) else self._dice.choice(names)
        if self._dice.chance(0.3):
            return noun.name
        colour, shape = noun.parts
        name = shape if self._dice.chance(0.4) else self._dice.choice(
            getattr(words, noun.group)[shape])
        said = colour if self._dice.chance(0.5) else self._dice.choice(words.colours[colour])
        if self._dice.chance(0.1) and name != 'one':
            return self._dice.choice(words.behind).format(
                n=name, c=said, w='wood' if colour == 'wooden' else colour)
        return said if short and self._dice.chance(0.2) else f'{said} {name}'

    def _kind(self, noun: Noun) -> str:
        """Return what a thing is called whose place tells it from others: often no colour."""
        if noun.group not in COLOURED or self._dice.chance(0.5):
            return self._say(noun)
        return self._dice.choice(getattr(self.words, noun.group)[noun.parts[1]])

    def _the(self, name: str) -> str:
        if name == IT.name:
            return name
        before, after = self._dice.choices(
            [('the ', ''), ('that ', ''), ('this ', ''), ('', ''), ('my ', ''),
             ('the ', self._dice.choice([' there', ' here', ' over there', ' on the table',
                                         ' you see']))
             ], [0.86, 0.04, 0.03, 0.03, 0.02, 0.02])[0]
        return before + name + after

    def _decorated(self, text: str) -> str:
        if self._dice.chance(0.42):
            text = f'{self._dice.choice(self.words.before)} {text}'
        if self._dice.chance(0.38):
            after = self._dice.choice(self.words.after)
            text += after if after[0] in ',.!?' else ' ' + after
        if self._dice.chance(0.07):
            parts = text.split()
            for _ in range(self._dice.choice([1, 2])):
                parts.insert(self._dice.randrange(len(parts) + 1),
                             self._dice.choice(self.words.fillers) + self._dice.choice(['', ',']))
            text = ' '.join(parts)
        return self._slips(text)

    def _slips(self, text: str) -> str:
        """Return a text as somebody types it: without articles, misspelt, without marks."""
        if self._dice.chance(0.06):
            text = re.sub(r'\b(the|a|that|this|my) ', '', text)
        if self._dice.chance(0.15):
            parts = text.split()
            for _ in range(self._dice.choice([1, 1, 2, 3])):
                k = self._dice.randrange(len(parts))
                parts[k] = self._misspelt(parts[k])
            text = ' '.join(parts)
        draw = self._dice.random()
        if draw < 0.3:
            text = re.sub(r"[.,;:!?']", '', text)
        elif draw < 0.5 and text[-1:].isalpha():
            text += self._dice.choice('.!?')
        return text.lower()

    def _misspelt(self, word: str) -> str:
        if len(word) < 3:
            return word
        k = self._dice.randrange(len(word) - 1)
        a, b = word[k], word[k + 1]
        return word[:k] + self._dice.choice([
            b + a + word[k + 2:], word[k + 1:], a + a + word[k + 1:],
            self._dice.choice(ascii_lowercase) + word[k + 1:]])
