"""dtvla_interfaces is a package for colcon on Jazzy, and nothing needs it to be installed."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'dtvla_interfaces'
CMAKE = (PACKAGE / 'CMakeLists.txt').read_text()
XML = ET.parse(PACKAGE / 'package.xml').getroot()


def test_its_package_xml_is_of_format_3_and_makes_it_an_interface_package():
    package = pytest.importorskip('catkin_pkg.package')
    warnings = []
    found = package.parse_package(str(PACKAGE / 'package.xml'), warnings=warnings)
    found.validate()
    assert not warnings and found.name == PACKAGE.name
    assert found.get_build_type() == 'ament_cmake'
    assert [group.name for group in found.member_of_groups] == ['rosidl_interface_packages']
    own = ET.parse(ROOT / 'package.xml').getroot()
    assert found.version == own.findtext('version')
    assert 'rosidl_default_runtime' in [each.name for each in found.exec_depends]


def test_cmake_builds_every_action_from_what_package_xml_depends_on():
    listed = set(re.findall(r'^ +(\S+\.action)$', CMAKE, re.MULTILINE))
    assert listed == {f'action/{path.name}' for path in PACKAGE.glob('action/*')}
    depends = {each.text for each in XML if each.tag in ('buildtool_depend', 'depend')}
    assert set(re.findall(r'find_package\((\w+) REQUIRED\)', CMAKE)) == depends
    needed = re.search(r'DEPENDENCIES ([\w ]+)\)', CMAKE)[1].split()
    assert set(needed) == depends - {'ament_cmake', 'rosidl_default_generators'}
    used = {package for path in PACKAGE.glob('action/*')
            for package in re.findall(r'^(\w+)/\w+ ', path.read_text(), re.MULTILINE)}
    assert used | {'action_msgs'} == set(needed)  # which every action needs


def test_the_package_itself_does_not_depend_on_it():
    assert PACKAGE.name not in (ROOT / 'package.xml').read_text()
    assert PACKAGE.name not in (ROOT / 'setup.cfg').read_text()


def test_make_builds_it_with_the_others():
    assert re.search(r'^INTERFACES := .*\bdtvla_interfaces\b', (ROOT / 'Makefile').read_text(),
                     re.MULTILINE)
    assert "'dtvla_interfaces': ROOT / 'dtvla_interfaces'" in (
        ROOT / 'tools/build_interfaces').read_text()
