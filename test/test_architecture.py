"""docs/architecture.md is true to the tree: walks, files, packages; imports have no cycle."""

from __future__ import annotations

import re
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'docs' / 'architecture.md').read_text()
# How many files each walk of the page may take.
WALKS = {'A camera frame': 12, 'A training sample': 5, 'A GRPO iteration': 6}


@pytest.fixture(scope='module')
def graph():
    return grimp.build_graph('dtvla_ros', 'dtvla_sim')


def walk(title: str) -> list[str]:
    """Return the files of a walk, in order."""
    section = PAGE.split(f'## {title}\n')[1].split('\n## ')[0]
    return re.findall(r'^\| *\d+ \| `([^`]+)`', section, re.M)


def test_every_file_that_the_page_names_is_there():
    named = re.findall(r'`(?:dtvla_ros/)?([a-z_]+/[a-z_/]+\.py)`', PAGE)
    assert named
    missing = [f for f in named if not any((ROOT / base / f).exists() for base in (
        'dtvla_ros', '.'))]
    assert not missing, missing


@pytest.mark.parametrize('title', WALKS)
def test_a_walk_is_short_and_its_files_know_each_other(title, graph):
    files = walk(title)
    assert 4 < len(files) == len(set(files)) <= WALKS[title]
    modules = {f'dtvla_ros.{file[:-3].replace("/", ".")}' for file in files}
    for module in modules:
        neighbours = (graph.find_modules_directly_imported_by(module)
                      | graph.find_modules_that_directly_import(module))
        builders = {'dtvla_ros.engine.load'}  # of what runs elsewhere
        assert neighbours & (modules | builders), f'{module} has nothing to do with its walk'


def test_walks_begin_and_end_where_they_should():
    frame, sample, iteration = map(walk, WALKS)
    assert frame[0].startswith('nodes/inputs') and frame[-1].startswith('nodes/command_adapters')
    assert sample[0] == 'training/data.py' and sample[-1] == 'training/loss.py'
    assert {str(Path(file).parent) for file in iteration} == {'training/grpo'}


def test_every_package_has_a_row():
    packages = {path.parent.name for path in (ROOT / 'dtvla_ros').glob('*/__init__.py')}
    assert packages == set(re.findall(r'^\| `([a-z]+)/` \|', PAGE, re.M))


def test_imports_have_no_cycle(graph):
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    assert not left, sorted(left)
