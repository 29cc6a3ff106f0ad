"""The errors a user is meant to read, and what is said of others that are not the code's fault."""

from __future__ import annotations

import errno
import os
import re

_ROOM = 'make room there or choose another place'
_RIGHTS = 'choose a place that you may write to'
DISK = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: 'raise the limit (ulimit -f)',
        errno.EROFS: _RIGHTS, errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS,
        errno.EIO: 'check the disk'}
"""Remedies of what a file system answers, by error number."""
EXTRAS = {
    'sim': 'av gymnasium mujoco numba robosuite termcolor',
    'libero': 'bddl cloudpickle easydict future huggingface_hub libero',
    'data': 'matplotlib pyarrow', 'torch': 'accelerate torch transformers',
    'train': 'onnx onnxscript peft pydantic tensorboard',
    'annotate': 'httpx', 'ray': 'ray', 'viz': 'rerun', 'operator': 'starlette uvicorn websockets'}
"""Modules that only some commands import, by the extra of this package that installs them."""
APART = {'sim': 'robosuite==1.4.0', 'libero': 'hf-libero==0.1.4 bddl==1.0.1'}
"""What belongs to an extra, but pip must not look at what it requires."""
WITHIN = {'train': ('torch', 'data'), 'libero': ('sim',)}
"""Extras that others hold."""


class UserError(Exception):
    """Bad input: names the file or value and the remedy. One line and exit code 2."""


class NodeDied(Exception):
    """A node ended that should not have; says how, and its last words. Exit code 1."""


class OutOfMemory(MemoryError):
    """The memory of the device an engine runs on, or of the host, is used up."""


def one_line(error: BaseException, extras: str = '') -> str | None:
    """Return what to tell a user of an error; None where only its traceback tells anything.

    ``extras``: with commas, what else must be installed where a package is missing.
    """
    if isinstance(error, UserError | NodeDied):
        return ' '.join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        return _missing((error.name or '').partition('.')[0], extras)
    if isinstance(error, FileNotFoundError) and 'temporary directory' in str(error):  # tempfile's
        return f'{error.strerror}; set TMPDIR to a folder that you may write to'
    if isinstance(error, FileNotFoundError) and error.filename is None:  # os.getcwd's
        return 'the working directory is gone; go to another'
    if isinstance(error, UnicodeEncodeError):
        return f'{error.object[:80]!r} is no text that UTF-8 can hold; write it otherwise'
    reason, file = disk_error(error), getattr(error, 'filename', None)
    return f'{file}: {reason}' if reason and file else reason


def _missing(module: str, wanted: str) -> str | None:
    having = [extra for extra, modules in EXTRAS.items() if module in modules.split()]
    if not having:
        return None
    extras = list(filter(None, wanted.split(',')))
    if not {*having} & {part for extra in extras for part in (extra, *WITHIN.get(extra, ()))}:
        extras.append(having[0])
    apart = ' '.join(APART[extra] for extra in extras if extra in APART)
    return f"this needs {module}, which is not installed: pip install 'dtvla_ros[" + (
        ','.join(extras) + "]'" + (f' && pip install --no-deps {apart}' if apart else ''))


def disk_error(error: BaseException) -> str | None:
    """Return what a full or read-only disk answered, and the remedy; None for other errors."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (told := re.search(r'\(?os error (\d+)\)', str(error))):  # Rust's
        number = int(told[1])
    if number not in DISK:
        return None
    return f'{os.strerror(number)}; {DISK[number]}'
