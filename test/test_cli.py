"""The command line: it teaches itself, and bad input is one line and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def dtvla(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'dtvla_ros.cli', *arguments], cwd=cwd, capture_output=True,
        text=True, timeout=120)


def commands() -> list[list[str]]:
    """Return every command of the app, subcommands included, as argument lists."""
    import typer

    from dtvla_ros.cli import app

    def walk(command, path):
        children = getattr(command, 'commands', None)
        if not children:
            return [path]
        return [leaf for name, child in children.items() for leaf in walk(child, [*path, name])]

    return walk(typer.main.get_command(app), [])


def test_help_lists_the_commands():
    done = dtvla('--help')
    assert done.returncode == 0
    for name in ('demo', 'eval', 'experts'):
        assert name in done.stdout


@pytest.mark.parametrize('command', commands(), ids=' '.join)
def test_every_command_teaches_itself(command):
    done = dtvla(*command, '--help')
    assert done.returncode == 0, done.stderr
    assert 'Example' in done.stdout and 'dtvla ' + ' '.join(command) in done.stdout


REFUSED = {
    'unknown command': (['evaluate'], 'evaluate'),
    'unknown option': (['eval', '--speed', '3'], '--speed'),
    'not a number': (['eval', '--episodes', 'many'], '--episodes'),
    'no episodes': (['eval', '--episodes', '0'], '--episodes'),
    'unknown suite': (['experts', '--suite', 'kitchen'], 'kitchen'),
    'unknown task': (['experts', '--tasks', 'fly'], 'fly'),
    'unknown mode': (['eval', '--mode', 'asleep'], 'asleep'),
    'unknown engine': (['eval', '--engine', 'steam'], 'steam'),
    'trained seed': (['eval', '--mode', 'replay', '--seed', '3'], 'seed 3'),
    'missing policy': (['eval', '--policy', 'no/such/folder'], 'no/such/folder'),
    'demo without policy': (['demo', '--policy', 'no/such/folder'], 'no/such/folder'),
    'demo, trained seed': (['demo', '--seed', '5'], 'seed 5'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_bad_input_is_one_line_and_exit_code_2(case, tmp_path):
    arguments, named = REFUSED[case]
    done = dtvla(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith('error: ') and named in lines[0]
    assert not list(tmp_path.iterdir()), 'something was half-written'


def test_result_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('in the way')
    done = dtvla('experts', '--episodes', '1', '--tasks', 'stack_the_red_cube_on_the_green_cube',
                 '--json', str(tmp_path / 'file' / 'x.json'))
    assert done.returncode == 2 and 'x.json' in done.stderr and done.stderr.count('\n') == 1


def test_experts_write_their_success(tmp_path):
    file = tmp_path / 'experts.json'
    done = dtvla('experts', '--episodes', '2', '--workers', '2', '--noise', '--tasks',
                 'stack_the_red_cube_on_the_green_cube', '--json', str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result['total']['n'] == 2 and result['noise'] is True
    assert result['versions']['mujoco']
    assert 'stack_the_red_cube' in done.stdout
