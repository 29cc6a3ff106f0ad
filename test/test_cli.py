"""The command line: it teaches itself, and bad input is one line and exit code 2."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dtvla_ros import cli, revision
from dtvla_ros.cli.help import HELP
from dtvla_ros.files import sole_writer

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
    narrow, wide = (CliRunner().invoke(cli.app, [*command, '--help'], env={'COLUMNS': columns})
                    for columns in ('80', '200'))
    assert narrow.exit_code == wide.exit_code == 0, wide.output
    assert 'Example' in wide.output and 'dtvla ' + ' '.join(command) in wide.output
    assert '…' not in narrow.output, 'something is cut'


def test_the_help_lists_every_command_under_a_heading():
    shown = CliRunner().invoke(cli.app, ['--help'], env={'COLUMNS': '100'}).output
    assert set(typer.main.get_command(cli.app).commands) == set(' '.join(HELP.values()).split())
    assert '─ Commands ─' not in shown
    heads = [shown.index(f'─ {heading} ─') for heading in (
        'Start', 'Your data', 'Train', 'Evaluate', 'Robot', 'Measure')]
    assert heads == sorted(heads)
    assert heads[0] < shown.index('│ demo ') < shown.index('│ play ') < heads[1]


def test_an_example_can_be_copied_with_what_is_said_of_it():
    shown = CliRunner().invoke(cli.app, ['play', '--help'], env={'COLUMNS': '200'}).output
    assert re.search('dtvla play --seed 1000007 # other places of the same things *\n', shown)


@pytest.mark.parametrize('typed, where', [
    ('evaluate', 'dtvla'), ('eval --speed 3', 'dtvla eval'), ('data view', 'dtvla data view'),
    ('eval --episodes 0', 'dtvla eval')])
def test_an_error_of_usage_names_the_help_of_its_command(typed, where, dtvla):
    code, _, error = dtvla(*typed.split())
    assert code == 2 and error.endswith(f'; see {where} --help\n') and error.count('\n') == 1


def test_the_version_names_the_revision(dtvla, monkeypatch, tmp_path):
    number = metadata.version('dtvla_ros')
    assert re.fullmatch(rf'dtvla {number}( \([-.\w]+\))?\n', dtvla('--version')[1])
    monkeypatch.setattr(revision, 'BUILT', tmp_path / 'REVISION')
    monkeypatch.setattr(revision, 'describe', lambda root: '')
    assert dtvla('--version')[:2] == (0, f'dtvla {number}\n')
    revision.BUILT.write_text('0.1.0-3-gabc\n')
    assert dtvla('--version')[1] == f'dtvla {number} (0.1.0-3-gabc)\n'


def test_the_revision_is_what_git_says_of_a_checkout_and_of_nothing_else(tmp_path, monkeypatch):
    assert revision.describe(tmp_path) == ''
    (tmp_path / '.git').mkdir()
    assert revision.describe(tmp_path) == ''  # git: not a repository
    for words in ('init -q', '-c user.name=a -c user.email=a commit -qm a --allow-empty', 'tag 1'):
        subprocess.run(['git', '-C', tmp_path, *words.split()], check=True)
    assert revision.describe(tmp_path) == '1'
    monkeypatch.setenv('PATH', '')
    assert revision.describe(tmp_path) == ''


# NANO: the policy of this checkout, and a file for the result.
REFUSED = {
    'evaluate': 'evaluate', 'eval --speed 3': '--speed', 'eval --episodes many': '--episodes',
    'eval --episodes 0': '--episodes', 'experts --suite kitchen': 'kitchen',
    'experts --tasks fly': 'fly', 'eval --mode asleep': 'asleep', 'eval --engine steam': 'steam',
    'eval --mode replay --seed 3': 'seed 3', 'eval --policy no/such/folder': 'no/such/folder',
    'demo --policy no/such/folder': 'no/such/folder', 'demo --seed 5': 'seed 5',
    'eval NANO --realtime': '--via ros', 'eval NANO --via pigeon': 'pigeon',
    'eval NANO --via ros --perturb camera:1 --perturb language:1': '--perturb language',
    'eval NANO --no-shadows': '--no-shadows is for LIBERO', 'eval NANO --device abacus': 'abacus',
    'eval NANO --via ros --mode replay': 'replay', 'eval NANO --via ros --mode swapped': 'swapped',
    'eval NANO --perturb fog:1': 'fog', 'eval NANO --starts benchmark': 'shuffle, jitter',
    'eval NANO --via ros --ray auto': '--ray', 'eval NANO --html .': '--html',
    'robustness NANO --families fog': 'fog', 'robustness NANO --strengths 4': '"4"',
    'robustness NANO --strengths 1,1': 'twice', 'robustness NANO --mode replay': 'replay',
    'experts --episodes 1 --json /dev/null/x.json': 'x.json'}


@pytest.mark.parametrize('case', REFUSED)
def test_bad_input_is_one_line_and_exit_code_2(case, dtvla, tmp_path):
    nano = ['--policy', ROOT / 'models/nano', '--json', 'r.json']
    code, _, error = dtvla(*(part for word in case.split()
                             for part in (nano if word == 'NANO' else [word])))
    assert code == 2 and error.startswith('error: ') and REFUSED[case] in error
    assert error.count('\n') == 1, error
    assert not list(tmp_path.iterdir()), 'something was half-written'


def test_experts_write_their_success(dtvla, tmp_path):
    code, said, _ = dtvla('experts', '--episodes', '2', '--workers', '2', '--noise', '--tasks',
                          'stack_the_red_cube_on_the_green_cube', '--json', 'experts.json')
    assert code == 0 and 'stack_the_red_cube' in said
    result = json.loads((tmp_path / 'experts.json').read_text())
    assert result['total']['n'] == 2 and result['noise'] is True
    assert result['versions']['mujoco']


@pytest.mark.parametrize('command', [
    'collect --out data', 'train sft --data d --minutes 1 --out data',
    'train grpo --init models/nano --iterations 1 --out data',
    'train dagger --init models/nano --out data'])
def test_two_commands_do_not_write_to_one_folder(command, dtvla, tmp_path):
    with sole_writer(tmp_path / 'data'):
        code, _, error = dtvla(*command.split())
    assert code == 2 and 'data: another process writes there; wait' in error
    assert not list(tmp_path.iterdir())


def test_an_interrupted_command_says_what_is_kept(monkeypatch, dtvla):
    def collecting(*_):
        raise KeyboardInterrupt('data: 3 of 8 episodes are kept')
    monkeypatch.setattr('dtvla_ros.data.collect.collect', collecting)
    code, _, error = dtvla('collect', '--out', 'data')
    assert (code, error.strip()) == (130, 'data: 3 of 8 episodes are kept')
    monkeypatch.setattr('dtvla_ros.data.collect.collect', lambda *_: os.kill(
        os.getpid(), signal.SIGTERM))
    assert dtvla('collect', '--out', 'data')[0::2] == (130, '\ninterrupted\n')


@pytest.mark.parametrize('error, said', [
    (OSError(errno.ENOSPC, 'x', 'data/a'), 'data/a: No space left on device; make room'),
    (PermissionError(errno.EACCES, 'x', 'data/a'), 'data/a: Permission denied; choose'),
    (ValueError('I/O error: No space left on device (os error 28)'), 'No space left on device'),
    (OSError(errno.EFBIG, 'x'), 'File too large; raise the limit')])
def test_a_disk_that_refuses_is_one_line(monkeypatch, dtvla, error, said):
    def collecting(*_):
        raise error
    monkeypatch.setattr('dtvla_ros.data.collect.collect', collecting)
    code, _, told = dtvla('collect', '--out', 'data')
    assert code == 2 and told.startswith(f'error: {said}') and told.count('\n') == 1


def test_a_working_directory_that_was_removed_is_told(dtvla, tmp_path, monkeypatch):
    (gone := tmp_path / 'gone').mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, _, error = dtvla('data', 'view', tmp_path, '--out', 'x.html')
    monkeypatch.chdir(tmp_path)
    assert code == 2 and error == 'error: the working directory is gone; go to another\n'
