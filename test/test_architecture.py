"""docs/architecture.md is true to the tree; imports have no cycle; what processes load."""

import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'docs' / 'architecture.md').read_text()
# How many files each walk of the page may take; where it begins and ends.
WALKS = {'A camera frame': (12, 'nodes/inputs.py', 'nodes/command_adapters.py'),
         'A training sample': (5, 'training/data.py', 'training/loss.py'),
         'A GRPO iteration': (7, 'training/grpo/', 'training/grpo/')}
LEARNING = ('torch', 'transformers', 'onnxruntime')
BUILDERS = {'dtvla_ros.training.sft', 'dtvla_ros.engine.load'}  # of what runs elsewhere


@pytest.fixture(scope='module')
def graph():
    return grimp.build_graph('dtvla_ros', 'dtvla_sim')


def test_every_file_and_package_that_the_page_names_is_there():
    named = re.findall(r'`(?:dtvla_ros/)?([a-z_]+/[a-z_/]+\.py)`', PAGE)
    assert named and not [f for f in named if not any(
        (ROOT / base / f).exists() for base in ('dtvla_ros', '.'))]
    packages = {path.parent.name for path in (ROOT / 'dtvla_ros').glob('*/__init__.py')}
    assert packages == set(re.findall(r'^\| `([a-z]+)/` \|', PAGE, re.M))


@pytest.mark.parametrize('title', WALKS)
def test_a_walk_is_short_and_its_files_know_each_other(title, graph):
    most, first, last = WALKS[title]
    section = PAGE.split(f'## {title}\n')[1].split('\n## ')[0]
    files = re.findall(r'^\| *\d+ \| `([^`]+)`', section, re.M)
    assert 4 < len(files) == len(set(files)) <= most
    assert files[0].startswith(first) and files[-1].startswith(last)
    modules = {f'dtvla_ros.{file[:-3].replace("/", ".")}' for file in files}
    for module in modules:
        neighbours = (graph.find_modules_directly_imported_by(module)
                      | graph.find_modules_that_directly_import(module))
        assert neighbours & (modules | BUILDERS), f'{module} has nothing to do with its walk'


def test_imports_have_no_cycle(graph):
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    assert not left, sorted(left)


@pytest.mark.parametrize('modules, names, loaded', [
    ('json', ('json', *LEARNING), 'json'),  # the check sees what is loaded
    ('dtvla_ros', (*LEARNING, 'rclpy', 'numpy'), ''),
    ('dtvla_ros.cli', (*LEARNING, 'rclpy', 'mujoco', 'numpy'), ''),
    ('dtvla_ros.actions.codec, dtvla_ros.ros.run, dtvla_ros.ros.images', LEARNING, ''),
    ('dtvla_ros.nodes.command_gate, dtvla_ros.nodes.overlay, dtvla_ros.nodes.operator, '
     'dtvla_ros.nodes.task_server, dtvla_ros.nodes.record_server',
     (*LEARNING, 'mujoco', 'robosuite'), '')])
def test_a_process_loads_what_it_needs(modules, names, loaded):
    program = f'import sys, {modules}; print(*[n for n in {names!r} if n in sys.modules])'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          check=True, timeout=60)
    assert done.stdout.strip() == loaded
