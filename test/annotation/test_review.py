"""What the review page embeds, does in a browser and exports, and what becomes of that."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess

import pytest
from PIL import Image

from dtvla_ros.annotation import keyframes as keyframes_module
from dtvla_ros.annotation import review
from dtvla_ros.annotation.keyframes import KeyframeOptions, read_keyframes
from dtvla_ros.annotation.label import LABELS, LabelOptions, label
from dtvla_ros.annotation.providers import RuleProvider
from dtvla_ros.errors import UserError
from dtvla_ros.files import Journal

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
EVIL = '</script><script>document.title = "owned"</script>'


@pytest.fixture
def case(source, tmp_path):
    """Return source, folder, hash of the labels and their rows; one has a finding, one is evil."""
    keyframes_module.write_keyframes(source, tmp_path, KeyframeOptions(), 3)
    path = tmp_path / LABELS
    label(source, read_keyframes(tmp_path, source), path, RuleProvider(), LabelOptions())
    header, *rows = map(json.loads, path.read_text().splitlines())
    rows[1]['findings'] = [{'frame': 0, 'kind': 'gripper', 'text': 'holding can with open hands'}]
    rows[1]['labels'][1]['reason'] = EVIL
    path.write_text(''.join(json.dumps(row) + '\n' for row in (header, *rows)))
    return (source, tmp_path, *review.read_labels(path, source))


def page_of(case, path):
    source, _, digest, rows = case
    data = review.page_data(source, digest, rows, [0, 1])
    review.write_page(path, 'Review <of> labels', data)
    return data


def embedded(page):
    return json.loads(re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_embeds_everything(case, tmp_path):
    data = page_of(case, tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text()
    assert embedded(page) == json.loads(json.dumps(data))
    assert not re.search(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', page)
    assert EVIL not in page and '<of>' not in page
    frame = data['episodes'][1]['frames'][0]
    assert frame['issues'] == ['gripper: holding can with open hands']
    assert len(frame['images']) == 2 and 'gripper' in frame['motion']
    kind, _, image = frame['images'][0].partition(',')
    assert kind == 'data:image/jpeg;base64'
    assert Image.open(io.BytesIO(base64.b64decode(image))).size == (32, 32)


def test_findings_are_looked_at_first(case):
    rows = case[3]
    assert review.choose(rows, 1, 0) == [1]
    assert review.choose(rows, 99, 0) == [0, 1, 2]
    assert review.choose(rows, 2, 5) == review.choose(rows, 2, 5)


@pytest.mark.skipif(CHROMIUM is None, reason='needs chromium')
def test_a_browser_accepts_edits_rejects_and_exports(case, tmp_path):
    """Clicks the page's own buttons in a real browser and reads what it would download."""
    source, folder, digest, rows = case
    data = page_of(case, tmp_path / 'page.html')
    frames = data['episodes'][0]['frames']
    a, b, c = (frames[k]['frame'] for k in range(3))
    clicks = f"""<script>
      const card = key => document.getElementById(key);
      const press = (key, what) => card(key).querySelector('[data-do=' + what + ']').click();
      press('0:{a}', 'accept');
      press('0:{b}', 'edit');
      const form = card('0:{b}').querySelector('form');
      form.elements.phase.value = 'wait';
      form.elements.reason.value = 'seen by a person';
      form.querySelector('button').click();
      press('0:{c}', 'reject');
      document.getElementById('clean').click();
      document.body.replaceChildren(document.title + '|' + exportText());
    </script></body>"""
    page = (tmp_path / 'page.html').read_text()
    (tmp_path / 'clicked.html').write_text(page.replace('</body>', clicks))
    done = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu',
         f'--user-data-dir={tmp_path / "profile"}', '--dump-dom',
         f'file://{tmp_path / "clicked.html"}'], capture_output=True, text=True, timeout=200)
    body = html.unescape(re.search('<body>(.*?)</body>', done.stdout, re.S)[1])
    title, _, text = body.partition('|')
    assert title == 'Review <of> labels'  # the label's script did not run
    (tmp_path / 'decisions.jsonl').write_text(text.strip() + '\n')
    decisions = review.read_decisions([tmp_path / 'decisions.jsonl'], source, digest)
    assert decisions[0, a]['decision'] == 'accept' and decisions[0, c]['decision'] == 'reject'
    assert decisions[0, b]['label'] == frames[1]['label'] | {
        'phase': 'wait', 'reason': 'seen by a person'}
    assert (1, 0) not in decisions  # it has a finding: nobody accepts it in passing
    assert decisions[1, data['episodes'][1]['frames'][2]['frame']]['decision'] == 'accept'
    review.apply_decisions(source, digest, rows, decisions, folder / review.ACCEPTED, False)
    kept = dict(review.read_accepted(folder / review.ACCEPTED, source)[0])
    assert kept[b].phase == 'wait' and c not in kept and a in kept


def decide(case, *decisions, labels=None):
    source, folder, digest, _ = case
    path = folder / 'decisions.jsonl'
    header = {'kind': 'decisions', 'dataset': source.fingerprint, 'labels': labels or digest}
    path.write_text(''.join(json.dumps(row) + '\n' for row in (header, *decisions)))
    return review.read_decisions([path], source, digest)


def merge(case, decisions, accept_rest=False):
    source, folder, digest, rows = case
    counts = review.apply_decisions(
        source, digest, rows, decisions, folder / review.ACCEPTED, accept_rest)
    if not Journal.read(folder / review.ACCEPTED, '')[1]:
        return counts, {}
    return counts, review.read_accepted(folder / review.ACCEPTED, source)


def test_undecided_labels_are_left_out_unless_faultless(case):
    counts, accepted = merge(case, {})
    assert accepted == {} and counts['undecided'] > 10
    counts, accepted = merge(case, {}, accept_rest=True)
    assert counts['undecided'] == 1 and 0 not in dict(accepted[1])
    assert set(accepted) == {0, 1, 2}


def test_edits_are_checked(case):
    source, _, _, rows = case
    first = {k: v for k, v in rows[0]['labels'][0].items() if k != 'frame'}
    row = {'episode': 0, 'frame': 0, 'decision': 'edit', 'label': first | {'phase': 'lift'}}
    counts, accepted = merge(case, decide(case, row))
    assert dict(accepted[0])[0].phase == 'lift'
    assert counts['issues that remain'] == 2  # nothing is held, and the gripper is open
    with pytest.raises(UserError, match='frame 0: .*object'):
        merge(case, decide(case, row | {'label': first | {'object': 'moon'}}))
    with pytest.raises(UserError, match='frame 7777'):
        merge(case, decide(case, row | {'frame': 7777}))
    with pytest.raises(UserError, match="decision 'maybe'"):
        decide(case, row | {'decision': 'maybe'})
    with pytest.raises(UserError, match='other labels'):
        decide(case, row, labels='0123')
    with pytest.raises(UserError, match='download it'):
        review.read_decisions([case[1] / 'missing.jsonl'], source, case[2])
