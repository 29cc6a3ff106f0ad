"""Code and docs use the field's words; the first version's stand only where files keep them."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('dtvla_ros', 'sim', 'launch', 'config', 'docs', 'benchmarks')
WORDS = re.compile(
    r'\b(ThinkAct|think_act|Thinker|lay_out|told_apart|lessons?|telling|tickets?|patience|rivals?|'
    r'starved?|farewell|sinks?|drift|lanes?|wander|shove|Drafting|Finding|Lack|Story|Stretch|desk|'
    r'lean|tally|house|pictures?|heart|rewind|seam)\b')
# Keys, kinds and prompts as files of earlier versions hold them, texts that faults' table has, and
# what people say.
KEPT = {
    'dtvla_ros/annotation/label.py': "'pictures': question.images",
    'dtvla_ros/annotation/providers.py': "'pictures'",
    'dtvla_ros/annotation/question.py': 'the pictures and the motion show',
    'dtvla_ros/cli/arguments.py': '--shove-share', 'dtvla_ros/data/collect.py': 'shove',
    'dtvla_ros/data/inspect.py': "'picture of'", 'docs/annotation.md': '--picture-tokens',
    'docs/migration.md': r'^\|',
    'config/train/language.yaml': '',
    **{f'config/instructions/{name}.yaml': '' for name in ('tabletop', 'dev')},
    'dtvla_ros/training/grpo/config.py': "'lanes': 'num_env_groups'",
    'sim/experts/noise.py': 'shove', 'sim/rewording.py': "('slide', 'shove', 'move')"}


@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='not a checkout')
def test_retired_words_are_gone():
    found = []
    for name in subprocess.check_output(
            ['git', 'ls-files', *(f'{folder}/*.{end}' for end in ('py', 'md', 'yaml', 'html')
                                  for folder in FOLDERS), 'README.md'],
            cwd=ROOT, text=True).split():
        kept = re.compile(KEPT.get(name, r'(?!)'))
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            if (word := WORDS.search(line)) and not kept.search(line):
                found.append(f'{name}:{number}: {word[0]}: {line.strip()}')
    assert not found, '\n'.join(found)
