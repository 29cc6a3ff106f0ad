"""tools/docs_commands fails on what a reader would call a failure."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / 'tools/docs_commands'


def block(*lines, tag='quick'):
    return '\n'.join([f'<!-- {tag} -->', '```bash', *lines, '```', ''])


def type_page(folder, text, *options):
    page = folder / 'page.md'
    page.write_text(text)
    return subprocess.run(
        [sys.executable, str(TOOL), '--pages', str(page), '--clone', str(folder / 'home'),
         '--tags', 'fresh', 'quick', *options], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(('line', 'fault'), [
    ('false', 'exit code 1'),
    ('exit 3', 'exit code 3'),
    ('echo "Traceback (most recent call last):"', 'a traceback'),
    ('dtvla again', 'it printed nothing'),
    ('true --out nowhere', 'nowhere is missing or empty'),
    ('touch a; true --json a', 'a is missing or empty'),
    ('mkdir b; true --to b', 'b is missing or empty'),
    ('mkdir -p c/meta; echo \'{"total_frames": 0}\' > c/meta/info.json; true --out c',
     'c has no frames'),
], ids=['exit', 'shell', 'traceback', 'silent', 'missing', 'empty', 'folder', 'frames'])
def test_a_line_fails_and_the_next_is_typed_all_the_same(tmp_path, line, fault):
    said = type_page(tmp_path, block(
        'dtvla() { true; }; export -f dtvla', line, 'echo still here'))
    assert said.returncode == 1, said.stdout
    *_, typed, ended, total = said.stdout.splitlines()
    assert f'  {fault}\n' in said.stdout and total.startswith('1 failed')
    assert typed.endswith(': echo still here') and ended.endswith('ok')


def test_lines_share_a_shell_and_go_on_beside_each_other(tmp_path):
    said = type_page(tmp_path, block(
        '# a comment',
        'mkdir work && cd work',
        'export NAME=value',
        'sleep 1; echo "$NAME" > beside &',
        'trap "cat beside > ended; exit" INT; while true; do sleep 0.1; done    # Ctrl-C ends it',
        'cat ended | \\', '    grep value > after && true --out after',
        'true --estimate --out nothing'))
    assert said.returncode == 0, said.stdout
    assert (tmp_path / 'home/work/after').read_text() == 'value\n'


def test_what_needs_something_is_left_out_and_told(tmp_path):
    said = type_page(tmp_path, block('false', tag='robot: with six joints'))
    assert said.returncode == 0 and 'left out, robot with six joints: false' in said.stdout
    assert 'page.md: false' not in said.stdout


def test_it_fails_when_it_took_too_long(tmp_path):
    said = type_page(tmp_path, block('echo again'), '--limit', '0')
    assert said.returncode == 1 and '0 failed' in said.stdout
