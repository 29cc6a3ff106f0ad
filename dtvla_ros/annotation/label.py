"""Asks a provider about the key frames of all episodes; keeps every answer as it arrives."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dtvla_ros.annotation.checks import check_labels
from dtvla_ros.annotation.keyframes import read_keyframes
from dtvla_ros.annotation.providers import (
    ANSWERS,
    Answer,
    HttpOptions,
    HttpProvider,
    Ledger,
    Prices,
    Provider,
    ReplayProvider,
    RuleProvider,
    read_answers,
)
from dtvla_ros.annotation.question import (
    Labels,
    Question,
    Semantics,
    build_question,
    read_answer,
    windows,
)
from dtvla_ros.annotation.source import Source
from dtvla_ros.errors import UserError
from dtvla_ros.files import Journal, JsonLines, whole_lines
from dtvla_ros.issues import Issue

LABELS = 'labels.jsonl'
FAILED = 'failed.jsonl'
LEDGER = 'ledger.jsonl'
PROVIDERS = ('rules', 'http', 'local', 'replay')
FRAME_TOKENS = 80  # of a key frame's label in an answer


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """``window``: key frames in one question; ``corrections``: of an unusable answer."""

    window: int = 16
    corrections: int = 1


@dataclass(frozen=True, slots=True)
class LabelResult:
    """How a run ended: counts, issues by check, and why episodes failed."""

    episodes: int
    keyframes: int
    answered: int
    cached: int
    issues: Mapping[str, int]
    failed: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would ask for, if no answer had to be corrected."""

    episodes: int
    requests: int
    images: int
    tokens_read: int
    tokens_written: int
    cost: float


class AnswerCache:
    """Answers on disk by provider and content of the question, as soon as they arrive.

    An episode whose answers were all unusable is asked anew in another ``round``.
    """

    def __init__(self, folder: Path):
        self._answers = {
            (row['provider'], row['key'], row['round']): Answer(
                row['text'], row['tokens_read'], row['tokens_written'])
            for row in read_answers(folder / ANSWERS)}
        self._file = JsonLines(folder / ANSWERS)
        self._lock = threading.Lock()
        self.asked = self.found = 0

    def ask(self, provider: Provider, question: Question, number: int) -> Answer:
        """Return the answer from the cache, or the provider's."""
        key = question.key
        known = self._answers.get((provider.name, key, number))
        answer = known or provider.ask(question)
        with self._lock:
            if known is not None:
                self.found += 1
                return known
            self.asked += 1
            self._answers[provider.name, key, number] = answer
            self._file.write({'key': key, 'provider': provider.name, 'round': number,
                              'pictures': question.images, **asdict(answer)})
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
            provider.needs_images)
        best: list[tuple[int, Semantics]] = []
        problem = ''
        for _ in range(options.corrections + 1):
            answer = ask(question)
            try:
                read = list(zip(frames, read_answer(answer.text, question.model)))
            except ValueError as error:
                problem = str(error)
                question = question.corrected(answer.text, f'That is not valid: {problem}.')
                continue
            best = read
            issues = check_labels(motion, goal, frames, [*labels[-1:], *read], first=not labels)
            if not issues:
                break
            question = question.corrected(answer.text, 'That cannot be right: ' + '; '.join(
                f'key frame {frames.index(i.frame) + 1 if i.frame in frames else i.frame}: '
                f'{i.problem}' for i in issues) + '.')
        if not best:
            raise Unusable(problem)
        labels += best
    return row_of(episode, source.instruction(episode), labels,
                  check_labels(motion, goal, keyframes, labels))


def row_of(episode: int, instruction: str, labels: Labels, issues: Sequence[Issue]
           ) -> dict[str, Any]:
    """Return an episode's labels as a JSON row."""
    return {'episode': episode, 'instruction': instruction,
            'labels': [{'frame': frame, **label.model_dump()} for frame, label in labels],
            'findings': [{'frame': i.frame, 'kind': i.check, 'text': i.problem} for i in issues]}


def labels_of(row: Mapping[str, Any]) -> list[tuple[int, Semantics]]:
    """Return (frame, label) pairs of a row."""
    return [(label['frame'], Semantics(**{k: v for k, v in label.items() if k != 'frame'}))
            for label in row['labels']]


def label(
    source: Source, keyframes: Mapping[int, Sequence[int]], path: Path, provider: Provider,
    options: LabelOptions, episodes: int | None = None,
    stop: threading.Event | None = None,
) -> LabelResult:
    """Label the episodes that have key frames into ``path``; go on where a run stopped.

    Answers are kept in ``answers.jsonl`` beside it, so nothing is asked twice. Raises
    ``UserError`` at the end if an answer could not be had; what was labelled is kept.
    """
    stop = stop or threading.Event()
    wanted = sorted(keyframes)[:episodes]
    header = {'kind': 'labels', 'dataset': source.fingerprint, 'provider': provider.name,
              'looks': provider.needs_images, **asdict(options)}
    failures = [json.loads(line) for line in whole_lines(path.parent / FAILED)]
    rounds = Counter(row['episode'] for row in failures if row['provider'] == provider.name)
    failed: dict[int, str] = {}
    source.motion(0)  # reads what is read once, before several threads ask for it
    with Journal(path, header) as journal, ExitStack() as stack:
        waiting = [k for k in wanted if k not in journal.done]
        for k in set(wanted) - set(waiting):
            if [frame for frame, _ in labels_of(journal.done[k])] != list(keyframes[k]):
                raise UserError(f'{path}: episode {k} is labelled at other key frames; choose '
                                'another file or delete it')
        cache, failures_file = AnswerCache(path.parent), JsonLines(path.parent / FAILED)
        stack.callback(cache.close)
        stack.callback(failures_file.close)

        def work(episode: int) -> dict[str, Any]:
            return label_episode(
                source, episode, keyframes[episode], provider,
                lambda question: cache.ask(provider, question, rounds[episode]), options)

        pool = ThreadPoolExecutor(max(1, provider.parallel))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        stack.callback(stop.set)
        bar = stack.enter_context(tqdm(
            total=len(wanted), initial=len(wanted) - len(waiting), desc='label', unit='episode',
            disable=None))
        for episode, job in _finished(pool, work, waiting, provider.parallel):
            try:
                journal.add(job.result())
            except Unusable as error:
                failed[episode] = str(error)
                failures_file.write({'episode': episode, 'provider': provider.name,
                                     'error': str(error)})
            bar.update()
            bar.set_postfix(asked=cache.asked, cached=cache.found, refresh=False)
        rows = [journal.done[k] for k in wanted if k in journal.done]
    return LabelResult(
        episodes=len(rows), keyframes=sum(len(row['labels']) for row in rows),
        answered=cache.asked, cached=cache.found,
        issues=Counter(issue['kind'] for row in rows for issue in row['findings']), failed=failed)


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


