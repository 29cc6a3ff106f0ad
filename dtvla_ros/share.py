"""Where the package's models and configuration lie, installed or not."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def find(path: str | Path) -> Path:
    """Return ``path`` as given if it exists, else below the package's share folder.

    Looked at in order: the working directory, the source tree, every prefix of
    ``AMENT_PREFIX_PATH`` and the Python prefix (``share/dtvla_ros``). Where none holds it the
    path is returned as given, so that the reader's error names what the user wrote.
    """
    path = Path(path).expanduser()
    if path.exists() or path.is_absolute():
        return path
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    roots = [Path(__file__).resolve().parents[1]]
    roots += [Path(p) / 'share' / 'dtvla_ros' for p in (*prefixes, sys.prefix)]
    return next((root / path for root in roots if (root / path).exists()), path)
