import shutil
from pathlib import Path

import numpy as np
import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.policy import language
from dtvla_ros.policy.understanding import NotUnderstood, Understanding

MODELS = Path(__file__).parents[2] / 'models'

TASKS = (
    'put the can in the wooden bin', 'put the lemon in the blue bin',
    'put the bread in the wooden bin', 'stack the red cube on the green cube',
    'push the green cube onto the yellow mark', 'put the red cube and the can in the blue bin')


@pytest.fixture(scope='module')
def matcher() -> language.Matcher:
    return language.Matcher(MODELS / 'language')


@pytest.mark.parametrize('typed, meant', [
    ('lemmon', 'lemon'), ('lmeon', 'lemon'), ('lemo', 'lemon'), ('limon', 'lemon'),
    ('bluue', 'blue'),
    ('teh', 'the'), ('containr', 'container'), ('cotnainr', 'container'),
    ('lemon', 'lemon'), ('banana', 'banana'), ('xqzvw', 'xqzvw'), ('ab', 'ab'),
    ('柠檬', '柠檬')])
def test_a_misspelt_word_is_the_known_one_it_is_closest_to(matcher, typed, meant):
    assert matcher.vocabulary.spell(typed) == meant


@pytest.mark.parametrize('a, b, close', [
    ('blue', 'blue', True), ('bleu', 'blue', True), ('blu', 'blue', True), ('bluee', 'blue', True),
    ('glue', 'blue', True), ('lbeu', 'blue', False), ('bl', 'blue', False), ('', 'a', True)])
def test_one_slip(a, b, close):
    assert language.one_slip_apart(a, b) == language.one_slip_apart(b, a) == close


def test_words_and_marks_of_a_sentence():
    assert language.split_words("Don't!  Lemon->bin... it's 2 柠檬") == [
        "don't", '!', 'lemon', '->', 'bin', '...', "it's", '2', '柠檬']


def test_features_of_a_pair():
    words = language.Vocabulary(('lemon', 'bin'), ('in',), ())
    rows, learnt, segments, positions = words.features([
        (['lemon', 'in'], ['in', 'bin', 'x']), (['bin'], ['lemon'])])
    assert rows.tolist() == [[0, 1, 0, 0, 2, 0], [0, 2, 1, 0, 0, 0]]
    assert learnt.tolist() == [[0, 0, 1, 1, 0, 0], [0] * 6]
    assert segments.tolist() == [[0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 0, 0]]
    assert positions.tolist() == [[0, 1, 2, 48, 49, 50], [0, 1, 48, 0, 0, 0]]


def test_a_word_without_a_pretrained_vector_is_the_same_as_itself_and_as_no_other():
    words = language.Vocabulary(('lemon', 'bin'), (), (), strangers=512)
    rows = words.features([(['ketchup', '!', 'lemon'], ['ramekin', 'ketchup'])])[0][0].tolist()
    assert rows == [0, rows[1], 0, 1, rows[4], rows[1]]
    assert {rows[1], rows[4]} <= {*range(3, 515)} and rows[1] != rows[4]
    stored = {'vectors': np.ones((2, 96), np.int8), 'scale': np.arange(96.0)}
    vectors = language.unpacked(stored, 512)
    assert vectors.shape == (515, 96) and not vectors[0].any()
    assert np.array_equal(vectors, language.unpacked(stored, 512))
    unit = vectors[3:] / np.linalg.norm(vectors[3:], axis=1, keepdims=True)
    assert np.abs(unit @ unit.T - np.eye(512)).max() < 0.6


@pytest.mark.parametrize('likely, chosen', [
    ([0.1, 0.9, 0.2], 1), ([0.1, 0.4, 0.2], None), ([0.9, 0.9, 0.2], None), ([0.5, 0.0, 0.0], 0)])
def test_one_task_is_chosen_or_none(likely, chosen):
    assert language.choose(np.array(likely), 0.5) == chosen


@pytest.mark.parametrize('said, task', [
    ('please drop the lemon into the blue box', 1), ('can -> wooden bin', 0),
    ('Could you get the loaf of bread into the wooden box, please?', 2),
    ('put the red block on top of the green block', 3), ('shove green cube to yellow patch', 4),
    ('Take the soda and the red cube, and put them into the blue bin.', 5),
    ('put teh lemmon in teh blue bin', 1)])
def test_free_wordings_are_understood(matcher, said, task):
    meant = Understanding(TASKS, 'a task', matcher).understand(said)
    assert meant.task == TASKS[task] and matcher.threshold <= meant.confidence <= 1.0


@pytest.mark.parametrize('said', [
    "don't put the lemon in the blue bin", 'put the lemon in the wooden bin', 'hello',
    'put the banana in the blue bin', 'stack the green cube on the red cube', 'asdf qwer zxcv',
    'put the lemon in the blue bin. no, wait, leave it', 'eat the lemon', 'put the lemon down'])
def test_what_asks_for_no_task_is_refused(matcher, said):
    with pytest.raises(NotUnderstood, match='nearest: "'):
        Understanding(TASKS, 'a task', matcher).understand(said)


def test_two_tasks_that_are_meant_alike_are_not_chosen_between(matcher):
    tasks = ('put the lemon in the blue bin', 'place the lemon in the blue bin')
    with pytest.raises(NotUnderstood, match='it could mean "p.* or "p.*; say which'):
        Understanding(tasks, 'a task', matcher).understand('lemon into blue box please')


def test_a_story_is_too_long(matcher):
    with pytest.raises(NotUnderstood, match='60 words; say it in fewer than 48'):
        Understanding(TASKS, 'a task', matcher).understand('lemon ' * 60)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / 'language', tmp_path / 'language'))


@pytest.mark.parametrize('name', [language.GRAPH, language.VECTORS, language.VOCABULARY])
def test_a_changed_file_is_not_read(copied, name):
    (copied / name).write_bytes(b'other' + (copied / name).read_bytes())
    with pytest.raises(UserError, match=f'{name}.*SHA-256 differs'):
        language.Matcher(copied)


def test_another_format_is_refused(copied):
    path = copied / language.MANIFEST
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match='format is not 1'):
        language.Matcher(copied)
