"""Where an optional package is missing, a command says in one line which extra brings it."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dtvla_ros.errors import APART, EXTRAS, one_line

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = set(' '.join(EXTRAS.values()).split())
# Commands that begin without any of them, and what they say instead.
WITHOUT = {'report': 'not a result'}
COMMANDS = """
demo
eval
robustness
steer
recover
experts
collect
data inspect D
data validate D
data stats D
data view D
data convert D --out new
annotate keyframes --data D
annotate label --data D
annotate review --data D
annotate agree --data D
annotate apply --data D
annotate fill --data D --to new
train sft --data D --out new --steps 1
train grpo --init D --out new --iterations 1
train dagger --init D --out new
export D --out new
inspect D
convert D
bench
report result.json
"""
# Runs commands with modules that cannot be imported; pydantic stays, which typer itself needs.
PROGRAM = """
import importlib.abc, sys
from dtvla_ros import cli

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in missing:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

missing = sys.argv[1].split(',')
sys.meta_path.insert(0, Missing())
for command in sys.stdin.read().strip().splitlines():
    sys.argv = ['dtvla', *command.split()]
    try:
        cli.main()
    except SystemExit as left:
        print(f'{command}: exit code {left.code}', file=sys.stderr, flush=True)
"""


def said(modules: list[str], commands: str, folder: Path) -> list[str]:
    """Return what each command said on stderr, run one after another in one process."""
    done = subprocess.run([sys.executable, '-c', PROGRAM, ','.join(modules)], input=commands,
                          cwd=folder, capture_output=True, text=True)
    return done.stderr.splitlines()


def test_every_command_names_the_extra(tmp_path):
    (tmp_path / 'D').mkdir()
    missing = sorted(OPTIONAL - {'pydantic'})
    lines = said(missing, COMMANDS, tmp_path)
    assert len(lines) == 2 * len(COMMANDS.split('\n')[1:-1]), '\n'.join(lines)
    for error, end in zip(lines[::2], lines[1::2]):
        command = end.partition(': ')[0]
        wanted = WITHOUT.get(command.split()[0], r'this needs \w+, .*: pip install .dtvla_ros\[')
        if 'rclpy' not in error:
            assert re.match(f'error: .*{wanted}', error), f'{command}: {error}'
        assert end.endswith('exit code 2')
    assert [p.name for p in tmp_path.rglob('*')] == ['D']


def test_what_no_extra_installs_is_named_with_its_release(tmp_path):
    (error, _) = said(['robosuite'], 'experts --episodes 1 --workers 1', tmp_path)
    assert error.endswith("pip install 'dtvla_ros[sim]' && pip install --no-deps robosuite==1.4.0")


def test_the_extras_are_those_of_the_package():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    wanted = {extra: set(re.findall(r'^([\w-]+)', text, re.M))
              for extra, text in config['options.extras_require'].items()}
    wanted['train'] |= wanted['torch']
    names = {'rerun': 'rerun-sdk'}
    for extra, modules in EXTRAS.items():
        found = {names.get(module, module) for module in set(modules.split()) - set(APART)}
        assert found <= wanted[extra], extra


@pytest.mark.parametrize('error', [ModuleNotFoundError("No module named 'x'", name='x'),
                                   ModuleNotFoundError('?'), ValueError('a bug'), KeyError('x')])
def test_what_is_the_codes_fault_keeps_its_traceback(error):
    assert one_line(error) is None
