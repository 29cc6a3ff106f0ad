"""Whether two engines compute the same policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.engine.engine import Engine
from dtvla_ros.engine.think_act import banned_in_thought, write_greedily
from dtvla_ros.errors import UserError

MIN_COSINE = 0.999
_SAMPLES = 4
_WORDS = 12


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement over random images and prompts.

    ``cosine``: the lowest of all logit rows, text and action. ``thoughts``, ``chunks``: how many
    of ``samples`` greedy thoughts and decoded chunks are identical.
    """

    cosine: float
    thoughts: int
    chunks: int
    samples: int

    def __str__(self) -> str:
        return (f'parity: cosine {self.cosine:.6f}, thoughts equal {self.thoughts}/{self.samples}'
                f', chunks equal {self.chunks}/{self.samples}')

    def check(self) -> None:
        """Raise unless the engines agree."""
        if not (self.cosine >= MIN_COSINE and self.thoughts == self.chunks == self.samples):
            raise UserError(f'{self}: the export does not compute the trained policy '
                            f'(cosine >= {MIN_COSINE} and equal chunks are required)')


def compare(reference: Engine, other: Engine, seed: int = 0) -> Parity:
    """Run both engines on the same random inputs, through every phase."""
    config = reference.config
    ids, vocabulary = config.ids, config.text.vocabulary
    rng = np.random.default_rng(seed)
    banned = banned_in_thought(ids, vocabulary)
    words = np.flatnonzero(~banned)
    size = config.vision.image_size
    cosines, thoughts, chunks = [], 0, 0
    for _ in range(_SAMPLES):
        pixels = rng.uniform(-1, 1, (len(config.vision.cameras), 3, size, size))
        body = [w for w in rng.choice(words, _WORDS).tolist() if w != ids.semicolon]
        prompt = [ids.image] * config.image_tokens + [ids.bos, *body, ids.semicolon, ids.newline]
        runs = [_run(engine, pixels.astype(np.float32), prompt, banned)
                for engine in (reference, other)]
        (want_rows, want_words, want_bins), (rows, said, bins) = runs
        count = min(len(want_rows), len(rows))
        cosines += [_cosine(want_rows[:count], rows[:count]), _cosine(want_bins, bins)]
        thoughts += want_words == said
        chunks += bool((want_bins.argmax(-1) == bins.argmax(-1)).all())
    return Parity(min(cosines), thoughts, chunks, _SAMPLES)


def _run(engine: Engine, pixels: NDArray[np.float32], prompt: list[int],
         banned: NDArray[np.bool_]) -> tuple[NDArray, list[int], NDArray]:
    ids = engine.config.ids
    first, cache = engine.prefill(prompt, engine.see(pixels), [ids.think])
    said, grown = write_greedily(engine, first[-1], cache, banned=banned, stop=[ids.think_end],
                                 limit=_WORDS)
    again, _ = engine.think(cache, said)
    return np.concatenate([first, again]), said, engine.act(grown, [said[-1], ids.action])


def _cosine(a: NDArray, b: NDArray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / norms).min())
