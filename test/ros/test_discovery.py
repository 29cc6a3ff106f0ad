"""Who sees whom, from this machine and from another one that network namespaces stand for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.beside import fresh_domain

from dtvla_ros.files import find_shared
from dtvla_ros.ros import environment
from dtvla_ros.ros.environment import DISCOVERY, FORMER_DISCOVERY, PROFILES

PEER = Path(__file__).with_name('peer.py')
PATIENCE = 60.0
ABSENCE = 3.0  # a stranger that is not heard this long after a friend is not heard [s]
OPEN, LOCAL = (str(find_shared(name).resolve())
               for name in (environment.PROFILE, environment.LOCAL_PROFILE))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Return what gives the environment that `prepare` makes of another one."""
    def prepare(**variables: str) -> dict[str, str]:
        monkeypatch.setattr(os, 'environ', variables)
        environment.prepare()
        return variables
    return prepare


@pytest.mark.parametrize(('variables', 'reach', 'profile'), [
    ({}, 'LOCALHOST', LOCAL), ({DISCOVERY: ''}, 'LOCALHOST', LOCAL),
    ({DISCOVERY: 'SUBNET'}, 'SUBNET', OPEN),
    ({DISCOVERY: 'SYSTEM_DEFAULT'}, 'SYSTEM_DEFAULT', OPEN),
    ({'ROS_STATIC_PEERS': 'robot'}, 'LOCALHOST', OPEN),
    ({'ROS_DISCOVERY_SERVER': 'robot:11811'}, 'LOCALHOST', OPEN),
    ({FORMER_DISCOVERY: '1'}, None, LOCAL), ({FORMER_DISCOVERY: '0'}, None, OPEN),
    ({'ROS_DISTRO': 'humble', DISCOVERY: 'SUBNET'}, 'SUBNET', OPEN),
    ({'ROS_DISTRO': 'humble'}, 'LOCALHOST', LOCAL),
    ({'ROS_SECURITY_ENABLE': '', DISCOVERY: 'OFF'}, 'OFF', LOCAL),
    ({'ROS_SECURITY_ENABLE': 'false', 'ROS_SECURITY_STRATEGY': 'Enforce'}, 'LOCALHOST', LOCAL),
    # What a parent chose that stays on this machine is not the choice of a child's user.
    ({DISCOVERY: 'SUBNET', **dict.fromkeys(PROFILES, LOCAL)}, 'SUBNET', OPEN)])
def test_what_is_chosen(given: Any, variables: dict[str, str], reach: str | None,
                        profile: str) -> None:
    made = given(**variables)
    assert made.get(DISCOVERY) == reach
    (own,) = {made[name] for name in PROFILES}
    port = re.search(r'<offsetd3>(\d+)</offsetd3>', Path(own).read_text())
    assert port and 11 <= int(port[1]) < 111 and int(port[1]) % 2 == 1
    assert Path(own).read_text() == Path(profile).read_text().replace('>11<', f'>{port[1]}<')
    assert given(**made)[PROFILES[0]] == own, 'a child of ours chooses anew'
    if FORMER_DISCOVERY not in variables:  # by which Humble hears of it
        humble = made.get('ROS_DISTRO') == 'humble'
        assert made.get(FORMER_DISCOVERY) == ('1' if humble and reach == 'LOCALHOST' else None)


@pytest.mark.parametrize('name', PROFILES)
def test_the_users_profile_wins(given: Any, tmp_path: Path, name: str) -> None:
    mine = tmp_path / 'mine.xml'
    mine.write_text('<dds/>')
    made = given(**{name: str(mine)})
    assert {key: made[key] for key in PROFILES if key in made} == {name: str(mine)}


def test_where_no_file_can_be_written_the_port_is_the_usual_one(
        given: Any, tmp_path: Path) -> None:
    own = Path(given(ROS_LOG_DIR=str(tmp_path))[PROFILES[0]])
    assert own.parent == tmp_path
    own.unlink()
    own.mkdir()  # root may write everywhere but here
    assert given(ROS_LOG_DIR=str(tmp_path))[PROFILES[0]] == LOCAL


