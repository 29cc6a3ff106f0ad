"""docs/architecture.md names files that exist, and its walks are as short as they should be."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'docs' / 'architecture.md').read_text()


def section(title: str) -> str:
    return PAGE.split(f'## {title}\n')[1].split('\n## ')[0]


def test_every_file_that_the_page_names_is_there():
    named = re.findall(r'`(?:dtvla_ros/)?([a-z_]+/[a-z_/]+\.py)`', PAGE)
    assert named
    missing = [f for f in named if not any((ROOT / base / f).exists() for base in (
        'dtvla_ros', '.'))]
    assert not missing, missing


def test_a_camera_frame_reaches_the_command_in_at_most_twelve_files():
    walk = re.findall(r'^\| *\d+ \| `([^`]+)`', section('A camera frame'), re.M)
    assert 5 < len(walk) == len(set(walk)) <= 12
    assert walk[0].startswith('nodes/inputs') and walk[-1].startswith('nodes/command_adapters')
