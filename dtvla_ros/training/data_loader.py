"""Batches made ahead, in processes beside the one that learns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar('T')


class _Numbered(Dataset[T]):
    """What a function makes of each number."""

    def __init__(self, make: Callable[[int], T]):
        self._make = make

    def __getitem__(self, number: int) -> T:
        return self._make(number)


def ahead(make: Callable[[int], T], first: int, processes: int,
          device: torch.device) -> Generator[T, None, None]:
    """Yield ``make(first)``, ``make(first + 1)`` and so on without end, in this order.

    What is yielded must know ``pin_memory`` if ``device`` is a GPU. The processes are forked, so
    that they share the datasets' arrays instead of copying them.
    """
    numbers: Sequence[int] = range(first, sys.maxsize)
    yield from DataLoader(
        _Numbered(make), batch_size=None, sampler=numbers, num_workers=processes,
        collate_fn=_as_it_is, multiprocessing_context='fork', worker_init_fn=_alone,
        pin_memory=device.type == 'cuda')


def _as_it_is(made: Any) -> Any:
    return made


def _alone(_: int) -> None:
    cv2.setNumThreads(0)  # a fork has none of its parent's threads to wait for