def test_profiles_differ_in_the_interface_only() -> None:
    def settings(path: str) -> list[tuple[str, str]]:
        return [(re.sub(r'\{.*\}', '', e.tag), (e.text or '').strip())
                for e in ElementTree.parse(path).getroot().iter()]
    local = settings(LOCAL)
    at = local.index(('address', '127.0.0.1'))
    assert local[at - 1] == ('interfaceWhiteList', '')
    assert local[:at - 1] + local[at + 1:] == settings(OPEN)


PORTS = """
from pathlib import Path
from dtvla_ros.ros.environment import PROFILES, prepare
prepare()
import os, rclpy
rclpy.init()
node = rclpy.create_node('one')
threads = Path('/proc/self/task').glob('*/comm')
print(os.environ[PROFILES[0]], *(thread.read_text() for thread in threads))
"""


@pytest.mark.skipif('fastrtps' not in os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp'),
                    reason='another middleware')
def test_a_process_receives_data_at_a_port_of_its_own() -> None:
    domain = fresh_domain()
    profile, *threads = subprocess.run(
        [sys.executable, '-c', PORTS], env={**os.environ, 'ROS_DOMAIN_ID': domain},
        capture_output=True, text=True, check=True).stdout.split()
    offset = int(Path(profile).stem.rpartition('-')[2])
    port = 7400 + 250 * int(domain) + offset
    assert {f'dds.udp.{port}', f'dds.shm.{port}'} <= set(threads), threads


class Machine:
    """Stands for a machine: a network and shared memory of its own."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._talkers: dict[str, subprocess.Popen[bytes]] = {}
        self._keeper = subprocess.Popen(
            ['unshare', '--net', '--mount', 'sh', '-c',
             'mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo up && exec cat'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._keeper.stdout is not None
        self.is_up = self._keeper.stdout.readline() == 'up\n'
        self.pid = self._keeper.pid

    def inside(self, *words: str) -> list[str]:
        return ['nsenter', f'--target={self.pid}', '--net', '--mount', *words]

    def talk(self, name: str, **variables: str) -> None:
        """Start a node that says its name; without variables as a user starts it."""
        left = {key: value for key, value in os.environ.items()
                if key not in (*PROFILES, DISCOVERY)}
        with (self._logs / f'{name}.log').open('wb') as log:
            self._talkers[name] = subprocess.Popen(
                self.inside(sys.executable, str(PEER)), stdout=log, stderr=subprocess.STDOUT,
                env={**left, 'PEER': 'talker', 'NAME': name, **variables})

    def said_by(self, name: str) -> list[str]:
        """Return 'ready', then the names a node has heard."""
        return (self._logs / f'{name}.log').read_text().split()

    def bound(self, name: str) -> set[tuple[str, int]]:
        """Return addresses and ports of a node's UDP sockets."""
        process = Path('/proc', str(self._talkers[name].pid))
        mine = {match[1] for link in (process / 'fd').iterdir()
                if (match := re.fullmatch(r'socket:\[(\d+)\]', os.readlink(link)))}
        rows = [line.split() for line in (process / 'net' / 'udp').read_text().splitlines()[1:]]
        ends = [row[1].split(':') for row in rows if row[9] in mine]
        return {('.'.join(str(byte) for byte in reversed(bytes.fromhex(address))), int(port, 16))
                for address, port in ends}

    def groups(self) -> str:
        return Path('/proc', str(self.pid), 'net', 'igmp').read_text()

    def close(self) -> None:
        for process in (*self._talkers.values(), self._keeper):
            process.kill()
            process.wait()


