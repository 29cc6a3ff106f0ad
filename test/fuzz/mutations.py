"""Damages one thing at a time, and runs commands that have to answer in one line.

A test takes its count from ``total`` (test/fuzz/conftest.py: 2,000 mutations in ``make test``,
100,000 in the long tests, ``--mutations N`` for another count) and its part of it by
`seeds`. For each seed it copies something sound, calls a mutation with `Random(seed)`, and runs a
command on it with `one_line`::

    def test_a_damaged_dataset(dataset, tmp_path, total):
        for seed in seeds('datasets', total):
            with damaged(dataset, tmp_path, seed) as (folder, what):
                one_line('data', 'inspect', folder, what=f'seed {seed}: {what}')

`mutate_folder` takes a folder of anything: a dataset, a policy, a bag, configs. `mutated` takes
what a JSON or YAML file holds. Whatever they do they say in words, so that a failure can be read.
"""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dtvla_ros.errors import UserError

# Which part of all mutations is whose.
SHARES = {'datasets': 0.45, 'annotations': 0.05, 'policies': 0.15, 'parameters': 0.15,
          'bags': 0.1, 'messages': 0.1}
LONGEST = 700  # characters of an error a person reads
DOCUMENTS = ('.json', '.jsonl', '.yaml', '.yml')
LFS = (b'version https://git-lfs.github.com/spec/v1\n'
       b'oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n'
       b'size 12345\n')


def seeds(kind: str, total: int, parts: int = 1) -> range:
    """Return the seeds of one of ``parts`` tests which share what ``kind`` has of ``total``."""
    return range(math.ceil(SHARES[kind] * total / parts))


class Outcome(NamedTuple):
    """How a command ended: exit code, what it printed, and the error without ``error: ``."""

    code: int
    output: str
    error: str


@cache
def _commands() -> Any:
    from typer.main import get_command

    from dtvla_ros import cli

    return get_command(cli.app)


def one_line(*arguments: object, what: str = '') -> Outcome:
    """Run ``dtvla`` with ``arguments`` in this process; it succeeds or says why in one line.

    No traceback, no other exception than the command line's own exit, and with an exit code of 1
    or 2 one line ``error: ...`` that can be read (`LONGEST`), or findings on the terminal with 1.
    ``what``: is told where that does not hold.
    """
    from dtvla_ros import cli

    said = f'dtvla {" ".join(map(str, arguments))}\n{what}'
    out, err = io.StringIO(), io.StringIO()
    with (patch.object(sys, 'argv', ['dtvla', *map(str, arguments)]), redirect_stdout(out),
          redirect_stderr(err), patch('faulthandler.enable')):  # rclpy's; it wants a real file
        try:
            cli.main(_commands())
            code: Any = 0
        except SystemExit as left:
            code = left.code
        except BaseException:
            raise AssertionError(f'{said}\n{traceback.format_exc(chain=False)}') from None
    errors = [line for line in err.getvalue().splitlines() if line.startswith('error: ')]
    told = f'{said}\n{out.getvalue()}{err.getvalue()}'
    assert code in (0, 1, 2), told
    assert 'Traceback' not in out.getvalue() + err.getvalue(), told
    assert len(errors) == (code != 0) or code == 1 and not errors and out.getvalue(), told
    assert all(len(line) <= LONGEST for line in errors), told
    return Outcome(code, out.getvalue(), ''.join(errors).removeprefix('error: '))


def one_line_of(call: Callable[..., Any], *arguments: Any, what: str = '') -> Any:
    """Call a function; return its result, or None where it raised a ``UserError`` fit to read."""
    try:
        return call(*arguments)
    except UserError as error:
        assert 0 < len(str(error)) <= LONGEST, f'{what}\n{error}'
        return None
    except BaseException:
        raise AssertionError(f'{what}\n{traceback.format_exc(chain=False)}') from None


@contextmanager
def damaged(source: Path, parent: Path, seed: int, kinds: str = '',
            ) -> Iterator[tuple[Path, str]]:
    """Copy a folder below ``parent``, damage the copy; give it and what was done, then remove it.

    ``kinds``: which files may be damaged, as a pattern; all where it is empty.
    """
    folder = parent / source.name
    shutil.copytree(source, folder)
    try:
        yield folder, mutate_folder(folder, Random(seed), kinds or '*')
    finally:
        shutil.rmtree(folder)


