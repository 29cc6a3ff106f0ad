"""What README and docs/ show can be typed, and what they link to is there."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import typer
from support.sources import strings

from dtvla_ros import cli

ROOT = Path(__file__).resolve().parents[1]


def load(file: Path, name: str):
    loader = SourceFileLoader(name, str(file))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


TOOL = load(ROOT / 'tools/docs_commands', 'docs_commands')
FENCES = [fence for page in TOOL.PAGES for fence in TOOL.fences(page)]
TYPED = [fence for fence in FENCES if fence.language in TOOL.COMMANDS]
LANGUAGES = {*TOOL.COMMANDS, 'text', 'python', 'yaml', 'json', 'xml'}
TREE = typer.main.get_command(cli.app)
MAKEFILE = (ROOT / 'Makefile').read_text()
LAUNCH = '\n'.join(path.read_text() for path in (
    *(ROOT / 'launch').glob('*.py'), ROOT / 'dtvla_ros/ros/bringup.py'))
# Of the system, of ROS and of others' packages; ours are checked further.
OTHERS = re.findall(r'\S+', """. accelerate cat cd colcon cp docker done dtvla export fi git gz
    make mkdir pip pixi pytest python python3 ray rerun ros2 rosdep rviz2 source ss sudo
    tensorboard touch unset uv vllm""")


def where(fence) -> str:
    return f'{fence.page}:{fence.line}'


def commands(fence) -> Iterator[list[str]]:
    """Give every command of a fence as words, its variables of plain text put in."""
    known: dict[str, str] = {}
    for line in fence.lines():
        line = re.sub(r'\$(\w+)\b', lambda m: known.get(m[1], m[0]), line)
        lexer = shlex.shlex(line.replace('\n', ' ; '), posix=True, punctuation_chars=';|&')
        lexer.whitespace_split, lexer.commenters = True, '#'
        words: list[str] = []
        for word in [*lexer, ';']:
            if set(word) <= set(';|&'):
                words = words[1:] if words[:1] in (['do'], ['then'], ['time']) else words
                while words and (found := re.fullmatch(r'(\w+)=(.*)', words[0])):
                    known[found[1]] = found[2]
                    words = words[1:]
                if words and words[0] not in ('for', 'while', 'if'):
                    yield words
                words = []
            elif word == 'do':
                words = []
            else:
                words.append(word)


def wrong_in_ours(words: list[str]) -> str:
    """Return what is wrong with words after ``dtvla``: command, options, values; '' if nothing."""
    path, command = [], TREE
    while words and words[0] in getattr(command, 'commands', {}):
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    if {'--help', '-h', '--version'} & set(words):
        return ''
    if hasattr(command, 'commands'):
        return f'no command dtvla {" ".join([*path, *words[:1]])}'
    words = [re.sub(r'.*\$.*', '1', word) for word in words]  # what a loop puts in
    try:
        command.make_context(' '.join(path), words)
    except Exception as error:  # click's, whose package typer brings along or not
        return f'dtvla {" ".join(path)}: {error.format_message()}'
    return ''


RUNS_ANOTHER = 'tools/avx2'  # the program that its arguments name


def wrong(words: list[str]) -> str:
    """Return what is wrong with a command: program, target, file, option; '' if nothing."""
    first = words[0].removeprefix('.venv/bin/')
    if 'dtvla_ros.cli' in words:
        return wrong_in_ours(words[words.index('dtvla_ros.cli') + 1:])
    if first == 'dtvla':
        return wrong_in_ours(words[1:])
    if first.startswith('tools/'):
        if not (ROOT / first).exists():
            return 'no tool'
        return wrong(words[1:]) if first == RUNS_ANOTHER and words[1:] else ''
    if first not in OTHERS:
        return f'unknown program {first}'
    if first == 'make':
        for word in words[1:]:
            name, _, value = word.partition('=')
            pattern = rf'^{name} *\??=|\$\({name}\)' if value else rf'^{re.escape(name)}:'
            if name not in ('-C', '../former', '.venv/.installed-dev') and not re.search(
                    pattern, MAKEFILE, re.MULTILINE):
                return f'make knows no {word}'
    if first in ('python', 'python3') and words[1:2] == ['-m']:
        module = words[2].replace('dtvla_sim', 'sim').replace('.', '/')
        sources = [p for p in (ROOT / f'{module}.py', ROOT / module / '__main__.py') if p.exists()]
        if module.split('/')[0] in ('benchmarks', 'dtvla_ros', 'sim'):
            if not sources:
                return f'no module {words[2]}'
            text = sources[0].read_text() + (ROOT / 'benchmarks/common.py').read_text()
            unknown = [w for w in words[3:] if w.startswith('--') and w != '--ros-args'
                       and f"'{w}'" not in text and f' {w[2:].replace("-", "_")}:' not in text]
            return f'{words[2]} has no {unknown}' if unknown and 'nodes' not in module else ''
    if words[:3] == ['ros2', 'launch', 'dtvla_ros']:
        if not (ROOT / 'launch' / words[3]).exists():
            return f'no launch file {words[3]}'
        names = [word.partition(':=')[0] for word in words[4:] if ':=' in word]
        unknown = [name for name in names if not re.search(rf"'{name}'|\b{name}=", LAUNCH)]
        return f'{words[3]} has no {unknown}' if unknown else ''
    return ''


@pytest.mark.parametrize('fence', FENCES, ids=where)
def test_every_fence_says_what_it_is(fence):
    assert fence.language in LANGUAGES, f'{where(fence)}: a language, of {sorted(LANGUAGES)}'
    if fence.language in TOOL.COMMANDS:
        assert fence.tag in TOOL.TAGS, f'{where(fence)}: <!-- one of {TOOL.TAGS} --> above it'
        assert fence.why or fence.tag in ('quick', 'robot', 'gpu'), f'{where(fence)}: why?'


@pytest.mark.parametrize('fence', TYPED, ids=where)
def test_every_command_exists_with_its_options(fence):
    text = fence.text.replace('<this repository>', 'REPOSITORY').replace('<this package>', 'HERE')
    if fence.language == 'console':
        text = '\n'.join(fence.lines())
    done = subprocess.run(['bash', '-n', '-c', text], capture_output=True, text=True)
    assert not done.stderr, f'{where(fence)}: {done.stderr}'
    found = list(commands(fence))
    assert found, f'{where(fence)}: no commands; is it text?'
    for words in found:
        assert not (said := wrong(words)), f'{where(fence)}: {shlex.join(words)}\n{said}'
        if fence.tag == 'quick':  # would change the environment that tests share
            assert words[0] not in ('make', 'pip', 'git', 'sudo', 'docker'), where(fence)


@pytest.mark.parametrize('command, said', [
    ('dtvla evl', 'no command'), ('dtvla eval --epsodes 3', '--epsodes'),
    ('dtvla eval --episodes many', '--episodes'), ('dtvla data view', 'Missing'),
    ('dtvla collect here', 'unexpected'), ('make teh', 'teh'), ('make demo WORKER=1', 'WORKER'),
    ('python -m benchmarks.nothing', 'no module'), ('tools/nothing x', 'no tool'),
    ('python -m benchmarks.soak --polcy x', '--polcy'), ('frobnicate', 'unknown program'),
    ('ros2 launch dtvla_ros robot.launch.py prset:=servo', 'prset'),
    ('ros2 launch dtvla_ros robt.launch.py', 'robt'), ('.venv/bin/dtvla demo', ''),
    ("C='dtvla collect --camera-every 4'\n$C --epsodes 1", '--epsodes'),
    ('for m in full masked; do\n    dtvla eval --mode $m --jsn $m.json\ndone', '--jsn')])
def test_the_check_finds_mistakes(command, said):
    fence = TOOL.Fence('x', 1, 'bash', 'quick', '', command + '\n')
    found = '\n'.join(filter(None, map(wrong, commands(fence))))
    assert said in found and bool(said) == bool(found), found


SAID = '\n'.join(' '.join(text.split()) for file in (
    *(ROOT / 'dtvla_ros').rglob('*.py'), *(ROOT / 'sim').rglob('*.py')) for text in strings(file))
MESSAGES = re.findall(r'^\| `([^|]+)` \|', (ROOT / 'docs/faq.md').read_text(), re.MULTILINE)


@pytest.mark.parametrize('message', MESSAGES)
def test_every_message_that_is_explained_exists(message):
    parts = [part.strip() for part in message.split('…')]
    pattern = '.{0,200}?'.join(map(re.escape, filter(None, parts)))
    assert re.search(pattern, SAID), message


def test_rows_of_the_readme_are_those_of_the_fault_table():
    shown, of_all = (re.findall(r'^\| \d+ \|.*$', (ROOT / page).read_text(), re.MULTILINE)
                     for page in ('README.md', 'docs/faults.md'))
    assert 3 < len(shown) < 8 and set(shown) <= set(of_all)


def heads(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them of its headings."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', head.strip().lower()).replace(' ', '-')
            for head in re.findall(r'^#+ (.*)$', text, re.MULTILINE)}


@pytest.mark.parametrize('page', TOOL.PAGES)
def test_every_link_leads_somewhere(page):
    text = re.sub(r'^```.*?^```', '', (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match('https?:', target):
            continue
        name, _, anchor = target.partition('#')
        file = ((ROOT / page).parent / name) if name else ROOT / page
        assert file.exists(), f'{page}: {target}'
        assert not anchor or anchor in heads(file), f'{page}: {target}: no such heading'
    if page != 'README.md':  # every page is found from the first
        assert f']({page}' in (ROOT / 'README.md').read_text(), f'README.md does not link {page}'
    assert all(image.stat().st_size < (2_100_000 if image.suffix == '.gif' else 300_000)
               for image in (ROOT / 'docs').glob('*.[pg][ni][gf]'))
