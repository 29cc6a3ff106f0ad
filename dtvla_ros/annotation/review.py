"""Makes a page on which a person accepts, edits or rejects labels, and applies the decisions."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from tqdm import tqdm

from dtvla_ros import report, thought
from dtvla_ros.annotation.checks import check_labels
from dtvla_ros.annotation.label import LABELS, MAKER, labels_of, row_of
from dtvla_ros.annotation.question import PHASES, TROUBLES, Labels, answer_model, jpeg, read_answer
from dtvla_ros.annotation.source import Source
from dtvla_ros.errors import UserError
from dtvla_ros.files import read_lines, write_text

ACCEPTED = 'accepted.jsonl'
DECISIONS = ('accept', 'edit', 'reject')
THUMBNAIL = 128  # [pixels]


def review(source: Source, out: Path, labels: Path | None = None, page: Path | None = None,
           sample: int = 30, seed: int = 0) -> None:
    """Write a page with ``sample`` episodes: those with issues first, then others at random.

    ``labels``, ``page`` None: those in ``out``. Raises ``UserError`` for no or foreign labels.
    """
    path, page = labels or out / LABELS, page or out / 'review.html'
    digest, rows = _read_labels(path, source)
    order = np.random.default_rng(seed).permutation(sorted(rows)).tolist()
    chosen = sorted(sorted(order, key=lambda k: -len(rows[k]['findings']))[:sample])
    # A model's words stay data: no end tag or comment can be spelled in the embedded JSON.
    embedded = json.dumps({
        'dataset': source.fingerprint, 'labels': digest, 'phases': list(PHASES),
        'says': thought.PHASES, 'troubles': list(TROUBLES),
        'episodes': [_shown(source, rows[k]) for k in tqdm(
            chosen, desc='review', unit='episode', disable=None)]}).replace('<', '\\u003c')
    report.write_page(page, 'review.html', title=f'Review of {path.name}', data=Markup(embedded))
    print(f'{page}: {sum(len(rows[k]["labels"]) for k in chosen)} key frames of {len(chosen)} '
          'episodes; open it in a browser, decide, download the decisions')


def _read_labels(path: Path, source: Source) -> tuple[str, dict[int, dict[str, Any]]]:
    """Return a hash of a file of labels, and its rows by episode."""
    header, rows = source.read(path, 'labels', MAKER)
    content = json.dumps([header, *rows.values()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16], rows


def _shown(source: Source, row: Mapping[str, Any]) -> dict[str, Any]:
    episode, pairs = row['episode'], labels_of(row)
    motion, frames = source.motion(episode), [frame for frame, _ in pairs]
    return {
        'episode': episode, 'instruction': row['instruction'],
        'objects': list(source.objects(episode)),
        'frames': [{
            'frame': frame, 'seconds': frame / motion.fps, 'motion': motion.phrase(frame, end),
            'label': label.model_dump(),
            'issues': [f'{issue["kind"]}: {issue["text"]}' for issue in row['findings']
                       if issue['frame'] == frame],
            'images': [report.data_uri(jpeg(view, 80, THUMBNAIL)) for view in views.values()],
        } for (frame, label), end, views in zip(
            pairs, [*frames[1:], len(motion)], source.images(episode, frames))]}


def _read_decisions(paths: Sequence[Path], source: Source, labels: str) -> dict[
        tuple[int, int], dict[str, Any]]:
    """Return the decisions in downloaded files by episode and frame; later files win."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for path in paths:
        lines = read_lines(path)
        if not lines:
            raise UserError(f'{path}: missing or empty; download it from the review page')
        if lines[0] != {'kind': 'decisions', 'dataset': source.fingerprint, 'labels': labels}:
            raise UserError(f'{path}: made for other labels; review the present ones again')
        try:
            odd = {row['decision'] for row in lines[1:]} - set(DECISIONS)
            found |= {(int(row['episode']), int(row['frame'])): row for row in lines[1:]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}: not the decisions of a review page ({error})') from error
        if odd:
            raise UserError(f'{path}: decision {min(odd)!r}; there is: {", ".join(DECISIONS)}')
    return found


def apply(source: Source, out: Path, labels: Path | None = None, decisions: Sequence[Path] = (),
          accept_rest: bool = False) -> Counter[str]:
    """Write the accepted and edited labels into ``out``, whole; print and return the outcomes.

    Undecided ones are left out, or with ``accept_rest`` taken if there is no issue with them.
    Raises ``UserError`` for files of decisions that are none, made for other labels, about what
    is not there, or with words a label may not use.
    """
    digest, rows = _read_labels(labels or out / LABELS, source)
    decided = _read_decisions(decisions, source, digest)
    known = {(k, label['frame']) for k, row in rows.items() for label in row['labels']}
    if unknown := sorted(decided.keys() - known):
        raise UserError(f'decisions about episode {unknown[0][0]}, frame {unknown[0][1]}, which '
                        'has no label')
    counts: Counter[str] = Counter()
    lines: list[dict[str, Any]] = [
        {'kind': 'accepted', 'dataset': source.fingerprint, 'labels': digest}]
    for episode, row in sorted(rows.items()):
        flagged = {issue['frame'] for issue in row['findings']}
        kept: list[Any] = []
        for frame, label in labels_of(row):
            decision = decided.get((episode, frame), {})
            outcome = decision.get('decision') or (
                'accepted as faultless' if accept_rest and frame not in flagged else 'undecided')
            counts[outcome] += 1
            if outcome == 'edit':
                answer = json.dumps({'frames': [decision.get('label')]})
                try:
                    [label] = read_answer(answer, answer_model(source.objects(episode), 1))
                except ValueError as error:
                    raise UserError(f'edited episode {episode} frame {frame}: {error}') from error
            if outcome not in ('undecided', 'reject'):
                kept.append((frame, label))
        if kept:
            issues = check_labels(source.motion(episode), source.goal(episode),
                                  [frame for frame, _ in kept], kept, first=False)
            counts['issues that remain'] += len(issues)
            lines.append(row_of(episode, row['instruction'], kept, issues))
    path = out / ACCEPTED
    write_text(path, ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines))
    print(f'{path}: {", ".join(f"{count} {name}" for name, count in counts.items())}')
    return counts


def read_accepted(path: Path, source: Source) -> dict[int, Labels]:
    """Return accepted labels by episode; ``UserError`` when there are none of this dataset."""
    _, rows = source.read(path, 'accepted', 'dtvla annotate apply')
    return {episode: labels_of(row) for episode, row in rows.items()}
