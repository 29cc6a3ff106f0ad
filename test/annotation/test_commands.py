"""The commands, one after another, as a person types them."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from dtvla_ros.cli import app
from dtvla_ros.errors import UserError


def dtvla(*arguments, fails=None):
    result = CliRunner().invoke(app, ['annotate', *map(str, arguments)])
    if fails is None:
        assert result.exit_code == 0, (result.output, result.exception)
    else:
        assert isinstance(result.exception, UserError), result.output
        assert fails in str(result.exception)
    return result.output


def test_from_key_frames_to_a_new_dataset(root, tmp_path):
    out, to = tmp_path / 'annotation', tmp_path / 'thoughts'
    folders = ('--data', root, '--out', out)
    dtvla('label', *folders, fails='dtvla annotate keyframes')
    assert 'key frames of 12 episodes' in dtvla('keyframes', *folders)
    guess = dtvla('label', *folders, '--provider', 'http', '--model', 'm', '--estimate',
                  '--price-in', '1', '--price-out', '1')
    assert '12 requests' in guess and 'nothing was asked' in guess
    assert not (out / 'labels.jsonl').exists() and not (out / 'ledger.jsonl').exists()
    assert 'issues: none' in dtvla('label', *folders)
    dtvla('label', *folders, '--provider', 'oracle', fails="'oracle'; there is: rules, http")
    dtvla('label', *folders, '--labels', tmp_path / 'elsewhere.jsonl', fails='beside the answers')
    assert 'of 5 episodes' in dtvla('review', *folders, '--sample', 5)
    assert (out / 'review.html').read_text().startswith('<!DOCTYPE html>')
    dtvla('fill', *folders, '--to', to, fails='dtvla annotate apply')
    assert 'accepted as faultless' in dtvla('apply', *folders, '--accept-rest')
    shown = dtvla('fill', *folders, '--to', to, '--steps', 30, '--json', tmp_path / 'fill.json')
    assert 'held-out episodes' in shown and 'phase' in shown
    facts = json.loads((tmp_path / 'fill.json').read_text())
    assert facts['filled_frames'] > facts['accepted_frames'] > 50
    shown = dtvla('agree', '--data', root, '--with', to)
    assert shown.startswith(f'{to} and {root} on all frames of episodes 0 to 11')
    dtvla('agree', *folders, '--episodes', 'few', fails='FIRST:END')
    dtvla('fill', *folders, '--to', to, fails='nothing is written in place')


def test_options_that_cannot_be_are_named(root, tmp_path):
    dtvla('keyframes', '--data', root, '--out', tmp_path, '--episodes', 1)
    for provider in ('http', 'local'):
        dtvla('label', '--data', root, '--out', tmp_path, '--provider', provider,
              fails='needs --model')
    dtvla('label', '--data', root, '--out', tmp_path, '--provider', 'replay',
          fails='needs --answers')
    for gap in ('0', '-1'):
        dtvla('keyframes', '--data', root, '--out', tmp_path / gap, '--max-gap', gap,
              fails='--max-gap')
