from pathlib import Path

from dtvla_ros.files import read_json
from dtvla_ros.policy import language
from dtvla_ros.policy.manifest import sha256
from dtvla_ros.training.language.command import train_language

ROOT = Path(__file__).parents[2]
CONFIG, DEVELOPMENT = ROOT / 'config/train/language.yaml', ROOT / 'config/instructions/dev.yaml'


def test_what_is_written_is_read_where_tasks_are_told(tmp_path):
    train_language(tmp_path / 'made', CONFIG, DEVELOPMENT, ROOT / 'models/nano', minutes=0.05)
    made, shipped = (language.Matcher(folder) for folder in (
        tmp_path / 'made', ROOT / 'models/language'))
    assert made.vocabulary == shipped.vocabulary and 0.2 <= made.threshold < 1.0
    likely = made.probabilities('put the lemon in the blue bin', ['put the lemon in the blue bin'])
    assert likely.shape == (1,) and 0.0 < likely[0] < 1.0
    manifest = read_json(tmp_path / 'made' / language.MANIFEST)
    assert manifest['config'] == sha256(CONFIG)
