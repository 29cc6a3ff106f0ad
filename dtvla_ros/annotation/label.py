"""Ask a provider about the key frames of all episodes; keep every answer; lose nothing."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dtvla_ros.annotation.budget import Estimate, Prices
from dtvla_ros.annotation.checks import Finding, check_labels
from dtvla_ros.annotation.journal import Appender, Journal, whole_lines
from dtvla_ros.annotation.providers import ANSWERS, Answer, Provider, read_answers
from dtvla_ros.annotation.question import Question, build_question, windows
from dtvla_ros.annotation.schema import Semantics, read_answer
from dtvla_ros.annotation.source import Source
from dtvla_ros.errors import UserError

LABELS = 'labels.jsonl'
FAILED = 'failed.jsonl'


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """``window``: key frames in one question; ``corrections``: of an answer one can not use."""

    window: int = 16
    corrections: int = 1


@dataclass(frozen=True, slots=True)
class Labelled:
    """How a run ended."""

    episodes: int
    keyframes: int
    answered: int
    cached: int
    findings: Mapping[str, int]
    failed: Mapping[int, str]


class AnswerCache:
    """Answers on disk by provider and content of the question, as soon as they arrive.

    An episode whose answers were all unusable is asked anew in another ``round``.
    """

    def __init__(self, folder: Path):
        path = folder / ANSWERS
        self._answers = {
            (row['provider'], row['key'], row['round']): Answer(
                row['text'], row['tokens_read'], row['tokens_written'])
            for row in read_answers(path)}
        self._file = Appender(path)
        self._lock = threading.Lock()
        self.asked = self.found = 0

    def ask(self, provider: Provider, question: Question, number: int) -> Answer:
        """Return the answer from the cache, or the provider's."""
        key = question.key
        known = self._answers.get((provider.name, key, number))
        if known is not None:
            with self._lock:
                self.found += 1
            return known
        answer = provider.ask(question)
        with self._lock:
            self.asked += 1
            self._answers[provider.name, key, number] = answer
            self._file.write({'key': key, 'provider': provider.name, 'round': number,
                              'pictures': question.pictures, **asdict(answer)})
        return answer

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Unusable(Exception):
    """No answer about an episode was of the schema."""


def label_episode(
    source: Source, episode: int, keyframes: Sequence[int], provider: Provider,
    ask: Callable[[Question], Answer], options: LabelOptions,
) -> dict[str, Any]:
    """Return the row of an episode: labels of its key frames and what is wrong with them.

    An answer that is not of the schema, or that contradicts the motion, is sent back with what
    is wrong. Raises ``Unusable`` when none came that is of the schema.
    """
    motion, goal = source.motion(episode), source.goal(episode)
    labels: list[tuple[int, Semantics]] = []
    for frames in windows(keyframes, options.window):
        question = build_question(
            source, episode, motion, keyframes, frames, labels[-1][1] if labels else None,
            provider.looks)
        best: list[tuple[int, Semantics]] = []
        problem = ''
        for _ in range(options.corrections + 1):
            answer = ask(question)
            try:
                read = list(zip(frames, read_answer(answer.text, question.model)))
            except ValueError as error:
                problem = str(error)
                question = question.corrected(
                    answer.text, f'That is not valid: {problem}.')
                continue
            best = read
            known = [*labels[-1:], *read]
            findings = check_labels(motion, goal, frames, known, first=not labels)
            if not findings:
                break
            question = question.corrected(answer.text, 'That cannot be right: ' + '; '.join(
                f'key frame {frames.index(f.frame) + 1 if f.frame in frames else f.frame}: '
                f'{f.text}' for f in findings) + '.')
        if not best:
            raise Unusable(problem)
        labels += best
    found = check_labels(motion, goal, keyframes, labels)
    return row_of(episode, source.instruction(episode), labels, found)


def row_of(episode: int, instruction: str, labels: Sequence[tuple[int, Semantics]],
           findings: Sequence[Finding]) -> dict[str, Any]:
    """Return an episode's labels as a JSON row."""
    return {'episode': episode, 'instruction': instruction,
            'labels': [{'frame': frame, **label.model_dump()} for frame, label in labels],
            'findings': [asdict(finding) for finding in findings]}


