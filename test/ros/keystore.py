"""A keystore as ``ros2 security create_keystore`` makes it, with the openssl program."""

from __future__ import annotations

import subprocess
from pathlib import Path

GOVERNANCE = """<?xml version="1.0" encoding="UTF-8"?>
<dds><domain_access_rules><domain_rule>
<domains><id_range><min>0</min><max>230</max></id_range></domains>
<allow_unauthenticated_participants>false</allow_unauthenticated_participants>
<enable_join_access_control>true</enable_join_access_control>
<discovery_protection_kind>ENCRYPT</discovery_protection_kind>
<liveliness_protection_kind>ENCRYPT</liveliness_protection_kind>
<rtps_protection_kind>SIGN</rtps_protection_kind>
<topic_access_rules><topic_rule><topic_expression>*</topic_expression>
<enable_discovery_protection>true</enable_discovery_protection>
<enable_liveliness_protection>true</enable_liveliness_protection>
<enable_read_access_control>true</enable_read_access_control>
<enable_write_access_control>true</enable_write_access_control>
<metadata_protection_kind>ENCRYPT</metadata_protection_kind>
<data_protection_kind>ENCRYPT</data_protection_kind>
</topic_rule></topic_access_rules></domain_rule></domain_access_rules></dds>
"""
PERMISSIONS = """<?xml version="1.0" encoding="UTF-8"?>
<dds><permissions><grant name="{name}"><subject_name>CN={name}</subject_name>
<validity><not_before>2020-01-01T00:00:00</not_before><not_after>2099-01-01T00:00:00</not_after>
</validity><allow_rule><domains><id_range><min>0</min><max>230</max></id_range></domains>
<publish><topics><topic>*</topic></topics></publish>
<subscribe><topics><topic>*</topic></topics></subscribe></allow_rule>
<default>DENY</default></grant></permissions></dds>
"""


def _openssl(*words: str | Path) -> None:
    subprocess.run(['openssl', *map(str, words)], check=True, capture_output=True)


def _key(path: Path) -> None:
    _openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', path)


def _sign(text: str, into: Path, ca: Path, key: Path) -> None:
    plain = into.with_suffix('.xml')
    plain.write_text(text)
    _openssl('smime', '-sign', '-text', '-in', plain, '-out', into, '-signer', ca, '-inkey', key)


def make_keystore(root: Path, *enclaves: str) -> Path:
    """Make a certificate authority and a folder for each enclave ('/name'); return ``root``."""
    root.mkdir(parents=True)
    ca, ca_key = root / 'ca.cert.pem', root / 'ca.key.pem'
    _key(ca_key)
    _openssl('req', '-x509', '-new', '-key', ca_key, '-subj', '/CN=test CA', '-days', '365',
             '-out', ca)
    for enclave in enclaves:
        folder = root / 'enclaves' / enclave.lstrip('/')
        folder.mkdir(parents=True)
        subject = enclave.strip('/').replace('/', '_')  # openssl takes / for a separator
        _key(folder / 'key.pem')
        _openssl('req', '-new', '-key', folder / 'key.pem', '-subj', f'/CN={subject}',
                 '-out', folder / 'request.pem')
        _openssl('x509', '-req', '-in', folder / 'request.pem', '-CA', ca, '-CAkey', ca_key,
                 '-CAcreateserial', '-days', '365', '-out', folder / 'cert.pem')
        for name in ('identity_ca.cert.pem', 'permissions_ca.cert.pem'):
            (folder / name).write_bytes(ca.read_bytes())
        _sign(GOVERNANCE, folder / 'governance.p7s', ca, ca_key)
        _sign(PERMISSIONS.format(name=subject), folder / 'permissions.p7s', ca, ca_key)
    return root
