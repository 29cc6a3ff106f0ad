"""Runs ``dtvla train language``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import onnx
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table
from safetensors.numpy import load_file, save_file
from torch import nn

from dtvla_ros.engine.graphs import trace
from dtvla_ros.evaluation.results import Rate, plain_table, rate_cells
from dtvla_ros.evaluation.wordings import Wordings
from dtvla_ros.files import find_shared, read_json, write_json, write_text
from dtvla_ros.policy import language
from dtvla_ros.policy.manifest import PolicyManifest, new_folder, sha256, verified
from dtvla_ros.training.language import matcher
from dtvla_ros.training.language.grammar import Grammar

SIZE, BATCH = 96, 256  # of a word's vector; pairs of a step
THRESHOLDS = tuple(k / 20 for k in range(4, 20))
SLACK = 0.03  # of a sum of two shares
LICENSE = 'Apache-2.0'


def train_language(out: Path, config: Path, development: Path, policy: Path, minutes: float,
                   encoder: Path | None = None, seed: int = 0) -> None:
    """Train the network that understands instructions and write it to ``out``.

    ``encoder``: folder of a BERT-like sentence encoder, from which the words' vectors are made;
    without it those of ``language.FOLDER`` are used. The threshold is the one of `THRESHOLDS`
    that serves the sentences of ``development`` best, which are about tasks of ``policy``.
    Raises UserError.
    """
    tasks = PolicyManifest.read(find_shared(policy)).tasks
    examples = Wordings.read(development, {task: task for task in tasks})
    grammar = Grammar.read(find_shared(config))
    words, stored, source = (_made(encoder) if encoder is not None else
                             _kept(find_shared(language.FOLDER)))
    vocabulary = matcher.vocabulary_of(grammar, words)
    torch.manual_seed(seed)
    batches = matcher.Batches(
        grammar, seed, vocabulary, language.unpacked(stored, vocabulary.strangers), BATCH)
    network = matcher.MatcherNetwork(SIZE, len(vocabulary.learnt))
    with Progress(*Progress.get_default_columns(), TextColumn('{task.fields[now]}'),
                  console=Console(stderr=True)) as bar:
        line = bar.add_task('sentences', total=minutes * 60.0, now='')
        average = matcher.train(network, batches, minutes, lambda step, seconds, loss: bar.update(
            line, completed=seconds, now=f'{step * BATCH} pairs, loss {loss:.3f}'))
    with new_folder(out) as part:
        save_file(stored, part / language.VECTORS)
        write_text(part / language.VOCABULARY, json.dumps(asdict(vocabulary)) + '\n')
        onnx.save(_graph(average), part / language.GRAPH)
        made = {
            'format': language.FORMAT, 'license': LICENSE, 'vectors': source, 'seed': seed,
            'config': sha256(find_shared(config)), 'files': {
                name: sha256(part / name)
                for name in (language.GRAPH, language.VECTORS, language.VOCABULARY)}}
        write_json(part / language.MANIFEST, made | {'threshold': THRESHOLDS[0]})
        threshold, table = choose_threshold(language.Matcher(part), examples)
        write_json(part / language.MANIFEST, made | {'threshold': threshold})
        Console().print(table)
    print(f'{out}: sentences count as asking for a task from {threshold} on; '
          'next: dtvla eval --instructions FILE --understand-only')


def choose_threshold(network: language.Matcher, examples: Wordings) -> tuple[float, Table]:
    """Return the threshold that serves examples best, and how each would serve them.

    What is best is the sum of the shares of those understood and of those refused. Since a
    refusal is safe, the highest threshold is taken that reaches it up to ``SLACK``.
    """
    tasks = [*examples.tasks]
    # [sentences, tasks] each, and which task is asked for: none of those to refuse.
    asked = [(network.probabilities(text, tasks), k) for k, task in enumerate(tasks)
             for text in examples.tasks[task]]
    others = [network.probabilities(text, tasks) for texts in examples.refuse.values()
              for text in texts]
    table = plain_table('on the sentences of development', (
        'threshold', 'understood', 'n', 'Wilson 95 %', 'refused', 'n', 'Wilson 95 %'), [])
    sums = {}
    for value in THRESHOLDS:
        good = Rate.of(language.choose(likely, value) == k for likely, k in asked)
        refused = Rate.of(language.choose(likely, value) is None for likely in others)
        table.add_row(f'{value:.2f}', *rate_cells(good.to_dict()), *rate_cells(refused.to_dict()))
        sums[value] = good.value + refused.value
    return max(v for v, total in sums.items() if total >= max(sums.values()) - SLACK), table


def _made(encoder: Path) -> tuple[tuple[str, ...], dict[str, NDArray], dict[str, str]]:
    """Return words and vectors of an encoder, and what they were made from."""
    words, stored = matcher.word_vectors(encoder, SIZE)
    return words, stored, {'encoder': encoder.name,
                           'sha256': sha256(encoder / 'model.safetensors')}


def _kept(folder: Path) -> tuple[tuple[str, ...], dict[str, NDArray], dict[str, str]]:
    """Return the same of a folder that was written before."""
    manifest = read_json(folder / language.MANIFEST)
    vectors, words = (verified(folder, manifest['files'], name)
                      for name in (language.VECTORS, language.VOCABULARY))
    return tuple(read_json(words)['pretrained']), load_file(vectors), manifest['vectors']


def _graph(network: nn.Module) -> onnx.ModelProto:
    pairs, words = 2, 5
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    rows = torch.ones(pairs, words, dtype=torch.long)
    return trace(network, lambda model, *inputs: model(*inputs), [
        ('vectors', torch.rand(pairs, words, SIZE), free),
        *((name, rows.clone(), free) for name in ('learnt', 'segments', 'positions'))],
        ['scores'])
