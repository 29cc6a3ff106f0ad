import pytest
import torch


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Compute in one thread, so that sums have one order and small models are fast."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
