"""Passes of fixed shapes, recorded once and replayed: CUDA graphs, and their stand-in on a CPU.

A recorded pass reads its inputs from tensors that stay where they are and leaves its results in
others: who replays it copies into the former before and out of the latter after. Nothing that
Python decides while a pass is recorded is decided again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Held = Callable[[], Sequence[Tensor]]  # what a pass reads or writes beside constants, where it is
Replay = Callable[[], Any]
_BY_VALUE = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


class Recorder(Protocol):
    """Records passes."""

    def record(self, name: str, run: Callable[[], Any], held: Held) -> Replay:
        """Run a pass, and return what repeats it on whatever the tensors ``held`` hold then."""


class CudaGraphs:
    """Records passes as CUDA graphs, which share the memory of what they hold in between.

    No two may be replayed at the same time, and results have to lie in tensors that were there
    before.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, name: str, run: Callable[[], Any], held: Held) -> Replay:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries choose their kernels and allocate what they need
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph.replay


class StandIn:
    """Records passes on a CPU as the operations torch was asked for, and repeats those.

    As with a CUDA graph, shapes and everything Python computed are constants from then on.
    ``trace`` False: a replay runs the pass again, for those that are compiled. Raises
    ``RuntimeError`` where a graph could not be captured or would go wrong: a pass recorded twice,
    a host that waits for a value, shapes that follow from values, a tensor that has moved.
    """

    def __init__(self, trace: bool = True):
        self._trace = trace
        self.replays: dict[str, int] = {}

    def record(self, name: str, run: Callable[[], Any], held: Held) -> Replay:
        if name in self.replays:
            raise RuntimeError(f'{name} is recorded twice')
        self.replays[name] = 0
        tensors = held()
        where = _layout(tensors)
        repeat = self._traced(name, run, tensors) if self._trace else run
        if not self._trace:
            run()

        def replay() -> None:
            if (found := _layout(held())) != where:
                raise RuntimeError(f'{name}: a tensor has moved or changed, {where} -> {found}')
            self.replays[name] += 1
            repeat()

        return replay

    def _traced(self, name: str, run: Callable[[], Any], tensors: Sequence[Tensor]) -> Replay:
        # Here, not above: no policy in operation needs it, and it takes a second.
        from torch.fx.experimental.proxy_tensor import make_fx

        def only_run(*_: Tensor) -> None:
            run()

        graph = make_fx(only_run)(*tensors)
        for operation in (node.target for node in graph.graph.nodes):
            if operation is torch.ops.aten.lift_fresh_copy.default or not _BY_VALUE.isdisjoint(
                    getattr(operation, 'tags', ())):
                raise RuntimeError(f'{name}: {operation} can not be captured')
        return functools.partial(graph, *tensors)


def _layout(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    return [(x.data_ptr(), tuple(x.shape), x.stride(), x.dtype) for x in tensors]
