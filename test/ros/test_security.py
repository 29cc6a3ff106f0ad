"""ROS_SECURITY_*: secured, or refused, or warned of; never dropped silently."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from middleware.keystore import make_keystore
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

from dtvla_ros.errors import UserError

if ros.BACKEND != 'dds':
    pytest.skip('rcl and rmw do it under rclpy', allow_module_level=True)

from dtvla_ros.middleware.dds import security

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def _can_encrypt() -> bool:
    try:
        security.require_build()
    except security.Unavailable:
        return False
    return True


secure_build = pytest.mark.skipif(not _can_encrypt(), reason='this Cyclone DDS has no security')
plain_build = pytest.mark.skipif(_can_encrypt(), reason='this Cyclone DDS has security')


@pytest.fixture(scope='module')
def keystore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keystore(tmp_path_factory.mktemp('security') / 'keystore', '/one', '/two')


def _asked(keystore: Path | str, strategy: str = 'Enforce', **more: str) -> dict[str, str]:
    return {'ROS_SECURITY_ENABLE': 'true', 'ROS_SECURITY_STRATEGY': strategy,
            'ROS_SECURITY_KEYSTORE': str(keystore), **more}


@pytest.mark.parametrize('environment', [
    {}, {'ROS_SECURITY_ENABLE': 'false', 'ROS_SECURITY_STRATEGY': 'Enforce'},
    {'ROS_SECURITY_ENABLE': ''}])
def test_not_asked_for(environment: dict[str, str]) -> None:
    assert security.security_config(environment, '/') == ''


@pytest.mark.parametrize('environment', [
    {'ROS_SECURITY_ENABLE': 'True'}, {'ROS_SECURITY_ENABLE': '1'},
    _asked('/k', strategy='enforce'), _asked('/k', strategy='yes')])
def test_what_ros_would_take_for_no_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(UserError, match='ROS_SECURITY_'):
        security.security_config(environment, '/')


def test_what_is_missing_is_named(keystore: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='ROS_SECURITY_KEYSTORE is not set'):
        security.security_config(_asked(''), '/one')
    with pytest.raises(UserError, match=r'enclaves/three.*create_enclave'):
        security.security_config(_asked(keystore), '/three')
    with pytest.raises(UserError, match='enclaves/three'):
        security.security_config(
            _asked(keystore, ROS_SECURITY_ENCLAVE_OVERRIDE='/three'), '/one')
    broken = tmp_path / 'enclaves' / 'one'
    broken.mkdir(parents=True)
    for name in security.FILES.values():
        with pytest.raises(UserError, match=name):
            security.security_config(_asked(tmp_path), '/one')
        (broken / name).write_text('')


def test_permissive_says_that_it_runs_unsecured(keystore: Path,
                                                capfd: pytest.CaptureFixture[str]) -> None:
    assert security.security_config(_asked(keystore, 'Permissive'), '/three') == ''
    assert 'UNSECURED' in capfd.readouterr().err


@plain_build
def test_a_build_without_security_refuses_to_start(keystore: Path, start_peer: Any) -> None:
    peer = start_peer('--ros-args', '--enclave', '/one', **_asked(keystore))
    out, err = peer.communicate(timeout=20)
    assert (peer.returncode, out) == (2, '')
    assert err.startswith('error: ROS_SECURITY_STRATEGY=Enforce, but this Cyclone DDS was built')
    assert err.count('\n') == 1


@plain_build
def test_a_build_without_security_warns_if_that_is_allowed(keystore: Path,
                                                           start_peer: Any) -> None:
    peer = start_peer('--ros-args', '--enclave', '/one', **_asked(keystore, 'Permissive'))
    assert peer.stdout.readline() == 'ready\n'
    peer.terminate()
    assert 'UNSECURED: this Cyclone DDS was built without security' in peer.stderr.read()


def test_settings_name_the_enclaves_files(tmp_path: Path) -> None:
    folder = make_keystore(tmp_path / 'a & b', '/robot/arm') / 'enclaves' / 'robot' / 'arm'
    (folder / security.REVOKED).write_text('')
    root = ElementTree.fromstring(security._element(security._files(folder)))
    texts = {element.tag: element.text for element in root.iter() if element.text}
    assert texts == {**{tag: f'file:{(folder / name).resolve()}'
                        for tag, name in security.FILES.items()},
                     'CRL': f'file:{(folder / security.REVOKED).resolve()}'}
    assert {element.get('path') for element in root.iter('Library')} == set(
        security.PLUGINS.values())


def _hears(make_node: Any, spin_until: Any, patience: float) -> bool:
    words: list[str] = []
    node = make_node('listener', ('--ros-args', '--enclave', '/two'))
    node.create_subscription(String, 'word', lambda m: words.append(m.data), LATCHED)
    return bool(spin_until(lambda: words, node, timeout=patience))


@secure_build
@pytest.mark.parametrize(('mine', 'heard'), [('same', True), ('foreign', False),
                                             ('none', False)])
def test_only_who_has_the_keystore_hears(keystore: Path, tmp_path: Path, make_node: Any,
                                         spin_until: Any, start_peer: Any, mine: str, heard: bool,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    peer = start_peer('--ros-args', '--enclave', '/one', **_asked(keystore))
    assert peer.stdout.readline() == 'ready\n'
    if mine != 'none':
        own = keystore if mine == 'same' else make_keystore(tmp_path / 'other', '/two')
        for name, value in _asked(own).items():
            monkeypatch.setitem(os.environ, name, value)
    assert _hears(make_node, spin_until, 20.0 if heard else 4.0) is heard
