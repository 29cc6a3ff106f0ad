"""The hybrid decoder for inference: one forward over fused weights, with the cache outside.

``InferenceModel`` equals the ``HybridDecoder`` it is built from. torch runs it over a
`StaticCache`; the exporter traces it with the cache as inputs and outputs of the graph. Batch 1;
n new rows, r of them read, W width, H heads, K key/value heads, d head size, V vocabulary.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, GemmaRMSNorm

from dtvla_ros.engine.providers import multiplies_bytes
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import TextConfig
from dtvla_ros.policy.model import HybridDecoder

# (number of the layer, rows [n, (H + 2 K) d], which rows are read) -> attended rows [r, H d].
Attention = Callable[[int, Tensor, 'Read'], Tensor]
Read = slice | Tensor
ALL = slice(None)
QUANTISED = ('int8', 'fp8')
_STEPS = 127.0  # of a signed byte, symmetric
_LARGEST_E4M3 = torch.finfo(torch.float8_e4m3fn).max
_FEW = 8  # rows that cost what reading their matrix does
_LOWEST = torch.finfo(torch.float32).min


class InferenceModel(nn.Module):
    """Runs rows of one sequence.

    ``weights``: one of ``QUANTISED``, for every matrix but the embedding; None keeps the model's
    type. ``release`` frees the model's own layers one by one as they are taken over: the two
    copies never stand side by side.
    """

    embedding: Tensor
    scale: Tensor
    block: Tensor
    final: Tensor

    def __init__(self, model: HybridDecoder, weights: str | None = None,
                 release: bool = False):
        super().__init__()
        self.config = config = model.config
        ids, width = config.ids, config.text.width
        table = model.embed_tokens.weight.detach()
        self.register_buffer('embedding', table)
        self.register_buffer('scale', table.new_tensor(width ** 0.5))
        slots = (table.new_zeros(config.slots, width) if model.slot_codes is None
                 else model.slot_codes.detach().to(table.dtype))
        tail = self.embed(torch.tensor([ids.action_end, ids.eos], device=table.device))
        self.register_buffer('block', torch.cat([slots, tail]))  # [T*D + 2, W]
        self.layers = nn.ModuleList()
        for layer in model.layers:
            self.layers.append(_Layer(cast(GemmaDecoderLayer, layer), weights))
            for parameter in layer.parameters() if release else ():
                parameter.data = parameter.data.new_empty(0)
        self.register_buffer('final', _gain(model.norm))
        first, last = ids.bins_first, ids.bins_last + 1
        # Action bins can never be tokens of a thought: choosing one does not read their rows.
        self.below = make_linear(weights if first > 0 else None, table[:first])
        self.bins = make_linear(weights, table[first:last])
        self.above = make_linear(weights if last < len(table) else None, table[last:])
        self._weights = weights
        # Of the permitted ids: their head, the ids, and where those stand in a penalty.
        self._words: tuple[Callable[[Tensor], Tensor], Tensor, Tensor] | None = None
        # Eight-bit products are so fast that what counts is to keep their results in the cache.
        self._rows_at_once = 64 if weights == 'int8' and integers_pay() else None

    def cache_attributes(self) -> None:
        """Make buffers, modules and their products attributes: no weight is replaced any more.

        ``nn.Module`` looks them up in Python, and its call runs hooks, at every product. Not for
        a model that is traced: its weights would lose their names.
        """
        for module in list(self.modules()):
            module.__dict__.update(module._buffers | {
                name: part.forward if isinstance(part, Linear) else part
                for name, part in module._modules.items()})

    def restrict(self, permitted: Tensor) -> bool:
        """Choose among the ids ``permitted`` [k] alone; return whether anything changed.

        Only where they are at most half of those that are no bins: their rows of the head are
        copied. The same ids are chosen as with the others suppressed.
        """
        before = self._words
        if 2 * len(permitted) > len(self.embedding) - self.config.ids.bins:
            self._words = None
            return before is not None
        if before is not None and torch.equal(before[1], permitted):
            return False
        head = make_linear(self._weights, self.embedding.index_select(0, permitted))
        ids = self.config.ids
        self._words = (head.forward, permitted,
                       permitted - (permitted > ids.bins_last).to(permitted.dtype) * ids.bins)
        return True

    def embed(self, ids: Tensor) -> Tensor:
        """[n] -> [n, W], scaled."""
        return F.embedding(ids, self.embedding) * self.scale

    def embed_prompt(self, ids: Tensor, features: Tensor, image_rows: Tensor) -> Tensor:
        """Embed ids [n], those at ``image_rows`` as ``features`` [image_tokens, W]."""
        return self.embed(ids).index_put((image_rows,), features.to(self.embedding.dtype))

    def embed_action(self, ids: Tensor) -> Tensor:
        """Rows of the action pass [p + T*D + 2, W]; ``ids`` [p] end with ``<action>``."""
        return torch.cat([self.embed(ids), self.block])

    def forward(self, x: Tensor, attention: Attention, read: Read = ALL) -> Tensor:
        """Run new rows ``x`` [n, W]; return those in ``read`` [r, W] after the final norm.

        The last layer computes keys and values of all rows, and the rest of the rows read.
        """
        eps, last = self.config.text.norm_eps, len(self.layers) - 1
        for number, module in enumerate(self.layers):
            layer = cast(_Layer, module)
            go_on = read if number == last else ALL
            seen = attention(number, layer.qkv(_norm(x, layer.before, eps)), go_on)
            x = take(x, go_on) + layer.out(seen)
            x = x + self._by_rows(layer.feed_forward, _norm(x, layer.after, eps))
        return _norm(x, self.final, eps)

    def likeliest(self, below: Tensor, above: Tensor,
                  penalty: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best id of each row [r] of scores [r, ids] below and above the bins.

        ``penalty`` [V - bins] is added first: -inf for ids that are suppressed. Beside the ids
        stand their log softmax over all that are not.
        """
        scores = torch.cat([below, above], -1).float() + penalty
        best = scores.argmax(-1)
        ids = self.config.ids
        return (best + (best >= ids.bins_first).to(torch.int64) * ids.bins,
                scores.log_softmax(-1).amax(-1))

    def choose(self, hidden: Tensor, penalty: Tensor) -> Tensor:
        """[r, W] -> float32 [r, 2], the likeliest permitted id of each row and its log softmax.

        As ``likeliest``, without a copy of the scores: 1 ms of 40 rows of 32 k ids. Beside the
        log softmax an id is one transfer; a float holds ids below 2 ** 24 exactly.
        """
        first, after = self.config.ids.bins_first, self.config.ids.bins_last + 1
        parts: list[tuple[Callable[[Tensor], Tensor], Tensor, int]] = [
            part for part in ((self.below, penalty[:first], 0),
                              (self.above, penalty[first:], after)) if len(part[1])]
        if (words := self._words) is not None:
            parts = [(words[0], penalty.index_select(0, words[2]), 0)]

        def best(rows: Tensor) -> Tensor:
            found = []
            for head, span, start in parts:
                scores = head(rows).float().add_(span)
                top = scores.max(-1)
                finite = top.values.clamp_min(_LOWEST)  # where all ids of a part are suppressed
                mass = scores.sub_(finite[:, None]).exp_().sum(-1)
                found.append((finite, mass, top.indices + start))
            (low, mass, first_id), (high, more, last_id) = found[0], found[-1]
            if len(found) > 1:
                most = torch.maximum(low, high)
                mass = mass * (low - most).exp() + more * (high - most).exp()
                first_id = torch.where(high > low, last_id, first_id)
            if words is not None:
                first_id = words[1].index_select(0, first_id)
            return torch.stack([first_id.float(), -mass.log()], -1)

        return self._by_rows(best, hidden)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """[r, W] -> logits [r, V], nothing suppressed."""
        return torch.cat([self.below(hidden), self.bins(hidden), self.above(hidden)], -1).float()

    def _by_rows(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply ``function`` to ``x`` [n, ...], as many rows at a time as is best."""
        if self._rows_at_once is None or len(x) <= self._rows_at_once:
            return function(x)
        return torch.cat([function(part) for part in x.split(self._rows_at_once)])


class _Layer(nn.Module):
    """The weights of one Gemma layer; matrices that read the same rows are one."""

    before: Tensor  # [W], the gains of both norms
    after: Tensor

    def __init__(self, layer: GemmaDecoderLayer, weights: str | None):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp

        def joined(*parts: nn.Linear) -> Linear:
            return make_linear(weights, torch.cat([part.weight.detach() for part in parts]))

        self.register_buffer('before', _gain(layer.input_layernorm))
        self.register_buffer('after', _gain(layer.post_attention_layernorm))
        self.qkv = joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = joined(attention.o_proj)
        self.gate_up = joined(mlp.gate_proj, mlp.up_proj)
        self.down = joined(mlp.down_proj)

    def feed_forward(self, x: Tensor) -> Tensor:
        """[n, W] -> [n, W]."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.gelu(gate, approximate='tanh') * up)


class StaticCache:
    """Keys and values [layers, K, capacity, d] of one sequence, written in place."""

    def __init__(self, text: TextConfig, capacity: int, like: Tensor):
        self._text = text
        self.capacity = 0  # rows there is room for
        self.keys = self.values = like.new_zeros(text.layers, text.kv_heads, 0, text.head_dim)
        self.grow(capacity)

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` rows; what is there stays."""
        self.keys, self.values = (F.pad(x, (0, 0, 0, capacity - self.capacity))
                                  for x in (self.keys, self.values))
        self.capacity = capacity
        positions = torch.arange(1, capacity + 1, device=self.keys.device)  # from 1 on
        cos, sin = (x[:, None] for x in cosines_and_sines(self._text, positions))
        # [capacity, 1, d]; the first half of the sines is negative.
        self._cos = torch.cat([cos, cos], -1).to(self.keys.dtype)
        self._sin = torch.cat([-sin, sin], -1).to(self.keys.dtype)

    def clear(self, first: int) -> None:
        """Set the rows from ``first`` on to zero: no mask hides a number that is none."""
        self.keys[:, :, first:].zero_()
        self.values[:, :, first:].zero_()

    def attention(self, rows: Tensor, end: int, mask: Tensor | None) -> Attention:
        """Return the attention of new rows, whose keys and values go to ``rows`` [n].

        They see the rows before ``end`` where ``mask`` [n, end], added to the scores, lets them;
        None: all of them.
        """
        heads, shared, d = self._text.heads, self._text.kv_heads, self._text.head_dim
        each = heads // shared
        cos, sin = self._cos.index_select(0, rows), self._sin.index_select(0, rows)

        def attend(number: int, qkv: Tensor, read: Read) -> Tensor:
            qkv = qkv.view(-1, heads + 2 * shared, d)
            rotated = qkv[:, :heads + shared]
            rotated = torch.addcmul(rotated * cos, rotated.roll(d // 2, -1), sin)  # [n, H + K, d]
            keys, values = self.keys[number], self.values[number]
            keys.index_copy_(1, rows, rotated[:, heads:].transpose(0, 1))
            values.index_copy_(1, rows, qkv[:, heads + shared:].transpose(0, 1))
            query = take(rotated, read)[:, :heads]  # [r, H, d]
            r = query.shape[0]
            # The queries of one key head become rows of one product: [1, K, each * r, d].
            query = query.view(r, shared, each, d).permute(1, 2, 0, 3)
            query = query.reshape(1, shared, each * r, d)
            wide = None if mask is None else take(mask, read).repeat(each, 1)
            seen = F.scaled_dot_product_attention(
                query, keys[None, :, :end], values[None, :, :end], wide)
            seen = seen.view(shared, each, r, d).permute(2, 0, 1, 3)  # [r, K, each, d]
            return seen.reshape(r, heads * d)

        return attend


def cosines_and_sines(text: TextConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rotary cosines and sines [n, d / 2] of ``positions`` [n]."""
    half = torch.arange(0, text.head_dim, 2, device=positions.device).float() / text.head_dim
    angle = positions[:, None].float() * (1.0 / text.rope_theta ** half)
    return angle.cos(), angle.sin()


def take(x: Tensor, read: Read) -> Tensor:
    """Return the rows ``read`` of ``x``."""
    return x[read] if isinstance(read, slice) else x.index_select(0, read)


def _norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Gemma's RMSNorm: float32 inside, ``gain`` [W] = 1 + weight.

    One node of an exported graph; run eagerly these steps are faster.
    """
    y = x.float()
    if torch.compiler.is_exporting():
        return F.rms_norm(y, gain.shape, gain, eps).to(x.dtype)
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).mul_(gain).to(x.dtype)


def _gain(norm: nn.Module) -> Tensor:
    return cast(GemmaRMSNorm, norm).weight.detach().float() + 1.0


class Dense(nn.Module):
    """x W^T + b in the weights' own type; ``weight`` [out, in], ``bias`` [out] or None.

    On a CPU a wide matrix is kept transposed: one row times [in, out] reads memory 2.4 times as
    fast as against [out, in] (MKL, AVX-512), and many rows take the same time.
    """

    matrix: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        matrix = weight.detach().t()
        wide = weight.device.type == 'cpu' and matrix.shape[1] > matrix.shape[0]
        self.register_buffer('matrix', matrix.contiguous() if wide else matrix)  # [in, out]
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        return (torch.mm(x, self.matrix) if self.bias is None
                else torch.addmm(self.bias, x, self.matrix))


class Int8(nn.Module):
    """Dense with 8-bit weights (a scale per output) and 8-bit rows (a scale per row).

    Each row is quantised by itself, so that its result does not depend on the rows beside it:
    a verified draft stays identical to a thought written token by token, except where the float
    sums around it differ in their last bit and two tokens are as likely (random weights: 8 of 960
    drafts). Products are summed in int32 (VNNI), scales applied in float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        steps, self.scale = _steps(weight)
        self.matrix = steps.to(torch.int8).t()  # [in, out], column-major
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if x.dim() > 2:
            return self(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        largest = torch.linalg.vector_norm(x, float('inf'), -1, True, dtype=torch.float32)
        step = largest.clamp_min_(1e-12).div_(_STEPS)  # [n, 1]
        rows = torch.round(x / step).to(torch.int8)  # [n, in]
        y = (torch._int_mm(rows, self.matrix) * step).mul_(self.scale)  # [n, out]
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype)


class Rounded(nn.Module):
    """Dense with the same 8-bit weights, calculated in float32, for a CPU without such products.

    A few rows read two bytes a weight (FBGEMM: float16 holds a whole number of steps exactly),
    many rows read float32; the matrix is kept both ways. Both calculate the same, so that
    verified drafts stay identical here, too.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        steps, self.scale = _steps(weight)
        self._many = Dense(rounded(weight), bias)
        self.bias = self._many.bias
        there = 'fbgemm' in torch.backends.quantized.supported_engines
        self._few = (torch.ops.quantized.linear_prepack_fp16(steps, None)
                     if there and weight.dtype == torch.float32 else None)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        if self._few is None or len(x) > _FEW:
            return self._many(x)
        y = torch.ops.quantized.linear_dynamic_fp16(x, self._few).mul_(self.scale)
        return y if self.bias is None else y.add_(self.bias)


class Float8(nn.Module):
    """Dense with 8-bit floats (e4m3): weights with a scale per output, rows with a scale per row.

    A GPU multiplies them as they are (``torch._scaled_mm``, from Hopper on; untried on a device).
    Elsewhere the same numbers are multiplied in float32: a reference, which saves nothing.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self._multiplies = weight.device.type == 'cuda'
        if self._multiplies and torch.cuda.get_device_capability(weight.device) < (9, 0):
            raise UserError(f'fp8 weights: {torch.cuda.get_device_name(weight.device)} does not '
                            'multiply 8-bit floats row by row; use bf16')
        w = weight.detach().float()
        self.scale = w.abs().amax(1).clamp_min(1e-12)[None] / _LARGEST_E4M3  # [1, out]
        self.matrix = _to_e4m3(w / self.scale.t()).t()  # [in, out], column-major
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if x.dim() > 2:
            return self(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        step = x.abs().amax(-1, True).float().clamp_min(1e-12) / _LARGEST_E4M3  # [n, 1]
        rows = _to_e4m3(x / step)
        if self._multiplies:
            y = torch._scaled_mm(rows, self.matrix, scale_a=step, scale_b=self.scale,
                                 out_dtype=torch.bfloat16)
        else:
            y = rows.float() @ self.matrix.float() * step * self.scale
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)


def _to_e4m3(x: Tensor) -> Tensor:
    return x.clamp(-_LARGEST_E4M3, _LARGEST_E4M3).to(torch.float8_e4m3fn)


Linear = Dense | Int8 | Rounded | Float8


def make_linear(weights: str | None, weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Return a matrix [out, in] in its own type, or quantised (int8: as this CPU likes it)."""
    if weights is None:
        return Dense(weight, bias)
    if weights == 'fp8':
        return Float8(weight, bias)
    return Int8(weight, bias) if integers_pay() else Rounded(weight, bias)


def quantize_tower(tower: nn.Module, weights: str) -> nn.Module:
    """Give the linear layers of an image tower 8-bit weights; convolutions stay as they are."""
    linear = {n: m for n, m in tower.named_modules() if isinstance(m, nn.Linear)}
    for name, module in linear.items():
        if weights == 'fp8':
            tower.set_submodule(name, Float8(module.weight, module.bias))
        elif integers_pay():
            tower.set_submodule(name, Int8(module.weight, module.bias))
        else:  # a tower never reads few rows
            module.weight.data = rounded(module.weight)
    return tower


def rounded(weight: Tensor) -> Tensor:
    """Return what a matrix [out, in] is after its weights became 8-bit ones."""
    steps, scale = _steps(weight)
    return (steps * scale[:, None]).to(weight.dtype)


def _steps(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers [out, in] in -127..127, as float32, and the scale of each row [out]."""
    if weight.device.type != 'cpu':
        raise UserError('int8 weights of the torch engine run on the CPU only, not on '
                        f'{weight.device.type}; use bf16 there')
    w = weight.detach().float()
    scale = w.abs().amax(1).clamp_min(1e-12) / _STEPS
    return (w / scale[:, None]).round_(), scale


@cache
def integers_pay() -> bool:
    """Return whether torch multiplies bytes well here; measured once, in a few milliseconds.

    With VNNI bytes are about five times as fast as floats; quantising rows around them takes a
    part of that. Without, they are slow, or saturate.
    """
    if not multiplies_bytes():
        return False
    floats = torch.rand(64, 512), torch.rand(1024, 512).t()
    bytes_ = [x.mul(100).to(torch.int8) for x in floats]
    bytes_s, floats_s = (min(timeit.repeat(partial(product, *operands), number=1, repeat=7))
                         for product, operands in ((torch._int_mm, bytes_), (torch.mm, floats)))
    return bytes_s < floats_s / 1.5
