"""Environments of the suites; one per file and kind, since building one takes seconds."""

import pytest

import dtvla_sim


def environment(suite, **options):
    """Return a fixture of an environment that lives as long as a test file."""
    @pytest.fixture(scope='module')
    def made():
        env = dtvla_sim.make(suite, **options)
        yield env
        env.close()

    return made


tabletop = environment('tabletop', image_size=64)
objects = environment('libero_object', image_size=64)
spatial = environment('libero_spatial', image_size=64)
goal = environment('libero_goal', starts='random', image_size=64)
ten = environment('libero_10', starts='random', image_size=64)