def _until(condition: Callable[[], Any], seconds: float = PATIENCE) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines, 10.9.0.1 and 10.9.0.2, with a cable between them."""
    if not all(map(shutil.which, ('unshare', 'nsenter', 'ip'))):
        pytest.skip('no unshare, nsenter or ip')
    one, other = Machine(tmp_path), Machine(tmp_path)
    try:
        if not (one.is_up and other.is_up):
            pytest.skip('may not make network namespaces (root may)')
        commands = [['ip', 'link', 'add', 'cable', 'netns', str(one.pid), 'type', 'veth',
                     'peer', 'name', 'cable', 'netns', str(other.pid)]]
        for machine, address in ((one, '10.9.0.1/24'), (other, '10.9.0.2/24')):
            commands += [machine.inside('ip', *words.split()) for words in (
                f'addr add {address} dev cable', 'link set cable up',
                'route add 224.0.0.0/4 dev cable')]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f'{" ".join(command)}: {done.stderr.strip()}')
        yield one, other
    finally:
        one.close()
        other.close()


def _meet(here: Machine, there: Machine, mine: dict[str, str], theirs: dict[str, str]) -> bool:
    """Return whether a node hears one from there; a friend with its own variables it hears."""
    there.talk('stranger', **theirs)
    assert _until(lambda: there.said_by('stranger'))
    here.talk('listener', **mine)
    here.talk('friend', **mine)
    if mine.get(DISCOVERY) == 'OFF':
        assert _until(lambda: here.said_by('listener') and here.said_by('friend'))
    else:
        assert _until(lambda: 'friend' in here.said_by('listener'))
    return _until(lambda: 'stranger' in here.said_by('listener'), ABSENCE)


STRANGER = {DISCOVERY: 'SUBNET', 'ROS_STATIC_PEERS': '10.9.0.1'}
LOCAL_FILE = 'a copy of the local profile, as a file of the user'


@pytest.mark.parametrize(('there', 'mine', 'theirs', 'meet'), [
    (1, {}, {}, False), (1, {}, STRANGER, False), (1, {DISCOVERY: 'OFF'}, STRANGER, False),
    (1, {FORMER_DISCOVERY: '1'}, STRANGER, False),
    (1, {DISCOVERY: 'SUBNET'}, {DISCOVERY: 'SUBNET'}, True),
    (1, {'ROS_STATIC_PEERS': '10.9.0.2'}, {'ROS_STATIC_PEERS': '10.9.0.1'}, True),
    (1, {DISCOVERY: 'SUBNET', PROFILES[0]: LOCAL_FILE}, {DISCOVERY: 'SUBNET'}, False),
    (0, {}, {}, True), (0, {}, {DISCOVERY: 'SUBNET'}, True),
    (0, {}, {'ROS_STATIC_PEERS': '10.9.0.2'}, True),
    (0, {}, {DISCOVERY: 'OFF'}, False), (0, {DISCOVERY: 'OFF'}, {}, False),
    (0, {'ROS_DOMAIN_ID': '7'}, {'ROS_DOMAIN_ID': '8'}, False)])
def test_another_machine_and_the_same(
        machines: tuple[Machine, Machine], tmp_path: Path, there: int, mine: dict[str, str],
        theirs: dict[str, str], meet: bool) -> None:
    copy = tmp_path / 'mine.xml'
    copy.write_bytes(Path(LOCAL).read_bytes())
    mine = {name: str(copy) if value == LOCAL_FILE else value for name, value in mine.items()}
    assert _meet(machines[0], machines[there], mine, theirs) is meet


def test_sockets_listen_on_loopback(machines: tuple[Machine, Machine]) -> None:
    """Sockets on ephemeral ports send only; Fast DDS never reads from them."""
    machine, _ = machines
    first, last = map(int, Path('/proc/sys/net/ipv4/ip_local_port_range').read_text().split())

    def listening(name: str, **variables: str) -> set[str]:
        machine.talk(name, **variables)
        assert _until(lambda: machine.said_by(name))
        ends = {end for end in machine.bound(name) if not first <= end[1] <= last}
        assert len(ends) >= 2  # for discovery and for data
        return {address for address, _ in ends}
    assert listening('first') == listening('second') == {'127.0.0.1'}
    assert listening('third', **{DISCOVERY: 'OFF'}) == {'127.0.0.1'}
    discovery_group = '0100FFEF'  # 239.255.0.1
    assert discovery_group not in machine.groups()
    assert listening('fourth', **{DISCOVERY: 'SUBNET'}) == {'0.0.0.0'}
    assert discovery_group in machine.groups()
