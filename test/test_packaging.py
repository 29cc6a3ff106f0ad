"""What colcon, pip and rosdep read about the package is true."""

from __future__ import annotations

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
keys = ('packages', 'package_dir', 'data_files', 'entry_points', 'python_requires')
print({k: getattr(dist, k) for k in keys})
"""


@pytest.fixture(scope='module')
def told():
    done = subprocess.run([sys.executable, '-c', ASK], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.splitlines()[-1])


def setup_cfg():
    settings = configparser.ConfigParser()
    settings.read(ROOT / 'setup.cfg')
    return settings


def requirements():
    settings = setup_cfg()
    lines = [settings['options']['install_requires'],
             *dict(settings['options.extras_require']).values()]
    return [Requirement(line) for block in lines for line in block.splitlines()
            if line and not line.startswith('#')]


def imports(path):
    """Return the packages that a file imports, inside functions, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition('.')[0]


def test_a_symlinked_colcon_build_can_follow_the_package_folders(told):
    for package, folder in told['package_dir'].items():
        assert (ROOT / folder).is_dir()
        assert folder not in told['package_dir'] and folder not in told['packages'], package


def test_every_module_is_in_a_package(told):
    found = {p.relative_to(ROOT).parent for p in ROOT.glob('dtvla_ros/**/*.py')}
    found |= {p.relative_to(ROOT).parent for p in ROOT.glob('sim/**/*.py')}
    named = {str(folder).replace('/', '.') for folder in found}
    assert {re.sub('^sim', 'dtvla_sim', n) for n in named} == set(told['packages'])


def test_every_command_starts_something(told):
    for line in told['entry_points']['console_scripts']:
        module, _, function = line.partition('=')[2].strip().partition(':')
        assert callable(getattr(import_module(module), function)), line


def test_launch_files_settings_and_models_are_installed_with_their_folders(told):
    installed = {f: where for where, files in told['data_files'] for f in files}
    for folder in ('launch', 'config', 'models'):
        for path in (ROOT / folder).rglob('*'):
            name = str(path.relative_to(ROOT))
            if path.is_file() and '__pycache__' not in name:
                assert installed[name] == f'share/dtvla_ros/{Path(name).parent}'


def test_package_xml_agrees_with_setup_cfg(told):
    package = ET.parse(ROOT / 'package.xml').getroot()
    settings = setup_cfg()['metadata']
    for key in ('name', 'version', 'license'):
        assert package.findtext(key) == settings[key]
    assert package.findtext('export/build_type') == 'ament_python'


def test_package_xml_names_every_message_package():
    package = ET.parse(ROOT / 'package.xml').getroot()
    named = {e.text for e in package.findall('exec_depend')}
    assert {'rclpy', 'launch', 'launch_ros'} <= named
    imported = {name for path in ROOT.glob('dtvla_ros/**/*.py') for name in imports(path)}
    assert {n for n in imported if re.search('_(msgs|srvs|interfaces)$', n)} <= named


def pinned(name):
    """Return requirements file ``name`` as {package: [requirement, of which all are needed]}."""
    text = (ROOT / 'constraints' / name).read_text()
    found = {}
    for line in re.sub(r'\\\n\s*', '', text).splitlines():
        if not line.startswith('#'):
            requirement, *hashes = line.split('--hash=')
            assert hashes and all(re.fullmatch('sha256:[0-9a-f]{64} ?', h) for h in hashes), line
            found.setdefault(Requirement(requirement).name, []).append(Requirement(requirement))
    return found


