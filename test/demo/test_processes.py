"""Real processes: they start, are watched, and never outlive whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from support.beside import wait_for

from dtvla_ros.errors import NodeDied
from dtvla_ros.ros.processes import NodeProcesses

SERVER = ('http.server', ['--bind', '127.0.0.1', '0'])


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.fixture
def nodes(tmp_path):
    """Return processes of which one serves and one is deaf to Ctrl-C; both have said something."""
    (tmp_path / 'deaf.py').write_text(
        'import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n'
        'print("deaf", flush=True)\ntime.sleep(60)\n')
    with NodeProcesses(tmp_path) as started:
        started.start('server', *SERVER)
        started.start('deaf', 'deaf', [], {'PYTHONPATH': str(tmp_path)})
        wait_for(lambda: all(started.log(name).read_text() for name in ('server', 'deaf')))
        started.require_running()
        yield started
        started.stop(timeout=0.5)


def test_they_are_interrupted_and_then_killed(nodes):
    pid = nodes.pid('server')
    nodes.stop(timeout=0.5)
    assert not alive(pid) and nodes.exit_code('server') == 0
    assert nodes.exit_code('deaf') == -signal.SIGKILL


def test_ctrl_c_says_that_they_are_stopped_and_the_second_kills_them(nodes, tmp_path, capfd):
    with pytest.raises(KeyboardInterrupt), NodeProcesses(tmp_path):
        raise KeyboardInterrupt
    assert capfd.readouterr().err == 'stopping the nodes; Ctrl-C again: at once\n'
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        nodes.stop(timeout=600.0)
    wait_for(lambda: nodes.exit_code('deaf') == -signal.SIGKILL)


def test_a_death_says_how_and_last_words(nodes):
    os.kill(nodes.pid('server'), signal.SIGKILL)
    wait_for(lambda: nodes.exit_code('server') is not None)
    with pytest.raises(NodeDied, match='server ended with SIGKILL: Serving'):
        nodes.require_running()


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl is Linux')
def test_processes_end_with_a_killed_parent(tmp_path):
    program = ('import pathlib, time\nfrom dtvla_ros.ros.processes import NodeProcesses\n'
               f'nodes = NodeProcesses(pathlib.Path({str(tmp_path)!r}))\n'
               f'nodes.start("server", *{SERVER!r})\nprint(nodes.pid("server"), flush=True)\n'
               'time.sleep(60)\n')
    parent = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    wait_for(lambda: (tmp_path / 'server.log').read_text())
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(child))
