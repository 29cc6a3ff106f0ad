import pytest
import torch
from accelerate.state import AcceleratorState


@pytest.fixture(scope='module', autouse=True)
def alone():
    """Compute in one thread, so that sums have one order; begin without the last precision."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_num_threads(before)
