"""What colcon, pip and rosdep read about the package is true."""

import ast
import configparser
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
# As colcon asks a setup.py: what it prints must be readable by ast.literal_eval.
ASK = """
from setuptools import setup  # the distutils below are setuptools' own
from distutils.core import run_setup
dist = run_setup('setup.py', script_args=('--dry-run',), stop_after='config')
dist.version = dist.metadata.version
keys = ('version', 'packages', 'package_dir', 'data_files', 'entry_points', 'python_requires')
print({k: getattr(dist, k) for k in keys})
"""
PACKAGE = ET.parse(ROOT / 'package.xml').getroot()
DEPENDS = {e.text for e in PACKAGE.findall('exec_depend')}
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / 'setup.cfg')
EXTRAS = dict(SETTINGS['options.extras_require'])
REQUIREMENTS = [
    Requirement(line) for block in (SETTINGS['options']['install_requires'], *EXTRAS.values())
    for line in block.splitlines() if line and not line.startswith('#')]


@pytest.fixture(scope='module')
def told():
    said = subprocess.check_output([sys.executable, '-c', ASK], cwd=ROOT, text=True, timeout=60)
    return ast.literal_eval(said.splitlines()[-1])


def test_every_module_is_in_a_package_that_a_symlinked_build_can_follow(told):
    found = {'.'.join(p.relative_to(ROOT).parent.parts) for folder in ('dtvla_ros', 'sim')
             for p in ROOT.glob(f'{folder}/**/*.py')}
    assert {re.sub('^sim', 'dtvla_sim', name) for name in found} == set(told['packages'])
    for folder in told['package_dir'].values():
        assert (ROOT / folder).is_dir()
        assert folder not in told['package_dir'] and folder not in told['packages']


def test_commands_start_something_and_find_launch_files_settings_and_models(told):
    for line in told['entry_points']['console_scripts']:
        module, _, function = line.partition('=')[2].strip().partition(':')
        assert callable(getattr(import_module(module), function)), line
    installed = {f: where for where, files in told['data_files'] for f in files}
    for path in (p for name in ('launch', 'config', 'models') for p in (ROOT / name).rglob('*')):
        name = path.relative_to(ROOT)
        if path.is_file() and '__pycache__' not in name.parts:
            assert installed[str(name)] == f'share/dtvla_ros/{name.parent}'


def test_package_xml_agrees_with_the_wheel_and_names_every_message_package(told):
    assert PACKAGE.findtext('version') == told['version']
    for key in ('name', 'license'):
        assert PACKAGE.findtext(key) == SETTINGS['metadata'][key]
    assert PACKAGE.findtext('export/build_type') == 'ament_python'
    source = '\n'.join(path.read_text() for path in ROOT.glob('dtvla_ros/**/*.py'))
    imported = set(re.findall(r'^ *(?:from|import) (\w+_(?:msgs|srvs|interfaces))', source, re.M))
    assert imported and imported | {'rclpy', 'launch', 'launch_ros'} <= DEPENDS


def pinned(name):
    """Return requirements file ``name`` as {package: [requirement, of which all are needed]}."""
    found = {}
    for line in re.sub(r'\\\n\s*', '', (ROOT / 'constraints' / name).read_text()).splitlines():
        if not line.startswith('#'):
            requirement, *hashes = line.split('--hash=')
            assert hashes and all(re.fullmatch('sha256:[0-9a-f]{64} ?', h) for h in hashes), line
            found.setdefault(Requirement(requirement).name, []).append(Requirement(requirement))
    return found


def test_the_extra_ros_and_the_hashes_name_the_same_wheels():
    wheels, generators = pinned('ros-jazzy-wheels.txt'), pinned('ros-jazzy-generators.txt')
    for wanted in map(Requirement, EXTRAS['ros'].split()):
        assert [r.specifier for r in wheels[wanted.name]] == [wanted.specifier]
    for name, wanted in wheels.items():  # or one would undo the other in the same environment
        assert generators[name] == wanted
        assert all(len(r.specifier) == 1 and '==' in str(r.specifier) for r in wanted)
    by_name = {r.name.lower(): r for r in REQUIREMENTS}
    for name in {'numpy', 'pyyaml', 'setuptools'} & set(generators):
        for wanted in generators[name]:
            [version] = wanted.specifier
            assert version.version in by_name[name].specifier, wanted


def test_pixi_brings_every_package_of_ros():
    tomllib = pytest.importorskip('tomllib', reason='Python 3.10 reads no TOML')
    pixi = tomllib.loads((ROOT / 'pixi.toml').read_text())
    assert {f'ros-jazzy-{name.replace("_", "-")}' for name in DEPENDS
            if not name.startswith('python3-')} <= set(pixi['dependencies'])
    assert {'demo', 'test', 'lint'} <= set(tasks := pixi['tasks'])
    for task in tasks.values():
        assert set(task.get('depends-on', ())) <= set(tasks)
        extras = re.findall(r"'\.\[([\w,]+)\]'", task['cmd'])
        assert set(','.join(extras).split(',')) <= {'', *EXTRAS}


@pytest.mark.parametrize('path', sorted(ROOT.glob('constraints/[!r]*.txt')), ids=lambda p: p.stem)
def test_constraints_leave_a_version_of_what_they_pin(path):
    text = path.read_text()
    python = re.search(r'Python (3\.\d+)', text)
    assert python, 'the first comment says for which Python'
    pins = {r.name: r for r in map(Requirement, filter(
        None, (line.partition('#')[0].strip() for line in text.splitlines())))}
    assert 'setuptools' in pins and 'numpy' in pins
    bounds = {Version(s.version) for r in [*pins.values(), *REQUIREMENTS] for s in r.specifier
              if '*' not in s.version}
    # A bound itself, or a later bugfix of it: one of these satisfies whatever can be satisfied.
    candidates = {str(v) for v in bounds} | {f'{v}.1' for v in bounds} | {'4.10', '79.0', '2.1'}
    for requirement in REQUIREMENTS:
        pin = pins.get(requirement.name)
        if pin and not (requirement.marker and not requirement.marker.evaluate(
                {'python_version': python[1]})):
            assert any(v in pin.specifier and v in requirement.specifier for v in candidates), (
                requirement, pin)


def test_the_image_is_built_from_what_is_here():
    text = re.sub('^#.*\n', '', (ROOT / 'docker/Dockerfile').read_text(), flags=re.M)
    lines = [line.split(None, 1) for line in re.sub(r'\\\n\s*', ' ', text).splitlines() if line]
    words = {word: [rest for other, rest in lines if other == word] for word, _ in lines}
    assert len(words['FROM']) == 1
    assert all((ROOT / rest.split()[-2]).exists() for rest in words['COPY'])
    entry = ROOT / 'docker/entrypoint'
    for script in (*words['RUN'], entry.read_text()):
        subprocess.run(['bash', '-n', '-c', script], check=True)
    assert entry.stat().st_mode & 0o111
    assert not {'root', '0'} & set(words['USER'])
    packages = re.search(r'missing\+=\((libegl1[^)]*)\)',
                         (ROOT / 'tools/system_packages').read_text())[1].split()
    assert set(packages) <= set(' '.join(words['RUN']).split())  # to draw without a display
