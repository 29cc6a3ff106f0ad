"""Finds shared files, reads JSON, writes results whole or not at all, keeps journals."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dtvla_ros.errors import UserError, disk_error

if TYPE_CHECKING:
    from typing import Self

Key = Callable[[Mapping[str, Any]], Any]  # what names a row
LFS = b'version https://git-lfs.github.com/spec/'  # with which a Git LFS pointer begins
SHOWN = 160  # characters of another library's message that are worth repeating
BY_EPISODE: Key = itemgetter('episode')


def find_shared(path: str | Path) -> Path:
    """Return ``path`` as given if it exists, else below the package's share folder.

    Looked at in order: the working directory, the source tree, every prefix of
    ``AMENT_PREFIX_PATH`` and the Python prefix (``share/dtvla_ros``). Where none holds it the
    path is returned as given, so that the reader's error names what the user wrote.
    """
    path = Path(path).expanduser()
    if path.exists() or path.is_absolute():
        return path
    prefixes = filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep))
    roots = [Path(__file__).resolve().parents[1], *(
        Path(p, 'share', 'dtvla_ros') for p in (*prefixes, sys.prefix))]
    return next((root / path for root in roots if (root / path).exists()), path)


def require_writable(*paths: Path | None) -> None:
    """Raise ``UserError`` before the work, not after it, if a result cannot be written there."""
    for path in filter(None, paths):
        above = next(p for p in path.absolute().parents if p.exists())
        if path.is_dir() or not (above.is_dir() and os.access(above, os.W_OK)):
            raise UserError(f'cannot write {path}; choose another file')


def unreadable(path: Path, error: object, remedy: str = 'copy it again',
               what: str = 'cannot be read') -> UserError:
    """Return the error that says why a file cannot be read.

    It is not there, a folder, empty, a Git LFS pointer, or ``what``, with what a library says.
    """
    if not os.path.exists(path):  # false, too, for names that no file can have
        link = 'a link to nothing' if os.path.islink(path) else 'no such file'
        return UserError(f'{path}: {link}; {remedy}')
    try:
        with path.open('rb') as file:
            begin = file.read(len(LFS))
    except OSError as failed:
        return UserError(f'{path}: {failed.strerror}; {remedy}')
    if begin == LFS:
        return UserError(f'{path}: a Git LFS pointer, not the file itself; run git lfs pull where '
                         'it was cloned')
    told = str(getattr(error, 'strerror', None) or error)
    said = ' '.join(told.replace(str(path), 'it').split())[:SHOWN]
    return UserError(f'{path}: {f"{what} ({said})" if begin else "an empty file"}; {remedy}')


def require_folder(folder: Path) -> None:
    """Try to make a folder and to write there, and leave nothing. Raises ``UserError``."""
    with writing(folder), _made(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b'0' * 4096)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder meanwhile; it is made, and an empty one goes.

    Raises ``UserError`` if one writes there already. A distributed run counts once.
    """
    if os.environ.get('RANK', '0') != '0':
        yield
        return
    with _made(folder):
        with writing(folder):
            held = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system may have no locks
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(f'{folder}: another process writes there; wait for its end, '
                                    'or choose another folder') from None
            yield
        finally:
            os.close(held)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; in the end it goes again, and those above it, where nothing came into it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for path in missing:
                path.rmdir()


