"""A remedy is a command that exists, with options it has, and never the one that failed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support.sources import strings

from dtvla_ros import cli

ROOT = Path(__file__).resolve().parents[1]
TREE = typer.main.get_command(cli.app)
# A command in a sentence ends where the sentence, its line or its quotation does.
NAMED = re.compile(r'\bdtvla ((?:[a-z][a-z-]*\b[ ]?)+)([^;,.:()&|\n"\'`]*)')
OPTION = re.compile(r'(?<!\S)--[a-z][a-z-]+')


def named(text: str) -> Iterator[tuple[tuple[str, ...], Any, list[str]]]:
    """Give path, command and options of every command in a text."""
    for match in NAMED.finditer(text):
        path, command, words = (), TREE, match[1].split()
        for word in words:
            if word not in getattr(command, 'commands', {}):
                break
            path, command = (*path, word), command.commands[word]
        rest = ' '.join(words[len(path):])
        if path or not re.match('command|node|process', rest):
            yield path, command, OPTION.findall(match[0])


SOURCES = sorted([*(ROOT / 'dtvla_ros').rglob('*.py'), *(ROOT / 'sim').rglob('*.py'),
                  *(path for path in (ROOT / 'docs').glob('*.md') if path.stem != 'migration'),
                  ROOT / 'README.md', ROOT / 'CONTRIBUTING.md'])


def test_every_command_that_is_recommended_exists_with_its_options():
    wrong, count = [], 0
    for file in SOURCES:
        texts = strings(file) if file.suffix == '.py' else [
            file.read_text().replace('\\\n', ' ')]
        for text in texts:
            for path, command, options in named(text):
                count += 1
                has = {option for parameter in getattr(command, 'params', ())
                       for option in (*parameter.opts, *parameter.secondary_opts)} | {'--help'}
                has |= {'--look-share', '--drop-share', '--shove-share'}  # former names
                unknown = set() if hasattr(command, 'commands') else {*options} - has
                if not path or unknown:
                    wrong.append(f'{file.relative_to(ROOT)}: dtvla {" ".join(path)} {unknown}')
    assert count > 200 and not wrong, '\n'.join(wrong)


DATASETS = """data inspect D|data validate D|data stats D|data view D|data convert D --out new
annotate keyframes --data D|annotate label --data D|annotate review --data D
annotate agree --data D|annotate apply --data D|annotate fill --data D --to new
train sft --data D --out new --steps 1"""
POLICIES = """eval --policy D|steer --policy D|recover --policy D|robustness --policy D|inspect D
convert D|export D --out new|demo --policy D|train dagger --init D --out new
train grpo --init D --out new --iterations 1"""
BROKEN = {
    'missing': None, 'empty': {}, 'no JSON': {'meta/info.json': 'x', 'manifest.json': 'x'},
    'an old version': {'meta/info.json': json.dumps({'codebase_version': 'v1.6', 'fps': 10}),
                       'manifest.json': '{}', 'config.json': '{}'},
    'a pointer': dict.fromkeys(
        ('meta/info.json', 'manifest.json', 'config.json'),
        'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n')}


@pytest.mark.parametrize('what', BROKEN)
@pytest.mark.parametrize('command', re.split(r'[|\n]', f'{DATASETS}\n{POLICIES}'))
def test_no_remedy_is_the_command_that_failed(command, what, dtvla, tmp_path):
    if (files := BROKEN[what]) is not None:
        (tmp_path / 'D').mkdir()
        for name, text in files.items():
            (tmp_path / 'D' / name).parent.mkdir(exist_ok=True)
            (tmp_path / 'D' / name).write_text(text)
    code, said, error = dtvla(*command.split())
    told = error if code == 2 else said + error
    assert code in (1, 2), told
    assert code == 1 or (error.startswith('error: ') and error.count('\n') == 1), error
    failed = next(path for path, *_ in named(f'dtvla {command}'))
    again = [path for path, _, options in named(' '.join(told.split()))
             if path == failed and not options]
    assert not again, told
    assert not (tmp_path / 'new').exists() or not list((tmp_path / 'new').iterdir())
