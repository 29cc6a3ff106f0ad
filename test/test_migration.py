"""docs/migration.md: former names are gone or accepted, and what it sends to is there."""

import re
from pathlib import Path

import pytest

from dtvla_ros.cli.arguments import FORMER_NAMES
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.grpo.config import GrpoConfig
from test.test_cli import commands

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'docs' / 'migration.md').read_text()
WORD = re.compile(r'`([^`]+)`')


def rows(title):
    """Return the names in both columns of every row below a heading."""
    section = PAGE.split(f'\n## {title}\n')[1].split('\n## ')[0]
    return [[WORD.findall(cell) for cell in line.strip('| ').split(' | ')]
            for line in section.splitlines() if line.startswith('| `')]


def there(module):
    """Return whether a module or package is in the tree."""
    folder, _, rest = module.partition('.')
    path = ROOT / {'dtvla_sim': 'sim'}.get(folder, folder) / rest.replace('.', '/')
    return path.is_dir() or path.with_suffix('.py').exists()


def test_former_options_and_commands():
    pairs = {former[0].split()[-1]: now[0] for former, now, *_ in rows('Commands and options')
             if '--' in former[0]}
    assert pairs == FORMER_NAMES
    here = {' '.join(command) for command in commands()}
    for former, now, *_ in rows('Commands and options'):
        name = former[0].removeprefix('dtvla ').partition(' --')[0]
        assert (name in here) == ('--' in former[0])
        for module in re.findall(r'python -m (\S+)', ' '.join(now)):
            assert there(module)


def test_former_launch_files():
    for [former], [now] in rows('Launch files'):
        assert not (ROOT / 'launch' / former).exists()
        assert (ROOT / 'launch' / now.split()[0]).exists()


def test_former_keys_of_recipes():
    pairs = {former[0].partition(':')[0]: now[0].partition(':')[0]
             for former, now in rows('Keys of recipes')}
    assert pairs == {**SftConfig.aliases, **GrpoConfig.aliases}


@pytest.mark.parametrize('row', rows('Modules'), ids=lambda row: row[0][0])
def test_former_modules(row):
    formers, nows = row
    base = '' if formers[0].startswith('dtvla_sim') else 'dtvla_ros.'
    assert not any(there(base + former) for former in formers if '.' in former)
    modules = [now for now in nows if re.fullmatch(r'[a-z_]+(\.[a-z_]+)+', now)
               and not now.endswith(('.sdf', '.urdf'))]
    for module in modules:
        if module not in ('rl.dagger', 'rl.pool', 'rl.serve', 'rl.ray_pool', 'rl.rollouts'):
            inside = module.startswith(('dtvla_sim', 'benchmarks'))
            assert there(module if inside else base + module), module
