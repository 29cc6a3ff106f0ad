"""A dataset of picks whose phases are known."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

if any(find_spec(name) is None for name in ('pyarrow', 'pydantic', 'httpx', 'peft')):
    collect_ignore_glob = ['*']  # pip install 'dtvla_ros[train,annotate]'


@pytest.fixture(scope='session')
def root(tmp_path_factory) -> Path:
    """Return the folder of a dataset of twelve episodes; nobody may write there."""
    from support.picks import picks_dataset
    return picks_dataset(tmp_path_factory.mktemp('picks') / 'data', 12)


@pytest.fixture
def source(root):
    from dtvla_ros.annotation.source import Source
    return Source(root)