def labels_of(row: Mapping[str, Any]) -> list[tuple[int, Semantics]]:
    """Return (frame, label) pairs of a row."""
    return [(label['frame'], Semantics(**{k: v for k, v in label.items() if k != 'frame'}))
            for label in row['labels']]


def label(
    source: Source, keyframes: Mapping[int, Sequence[int]], path: Path, provider: Provider,
    options: LabelOptions, episodes: int | None = None,
    stop: threading.Event | None = None,
) -> Labelled:
    """Label the episodes that have key frames into ``path``; go on where a run stopped.

    Answers are kept in ``answers.jsonl`` beside it, so nothing is asked twice. Raises
    ``UserError`` at the end if an answer could not be had; what was labelled is kept.
    """
    stop = stop or threading.Event()
    wanted = sorted(keyframes)[:episodes]
    header = {'kind': 'labels', 'dataset': source.fingerprint, 'provider': provider.name,
              'looks': provider.looks, **asdict(options)}
    failed_before = Counter(_failures(path.parent, provider.name))
    failed: dict[int, str] = {}
    cache = AnswerCache(path.parent)
    source.prepare()
    with Journal(path, header) as journal:
        waiting = [k for k in wanted if k not in journal.done]
        for k in set(wanted) - set(waiting):
            if [frame for frame, _ in labels_of(journal.done[k])] != list(keyframes[k]):
                raise UserError(f'{path}: episode {k} is labelled at other key frames; choose '
                                'another file or delete it')
        failures = Appender(path.parent / FAILED)

        def work(episode: int) -> dict[str, Any]:
            return label_episode(
                source, episode, keyframes[episode], provider,
                lambda question: cache.ask(provider, question, failed_before[episode]), options)

        trouble: BaseException | None = None
        pool = ThreadPoolExecutor(max(1, provider.parallel))
        try:
            with tqdm(total=len(wanted), initial=len(wanted) - len(waiting), desc='label',
                      unit='episode', disable=None) as bar:
                for episode, job in _finished(pool, work, waiting, provider.parallel):
                    try:
                        journal.add(job.result())
                    except Unusable as error:
                        failed[episode] = str(error)
                        failures.write({'episode': episode, 'provider': provider.name,
                                        'error': str(error)})
                    except UserError as error:
                        trouble = error
                        break
                    bar.update()
                    bar.set_postfix(asked=cache.asked, cached=cache.found, refresh=False)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            failures.close()
            cache.close()
        if trouble is not None:
            raise trouble
        rows = [journal.done[k] for k in wanted if k in journal.done]
    return Labelled(
        episodes=len(rows), keyframes=sum(len(row['labels']) for row in rows),
        answered=cache.asked, cached=cache.found,
        findings=Counter(f['kind'] for row in rows for f in row['findings']), failed=failed)


def _finished(pool: ThreadPoolExecutor, work: Callable[[int], dict[str, Any]],
              waiting: Sequence[int], parallel: int) -> Iterator[tuple[int, Future]]:
    """Yield jobs as they end; no more are begun than can be worked on at once."""
    queue = iter(waiting)
    running: dict[Future, int] = {}
    while True:
        for episode in queue:
            running[pool.submit(work, episode)] = episode
            if len(running) >= max(1, parallel):
                break
        if not running:
            return
        for job in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(job), job


def _failures(folder: Path, provider: str) -> Iterator[int]:
    for line in whole_lines(folder / FAILED):
        row = json.loads(line)
        if row['provider'] == provider:
            yield row['episode']


def estimate(source: Source, keyframes: Mapping[int, Sequence[int]], path: Path,
             options: LabelOptions, prices: Prices, episodes: int | None = None) -> Estimate:
    """Return what labelling the episodes that ``path`` lacks would take; nothing is asked."""
    done = set()
    if whole_lines(path):
        done = {row['episode'] for row in Journal.read(path, 'dtvla annotate label')[1]}
    waiting = [k for k in sorted(keyframes)[:episodes] if k not in done]

    def questions() -> Iterator[tuple[int, int, int]]:
        cameras = len(source.reader.camera_keys)
        for episode in tqdm(waiting, desc='estimate', unit='episode', disable=None):
            motion = source.motion(episode)
            for frames in windows(keyframes[episode], options.window):
                question = build_question(
                    source, episode, motion, keyframes[episode], frames, None, False)
                yield question.characters, len(frames) * cameras, len(frames)

    return Estimate.of(len(waiting), questions(), prices)
