"""Batches come in order from other processes, and the processes go with the loop."""

from __future__ import annotations

import os
import time

import pytest
import torch

from dtvla_ros.training.data_loader import ahead

CPU = torch.device('cpu')


def test_numbers_come_in_order_from_other_processes():
    def make(number):
        time.sleep(0.02 * (number % 3))  # a later one may be ready earlier
        return number, os.getpid()

    stream = ahead(make, 5, 2, CPU)
    made = [next(stream) for _ in range(8)]
    assert [number for number, _ in made] == list(range(5, 13))
    makers = {maker for _, maker in made}
    assert len(makers) == 2
    assert os.getpid() not in makers
    stream.close()
    for maker in makers:
        with pytest.raises(ProcessLookupError):
            os.kill(maker, 0)
