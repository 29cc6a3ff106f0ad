"""The command line: it teaches itself, and bad input is one line and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dtvla_ros import cli

ROOT = Path(__file__).resolve().parents[1]


def commands(command=None, path=()) -> list[tuple[str, ...]]:
    """Return every command that help lists, subcommands included."""
    children = getattr(command or typer.main.get_command(cli.app), 'commands', None)
    if not children:
        return [path]
    return [leaf for name, child in children.items() if not child.hidden
            for leaf in commands(child, (*path, name))]


@pytest.mark.parametrize('command', commands(), ids=' '.join)
def test_every_command_teaches_itself(command):
    done = CliRunner().invoke(cli.app, [*command, '--help'], env={'COLUMNS': '200'})
    assert done.exit_code == 0, done.output
    assert 'Example' in done.output and 'dtvla ' + ' '.join(command) in done.output


def test_help_lists_the_commands():
    done = subprocess.run([sys.executable, '-m', 'dtvla_ros.cli', '--help'], text=True, cwd=ROOT,
                          capture_output=True, timeout=120)
    assert done.returncode == 0
    for name in ('demo', 'eval', 'experts'):
        assert name in done.stdout
    assert 'soak' not in done.stdout


EVAL = ('eval', '--policy', str(ROOT / 'models/nano'), '--json', 'r.json')
ROBUSTNESS = ('robustness', *EVAL[1:])
REFUSED = {
    'unknown command': (('evaluate',), 'evaluate'),
    'unknown option': (('eval', '--speed', '3'), '--speed'),
    'not a number': (('eval', '--episodes', 'many'), '--episodes'),
    'no episodes': (('eval', '--episodes', '0'), '--episodes'),
    'unknown suite': (('experts', '--suite', 'kitchen'), 'kitchen'),
    'unknown task': (('experts', '--tasks', 'fly'), 'fly'),
    'unknown mode': (('eval', '--mode', 'asleep'), 'asleep'),
    'unknown engine': (('eval', '--engine', 'steam'), 'steam'),
    'trained seed': (('eval', '--mode', 'replay', '--seed', '3'), 'seed 3'),
    'missing policy': (('eval', '--policy', 'no/such/folder'), 'no/such/folder'),
    'demo without policy': (('demo', '--policy', 'no/such/folder'), 'no/such/folder'),
    'demo, trained seed': (('demo', '--seed', '5'), 'seed 5'),
    'real time without ROS': ((*EVAL, '--realtime'), '--via ros'),
    'unknown way': ((*EVAL, '--via', 'pigeon'), 'pigeon'),
    'wording over ROS': ((*EVAL, '--via', 'ros', '--perturb', 'camera:1', '--perturb',
                          'language:1'), '--perturb language'),
    'shadows of the tabletop': ((*EVAL, '--no-shadows'), '--no-shadows is for LIBERO'),
    'unknown device': ((*EVAL, '--device', 'abacus'), 'abacus'),
    'replay over ROS': ((*EVAL, '--via', 'ros', '--mode', 'replay'), 'replay'),
    'swapped over ROS': ((*EVAL, '--via', 'ros', '--mode', 'swapped'), 'swapped'),
    'unknown perturbation': ((*EVAL, '--perturb', 'fog:1'), 'fog'),
    'unknown starts': ((*EVAL, '--starts', 'benchmark'), 'shuffle, jitter'),
    'cluster over ROS': ((*EVAL, '--via', 'ros', '--ray', 'auto'), '--ray'),
    'unknown family': ((*ROBUSTNESS, '--families', 'fog'), 'fog'),
    'unknown strength': ((*ROBUSTNESS, '--strengths', '4'), '"4"'),
    'strength twice': ((*ROBUSTNESS, '--strengths', '1,1'), 'twice'),
    'replay disturbed': ((*ROBUSTNESS, '--mode', 'replay'), 'replay'),
    'page that is a folder': ((*EVAL, '--html', '.'), '--html'),
    'result below a file': (('experts', '--episodes', '1', '--json', __file__ + '/x.json'),
                            'x.json'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_bad_input_is_one_line_and_exit_code_2(case, dtvla, tmp_path):
    arguments, named = REFUSED[case]
    code, _, error = dtvla(*arguments)
    assert code == 2
    assert error.startswith('error: ') and named in error
    assert error.count('\n') == 1, error
    assert not list(tmp_path.iterdir()), 'something was half-written'


def test_experts_write_their_success(dtvla, tmp_path):
    code, said, _ = dtvla(
        'experts', '--episodes', '2', '--workers', '2', '--noise', '--tasks',
        'stack_the_red_cube_on_the_green_cube', '--json', 'experts.json')
    assert code == 0 and 'stack_the_red_cube' in said
    result = json.loads((tmp_path / 'experts.json').read_text())
    assert result['total']['n'] == 2 and result['noise'] is True
    assert result['versions']['mujoco']
