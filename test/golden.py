"""Where the golden vectors lie, and how a missing file is reported.

``DTVLA_GOLDEN`` names the folder of all vectors; a subset lies in ``test/data/golden``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]


def golden(name: str) -> Path:
    """Return a golden file's path, or skip the test with the reason."""
    asked = os.environ.get('DTVLA_GOLDEN')
    # Files of two folders may be of two geometries: a folder that was asked for stands alone.
    folders = [Path(asked)] if asked else [
        ROOT.parent / 'shared' / 'golden', ROOT / 'test' / 'data' / 'golden']
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f'golden file {name} not found in {", ".join(map(str, folders))}; set '
                'DTVLA_GOLDEN to the folder of the vectors')


def tensors(name: str) -> dict:
    """Return the tensors of ``name``.safetensors."""
    return load_file(golden(f'{name}.safetensors'))


def document(name: str) -> dict:
    """Return the content of ``name``.json."""
    return json.loads(golden(f'{name}.json').read_text())
