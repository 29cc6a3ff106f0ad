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

from dtvla_ros import report
from dtvla_ros.annotation.checks import check_labels
from dtvla_ros.annotation.label import labels_of, row_of
from dtvla_ros.annotation.question import (
    PHASES,
    TROUBLES,
    Semantics,
    answer_model,
    jpeg,
    read_answer,
)
from dtvla_ros.annotation.source import Source
from dtvla_ros.errors import UserError
from dtvla_ros.files import whole_lines, write_text

ACCEPTED = 'accepted.jsonl'
DECISIONS = ('accept', 'edit', 'reject')
THUMBNAIL = 128  # [pixels]


def read_labels(path: Path, source: Source) -> tuple[str, dict[int, dict[str, Any]]]:
    """Return a hash of a file of labels, and its rows by episode.

    Raises ``UserError`` when there is none, or when it belongs to another dataset.
    """
    header, rows = source.read(path, 'labels', 'dtvla annotate label')
    content = json.dumps([header, *rows.values()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16], rows


def choose(rows: Mapping[int, Mapping[str, Any]], sample: int, seed: int) -> list[int]:
    """Return ``sample`` episodes to review: all with issues first, then others at random."""
    order = np.random.default_rng(seed).permutation(sorted(rows))
    return sorted(sorted(order.tolist(), key=lambda k: -len(rows[k]['findings']))[:sample])


def page_data(source: Source, labels: str, rows: Mapping[int, Mapping[str, Any]],
              episodes: Sequence[int]) -> dict[str, Any]:
    """Return what the page embeds as JSON."""
    shown = []
    for episode in tqdm(episodes, desc='review', unit='episode', disable=None):
        row, motion = rows[episode], source.motion(episode)
        pairs = labels_of(row)
        frames = [frame for frame, _ in pairs]
        issues: dict[int, list[str]] = {}
        for issue in row['findings']:
            issues.setdefault(issue['frame'], []).append(f'{issue["kind"]}: {issue["text"]}')
        shown.append({
            'episode': episode, 'instruction': row['instruction'],
            'objects': list(source.objects(episode)),
            'frames': [{
                'frame': frame, 'seconds': frame / motion.fps,
                'motion': motion.phrase(frame, end), 'label': label.model_dump(),
                'issues': issues.get(frame, []),
                'images': [report.data_uri(jpeg(view, 80, THUMBNAIL)) for view in views.values()],
            } for (frame, label), end, views in zip(
                pairs, [*frames[1:], len(motion)], source.images(episode, frames))]})
    return {'dataset': source.fingerprint, 'labels': labels, 'phases': list(PHASES),
            'troubles': list(TROUBLES), 'episodes': shown}


def write_page(path: Path, title: str, data: Mapping[str, Any]) -> None:
    """Write the page; it needs no network and no other file."""
    # A model's words stay data: no end tag or comment can be spelled in the embedded JSON.
    embedded = json.dumps(data, ensure_ascii=True).replace('<', '\\u003c')
    report.write_page(path, 'review.html', title=title, data=Markup(embedded))


def read_decisions(paths: Sequence[Path], source: Source, labels: str) -> dict[
        tuple[int, int], dict[str, Any]]:
    """Return the decisions in downloaded files by episode and frame; later files win.

    Raises ``UserError`` when a file is none, or was made for other labels.
    """
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for path in paths:
        lines = whole_lines(path)
        if not lines:
            raise UserError(f'{path}: no such file, or it is empty; download it from the review '
                            'page')
        try:
            header, *rows = map(json.loads, lines)
            kind = header['kind'], header['dataset'], header['labels']
            decided = {(int(row['episode']), int(row['frame'])): row for row in rows}
            odd = {row['decision'] for row in rows} - set(DECISIONS)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}: not the decisions of a review page ({error})') from error
        if kind != ('decisions', source.fingerprint, labels):
            raise UserError(f'{path}: made for other labels; review the present ones again')
        if odd:
            raise UserError(f'{path}: decision {sorted(odd)[0]!r}; there is: '
                            f'{", ".join(DECISIONS)}')
        found |= decided
    return found


def apply_decisions(
    source: Source, labels: str, rows: Mapping[int, Mapping[str, Any]],
    decisions: Mapping[tuple[int, int], Mapping[str, Any]], out: Path, accept_rest: bool,
) -> Counter[str]:
    """Write the accepted and edited labels to ``out``, whole; return counts by outcome.

    Undecided ones are left out, or with ``accept_rest`` taken if there is no issue with them.
    Raises ``UserError`` for a decision about what is not there, or with words it may not use.
    """
    known = {(k, frame) for k, row in rows.items() for frame, _ in labels_of(row)}
    if unknown := sorted(set(decisions) - known):
        raise UserError(f'decisions about episode {unknown[0][0]}, frame {unknown[0][1]}, which '
                        'has no label')
    counts: Counter[str] = Counter()
    lines: list[dict[str, Any]] = [
        {'kind': 'accepted', 'dataset': source.fingerprint, 'labels': labels}]
    for episode, row in sorted(rows.items()):
        flagged = {issue['frame'] for issue in row['findings']}
        kept: list[tuple[int, Semantics]] = []
        for frame, label in labels_of(row):
            decision = decisions.get((episode, frame), {})
            outcome = decision.get('decision') or (
                'accepted as faultless' if accept_rest and frame not in flagged else 'undecided')
            counts[outcome] += 1
            if outcome == 'edit':
                answer = json.dumps({'frames': [decision.get('label')]})
                try:
                    [label] = read_answer(answer, answer_model(source.objects(episode), 1))
                except ValueError as error:
                    raise UserError(f'edited label of episode {episode}, frame {frame}: {error}'
                                    ) from error
            if outcome not in ('undecided', 'reject'):
                kept.append((frame, label))
        if kept:
            issues = check_labels(source.motion(episode), source.goal(episode),
                                  [frame for frame, _ in kept], kept, first=False)
            counts['issues that remain'] += len(issues)
            lines.append(row_of(episode, row['instruction'], kept, issues))
    write_text(out, ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines))
    return counts


def read_accepted(path: Path, source: Source) -> dict[int, list[tuple[int, Semantics]]]:
    """Return accepted labels by episode.

    Raises ``UserError`` when there are none, or when they belong to another dataset.
    """
    _, rows = source.read(path, 'accepted', 'dtvla annotate apply')
    return {episode: labels_of(row) for episode, row in rows.items()}