def mutate_folder(folder: Path, random: Random, kinds: str = '*') -> str:
    """Damage one file below ``folder``; return what was done, in words.

    One in three is something that happens to files; else one value, key, cell or column of a
    JSON, YAML or parquet file is changed.
    """
    files = sorted(path for path in folder.rglob(kinds) if path.is_file())
    path = random.choice(files)
    name = path.relative_to(folder)
    if random.random() < 1 / 3 or path.suffix not in (*DOCUMENTS, '.parquet') or not (
            path.stat().st_size):
        return f'{name}: {_mutate_file(path, files, random)}'
    change = _mutate_parquet if path.suffix == '.parquet' else _mutate_document
    return f'{name}: {change(path, random)}'


def _mutate_file(path: Path, files: list[Path], random: Random) -> str:
    """Do to a file what copying, clouds and disks do to files."""
    data = path.read_bytes()
    what = random.choice(('deleted', 'emptied', 'cut off', 'garbage', 'one byte', 'a folder',
                          'Git LFS pointer', 'dangling link', 'swapped', 'renamed', 'zeros',
                          'byte order mark', 'UTF-16', 'of macOS beside it'))
    path.unlink()
    place = random.randrange(len(data)) if data else 0
    if what == 'emptied':
        path.touch()
    elif what == 'cut off':
        path.write_bytes(data[:place])
    elif what == 'garbage':
        path.write_bytes(random.randbytes(random.randrange(1, 300)))
    elif what == 'one byte':
        path.write_bytes(data[:place] + random.randbytes(1) + data[place + 1:])
    elif what == 'a folder':
        path.mkdir()
    elif what == 'Git LFS pointer':
        path.write_bytes(LFS)
    elif what == 'dangling link':
        path.symlink_to(path.with_name('gone'))
    elif what == 'swapped':
        other = random.choice(files)
        with suppress(FileNotFoundError):  # it is the same
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
        return f'swapped with {other.name}'
    elif what == 'renamed':
        path.with_name(f'{path.name}.bak').write_bytes(data)
    elif what == 'zeros':
        path.write_bytes(data[:place] + bytes(len(data) - place))
    elif what == 'byte order mark':
        path.write_bytes(b'\xef\xbb\xbf' + data)
    elif what == 'UTF-16':
        path.write_bytes(data.decode(errors='replace').encode('utf-16'))
    elif what == 'of macOS beside it':
        path.write_bytes(data)
        path.with_name(f'._{path.name}').write_bytes(b'\0\5\x16\7')
    return what


