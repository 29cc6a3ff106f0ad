"""The fault table goes into its page; those of its rows that the README shows, there, too."""

import re

from support.graph import ROOT

from test.faults.conftest import END, ROWS, SHOWN, update_readme


def test_the_readme_keeps_its_rows_and_gets_their_new_times(tmp_path):
    readme = tmp_path / 'README.md'
    readme.write_text(before := (ROOT / 'README.md').read_text())
    update_readme([f'| {n} | {" | ".join(cells)} | new |' for n, cells in ROWS.items()], readme)
    (head, rows, tail), (_, former, _) = (
        re.split(f'{re.escape(SHOWN)}|{re.escape(END)}', text)
        for text in (readme.read_text(), before))
    numbers = re.findall(r'^\| (\d+) \|.*\| new \|$', rows, re.MULTILINE)
    assert numbers == re.findall(r'^\| (\d+) \|', former, re.MULTILINE) and len(numbers) > 3
    assert before.startswith(head) and before.endswith(tail)