def parse_json(data: bytes) -> Any:
    """Return what JSON says, in UTF-8 or -16, whether or not it begins with a byte order mark.

    Raises ``ValueError``, for half a surrogate pair, too, which no file takes; ``RecursionError``.
    """
    value = json.loads(data)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def read_json(path: Path, remedy: str = 'copy it again') -> dict[str, Any]:
    """Return the object in a JSON file; ``UserError`` with ``remedy`` if there is none."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error, remedy, 'not readable JSON') from None
    if not isinstance(value, dict):
        raise UserError(f'{path}: holds no JSON object; {remedy}')
    return value


def write_json(path: Path | None, value: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all, if a path is given; errors as `write_text`."""
    if path is not None:
        write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + '\n')


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; ``UserError`` if the folder cannot be written."""
    with written_whole(path) as part:
        part.write_text(text, encoding='utf-8')


@contextmanager
def writing(place: object, remedy: str = 'choose another place') -> Iterator[None]:
    """Turn what the file system, or a library that writes, raises inside into a ``UserError``."""
    try:
        yield
    except Exception as error:
        reason = disk_error(error)
        if reason is None and isinstance(error, OSError) and error.strerror:
            reason = f'{error.strerror}; {remedy}'
        if reason is None:
            raise
        raise UserError(f'cannot write {place}: {reason}') from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write, which becomes it, or vanishes when that fails.

    Its name ends as ``path`` does. Raises ``UserError`` if the folder cannot be written.
    """
    part = path.with_name(f'.{os.getpid()}.{path.name}')
    with writing(path, 'choose another file'):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            os.replace(part, path)
        finally:
            with suppress(OSError):
                part.unlink()


def write_between(document: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two lines of a document; ``UserError`` if one is missing."""
    try:
        whole = document.read_text()
    except OSError as error:
        raise UserError(f'cannot read {document}: {error.strerror}') from error
    before, found, rest = whole.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UserError(f'{document} lacks the lines "{begin}" and "{end}"')
    write_text(document, f'{before}{begin}\n{text}\n{end}{after}')


def read_lines(path: Path, *keys: str) -> list[dict[str, Any]]:
    """Return a file's complete JSON lines (a kill may truncate the last); none without a file.

    Raises ``UserError`` if it cannot be read, or a line is no object with ``keys``.
    """
    try:
        whole = path.read_bytes()
        rows = [parse_json(line) for line in whole[:whole.rfind(b'\n') + 1].splitlines()]
        [row[key] for row in rows for key in keys]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{path} cannot be read ({error}); delete it or choose another') from error
    return rows


class JsonLines:
    """Appends JSON lines after removing a truncated one; ``UserError`` if that cannot be done."""

    def __init__(self, path: Path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: IO[bytes] = path.open('a+b')
        except OSError as error:
            raise UserError(f'cannot write {path}: {error.strerror}; choose another') from error
        self.path = path
        self.file.truncate(path.read_bytes().rfind(b'\n') + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; the operating system has it when this returns. Raises ``UserError``."""
        with writing(self.path):
            self.file.write((json.dumps(row, ensure_ascii=False) + '\n').encode())
            self.file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


class Journal(JsonLines):
    """One JSON line per episode, in ``done`` by its key; the first line holds the settings.

    Raises ``UserError`` if the file holds rows made with other settings; those in ``told`` may
    differ.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], key: Key = BY_EPISODE,
                 told: Container[str] = ()):
        self._key = key
        wanted = json.loads(json.dumps(dict(header)))
        lines = read_lines(path)
        found, rows = _header_and_rows(path, lines, 'the same command', key) if lines else ({}, [])
        changed = sorted(k for k in {**found, **wanted}
                         if k not in told and found.get(k) != wanted.get(k))
        if found and changed:
            raise UserError(f'{path} was made with other settings ({", ".join(changed)} '
                            'differ); choose another folder or delete the file')
        self.done: dict[Any, dict[str, Any]] = {key(row): row for row in rows}
        super().__init__(path)
        if not found:
            self.write(wanted)

    @staticmethod
    def read(path: Path, maker: str, key: Key = BY_EPISODE,
             ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return header and rows of a journal; of several rows of an episode the last counts.

        Raises ``UserError`` when it is missing or no journal; ``maker``: the command to run first.
        """
        lines = read_lines(path)
        if not lines:
            raise UserError(f'{path}: no such file, or it is empty; run {maker} first')
        return _header_and_rows(path, lines, maker, key)

    def add(self, row: dict[str, Any]) -> None:
        self.done[self._key(row)] = row
        self.write(row)


def _header_and_rows(path: Path, lines: list[dict[str, Any]], maker: str, key: Key,
                     ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        if not all(isinstance(line, dict) for line in lines):
            raise TypeError('a line is no JSON object')
        return lines[0], list({key(row): row for row in lines[1:]}.values())
    except (TypeError, KeyError) as error:
        raise UserError(f'{path} is not a journal of {maker} ({error}); delete it') from error
