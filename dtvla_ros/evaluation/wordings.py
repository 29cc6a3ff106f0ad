"""What people say: wordings of tasks and sentences to be refused, from a file, and what became."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.report import MISHEARD
from dtvla_ros.evaluation.results import Rate, plain_table, rate_cells
from dtvla_ros.files import find_shared, require_writable, write_json
from dtvla_ros.policy.instructions import known_as, nearest, refuse_instruction, shown, spelling
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.policy.understanding import NotUnderstood, Understanding, understanding_of
from dtvla_ros.rollout.episode import EpisodeResult
from dtvla_ros.yaml_files import read_nodes

REFUSE = 'refuse'
REMEDY = 'write "task: [wording, ...]" and "refuse: [sentence, ...]" (docs/evaluation.md)'
SUCCESS, FAILED = 'success', 'failed'
REFUSED, OTHER = MISHEARD
Job = tuple[Any, ...]
Source = Callable[[Sequence[Any]], Generator[tuple[Any, Any], None, None]]  # jobs -> results
Meaning = tuple[str, str]  # the task that a sentence means, or '' and why it was refused
Meanings = Callable[[Sequence[str]], Iterable[Meaning]]


@dataclass(frozen=True, slots=True)
class Wordings:
    """Sentences by the task they mean, and by groups those that mean none.

    ``digest``: of the file they are from.
    """

    tasks: Mapping[str, tuple[str, ...]]
    refuse: Mapping[str, tuple[str, ...]]
    digest: str

    @classmethod
    def read(cls, path: Path, known: Mapping[str, str]) -> Wordings:
        """Read a file; tasks are named by a name or a sentence of ``known``, in any spelling.

        Raises UserError, naming the line, for anything else than tasks and ``refuse`` with lists
        of sentences, an unknown task, and a sentence that stands twice.
        """
        path = find_shared(path)
        root = read_nodes(path, REMEDY)
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f'{path}: no tasks; {REMEDY}')
        tasks: dict[str, tuple[str, ...]] = {}
        refuse: dict[str, tuple[str, ...]] = {}
        names = {spelling(way): name for name, sentence in known.items()
                 for way in (sentence, name)}
        reader = _Reader(path)
        for key, value in root.value:
            if key.value == REFUSE and isinstance(value, yaml.MappingNode):
                refuse |= {group.value: reader.sentences(f'{REFUSE}: {group.value}', listed)
                           for group, listed in value.value}
            elif key.value == REFUSE:
                refuse[REFUSE] = reader.sentences(REFUSE, value)
            elif (task := names.get(spelling(str(key.value)))) is None:
                raise reader.error(key, f'unknown task "{shown(str(key.value))}"',
                                   f'nearest: "{nearest(str(key.value), [*known.values()])}"')
            elif task in tasks:
                raise reader.error(key, f'{task} stands twice', 'put its wordings in one list')
            else:
                tasks[task] = reader.sentences(task, value)
        return cls(tasks, refuse, hashlib.sha256(path.read_bytes()).hexdigest())

    def only(self, tasks: Sequence[str]) -> Wordings:
        """Return the same for some tasks; UserError where one has no wordings."""
        for task in tasks:
            if task not in self.tasks:
                raise UserError(f'no wordings of {task} are given; write some, or leave it out of '
                                '--tasks')
        return replace(self, tasks={task: self.tasks[task] for task in tasks})

    def episodes(self, seed: int, repetitions: int) -> dict[tuple[str, int], str]:
        """Return what is said in the episode of every task and seed, those from ``seed`` on."""
        return {(task, seed + k): said for task, sentences in self.tasks.items()
                for k, said in enumerate(s for s in sentences for _ in range(repetitions))}


class _Reader:
    """Takes lists of sentences from the nodes of a file, none of them twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, tuple[str, int]] = {}  # where, in which line

    def error(self, node: yaml.Node, problem: str, remedy: str) -> UserError:
        return UserError(f'{self._path}, line {node.start_mark.line + 1}: {problem}; {remedy}')

    def sentences(self, where: str, node: yaml.Node) -> tuple[str, ...]:
        """Return the sentences of a list. Raises UserError."""
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self.error(node, f'{where}: expected a list of sentences',
                             'write "- sentence" lines below it')
        return tuple(self._sentence(where, item) for item in node.value)

    def _sentence(self, where: str, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag != 'tag:yaml.org,2002:str':
            what = f'"{shown(node.value)}"' if isinstance(node, yaml.ScalarNode) else 'an entry'
            raise self.error(node, f'{where}: {what} is no sentence to YAML', 'put it in quotes')
        text = node.value.strip()
        if refused := refuse_instruction(text):
            raise self.error(node, f'{where}: "{shown(text)}" can be said to no policy: {refused}',
                             'delete it')
        if text in self._seen:
            other, line = self._seen[text]
            raise self.error(node, f'{where}: "{shown(text)}" is in line {line}, too ({other})',
                             'delete one')
        self._seen[text] = where, node.start_mark.line + 1
        return text


@dataclass(frozen=True, slots=True)
class Trial:
    """Wordings that are put to a policy. ``own``: its words for a task; '': it takes any."""

    wordings: Wordings
    own: Mapping[str, str]

    @classmethod
    def of(cls, wordings: Wordings, sentences: Mapping[str, str], tasks: Sequence[str]) -> Trial:
        """Return a trial of wordings of tasks, whose ``sentences`` a policy of ``tasks`` hears."""
        return cls(wordings, {task: (known_as(sentences[task], tasks) or sentences[task])
                              if tasks else '' for task in wordings.tasks})

    def outcome(self, task: str, understood: str, success: bool) -> str:
        """Return what became of a wording; ``understood``: '' where it was refused."""
        own = self.own[task]
        return (REFUSED if not understood else OTHER if own and understood != own else
                SUCCESS if success else FAILED)

    def judged(self, source: Source) -> Source:
        """Return a source whose episodes succeed only where the wording was understood, too."""
        def run(jobs: Sequence[Job]) -> Generator[tuple[Job, EpisodeResult], None, None]:
            with closing(source(jobs)) as episodes:
                for job, r in episodes:
                    yield job, replace(
                        r, success=self.outcome(r.task, r.understood, r.success) == SUCCESS)
        return run

    def complete(self, summary: dict[str, Any], meant: Meanings) -> None:
        """Add the outcomes of wordings to a summary, and what became of those to refuse."""
        said = [(group, text) for group, texts in self.wordings.refuse.items() for text in texts]
        for row in summary['episodes']:
            row['outcome'] = self.outcome(row['task'], row['understood'], row['success'])
        for task, rate in summary['tasks'].items():
            mine = [row['outcome'] for row in summary['episodes'] if row['task'] == task]
            rate |= {outcome: mine.count(outcome) for outcome in MISHEARD}
        summary['total'] |= {outcome: sum(rate[outcome] for rate in summary['tasks'].values())
                             for outcome in MISHEARD}
        rows = [{'group': group, 'said': text, 'understood': task, 'refused': why}
                for (group, text), (task, why) in zip(said, meant([text for _, text in said]))]
        summary['refuse'] = {'sentences': rows, **rates(rows)}


def rates(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return how many of what must be refused were refused: by group and in total."""
    groups = dict.fromkeys(row['group'] for row in rows)
    return {'groups': {group: Rate.of(not row['understood'] for row in rows
                                      if row['group'] == group).to_dict() for group in groups},
            'total': Rate.of(not row['understood'] for row in rows).to_dict()}


def meanings(understanding: Understanding, texts: Sequence[str]) -> Iterator[Meaning]:
    """Yield the task that each sentence means, or '' and why it means none."""
    for text in texts:
        try:
            yield understanding.understand(text).task, ''
        except NotUnderstood as error:
            yield '', str(error)


def tables(summary: Mapping[str, Any]) -> Iterator[Table | str]:
    """Yield what was refused of what must be, and every sentence that was taken wrongly."""
    refuse = summary['refuse']
    if refuse['groups']:
        yield plain_table(
            'what must be refused', ('group', 'refused', 'n', 'Wilson 95 %'),
            [(group, *rate_cells(row)) for group, row in refuse['groups'].items()],
            ('total', *rate_cells(refuse['total'])))
    wrong = [*((row['task'].replace('_', ' '), row) for row in summary['episodes']
               if row['outcome'] in MISHEARD),
             *((row['group'], row) for row in refuse['sentences'] if row['understood'])]
    if wrong:
        yield plain_table('taken wrongly', ('should be', 'said', 'taken for'), dict.fromkeys(
            (should, row['said'], row['understood'] or 'refused') for should, row in wrong),
            names=3)


def show_understanding(policy: Path, instructions: Path | None,
                       json_file: Path | None = None) -> None:
    """Print how a policy understands every sentence of a file, without an episode.

    Raises UserError for a policy that takes any sentence, and as of ``Wordings.read``.
    """
    if instructions is None:
        raise UserError('--understand-only needs --instructions FILE')
    require_writable(json_file)
    folder = find_shared(policy)
    manifest = PolicyManifest.read(folder)
    if not manifest.tasks:
        raise UserError(f'{policy}: names no tasks, so it takes any sentence as it is')
    wordings = Wordings.read(instructions, {task: task for task in manifest.tasks})
    understanding = understanding_of(folder, manifest)
    rows: list[dict[str, Any]] = []
    view = Table(title=f'{instructions}, as {policy} understands it', title_justify='left')
    for column in ('', 'should be', 'said', 'understood as', 'confidence'):
        view.add_column(column, overflow='fold')
    for should, texts in {**wordings.tasks, **wordings.refuse}.items():
        task = should if should in wordings.tasks else ''
        for k, text in enumerate(texts):
            try:
                meant = understanding.understand(text)
                row: dict[str, Any] = {
                    'understood': meant.task, 'confidence': meant.confidence, 'refused': ''}
            except NotUnderstood as error:
                row = {'understood': '', 'confidence': None, 'refused': str(error)}
            right = row['understood'] == task
            rows.append({'group': should, 'said': text, **row, 'right': right})
            view.add_row('ok' if right else 'NO', '' if k else should, text,
                         row['understood'] or 'refused',
                         '' if row['confidence'] is None else f'{row["confidence"]:.2f}',
                         style='' if right else 'red')
        view.add_section()
    sums = {group: Rate.of(row['right'] for row in rows if row['group'] == group).to_dict()
            for group in {row['group']: None for row in rows}}
    console = Console()
    console.print(view)
    console.print(plain_table(
        'taken rightly', ('task, or what must be refused', 'rightly', 'n', 'Wilson 95 %'),
        [(group, *rate_cells(row)) for group, row in sums.items()],
        ('all', *rate_cells(Rate.of(row['right'] for row in rows).to_dict()))))
    write_json(json_file, {
        'policy': str(policy), 'files': dict(manifest.files), 'instructions': str(instructions),
        'wordings': wordings.digest, 'groups': sums, 'sentences': rows})