def _mutate_document(path: Path, random: Random) -> str:
    """Change one value or key of a JSON, JSON-lines or YAML file."""
    text = path.read_text()
    if path.suffix == '.jsonl':
        lines = text.splitlines()
        row = random.randrange(len(lines))
        if random.random() < 0.2:
            what = random.choice(('dropped', 'twice', 'cut off'))
            lines[row:row + 1] = {'dropped': [], 'twice': [lines[row]] * 2,
                                  'cut off': [lines[row][:len(lines[row]) // 2]]}[what]
        else:
            tree, what = mutated(json.loads(lines[row]), random)
            lines[row] = json.dumps(tree)
        path.write_text('\n'.join(lines) + '\n')
        return f'line {row + 1}: {what}'
    load, dump = (json.loads, json.dumps) if path.suffix == '.json' else (
        yaml.safe_load, yaml.safe_dump)
    tree, what = mutated(load(text), random)
    path.write_text(dump(tree))
    return what


def places(tree: Any, path: str = '') -> Iterator[tuple[Any, Any, str]]:
    """Yield container, key and path of every value of a JSON tree."""
    for key in (tree if isinstance(tree, dict) else
                range(len(tree)) if isinstance(tree, list) else ()):
        yield tree, key, f'{path}/{key}'
        yield from places(tree[key], f'{path}/{key}')


def mutated(tree: Any, random: Random) -> tuple[Any, str]:
    """Return a copy of what a JSON or YAML file holds with one thing changed, and what."""
    tree = copy.deepcopy(tree)
    every = list(places(tree))
    if not every or random.random() < 0.02:
        value = random.choice((None, [], {}, 'text', 7, [[]]))
        return value, f'the whole is {value!r}'
    container, key, path = random.choice(every)
    old = container[key]
    what = random.choice(('drop', 'rename', 'value', 'value', 'value'))
    if what == 'drop':
        del container[key]
        return tree, f'{path} dropped'
    if what == 'rename' and isinstance(container, dict):
        new = random.choice((f'{key}s', str(key).upper(), str(key)[:-1], ''))
        container[new] = container.pop(key)
        return tree, f'{path} called {new!r}'
    container[key] = random.choice(_others(old))
    return tree, f'{path} is {container[key]!r}'


def _others(old: Any) -> list[Any]:
    """Return values that may stand where one stood: other types, lengths and ranges."""
    values: list[Any] = [None, math.nan, math.inf, 1e300, 10 ** 30, 2 ** 31, -1, 0, 0.5, '', 'x',
                         '../../x', '{x}', True, False, [], {}, [old], {'a': old}, [[old]]]
    if isinstance(old, bool | int | float):
        values += [str(old), float(old), -old, old + 1, f' {old}', [old, old]]
    if isinstance(old, str):
        values += [old * 2, old[:-1], old.upper(), f' {old} ', 'ü\n\t\x00', old.encode().hex(),
                   f'{old}\u2028', f'{old}\ud83d']
    if isinstance(old, list) and old:
        values += [old[:-1], old + old[:1], old[::-1], [None] * len(old), [*old[:-1], math.nan]]
    if isinstance(old, dict) and old:
        values += [list(old), list(old.values()), {**old, 'new': 1}]
    return values


def _mutate_parquet(path: Path, random: Random) -> str:
    """Change a cell, a column or the rows of a parquet file."""
    table = pq.read_table(path)
    number = random.randrange(table.num_columns)
    name, column = table.column_names[number], table.column(number)
    what = random.choice(('cell', 'cell', 'cell', 'cell', 'type', 'type', 'drop', 'rename',
                          'nulls', 'null', 'ragged', 'rows', 'order', 'constant'))
    cells = column.to_pylist()
    row = random.randrange(len(cells)) if cells else 0
    if what == 'drop':
        changed = table.remove_column(number)
    elif what == 'rename':
        changed = table.rename_columns([f'{n}_' if n == name else n for n in table.column_names])
    elif what == 'rows':
        what = random.choice(('none', 'dropped', 'twice', 'swapped'))
        order = list(range(len(table)))
        order[row:row + 1] = {'dropped': [], 'twice': [row, row], 'swapped': [0]}.get(what, [row])
        changed = table.slice(0, 0) if what == 'none' else table.take(order)
        what = f'rows: {what} at {row}'
    elif what == 'order':
        changed = table.take(random.sample(range(len(table)), len(table)))
    else:
        values, kind = _mutated_column(cells, column.type, row, what, random)
        try:
            array = pa.array(values, kind)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            array, what = pa.nulls(len(cells), column.type), 'nulls'
        changed = table.set_column(number, pa.field(name, array.type), array)
        what = f'{what} {array.type} at {row}: {str(values[row])[:60] if values else ""}'
    pq.write_table(changed, path)
    return f'{name}: {what}'


def _mutated_column(cells: list[Any], kind: pa.DataType, row: int, what: str, random: Random,
                    ) -> tuple[list[Any], pa.DataType | None]:
    """Return the cells of a column with one or all of them changed, and their type."""
    values = copy.deepcopy(cells)
    if not values or what == 'nulls':
        return [None] * len(values), kind
    vector = isinstance(values[row], list)
    if what == 'null':
        values[row] = None
        return values, kind
    if what == 'constant':
        return [values[row]] * len(values), kind
    if what == 'ragged' and vector:
        values[row] = random.choice(([], values[row][:-1], values[row] * 2))
        return values, pa.list_(kind.value_type)
    if what == 'type':
        if vector:
            return values, pa.list_(random.choice(
                (pa.float64(), pa.float32(), pa.int64(), pa.float16(), pa.string())))
        return ([str(value) for value in values] if random.random() < 0.3 else values,
                random.choice((pa.float64(), pa.int32(), pa.string(), pa.bool_(), None)))
    new = random.choice((math.nan, math.inf, -math.inf, 1e30, -1, 0, 2 ** 31, 7, None, '', 'x'))
    if vector and values[row]:
        values[row][random.randrange(len(values[row]))] = new
    else:
        values[row] = new
    return values, kind
