"""ROS_SECURITY_*: secured, or refused; never dropped silently under Enforce."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ros.keystore import make_keystore

from dtvla_ros.errors import UserError
from dtvla_ros.ros import environment

PEER = Path(__file__).with_name('peer.py')
PATIENCE = 60.0
ABSENCE = 4.0  # who is not heard this long after a friend is not heard [s]
pytestmark = pytest.mark.skipif(not shutil.which('openssl'), reason='no openssl')


@pytest.fixture(scope='module')
def keystore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keystore(tmp_path_factory.mktemp('security') / 'keystore', '/one', '/two')


def _asked(keystore: Path, strategy: str = 'Enforce') -> dict[str, str]:
    return {'ROS_SECURITY_ENABLE': 'true', 'ROS_SECURITY_STRATEGY': strategy,
            'ROS_SECURITY_KEYSTORE': str(keystore)}


def _enclave(name: str) -> tuple[str, ...]:
    return '--ros-args', '--enclave', name


@pytest.fixture(scope='module')
def can_encrypt(keystore: Path) -> bool:
    """Whether this RMW has been built with security."""
    done = subprocess.run([sys.executable, str(PEER), *_enclave('/one')], capture_output=True,
                          text=True, timeout=PATIENCE,
                          env={**os.environ, **_asked(keystore), 'PEER': 'ending'})
    assert done.returncode in (2, 3), done.stderr
    return done.returncode == 3


@pytest.mark.parametrize(('name', 'value'), [
    ('ROS_SECURITY_ENABLE', 'True'), ('ROS_SECURITY_ENABLE', '1'),
    ('ROS_SECURITY_STRATEGY', 'enforce'), ('ROS_SECURITY_STRATEGY', 'yes'),
    ('ROS_SECURITY_KEYSTORE', '')])
def test_what_ros_would_take_for_no_is_refused(monkeypatch: Any, name: str, value: str) -> None:
    for strategy in ('Enforce', 'Permissive'):
        monkeypatch.setattr(os, 'environ', {**_asked(Path('keystore'), strategy), name: value})
        with pytest.raises(UserError, match=f'{name}={value!r}|{name} is not set'):
            environment.prepare()


def test_missing_enclave_is_refused_but_permissive_goes_on(keystore: Path, start_peer: Any,
                                                           refusal: Any) -> None:
    """The latter is ROS's own rule, and why the documentation asks for Enforce."""
    assert 'enclaves/three' in refusal(*_enclave('/three'), **_asked(keystore))
    peer = start_peer(*_enclave('/three'), **_asked(keystore, 'Permissive'))
    assert peer.stdout.readline() == 'ready\n'


def test_an_enclave_that_cannot_be_used_is_refused(keystore: Path, tmp_path: Path, refusal: Any,
                                                   can_encrypt: bool) -> None:
    if not can_encrypt:
        for strategy in ('Enforce', 'Permissive'):
            assert "doesn't have the security libraries" in refusal(
                *_enclave('/one'), **_asked(keystore, strategy))
        return
    incomplete = make_keystore(tmp_path / 'keystore', '/one')
    (incomplete / 'enclaves' / 'one' / 'key.pem').unlink()
    assert 'security' in refusal(*_enclave('/one'), **_asked(incomplete))


@pytest.mark.parametrize('who', ['foreign', 'unsecured'])
def test_only_who_has_the_keystore_hears(keystore: Path, tmp_path: Path, start_peer: Any,
                                         can_encrypt: bool, who: str) -> None:
    if not can_encrypt:
        pytest.skip('this RMW has no security')

    def talk(name: str, enclave: str, variables: dict[str, str]) -> Any:
        peer = start_peer(*_enclave(enclave), PEER='talker', NAME=name, **variables)
        assert peer.stdout.readline() == 'ready\n'
        return peer
    foreign = _asked(make_keystore(tmp_path / 'other', '/two')) if who == 'foreign' else {}
    stranger = talk('stranger', '/two', foreign)
    one, two = talk('one', '/one', _asked(keystore)), talk('two', '/two', _asked(keystore))
    assert (one.stdout.readline(), two.stdout.readline()) == ('two\n', 'one\n')
    time.sleep(ABSENCE)
    for peer in (stranger, one, two):
        peer.terminate()
        assert peer.communicate(timeout=PATIENCE)[0] == ''
