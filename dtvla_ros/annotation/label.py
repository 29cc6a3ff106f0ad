"""Asks a provider about the key frames of all episodes; keeps every answer as it arrives."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dtvla_ros.annotation import providers
from dtvla_ros.annotation.checks import check_labels
from dtvla_ros.annotation.keyframes import read_keyframes
from dtvla_ros.annotation.providers import Answer, Budget, HttpOptions, Provider, read_answers
from dtvla_ros.annotation.question import Labels, Question, Semantics, build_question, read_answer
from dtvla_ros.annotation.source import Source
from dtvla_ros.errors import UserError
from dtvla_ros.files import Journal, JsonLines, read_lines
from dtvla_ros.interrupt import resumable
from dtvla_ros.issues import Issue

LABELS, MAKER = 'labels.jsonl', 'dtvla annotate label'
FAILED = 'failed.jsonl'
LEDGER = 'ledger.jsonl'
PROVIDERS = ('rules', 'http', 'local', 'replay')
FRAME_TOKENS = 80  # of a key frame's label in an answer


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """``window``: key frames in one question; ``corrections``: of an unusable answer."""

    window: int = 16
    corrections: int = 1


class Unusable(Exception):
    """No answer about an episode was of the schema."""


def windows(keyframes: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Divide an episode's key frames into runs of at most ``size``, as equal as can be."""
    pieces = -(-len(keyframes) // size)
    return [tuple(int(k) for k in part) for part in np.array_split(keyframes, pieces)]


def label_episode(source: Source, episode: int, keyframes: Sequence[int], with_images: bool,
                  ask: Callable[[Question], Answer], options: LabelOptions) -> dict[str, Any]:
    """Return the row of an episode: labels of its key frames and what is wrong with them.

    An answer that is not of the schema, or that contradicts the motion, is sent back with what
    is wrong. Raises ``Unusable`` when none came that is of the schema.
    """
    motion, goal = source.motion(episode), source.goal(episode)
    labels: list[tuple[int, Semantics]] = []
    for frames in windows(keyframes, options.window):
        question = build_question(source, episode, keyframes, frames,
                                  labels[-1][1] if labels else None, with_images)
        best: list[tuple[int, Semantics]] = []
        problem = ''
        for _ in range(options.corrections + 1):
            answer = ask(question)
            try:
                best = list(zip(frames, read_answer(answer.text, question.model)))
            except ValueError as error:
                problem = str(error)
                complaint = f'That is not valid: {problem}.'
            else:
                issues = check_labels(
                    motion, goal, frames, [*labels[-1:], *best], first=not labels)
                if not issues:
                    break
                complaint = 'That cannot be right: ' + '; '.join(
                    f'key frame {frames.index(i.frame) + 1 if i.frame in frames else i.frame}: '
                    f'{i.problem}' for i in issues) + '.'
            question = question.corrected(answer.text, complaint)
        if not best:
            raise Unusable(problem)
        labels += best
    return row_of(episode, source.reader.task(episode), labels,
                  check_labels(motion, goal, keyframes, labels))


def row_of(episode: int, instruction: str, labels: Labels, issues: Sequence[Issue]
           ) -> dict[str, Any]:
    """Return an episode's labels as a JSON row."""
    return {'episode': episode, 'instruction': instruction,
            'labels': [{'frame': frame, **label.model_dump()} for frame, label in labels],
            'findings': [{'frame': i.frame, 'kind': i.check, 'text': i.problem} for i in issues]}


def labels_of(row: Mapping[str, Any]) -> list[tuple[int, Semantics]]:
    """Return (frame, label) pairs of a row. Raises ``UserError`` for what is no label."""
    try:
        return [(label['frame'], Semantics(**{k: v for k, v in label.items() if k != 'frame'}))
                for label in row['labels']]
    except (TypeError, ValueError) as error:
        raise UserError(f'labels of episode {row["episode"]}: {str(error).splitlines()[0]:.100}; '
                        'label or apply them again into a new file') from None


def label(source: Source, keyframes: Mapping[int, Sequence[int]], path: Path, provider: Provider,
          options: LabelOptions, episodes: int | None = None,
          ) -> tuple[list[dict[str, Any]], dict[int, str], Counter[str]]:
    """Label the episodes that have key frames into ``path``; go on where a run stopped.

    Returns the rows, why other episodes failed, and how many answers were asked and cached.
    ``answers.jsonl`` beside it keeps them by provider and content, so nothing is asked twice; an
    episode whose answers were all unusable is asked anew in another ``round``. Raises
    ``UserError`` at the end if an answer could not be had; what was labelled is kept.
    """
    wanted, name = sorted(keyframes)[:episodes], provider.name
    header = {'kind': 'labels', 'dataset': source.fingerprint, 'provider': name,
              'looks': provider.needs_images, **asdict(options)}
    failures = read_lines(path.parent / FAILED, 'episode', 'provider')
    rounds = Counter(row['episode'] for row in failures if row['provider'] == name)
    failed: dict[int, str] = {}
    counts, lock = Counter(asked=0, cached=0), threading.Lock()
    with Journal(path, header) as journal, ExitStack() as stack:
        for k in set(wanted) & journal.done.keys():
            row = source.checked(path, journal.done[k], MAKER)
            if [part['frame'] for part in row['labels']] != list(keyframes[k]):
                raise UserError(f'{path}: episode {k} is labelled at other key frames; delete it')
        known = {(row['provider'], row['key'], row['round']): row
                 for row in read_answers(path.parent / providers.ANSWERS)}
        answers, broken = (stack.enter_context(JsonLines(path.parent / file))
                           for file in (providers.ANSWERS, FAILED))

        def ask(question: Question, number: int) -> Answer:
            row = known.get((name, question.key, number))
            answer = Answer.of(row) if row else provider.ask(question)
            with lock:
                counts['cached' if row else 'asked'] += 1
                if not row:
                    row = {'key': question.key, 'provider': name, 'round': number,
                           'pictures': question.images, **answer._asdict()}
                    known[name, question.key, number] = row
                    answers.write(row)
            return answer

        def work(episode: int) -> dict[str, Any]:
            return label_episode(source, episode, keyframes[episode], provider.needs_images,
                                 lambda question: ask(question, rounds[episode]), options)

        pool = ThreadPoolExecutor(provider.parallel)
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        stack.callback(provider.stop)
        waiting = [k for k in wanted if k not in journal.done]
        bar = stack.enter_context(tqdm(
            total=len(wanted), initial=len(wanted) - len(waiting), desc='label', unit='episode',
            disable=None))
        stack.enter_context(resumable(
            lambda: f'{path}: {len(journal.done)} of {len(wanted)} episodes are labelled; repeat '
                    'the command to go on'))
        queue = iter(waiting)  # no more is begun than can be worked on at once
        running = {pool.submit(work, k): k for k in islice(queue, provider.parallel)}
        while running:
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                episode = running.pop(job)
                try:
                    journal.add(job.result())
                except Unusable as error:
                    failed[episode] = str(error)
                    broken.write({'episode': episode, 'provider': name, 'error': str(error)})
                running |= {pool.submit(work, k): k for k in islice(queue, 1)}
                bar.update()
                bar.set_postfix(counts, refresh=False)
        return [journal.done[k] for k in wanted if k in journal.done], failed, counts


def estimate(source: Source, keyframes: Mapping[int, Sequence[int]], path: Path,
             options: LabelOptions, budget: Budget, episodes: int | None = None) -> Counter[str]:
    """Return what labelling the episodes that ``path`` lacks would take; nothing is asked.

    ``episodes``, ``requests``, ``images``, tokens ``read`` and ``written``; without corrections.
    """
    done = {row['episode'] for row in read_lines(path)[1:] if 'episode' in row}
    waiting = [k for k in sorted(keyframes)[:episodes] if k not in done]
    total = Counter(episodes=len(waiting))
    for episode in tqdm(waiting, desc='estimate', unit='episode', disable=None):
        for frames in windows(keyframes[episode], options.window):
            question = build_question(source, episode, keyframes[episode], frames, None, False)
            images = len(frames) * len(source.reader.camera_keys)
            total.update(requests=1, images=images, written=len(frames) * FRAME_TOKENS,
                         read=budget.tokens(question.characters, images))
    return total


def run_label(source: Source, out: Path, labels: Path | None, provider: str, answers: Path | None,
              options: LabelOptions, budget: Budget, http: HttpOptions, only_estimate: bool,
              episodes: int | None) -> None:
    """Label into ``labels``, or tell what it would take; print the outcome.

    ``provider``: one of ``PROVIDERS``; ``answers``: those to replay. Raises ``UserError`` for a
    wrong option, a missing answer or a reached budget; what is labelled by then is kept.
    """
    path = labels or out / LABELS
    if path.parent.resolve() != out.resolve():
        raise UserError(f'--labels {path}: must lie in {out}, beside the answers')
    keyframes = read_keyframes(out, source)
    if provider == 'rules':  # their answers are always the same
        options = LabelOptions(options.window, 0)
    if only_estimate:
        guess = estimate(source, keyframes, path, options, budget, episodes)
        print(f'{guess["episodes"]} episodes to label: {guess["requests"]} requests with '
              f'{guess["images"]} images, about {guess["read"]} tokens read and '
              f'{guess["written"]} written, cost about '
              f'{budget.price(guess["read"], guess["written"]):.2f}; nothing was asked')
        print(f'with every answer sent back {options.corrections} times: about '
              f'{(1 + options.corrections) * guess["requests"]} requests')
        return
    with closing(_provider(provider, out, answers, budget, http)) as asked:
        rows, failed, counts = label(source, keyframes, path, asked, options, episodes)
    issues = Counter(issue['kind'] for row in rows for issue in row['findings'])
    print(f'{path}: {sum(len(row["labels"]) for row in rows)} key frames of {len(rows)} episodes; '
          f'{counts["asked"]} answers, {counts["cached"]} from the cache; issues: ' +
          (', '.join(f'{count} {check}' for check, count in sorted(issues.items())) or 'none'))
    if failed:
        raise UserError(f'{len(failed)} episodes have no usable answer (episode {min(failed)}: '
                        f'{failed[min(failed)]}); repeat the command to ask anew')


def _provider(name: str, folder: Path, answers: Path | None, budget: Budget,
              http: HttpOptions) -> Provider:
    if name not in PROVIDERS:
        raise UserError(f'--provider {name!r}; there is: {", ".join(PROVIDERS)}')
    if name == 'rules':
        return providers.RuleProvider()
    if name == 'replay':
        if answers is None:
            raise UserError('--provider replay needs --answers, the answers.jsonl of a run')
        return providers.ReplayProvider(answers)
    if not http.model:
        raise UserError(f'--provider {name} needs --model')
    if name == 'http':
        return providers.HttpProvider(http, providers.Ledger(folder / LEDGER, budget))
    from dtvla_ros.annotation.vlm import LocalProvider

    return LocalProvider(Path(http.model), http.max_tokens)
