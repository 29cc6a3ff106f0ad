"""Who answers: rules, or what was answered before. Others have modules of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dtvla_ros.annotation.journal import whole_lines
from dtvla_ros.annotation.question import Question
from dtvla_ros.annotation.rules import label_frames
from dtvla_ros.errors import UserError

ANSWERS = 'answers.jsonl'


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and how many tokens it took."""

    text: str
    tokens_read: int = 0
    tokens_written: int = 0


class Provider(Protocol):
    """Answers questions; may be called from several threads at once.

    ``name`` tells answers of different providers apart in the cache; ``looks``: it needs the
    pictures; ``parallel``: how many questions it can work on at once.
    """

    name: str
    looks: bool
    parallel: int

    def ask(self, question: Question) -> Answer:
        """Return an answer, which need not be valid.

        Raises ``UserError`` when there is none to be had.
        """
        ...


class RuleProvider:
    """Labels by `label_frames`: deterministic, offline, blind."""

    name = 'rules'
    looks = False
    parallel = 1

    def ask(self, question: Question) -> Answer:
        evidence = question.evidence
        labels = label_frames(evidence.motion, evidence.goal)
        return Answer(json.dumps(
            {'frames': [labels[frame].model_dump() for frame in evidence.frames]}))


class ReplayProvider:
    """Gives the answers that an earlier run wrote down, by the hash of the question."""

    parallel = 1

    def __init__(self, path: Path):
        rows = read_answers(path)
        if not rows:
            raise UserError(f'{path}: holds no answers; give the {ANSWERS} of an earlier run')
        self.name = 'replay'
        self.looks = any(row['pictures'] for row in rows)
        self._path = path
        self._answers = {row['key']: row for row in rows}

    def ask(self, question: Question) -> Answer:
        row = self._answers.get(question.key)
        if row is None:
            raise UserError(f'{self._path}: nobody answered this question about frames '
                            f'{list(question.evidence.frames)}; use the data set, key frames and '
                            'options of the run that is replayed')
        return Answer(row['text'], row['tokens_read'], row['tokens_written'])


def read_answers(path: Path) -> list[dict]:
    """Return the rows of an answer file, in order.

    Raises ``UserError`` when it is no such file.
    """
    try:
        rows = [json.loads(line) for line in whole_lines(path)]
        for row in rows:
            row['key'], row['provider'], row['text'], row['round'], row['pictures']
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not a file of answers ({error}); delete it') from error
    return rows
