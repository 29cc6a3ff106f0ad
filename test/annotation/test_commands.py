"""The commands, one after another, as a person types them."""

import json
from functools import partial

from typer.testing import CliRunner

from dtvla_ros.cli import app
from dtvla_ros.errors import UserError


def dtvla(folders, *arguments, fails=None):
    result = CliRunner().invoke(app, ['annotate', *map(str, (*arguments, *folders))])
    if fails is None:
        assert result.exit_code == 0, (result.output, result.exception)
    else:
        assert isinstance(result.exception, UserError) and fails in str(result.exception)
    return result.output


def test_from_key_frames_to_a_new_dataset(root, tmp_path):
    out, to = tmp_path / 'annotation', tmp_path / 'thoughts'
    run = partial(dtvla, ('--data', root, '--out', out))
    run('label', fails='dtvla annotate keyframes')
    run('keyframes', '--max-gap', '0', fails='--max-gap')
    assert 'key frames of 12 episodes' in run('keyframes')
    guess = run('label', '--provider', 'http', '--model', 'm', '--estimate',
                '--price-in', '1', '--price-out', '1')
    assert '12 requests' in guess and 'nothing was asked' in guess
    assert not (out / 'labels.jsonl').exists() and not (out / 'ledger.jsonl').exists()
    assert 'issues: none' in run('label')
    for provider, message in (('oracle', "'oracle'; there is: rules, http"),
                              ('http', 'needs --model'), ('local', 'needs --model'),
                              ('replay', 'needs --answers')):
        run('label', '--provider', provider, fails=message)
    run('label', '--labels', tmp_path / 'elsewhere.jsonl', fails='beside the answers')
    assert 'of 5 episodes' in run('review', '--sample', 5)
    run('fill', '--to', to, fails='dtvla annotate apply')
    assert 'accepted as faultless' in run('apply', '--accept-rest')
    shown = run('fill', '--to', to, '--steps', 30, '--json', tmp_path / 'fill.json')
    assert 'held-out episodes' in shown and 'phase' in shown
    assert json.loads((tmp_path / 'fill.json').read_text())['accepted_frames'] > 50
    assert run('agree', '--with', to).startswith(
        f'{to} and {root} on all frames of episodes 0 to 11')
    run('agree', '--episodes', 'few', fails='FIRST:END')
    run('agree', '--episodes', '200:997', fails=f'{root} has episodes 0 to 11')
    run('fill', '--to', to, fails='nothing is written in place')
