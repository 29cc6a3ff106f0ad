"""The nodes as processes of their own: started together, watched, stopped together."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dtvla_ros.errors import NodeDied, UserError

_PR_SET_PDEATHSIG = 1


def _prepare_child() -> None:
    """Make the child hear SIGINT, which background jobs ignore, and end with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class NodeProcesses:
    """Runs ``python -m module *arguments`` for every name; output goes to ``logs/<name>.log``."""

    def __init__(self, logs: Path):
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, module: str, arguments: Sequence[str],
              environment: Mapping[str, str] | None = None) -> None:
        """Start one process. It is not interrupted by the terminal's Ctrl-C, but by `stop`."""
        self._logs.mkdir(parents=True, exist_ok=True)
        with self.log(name).open('wb') as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, '-m', module, *arguments], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_prepare_child,
                env={**os.environ, 'PYTHONUNBUFFERED': '1', **(environment or {})})

    def log(self, name: str) -> Path:
        return self._logs / f'{name}.log'

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def exit_code(self, name: str) -> int | None:
        """Return the exit code of a process, None while it runs."""
        return self._processes[name].poll()

    def ended(self) -> Iterator[tuple[str, int, str]]:
        """Yield name, exit code, and how it ended with its last words, of those that ended."""
        for name in self._processes:
            code = self.exit_code(name)
            if code is not None:
                *_, line = ['it said nothing',
                            *self.log(name).read_text(errors='replace').strip().splitlines()]
                how = f'exit code {code}' if code >= 0 else signal.Signals(-code).name
                yield name, code, f'{how}: {line.removeprefix("error: ")}'

    def require_running(self, may_end: Sequence[str] = ()) -> None:
        """Check that nobody has died; those in ``may_end`` may have ended well.

        Raises ``UserError`` if a node refused its input (exit code 2), with the node's own line,
        ``NodeDied`` if it died otherwise.
        """
        for name, code, how in self.ended():
            if code == 2:
                raise UserError(how.partition(': ')[2])
            if code or name not in may_end:
                raise NodeDied(f'{name} ended with {how} ({self.log(name)})')

    def stop(self, names: Collection[str] | None = None, timeout: float = 4.0) -> None:
        """Interrupt processes (all, or ``names``), in the order of their start; kill what stays.

        ``timeout``: until they are killed [s]; a KeyboardInterrupt kills them at once.
        """
        def running() -> list[subprocess.Popen[bytes]]:
            return [p for name, p in self._processes.items()
                    if p.poll() is None and (names is None or name in names)]
        try:
            for order in (signal.SIGINT, signal.SIGKILL):
                for process in (asked := running()):
                    process.send_signal(order)
                deadline = time.monotonic() + timeout
                for process in asked:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:
            for process in running():
                process.kill()
            raise
        finally:
            remove_dead_segments()

    def __enter__(self) -> NodeProcesses:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is KeyboardInterrupt:
            print('stopping the nodes; Ctrl-C again: at once', file=sys.stderr, flush=True)
        self.stop()


def remove_dead_segments(folder: Path = Path('/dev/shm')) -> None:
    """Remove memory Fast DDS left behind; a living process holds the lock beside its segment."""
    for lock in folder.glob('fastrtps_*_el'):
        segment = lock.with_name(lock.name.removesuffix('_el'))
        if segment.name.startswith('fastrtps_port'):
            continue
        # Not where it is held, another user's, or gone meanwhile.
        with suppress(OSError), lock.open('rb') as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            segment.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def resident_memory(pid: int) -> float:
    """Return the resident memory of a process [MB]; Linux only."""
    with open(f'/proc/{pid}/statm') as statm:
        return int(statm.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6