def test_the_extra_ros_and_the_hashes_name_the_same_wheels():
    wheels, generators = pinned('ros-jazzy-wheels.txt'), pinned('ros-jazzy-generators.txt')
    extra = setup_cfg()['options.extras_require']['ros'].split()
    assert extra
    for wanted in map(Requirement, extra):
        assert [r.specifier for r in wheels[wanted.name]] == [wanted.specifier]
    for name, wanted in wheels.items():  # or one would undo the other in the same environment
        assert generators[name] == wanted
        assert all(len(r.specifier) == 1 and '==' in str(r.specifier) for r in wanted)
    by_name = {r.name.lower(): r for r in requirements()}
    for name in {'numpy', 'pyyaml', 'setuptools'} & set(generators):
        for wanted in generators[name]:
            [version] = wanted.specifier
            assert version.version in by_name[name].specifier, wanted


def test_pixi_brings_every_package_of_ros():
    tomllib = pytest.importorskip('tomllib', reason='Python 3.10 reads no TOML')
    pixi = tomllib.loads((ROOT / 'pixi.toml').read_text())
    package = ET.parse(ROOT / 'package.xml').getroot()
    needed = {f'ros-jazzy-{e.text.replace("_", "-")}' for e in package.findall('exec_depend')
              if not e.text.startswith('python3-')}
    assert needed <= set(pixi['dependencies'])
    tasks = pixi['tasks']
    assert {'demo', 'test', 'lint'} <= set(tasks)
    for task in tasks.values():
        assert set(task.get('depends-on', ())) <= set(tasks)
        for extra in re.findall(r"'\.\[([\w,]+)\]'", task['cmd']):
            assert set(extra.split(',')) <= set(setup_cfg()['options.extras_require'])


DISTRIBUTIONS = sorted(ROOT.glob('constraints/[!r]*.txt'))


@pytest.mark.parametrize('path', DISTRIBUTIONS, ids=lambda p: p.stem)
def test_constraints_leave_a_version_of_what_they_pin(path):
    text = path.read_text()
    python = re.search(r'Python (3\.\d+)', text)
    assert python, 'the first comment says for which Python'
    pins = {r.name: r for r in map(Requirement, filter(
        None, (line.partition('#')[0].strip() for line in text.splitlines())))}
    assert 'setuptools' in pins and 'numpy' in pins
    bounds = {Version(s.version) for r in [*pins.values(), *requirements()] for s in r.specifier
              if '*' not in s.version}
    # A bound itself, or a later bugfix of it: one of these satisfies whatever can be satisfied.
    candidates = {str(v) for v in bounds} | {f'{v}.1' for v in bounds} | {'4.10', '79.0', '2.1'}
    for requirement in requirements():
        pin = pins.get(requirement.name)
        if pin is None or (requirement.marker and not requirement.marker.evaluate(
                {'python_version': python[1]})):
            continue
        assert any(v in pin.specifier and v in requirement.specifier for v in candidates), (
            requirement, pin)


def dockerfile():
    """Return (instruction, rest) of every instruction, continued lines joined."""
    lines = [line for line in (ROOT / 'docker/Dockerfile').read_text().splitlines()
             if not line.startswith('#')]
    joined = re.sub(r'\\\n\s*', ' ', '\n'.join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line]


def test_the_image_is_built_from_what_is_here():
    instructions = dockerfile()
    assert [w for w, _ in instructions].count('FROM') == 1
    for word, rest in instructions:
        if word == 'COPY':
            source = rest.split()[-2]
            assert (ROOT / source).exists(), source
        if word == 'RUN':
            done = subprocess.run(['bash', '-n', '-c', rest], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    entry = ROOT / 'docker/entrypoint'
    assert entry.stat().st_mode & 0o111 and subprocess.run(['bash', '-n', entry]).returncode == 0
    users = [rest for word, rest in instructions if word == 'USER']
    assert users and 'root' not in users and users[-1] != '0'


def test_the_image_draws_with_the_packages_that_make_installs():
    script = (ROOT / 'tools/system_packages').read_text()
    wanted = re.search(r'missing\+=\((libegl1[^)]*)\)', script)
    installed = ' '.join(rest for word, rest in dockerfile() if word == 'RUN').split()
    assert wanted and set(wanted[1].split()) <= set(installed)
