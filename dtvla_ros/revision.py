"""Version and git revision of what runs here. setup.py runs this file, too: no imports of ours."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

BUILT = Path(__file__).with_name('REVISION')
"""Written where the package is built; a checkout has none."""


def describe(root: Path) -> str:
    """Return what ``git describe`` says of a checkout; '' without git, and where it is none."""
    if not (root / '.git').exists():  # a folder above may be another project's
        return ''
    try:
        done = subprocess.run(['git', 'describe', '--always', '--tags', '--dirty'], cwd=root,
                              capture_output=True, text=True)
    except OSError:
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''


def version() -> str:
    """Return the version, in brackets the revision where it is known."""
    try:
        revision = BUILT.read_text().strip()
    except OSError:
        revision = describe(Path(__file__).resolve().parents[1])
    number = metadata.version('dtvla_ros')
    return f'{number} ({revision})' if revision else number
