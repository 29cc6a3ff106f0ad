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


def _openssl(words: str, folder: Path) -> None:
    subprocess.run(['openssl', *words.split()], cwd=folder, check=True, capture_output=True)


def make_keystore(root: Path, *enclaves: str) -> Path:
    """Make a certificate authority and a folder for each enclave ('/name'); return ``root``."""
    root.mkdir(parents=True)
    key = 'ecparam -name prime256v1 -genkey -noout -out'
    _openssl(f'{key} ca.key.pem', root)
    _openssl('req -x509 -new -key ca.key.pem -subj /CN=CA -days 365 -out ca.cert.pem', root)
    ca, ca_key = root / 'ca.cert.pem', root / 'ca.key.pem'
    for enclave in enclaves:
        name, folder = enclave.strip('/'), root / 'enclaves' / enclave.strip('/')
        folder.mkdir(parents=True)
        _openssl(f'{key} key.pem', folder)
        _openssl(f'req -new -key key.pem -subj /CN={name} -out request.pem', folder)
        _openssl(f'x509 -req -in request.pem -CA {ca} -CAkey {ca_key} -CAcreateserial -days 365 '
                 '-out cert.pem', folder)
        for copy in ('identity_ca.cert.pem', 'permissions_ca.cert.pem'):
            (folder / copy).write_bytes(ca.read_bytes())
        for signed, text in (('governance', GOVERNANCE),
                             ('permissions', PERMISSIONS.format(name=name))):
            (folder / f'{signed}.xml').write_text(text)
            _openssl(f'smime -sign -text -in {signed}.xml -out {signed}.p7s -signer {ca} '
                     f'-inkey {ca_key}', folder)
    return root
