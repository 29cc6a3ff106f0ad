"""SROS2: ROS's security variables as Cyclone DDS settings.

Security is never dropped silently: what was asked for and cannot be had is refused under
``ROS_SECURITY_STRATEGY=Enforce`` and warned of otherwise.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from cyclonedds import internal

from dtvla_ros.errors import UserError

from .logging import get_logger

FILES = {
    'IdentityCA': 'identity_ca.cert.pem', 'IdentityCertificate': 'cert.pem',
    'PrivateKey': 'key.pem', 'PermissionsCA': 'permissions_ca.cert.pem',
    'Governance': 'governance.p7s', 'Permissions': 'permissions.p7s'}
"""Cyclone's element -> what SROS2 calls the file in an enclave's folder."""
REVOKED = 'crl.pem'
"""List of revoked certificates, if there is one."""
PLUGINS = {'Authentication': 'dds_security_auth', 'AccessControl': 'dds_security_ac',
           'Cryptographic': 'dds_security_crypto'}
"""Cyclone's element -> the library that is loaded for it."""
_ONLY_WITH_SECURITY = 'DDS_Security_Exception_set'  # a function of libddsc


class Unavailable(Exception):
    """Security was asked for and cannot be had; the text is the reason."""


def security_config(environment: Mapping[str, str], enclave: str) -> str:
    """Return Cyclone's <Security> element, '' if ROS_SECURITY_ENABLE is not true.

    Raise UserError for values ROS would take for 'no', and under ROS_SECURITY_STRATEGY=Enforce
    when the enclave's files or Cyclone's security libraries are missing.
    """
    if _choice(environment, 'ROS_SECURITY_ENABLE', ('false', 'true')) != 'true':
        return ''
    strategy = _choice(environment, 'ROS_SECURITY_STRATEGY', ('Permissive', 'Enforce'))
    try:
        folder = _enclave_folder(environment, enclave)
        files = _files(folder)
        require_build()
    except Unavailable as reason:
        if strategy == 'Enforce':
            raise UserError(f'ROS_SECURITY_STRATEGY=Enforce, but {reason}') from None
        get_logger('security').warning(
            f'ROS_SECURITY_ENABLE=true, but this process runs UNSECURED: {reason}')
        return ''
    return _element(files)


def _choice(environment: Mapping[str, str], name: str, choices: tuple[str, str]) -> str:
    value = environment.get(name, '') or choices[0]
    if value not in choices:
        raise UserError(f'{name}={value!r}: write {choices[1]} or {choices[0]}, just so')
    return value


def _enclave_folder(environment: Mapping[str, str], enclave: str) -> Path:
    keystore = environment.get('ROS_SECURITY_KEYSTORE', '')
    if not keystore:
        raise Unavailable('ROS_SECURITY_KEYSTORE is not set: make a keystore with '
                           'ros2 security create_keystore')
    enclave = environment.get('ROS_SECURITY_ENCLAVE_OVERRIDE', '') or enclave
    folder = Path(keystore, 'enclaves', enclave.lstrip('/'))
    if not folder.is_dir():
        raise Unavailable(f'enclave {enclave} has no folder {folder}: make it with '
                           f'ros2 security create_enclave {keystore} {enclave}')
    return folder


def _files(folder: Path) -> dict[str, Path]:
    files = {element: folder / name for element, name in FILES.items()}
    for path in files.values():
        if not path.is_file():
            raise Unavailable(f'{path} is missing')
    if (folder / REVOKED).is_file():
        files['CRL'] = folder / REVOKED
    return files


def require_build() -> None:
    """Raise Unavailable unless this Cyclone DDS can encrypt, with libraries where it looks."""
    remedy = ('run these nodes on a ROS installation, or build Cyclone DDS 11.0.1 with '
              '-DENABLE_SECURITY=ON and its Python package against it (docs/security.md)')
    if not hasattr(internal.DDS._dll_handle, _ONLY_WITH_SECURITY):
        raise Unavailable('this Cyclone DDS was built without security, as the cyclonedds wheel '
                          f'is: {remedy}')
    prefix, suffix = {'darwin': ('lib', '.dylib'), 'win32': ('', '.dll')}.get(
        sys.platform, ('lib', '.so'))
    for library in PLUGINS.values():
        try:
            ctypes.CDLL(f'{prefix}{library}{suffix}')
        except OSError as error:
            raise Unavailable(f"Cyclone DDS's {library} cannot be loaded ({error}): put it on the "
                              f'library path, or {remedy}') from None


def _element(files: Mapping[str, Path]) -> str:
    def group(name: str, *elements: str) -> str:
        library = PLUGINS[name]
        task = {'Authentication': 'authentication', 'AccessControl': 'access_control',
                'Cryptographic': 'crypto'}[name]
        inside = ''.join(f'<{element}>{escape(f"file:{files[element].resolve()}")}</{element}>'
                         for element in elements if element in files)
        return (f'<{name}><Library path="{library}" initFunction="init_{task}" '
                f'finalizeFunction="finalize_{task}"/>{inside}</{name}>')
    return ('<Security>'
            + group('Authentication', 'IdentityCertificate', 'IdentityCA', 'PrivateKey', 'CRL')
            + group('Cryptographic')
            + group('AccessControl', 'Governance', 'PermissionsCA', 'Permissions')
            + '</Security>')
