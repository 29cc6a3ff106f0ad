"""The golden vectors are whole: what their own table of hashes says."""

from __future__ import annotations

import hashlib

from support.golden import document, golden


def test_every_file_is_the_one_that_was_dumped():
    for name, digest in document('sha256').items():
        assert hashlib.sha256(golden(name).read_bytes()).hexdigest() == digest, name