def estimate(source: Source, keyframes: Mapping[int, Sequence[int]], path: Path,
             options: LabelOptions, prices: Prices, episodes: int | None = None) -> Estimate:
    """Return what labelling the episodes that ``path`` lacks would take; nothing is asked."""
    done = set()
    if whole_lines(path):
        done = {row['episode'] for row in Journal.read(path, 'dtvla annotate label')[1]}
    waiting = [k for k in sorted(keyframes)[:episodes] if k not in done]
    requests = images = read = written = 0
    for episode in tqdm(waiting, desc='estimate', unit='episode', disable=None):
        motion = source.motion(episode)
        for frames in windows(keyframes[episode], options.window):
            question = build_question(
                source, episode, motion, keyframes[episode], frames, None, False)
            shown = len(frames) * len(source.reader.camera_keys)
            requests, images = requests + 1, images + shown
            read += prices.tokens(question.characters, shown)
            written += len(frames) * FRAME_TOKENS
    return Estimate(len(waiting), requests, images, read, written, prices.cost(read, written))


@dataclass(frozen=True, slots=True)
class LabelCommand:
    """The options of ``dtvla annotate label`` that are not of one question or one request."""

    folder: Path
    labels: Path | None
    provider: str
    answers: Path | None
    key: str | None
    estimate: bool
    max_requests: int | None
    max_cost: float | None
    episodes: int | None


def run_label(source: Source, command: LabelCommand, options: LabelOptions, prices: Prices,
              http: HttpOptions) -> None:
    """Label, or tell what it would take; print the outcome.

    Raises ``UserError`` when an option does not fit, an answer could not be had or the budget is
    reached; what is labelled by then is kept.
    """
    path = command.labels or command.folder / LABELS
    if path.parent.resolve() != command.folder.resolve():
        raise UserError(f'--labels {path}: must lie in {command.folder}, beside the answers')
    keyframes = read_keyframes(command.folder, source)
    if command.provider == 'rules':  # their answers are always the same
        options = LabelOptions(options.window, 0)
    if command.estimate:
        guess = estimate(source, keyframes, path, options, prices, command.episodes)
        print(f'{guess.episodes} episodes to label: {guess.requests} requests with '
              f'{guess.images} images, about {guess.tokens_read} tokens read and '
              f'{guess.tokens_written} written, cost about {guess.cost:.2f}; nothing was asked')
        print(f'with every answer sent back {options.corrections} times: about '
              f'{(1 + options.corrections) * guess.requests} requests')
        return
    with ExitStack() as stack:
        stop = threading.Event()
        provider = _provider(command, prices, http, stop, stack)
        result = label(source, keyframes, path, provider, options, command.episodes, stop)
    issues = ', '.join(f'{count} {check}' for check, count in sorted(result.issues.items()))
    print(f'{path}: {result.keyframes} key frames of {result.episodes} episodes; '
          f'{result.answered} answers, {result.cached} from the cache; issues: '
          f'{issues or "none"}')
    if result.failed:
        first = min(result.failed)
        raise UserError(f'{len(result.failed)} episodes have no usable answer (episode {first}: '
                        f'{result.failed[first]}); repeat the command to ask anew')


def _provider(command: LabelCommand, prices: Prices, http: HttpOptions, stop: threading.Event,
              stack: ExitStack) -> Provider:
    """Return the provider of a command; ``stack`` closes it and prints what was spent."""
    if command.provider == 'rules':
        return RuleProvider()
    if command.provider == 'replay':
        if command.answers is None:
            raise UserError('--provider replay needs --answers, the answers.jsonl of a run')
        return ReplayProvider(command.answers)
    if command.provider not in PROVIDERS:
        raise UserError(f'--provider {command.provider!r}; there is: {", ".join(PROVIDERS)}')
    if not http.model:
        raise UserError(f'--provider {command.provider} needs --model')
    if command.provider == 'local':
        from dtvla_ros.annotation.vlm import LocalProvider

        return LocalProvider(Path(http.model), http.max_tokens)
    ledger = Ledger(command.folder / LEDGER, prices, command.max_requests, command.max_cost)
    stack.callback(ledger.close)
    provider = HttpProvider(http, command.key, ledger, stop)
    stack.callback(lambda: print(f'sent in all: {ledger.requests} requests, cost '
                                 f'{ledger.cost:.4f}'))
    stack.callback(provider.close)
    return provider
