from pathlib import Path

import pytest

from dtvla_ros.policy import language
from dtvla_ros.training.language.command import train_language

ROOT = Path(__file__).parents[2]
CONFIG, DEVELOPMENT = ROOT / 'config/train/language.yaml', ROOT / 'config/instructions/dev.yaml'


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    out = tmp_path_factory.mktemp('language') / 'made'
    train_language(out, CONFIG, DEVELOPMENT, ROOT / 'models/nano', minutes=0.1)
    return language.Matcher(out)


def test_a_network_that_was_trained_for_a_moment_tells_a_task_from_talk(network):
    tasks = ('put the lemon in the blue bin',)
    asked, talk = (network.probabilities(text, tasks)[0]
                   for text in ('put the lemon in the blue bin', 'what time is it'))
    assert 0.0 <= talk < asked <= 1.0
