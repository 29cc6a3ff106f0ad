from __future__ import annotations

import pytest
from support.tiny import tiny_dataset


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
    """Return the folder of a small dataset."""
    return tiny_dataset(tmp_path_factory.mktemp('tiny'))
