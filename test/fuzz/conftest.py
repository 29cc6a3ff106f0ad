"""How many mutations are tried."""

from __future__ import annotations

import pytest

QUICK, LONG = 2_000, 100_000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--mutations', type=int, metavar='N', help='mutations over all kinds of '
                     f'test/fuzz/mutations.py, instead of {QUICK} and, slow, {LONG}')


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give ``total``, the count over all kinds, to the tests that ask for it."""
    if 'total' in metafunc.fixturenames:
        given = metafunc.config.getoption('--mutations', default=None)
        metafunc.parametrize('total', [given] if given else [
            QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
