"""The network that judges whether a sentence asks for a task, and how it is trained."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, IterableDataset

from dtvla_ros.policy.language import MOST_WORDS, POSITIONS, STRANGERS, Vocabulary, split_words
from dtvla_ros.training.language.grammar import Grammar
from dtvla_ros.training.language.sentences import SLOT, Pair, Sampler

# Lists of the grammar that name things; words of all the others are learnt.
THINGS = ('tasks', 'shapes', 'containers', 'spots', 'things', 'fixtures', 'openable', 'switches',
          'foreign', 'talk')
WARMUP = 100  # steps
AT_ONCE = 4  # batches that are drawn together and sorted by length
Report = Callable[[int, float, float], object]


class MatcherNetwork(nn.Module):
    """A pre-norm transformer over the words of a sentence and a task, with one answer.

    Inputs [P, n] of ``Vocabulary.features``, the vectors in place of their rows [P, n, size]. For
    every word it is told how near the nearest word of the other segment is, whether it is the
    same, and where it stands: which things are meant must not be remembered, their order counts.
    """

    def __init__(self, size: int, learnt: int, width: int = 128, layers: int = 3,
                 heads: int = 4):
        super().__init__()
        self.embed = nn.Linear(size, width)
        self.learnt = nn.Embedding(learnt + 1, width, padding_idx=0)
        self.segment = nn.Embedding(3, width)
        self.position = nn.Embedding(POSITIONS, width)
        self.nearness = nn.Linear(4, width)
        self.there = nn.Embedding(POSITIONS, width)
        nn.init.normal_(self.learnt.weight, 0.0, 0.3)
        for codes in (self.position, self.there):
            nn.init.normal_(codes.weight, 0.0, 0.1)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, vectors: Tensor, learnt: Tensor, segments: Tensor,
                positions: Tensor) -> Tensor:
        """[P, n, size], [P, n] three times -> scores [P]; their sigmoid is the probability."""
        unit = F.normalize(vectors, dim=-1)
        near = unit @ unit.transpose(1, 2)  # [P, n, n]
        words = segments > 0
        other = (segments[:, :, None] + segments[:, None, :]) == 3  # one of each segment
        nearest, where = near.masked_fill(
            ~(other & words[:, :, None] & words[:, None, :]), -1.0).max(-1)  # [P, n]
        known = vectors.abs().amax(-1) > 0
        told = torch.stack([nearest, (nearest > 0.999).float(), known.float(),
                            nearest.clamp(min=0.0) ** 2], -1)  # [P, n, 4]
        x = (self.embed(vectors) + self.learnt(learnt) + self.segment(segments)
             + self.position(positions) + self.nearness(told)
             + nearest.clamp(min=0.0)[..., None] * self.there(positions.gather(1, where)))
        answer = torch.zeros_like(words)
        answer[:, 0] = True
        seen = (words | answer)[:, None, None, :]  # [P, 1, 1, n]
        for block in self.blocks:
            x = block(x, seen)
        return self.head(self.norm(x[:, 0]))[:, 0]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float = 0.1):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """[P, n, width] -> the same; ``seen`` [P, 1, 1, n]: words, padding excluded."""
        pairs, n, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(
            pairs, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind()
        scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5  # [P, heads, n, n]
        attended = scores.masked_fill(~seen, float('-inf')).softmax(-1) @ v
        x = x + self._drop(self.out(attended.transpose(1, 2).reshape(pairs, n, width)))
        return x + self._drop(self.down(F.gelu(self.up(self.after(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def vocabulary_of(grammar: Grammar, pretrained: tuple[str, ...]) -> Vocabulary:
    """Return the vocabulary of a grammar: its frames' words are learnt, its things are not."""
    def words(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield from split_words(SLOT.sub(' ', value).replace('|', ' '))
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                yield from words(key)
                yield from words(inner)
        else:
            for inner in value:
                yield from words(inner)

    frames: set[str] = set()
    names: set[str] = set()
    for field in fields(grammar):
        if field.name not in ('talk', 'foreign'):
            value = getattr(grammar, field.name)
            if field.name == 'tasks':  # without the names of the groups
                value = [*value.values()]
            (names if field.name in THINGS else frames).update(words(value))
    return Vocabulary(
        pretrained, tuple(sorted(frames)), tuple(sorted(names - frames)), STRANGERS)


class Batches(IterableDataset):
    """Draws pairs of ``Sampler`` as tensors, those of like length together."""

    def __init__(self, grammar: Grammar, seed: int, vocabulary: Vocabulary,
                 vectors: NDArray[np.float32], size: int):
        self._grammar, self._seed = grammar, seed
        self._vocabulary, self._size = vocabulary, size
        self._vectors = torch.from_numpy(vectors)

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield (inputs of the network, whether it asks [P]) without end."""
        sampler = Sampler(self._grammar, self._seed)
        spell = functools.cache(self._vocabulary.spell)
        while True:
            drawn = [_words(sampler.pair(), spell) for _ in range(AT_ONCE * self._size)]
            drawn.sort(key=lambda row: len(row[0]) + len(row[1]))
            for k in torch.randperm(AT_ONCE).tolist():
                part = drawn[k * self._size:(k + 1) * self._size]
                yield self.tensors([row[:2] for row in part]), torch.tensor(
                    [float(row[2]) for row in part])

    def tensors(self, pairs: list[tuple[list[str], list[str]]]) -> tuple[Tensor, ...]:
        """Return the network's inputs."""
        rows, *others = map(torch.from_numpy, self._vocabulary.features(pairs))
        return self._vectors[rows], *others


def _words(pair: Pair, spell: Callable[[str], str]) -> tuple[list[str], list[str], bool]:
    sentence, task = ([spell(word) for word in split_words(text)][:MOST_WORDS - 1]
                      for text in pair[:2])
    return sentence, task, pair[2]


def train(network: MatcherNetwork, batches: Batches, minutes: float, report: Report,
          learning_rate: float = 2e-3) -> nn.Module:
    """Train for some minutes; return the moving average of the weights.

    The learning rate falls to nothing over that time. ``report`` is told steps, seconds and the
    loss, averaged. Ctrl-C ends it early, with the average so far. The pairs are drawn by a process
    of their own, for which the time waits.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.02)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    started, loss_so_far = 0.0, 0.7
    fast = multiplies_bfloat16()
    try:
        for step, (inputs, asks) in enumerate(DataLoader(
                batches, batch_size=None, num_workers=1, prefetch_factor=8,
                multiprocessing_context='spawn'), 1):
            if step == 1:
                started = time.monotonic()
            seconds = time.monotonic() - started
            left = 1.0 - seconds / (60.0 * minutes)
            if left <= 0.0:
                break
            for group in optimizer.param_groups:
                group['lr'] = learning_rate * min(step / WARMUP, 1.0) * left
            with torch.autocast('cpu', torch.bfloat16, enabled=fast):
                scores = network(*inputs).float()
            loss = F.binary_cross_entropy_with_logits(scores, asks)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(network)
            loss_so_far += 0.02 * (loss.item() - loss_so_far)
            report(step, seconds, loss_so_far)
    except KeyboardInterrupt:
        pass
    return average.module.eval()


def multiplies_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware; else float32 is faster."""
    # Older releases do not tell.
    able: Mapping[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()
    return bool(able.get('avx512_bf16') or able.get('amx_bf16'))


def word_vectors(encoder: Path, size: int) -> tuple[tuple[str, ...], dict[str, NDArray]]:
    """Return the whole words of a BERT-like sentence encoder and their vectors.

    Each word goes through the encoder alone; the mean of its states, principal components,
    ``size`` of them, in 8 bits: ``vectors`` [words, size] int8 and ``scale`` [size].
    """
    from tokenizers import Tokenizer
    from transformers import BertModel

    tokenizer = Tokenizer.from_file(str(encoder / 'tokenizer.json'))
    tokenizer.no_padding()
    model = BertModel.from_pretrained(
        encoder, add_pooling_layer=False, local_files_only=True, use_safetensors=True).eval()
    words = tuple(word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda x: x[1])
                  if re.fullmatch(r'[a-z]{2,}|[ai0-9]', word))
    states = []
    with torch.no_grad():
        for k in range(0, len(words), 512):
            ids = torch.tensor([row.ids for row in tokenizer.encode_batch(words[k:k + 512])])
            states.append(model(ids).last_hidden_state.mean(1))
    found = F.normalize(torch.cat(states), dim=-1).numpy()
    found -= found.mean(0)
    _, _, axes = np.linalg.svd(found, full_matrices=False)
    found = found @ axes[:size].T
    found /= found.std()
    scale = (np.abs(found).max(0) / 127.0).astype(np.float32)
    return words, {'vectors': np.round(found / scale).astype(np.int8), 'scale': scale}
