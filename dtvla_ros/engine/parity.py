"""Whether two engines compute the same policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.engine.decode import write_thought
from dtvla_ros.engine.engine import Engine
from dtvla_ros.engine.policy import banned_in_thought
from dtvla_ros.errors import UserError

MIN_COSINE = 0.999
_SAMPLES = 4
_WORDS = 12


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement over random images and prompts.

    ``cosine``: the lowest of all logit rows, text and action. ``thoughts``, ``chunks``: how many
    of ``samples`` greedy thoughts and decoded chunks are identical. ``bins``: share of action
    values within one bin of each other.
    """

    cosine: float
    thoughts: int
    chunks: int
    samples: int
    bins: float

    def __str__(self) -> str:
        return (f'parity: cosine {self.cosine:.6f}, thoughts equal {self.thoughts}/{self.samples}'
                f', chunks equal {self.chunks}/{self.samples}, action values within one bin '
                f'{self.bins:.0%}')

    def check(self, exact: bool = True) -> None:
        """Raise unless the engines agree; ``exact`` asks for equal thoughts and chunks too."""
        same = self.thoughts == self.chunks == self.samples
        if not (self.cosine >= MIN_COSINE and (same or not exact)):
            wanted = ' and equal thoughts and chunks are' if exact else ' is'
            raise UserError(f'{self}: the export does not compute the trained policy '
                            f'(cosine >= {MIN_COSINE}{wanted} required)')


def compare(reference: Engine, other: Engine, seed: int = 0) -> Parity:
    """Run both engines on the same random inputs, through every phase."""
    config = reference.config
    ids, vocabulary = config.ids, config.text.vocabulary
    rng = np.random.default_rng(seed)
    banned = banned_in_thought(ids, vocabulary)
    words = np.flatnonzero(~banned)
    size = config.vision.image_size
    for engine in (reference, other):
        engine.suppress_tokens(banned)
    cosines, near, thoughts, chunks = [], [], 0, 0
    for _ in range(_SAMPLES):
        pixels = rng.uniform(-1, 1, (len(config.vision.cameras), 3, size, size))
        body = [w for w in rng.choice(words, _WORDS).tolist() if w != ids.semicolon]
        prompt = [ids.image] * config.image_tokens + [ids.bos, *body, ids.semicolon, ids.newline]
        given = rng.choice(words, _WORDS).tolist()
        runs = [_run(engine, pixels.astype(np.float32), prompt, given)
                for engine in (reference, other)]
        (want_rows, want_bins, want_words, want_chunk), (rows, bins, said, chunk) = runs
        cosines += [_cosine(want_rows, rows), _cosine(want_bins, bins)]
        near.append(np.abs(want_bins.argmax(-1) - bins.argmax(-1)) <= 1)
        thoughts += want_words == said
        chunks += bool((want_chunk == chunk).all())
    return Parity(min(cosines), thoughts, chunks, _SAMPLES, float(np.mean(near)))


def _run(engine: Engine, pixels: NDArray[np.float32], prompt: list[int],
         given: list[int]) -> tuple[NDArray, NDArray, list[int], NDArray]:
    """Return word and action logits with a given thought, then an own thought and its bins."""
    ids = engine.config.ids
    features = engine.encode_images(pixels)
    rows = engine.logits(prompt, features, [ids.think, *given])
    _, cache = engine.prefill(prompt, features, [ids.think, *given])
    scores = engine.decode_actions(cache, [ids.think_end, ids.action])
    said, cache, _ = write_thought(engine, prompt, features, [ids.think], [], lambda tokens: (
        tokens[-1] == ids.think_end or len(tokens) >= _WORDS))
    return rows, scores, said, engine.decode_actions(cache, [said[-1], ids.action]).argmax(-1)


def _cosine(a: NDArray, b: NDArray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / norms).min())
