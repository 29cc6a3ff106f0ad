"""Matrices of the inference engine, stored the way one row reads them fastest."""

from __future__ import annotations

import functools
import timeit
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dtvla_ros.engine.instructions import multiplies_bytes
from dtvla_ros.errors import UserError

_STEPS = 127.0  # of a signed byte, symmetric
_FEW = 8  # rows that cost what reading their matrix does


class Linear(Protocol):
    """Maps rows [n, in] to rows [n, out]."""

    def __call__(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""


class Dense:
    """x W^T + b in the weights' own type; ``weight`` [out, in], ``bias`` [out] or None.

    On a CPU a wide matrix is kept transposed: one row times [in, out] reads memory 2.4 times as
    fast as against [out, in] (MKL, AVX-512), and many rows take the same time.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        matrix = weight.detach().t()
        wide = weight.device.type == 'cpu' and matrix.shape[1] > matrix.shape[0]
        self.matrix = matrix.contiguous() if wide else matrix  # [in, out]
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        if self.bias is None:
            return torch.mm(x, self.matrix)
        return torch.addmm(self.bias, x, self.matrix)


class Int8:
    """Dense with 8-bit weights (a scale per output) and 8-bit rows (a scale per row).

    Each row is quantised by itself, so that its result does not depend on the rows beside it:
    a verified draft stays identical to a thought written word by word. Products are summed in
    int32 (VNNI), scales applied in float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        steps, self.scale = _steps(weight)
        self.matrix = steps.to(torch.int8).t()  # [in, out], column-major
        self.bias = None if bias is None else bias.detach().float()

    def __call__(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        largest = torch.linalg.vector_norm(x, float('inf'), -1, True, dtype=torch.float32)
        step = largest.clamp_min_(1e-12).div_(_STEPS)  # [n, 1]
        rows = torch.round(x / step).to(torch.int8)  # [n, in]
        y = (torch._int_mm(rows, self.matrix) * step).mul_(self.scale)  # [n, out]
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype)


class Rounded:
    """Dense with the same 8-bit weights, calculated in float32, for a CPU without such products.

    A few rows read two bytes a weight (FBGEMM: float16 holds a whole number of steps exactly),
    many rows read float32 as Dense does; the matrix is kept both ways, six bytes a weight. Both
    calculate the same, so that verified drafts stay identical here, too.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        steps, self.scale = _steps(weight)
        self._many = Dense(rounded(weight), bias)
        self._few = None
        there = 'fbgemm' in torch.backends.quantized.supported_engines
        if there and weight.dtype == torch.float32:
            self._few = torch.ops.quantized.linear_prepack_fp16(steps, None)

    def __call__(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        if self._few is None or len(x) > _FEW:
            return self._many(x)
        y = torch.ops.quantized.linear_dynamic_fp16(x, self._few).mul_(self.scale)
        return y if self._many.bias is None else y.add_(self._many.bias)


def _steps(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers [out, in] in -127..127, as float32, and the scale of each row [out]."""
    if weight.device.type != 'cpu':
        raise UserError('int8 weights of the torch engine run on the CPU only, not on '
                        f'{weight.device.type}; use bf16 there')
    w = weight.detach().float()
    scale = w.abs().amax(1).clamp_min(1e-12) / _STEPS
    return (w / scale[:, None]).round_(), scale


def rounded(weight: Tensor) -> Tensor:
    """Return what a matrix [out, in] is after its weights became 8-bit ones."""
    steps, scale = _steps(weight)
    return (steps * scale[:, None]).to(weight.dtype)


@functools.cache
def integers_pay() -> bool:
    """Return whether torch multiplies bytes well here; measured once, in a few milliseconds.

    With VNNI bytes are about five times as fast as floats; quantising rows around them takes a
    part of that. Without, they are slow, or saturate.
    """
    if not multiplies_bytes():
        return False
    rows, matrix = torch.rand(64, 512), torch.rand(1024, 512)
    small_rows, small_matrix = (x.mul(100).to(torch.int8) for x in (rows, matrix))
    bytes_s, floats_s = (
        min(timeit.repeat(product, number=1, repeat=7)) for product in (
            lambda: torch._int_mm(small_rows, small_matrix.t()), lambda: rows @ matrix.t()))
    return bytes_s < floats_s / 1.5


def make_linear(int8: bool, weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Return a matrix [out, in] in its own type, or quantised as this CPU likes it."""
    if not int8:
        return Dense(weight, bias)
    return Int8(weight, bias) if integers_pay() else Rounded(weight, bias)


def rows_at_once(int8: bool) -> int | None:
    """Return how many rows a wide product is best split into, None for all at once.

    Eight-bit products are so fast that what counts is to keep their results in the cache.
    """
    return 64 if int8 and integers_pay() else None


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor, count: int | None) -> Tensor:
    """Apply ``function`` to ``x`` [n, ...], ``count`` rows at a time."""
    if count is None or len(x) <= count:
        return function(x)
    return torch.cat([function(part) for part in x.split(count)])


class Head:
    """Scores of words against the embedding [V, width], and the likeliest permitted word.

    Action bins can never be words of a thought, so their rows are not read; of the others the
    forbidden ones are held down by a penalty.
    """

    def __init__(self, embedding: Tensor, bins: tuple[int, int], int8: bool):
        first, last = bins
        self._parts = [(make_linear(int8, embedding[a:b]), slice(a, b))
                       for a, b in ((0, first), (last + 1, len(embedding))) if b > a]
        self._bins = make_linear(int8, embedding[first:last + 1])
        self._rows = rows_at_once(int8)
        self.penalty = torch.zeros(len(embedding), device=embedding.device)

    def forbid(self, banned: Tensor) -> None:
        """Hold down the ids marked in ``banned`` [V]."""
        self.penalty.copy_(torch.where(banned, float('-inf'), 0.0))

    def choose(self, hidden: Tensor) -> Tensor:
        """[n, width] -> the likeliest permitted id of each row [n]."""
        return by_rows(self._choose, hidden, self._rows)

    def _choose(self, hidden: Tensor) -> Tensor:
        found = [part(hidden).float().add_(self.penalty[span]).max(-1)
                 for part, span in self._parts]
        if len(found) == 1:
            return found[0].indices + self._parts[0][1].start
        low, high = found
        start = self._parts[1][1].start
        return torch.where(high.values > low.values, high.indices + start, low.indices)

    def bins(self, hidden: Tensor) -> Tensor:
        """[n, width] -> logits [n, bins] over the action ids."""
        return self._bins(hidden).float()

    def words(self, hidden: Tensor) -> Tensor:
        """[n, width] -> logits [n, V], nothing forbidden."""
        parts = [part(hidden).float() for part, _ in self._parts]
        return torch.cat([*parts[:1], self.bins(hidden), *parts[1:]], -1)


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Gemma's RMSNorm: float32 inside, ``scale`` [width] = 1 + weight."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).mul_(scale).to(x.dtype)


def gated(x: Tensor) -> Tensor:
    """gelu(gate) * up of fused rows [n, 2 * mlp] -> [n, mlp] (tanh approximation)."""
    gate, up = x.chunk(2, -1)
    return F.gelu(gate, approximate='tanh') * up
