"""The lines of docs/your-data.md, as they stand: from a demo to a policy that went on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.beside import fresh_domain
from support.graph import ROOT

LISTENING = 8.0  # until a recorder that was started has found the demo's topics [s]


@pytest.mark.slow
def test_a_policy_trained_on_a_recorded_demo_still_solves_its_task(tmp_path: Path) -> None:
    for name in ('config', 'models/nano'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    program = tmp_path / 'dtvla'
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m dtvla_ros.cli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}',
                   'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    text = (ROOT / 'docs/your-data.md').read_text()
    block = re.search(r'<!-- quick -->\n```bash\n(.*?)```', text, re.DOTALL)
    assert block is not None
    export, demo, record, *lines = block[1].replace('\\\n', ' ').strip().splitlines()
    assert export.startswith('export ROS_DOMAIN_ID=') and 'Ctrl-C' in record
    environment['ROS_DOMAIN_ID'] = fresh_domain()

    def start(line: str) -> subprocess.Popen[str]:
        words = line.partition(' #')[0].rstrip().rstrip('&')
        return subprocess.Popen(f'exec {words}', shell=True, cwd=tmp_path, env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    recording = start(record)
    try:
        time.sleep(LISTENING)
        playing = start(demo)
        printed, _ = playing.communicate(timeout=900)
        assert playing.returncode == 0, printed
    finally:
        recording.send_signal(signal.SIGINT)
        printed, _ = recording.communicate(timeout=60)
    assert recording.returncode == 0 and 'warning: ' not in printed, printed
    for line in lines:
        step = start(line)
        printed, _ = step.communicate(timeout=3000)
        assert step.returncode == 0, printed
        if 'from-bag' in line:  # a busy machine loses an image now and then
            assert re.search(r'6 episodes in [6-9] pieces, 1[6-9]\d frames', printed), printed
    result = json.loads((tmp_path / 'out/monday.json').read_text())['total']
    assert (result['n'], result['successes'] >= 8) == (10, True), result
