"""What the review page embeds, does in a browser and exports, and what becomes of that."""

import html
import json
import re
import shutil
import subprocess

import pytest

from dtvla_ros.annotation import review
from dtvla_ros.annotation.keyframes import KeyframeOptions, read_keyframes, write_keyframes
from dtvla_ros.annotation.label import LABELS, LabelOptions, label
from dtvla_ros.annotation.providers import RuleProvider
from dtvla_ros.errors import UserError

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
EVIL = '</script><script>document.title = "owned"</script>'


def write_lines(path, *rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


@pytest.fixture
def case(source, tmp_path):
    """Return source, folder, rows of labels and page; one row has a finding and an evil reason."""
    write_keyframes(source, tmp_path, KeyframeOptions(), 3)
    path = tmp_path / LABELS
    label(source, read_keyframes(tmp_path, source), path, RuleProvider(), LabelOptions())
    header, *rows = map(json.loads, path.read_text().splitlines())
    rows[1]['findings'] = [{'frame': 0, 'kind': 'gripper', 'text': 'holding can with open hands'}]
    rows[1]['labels'][1]['reason'] = EVIL
    write_lines(path, header, *rows)
    review.review(source, tmp_path, sample=2)
    return source, tmp_path, rows, (tmp_path / 'review.html').read_text()


def embedded(page):
    return json.loads(re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_embeds_everything(case):
    page = case[-1]
    episodes = {episode['episode']: episode for episode in embedded(page)['episodes']}
    assert len(episodes) == 2  # with the one that has an issue
    assert not re.search(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', page) and EVIL not in page
    frame = episodes[1]['frames'][0]
    assert frame['issues'] == ['gripper: holding can with open hands']
    assert len(frame['images']) == 2 and 'gripper' in frame['motion']
    assert frame['images'][0].startswith('data:image/jpeg;base64,/9j/')


@pytest.mark.skipif(CHROMIUM is None, reason='needs chromium')
def test_a_browser_accepts_edits_rejects_and_exports(case):
    """Clicks the page's own buttons in a real browser and reads what it would download."""
    source, folder, _, page = case
    shown = embedded(page)['episodes']
    first = next(episode for episode in shown if episode['episode'] != 1)
    number, frames = first['episode'], first['frames']
    a, b, c = (frames[k]['frame'] for k in range(3))
    clicks = f"""<script>
      const card = frame => document.getElementById('{number}:' + frame);
      const press = (frame, what) => card(frame).querySelector('[data-do=' + what + ']').click();
      press({a}, 'accept');
      press({b}, 'edit');
      const form = card({b}).querySelector('form');
      form.elements.phase.value = 'wait';
      form.elements.reason.value = 'seen by a person';
      form.querySelector('button').click();
      press({c}, 'reject');
      document.getElementById('clean').click();
      document.body.replaceChildren(document.title + '|' + exportText());
    </script></body>"""
    (folder / 'clicked.html').write_text(page.replace('</body>', clicks))
    done = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom',
         f'--user-data-dir={folder / "profile"}', f'file://{folder / "clicked.html"}'],
        capture_output=True, text=True, timeout=200)
    body = html.unescape(re.search('<body>(.*?)</body>', done.stdout, re.S)[1])
    title, _, text = body.partition('|')
    assert title == f'Review of {LABELS}'  # the label's script did not run
    (folder / 'decisions.jsonl').write_text(text.strip() + '\n')
    _, *rows = map(json.loads, text.strip().splitlines())
    decisions = {(row['episode'], row['frame']): row for row in rows}
    assert decisions[number, a]['decision'] == 'accept'
    assert decisions[number, b]['label'] == frames[1]['label'] | {
        'phase': 'wait', 'reason': 'seen by a person'}
    assert (1, 0) not in decisions  # it has a finding: nobody accepts it in passing
    review.apply(source, folder, decisions=[folder / 'decisions.jsonl'])
    accepted = review.read_accepted(folder / review.ACCEPTED, source)
    kept = dict(accepted[number])
    assert kept[b].phase == 'wait' and c not in kept and a in kept and len(accepted[1]) > 3


def test_undecided_labels_are_left_out_unless_faultless(case):
    source, folder, *_ = case
    assert set(review.apply(source, folder)) == {'undecided'}
    assert review.apply(source, folder, accept_rest=True)['undecided'] == 1
    accepted = review.read_accepted(folder / review.ACCEPTED, source)
    assert set(accepted) == {0, 1, 2} and 0 not in dict(accepted[1])


def test_edits_are_checked(case):
    source, folder, rows, page = case
    header = {'kind': 'decisions'} | {key: embedded(page)[key] for key in ('dataset', 'labels')}
    first = {k: v for k, v in rows[0]['labels'][0].items() if k != 'frame'}
    row = {'episode': 0, 'frame': 0, 'decision': 'edit', 'label': first | {'phase': 'lift'}}

    def apply(row, header=header):
        return review.apply(source, folder, decisions=[
            write_lines(folder / 'decisions.jsonl', header, row)])

    assert apply(row)['issues that remain'] == 2  # nothing is held, and the gripper is open
    accepted = review.read_accepted(folder / review.ACCEPTED, source)
    assert dict(accepted[0])[0].phase == 'lift'
    for wrong, message in (({'label': first | {'object': 'moon'}}, 'frame 0: .*object'),
                           ({'frame': 7777}, 'frame 7777'),
                           ({'decision': 'maybe'}, "decision 'maybe'")):
        with pytest.raises(UserError, match=message):
            apply(row | wrong)
    with pytest.raises(UserError, match='other labels'):
        apply(row, header | {'labels': '0123'})
    with pytest.raises(UserError, match='download it'):
        review.apply(source, folder, decisions=[folder / 'missing.jsonl'])
