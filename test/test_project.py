"""The files around the code are true: changelog, licences, hooks, templates, the workflow."""

import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / 'Makefile').read_text()
NOTICE = (ROOT / 'NOTICE.md').read_text()
ASSETS = re.compile(r'\.(onnx|safetensors|urdf|sdf|obj|stl|dae|msh|png|jpg|ttf|otf|woff2?)$')

pytestmark = pytest.mark.skipif(not (ROOT / '.github').exists(), reason='not a checkout')


def test_the_changelog_ends_with_the_version_of_the_package():
    changelog = pytest.importorskip('catkin_pkg.changelog')
    versions = list(changelog.get_changelog_from_path(
        str(ROOT / 'CHANGELOG.rst'), 'dtvla_ros').foreach_version())
    dated = [(version, date) for version, date, _ in versions if version != 'Forthcoming']
    assert dated[0][0] == ET.parse(ROOT / 'package.xml').getroot().findtext('version')
    assert all(date is not None for _, date in dated)


def test_package_xml_is_of_format_3():
    package = pytest.importorskip('catkin_pkg.package')
    warnings = []
    package.parse_package(str(ROOT / 'package.xml'), warnings=warnings).validate()
    assert not warnings


def test_every_asset_has_its_licence():
    files = subprocess.check_output(['git', 'ls-files'], cwd=ROOT, text=True).split('\n')
    named = re.findall(r'`([\w/.*]+)`', NOTICE)
    assert all([*ROOT.glob(path)] for path in named if '/' in path)
    lacks = [file for file in files if ASSETS.search(file) and not any(
        file.startswith(path) or Path(file).match(path) for path in named)]
    assert not lacks


@pytest.mark.parametrize('page', ['CONTRIBUTING.md', 'NOTICE.md', 'CHANGELOG.rst'])
def test_what_a_page_names_is_there(page):
    text = (ROOT / page).read_text()
    files = {name.partition('#')[0] for name in re.findall(r'\]\(([^)]+)\)', text)}
    files |= {name for name in re.findall(r'[`\s]([\w.]+(?:/[\w.-]+)+)', text)
              if not re.match(r'\.venv|data|runs|out|dist', name) and 'NAME' not in name}
    assert not [name for name in files if not (ROOT / name.rstrip('.')).exists()]
    assert all(re.search(f'^{target}:', MAKEFILE, re.M)
               for target in re.findall('`make ([a-z-]+)`', text))


def test_the_workflow_calls_targets_that_make_has():
    workflow = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())
    jobs = workflow['jobs']
    runs = '\n'.join(step.get('run', '') for job in jobs.values() for step in job['steps'])
    called = set(re.findall(r'(?:^|&& )make ([a-z-]+)', runs, re.M))
    assert {'test', 'test-wheel'} <= called
    assert all(re.search(f'^{target}:', MAKEFILE, re.M) for target in called)
    pythons = jobs['wheels']['strategy']['matrix']['python']
    setup = (ROOT / 'setup.cfg').read_text()
    assert pythons == re.findall(r'Programming Language :: Python :: (3\.\d+)', setup)
    distributions = jobs['ros']['strategy']['matrix']['ros']
    assert distributions == ['humble', 'jazzy', 'kilted']
    assert all((ROOT / f'constraints/{name}.txt').exists() for name in distributions)
    assert 'make test' in (ROOT / '.ci/run').read_text()


def test_the_hooks_run_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos'][0]['hooks']
    recipe = re.search(r'^lint:.*\n((?:\t.*\n)+)', MAKEFILE, re.M)[1]
    linted = re.findall(r'\$\(BIN\)/(\S+)', recipe)
    assert [hook['entry'].split()[0].removeprefix('.venv/bin/') for hook in hooks] == linted


def test_a_report_of_a_fault_asks_for_doctor_and_version():
    labels = {}
    for path in (ROOT / '.github/ISSUE_TEMPLATE').glob('*.yml'):
        form = yaml.safe_load(path.read_text())
        assert form['name'] and form['description']
        labels[path.stem] = {part['attributes']['label'] for part in form['body']}
    assert {'dtvla doctor', 'dtvla --version'} <= labels['bug']
    assert 'dtvla --version' in labels['feature']
