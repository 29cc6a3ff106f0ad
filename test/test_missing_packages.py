"""Where an optional package is missing, a command says in one line which extra brings it."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dtvla_ros.errors import APART, EXTRAS, WITHIN, one_line
from test.test_cli import commands

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = set(' '.join(EXTRAS.values()).split())
# What every command says is to be installed where none of the extras is; '': it needs none.
COMMANDS = {
    'demo': 'sim', 'play': 'sim', 'eval': 'sim', 'robustness': 'sim', 'steer': 'sim',
    'recover': 'sim', 'calibrate D': 'sim,data', 'experts': 'sim', 'report result.json': '',
    'collect': 'sim,data',
    'data inspect D': 'data', 'data validate D': 'data', 'data stats D': 'data',
    'data view D': 'data', 'data convert D --out new': 'data',
    'data from-bag D --out new': 'data', 'annotate keyframes --data D': 'data',
    'annotate label --data D': 'data', 'annotate review --data D': 'data',
    'annotate agree --data D': 'data', 'annotate apply --data D': 'data',
    'annotate fill --data D --to new': 'data', 'train sft --data D --out new --steps 1': 'train',
    'train language --out new': 'sim,train',
    'train grpo --init D --out new --iterations 1': 'sim,train',
    'train dagger --init D --out new': 'sim,train', 'export D --out new': 'train',
    'inspect D': 'torch', 'convert D': 'train', 'bench': 'train', 'view --save x.rrd': 'viz',
    'run': '', 'record --out no --topics x': '', 'doctor no.yaml': '', 'tell': '', 'stop --no': '',
    'think': '', 'tasks no': '', 'watch no': '', 'topic list no': '', 'topic echo': '',
    'topic hz': '',
    'topic pub': '', 'topic call': ''}
# What a command needs beside, by an option.
MORE = [('libero', 'experts --suite libero_object --episodes 1', 'sim,libero'),
        ('robosuite', 'experts --episodes 1 --workers 1', 'sim'),
        ('uvicorn', 'play --open', 'sim,operator')]
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


def remedy(extras: str) -> str:
    """Return the end of the line that says how to install extras."""
    apart = ' '.join(APART[extra] for extra in extras.split(',') if extra in APART)
    return f"pip install 'dtvla_ros[{extras}]'" + (
        f' && pip install --no-deps {apart}' if apart else '')


def test_every_command_names_the_extra(tmp_path):
    named = {words for words in commands()
             if any(command.startswith(' '.join(words)) for command in COMMANDS)}
    assert named == set(commands()), 'the table lacks a command'
    (tmp_path / 'D').mkdir()
    lines = said(sorted(OPTIONAL - {'pydantic'}), '\n'.join(COMMANDS), tmp_path)
    found = [line for line in lines if not line.startswith('error: this needs rclpy')]
    errors = dict(zip([line.partition(': ')[0] for line in found[1::2]], found[::2]))
    for command, extras in COMMANDS.items():
        if extras:
            assert re.match(r'error: this needs \w+, which', errors[command]), errors[command]
            assert errors[command].endswith(remedy(extras)), f'{command}: {errors[command]}'
    assert [p.name for p in tmp_path.rglob('*')] == ['D']


@pytest.mark.parametrize('module, command, extras', MORE)
def test_an_option_that_needs_more_names_that_too(module, command, extras, tmp_path):
    (tmp_path / 'D').mkdir()
    *_, error, _ = said([module], command, tmp_path)
    assert error.startswith(f'error: this needs {module}, ') and error.endswith(remedy(extras))


def test_the_extras_are_those_of_the_package():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    wanted = {extra: set(re.findall(r'^([\w-]+)', text, re.M))
              for extra, text in config['options.extras_require'].items()}
    names = {'rerun': 'rerun-sdk'}
    for extra, modules in EXTRAS.items():
        apart = set(re.findall(r'([\w-]+)==', APART.get(extra, '').replace('hf-', '')))
        assert {names.get(module, module) for module in modules.split()} - apart <= wanted[extra]
        for within in WITHIN.get(extra, ()):
            assert f'%({within})s' in config['options.extras_require'].get(extra, raw=True)


@pytest.mark.parametrize('module, wanted, said', [
    ('httpx', 'data', 'data,annotate'), ('pyarrow', 'train', 'train'), ('rerun', '', 'viz'),
    ('bddl', 'sim', 'sim,libero'), ('torch', 'sim,train', 'sim,train')])
def test_what_an_extra_holds_is_not_asked_for_twice(module, wanted, said):
    assert one_line(ModuleNotFoundError('?', name=module), wanted).endswith(remedy(said))


@pytest.mark.parametrize('error', [ModuleNotFoundError("No module named 'x'", name='x'),
                                   ModuleNotFoundError('?'), ValueError('a bug'), KeyError('x')])
def test_what_is_the_codes_fault_keeps_its_traceback(error):
    assert one_line(error) is None
