"""The golden vectors of ``test/data/golden``; ``DTVLA_GOLDEN`` names another folder of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import load_file

FOLDER = Path(os.environ.get('DTVLA_GOLDEN') or Path(__file__).parents[1] / 'data' / 'golden')


def golden(name: str) -> Path:
    """Return a golden file's path; one that is missing fails the test."""
    path = FOLDER / name
    assert path.is_file(), f'golden file {path} is missing'
    return path


def tensors(name: str) -> dict:
    """Return the tensors of ``name``.safetensors."""
    return load_file(golden(f'{name}.safetensors'))


def document(name: str) -> dict:
    """Return the content of ``name``.json."""
    return json.loads(golden(f'{name}.json').read_text())
