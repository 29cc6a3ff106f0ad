"""What needs a message package that is not there is refused in one line that names it."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

NEEDS = [
    ('vla_node', ['pose_source:=tf'], 'tf2_msgs'),
    ('command_gate', ['pose_source:=tf'], 'tf2_msgs'),
    ('command_gate', ['preset:=servo', 'gripper:=gripper_command'], 'control_msgs'),
    ('command_gate', ['preset:=crisp', 'gripper:=parallel_gripper_command'], 'control_msgs'),
    ('command_gate', ['arm_status:=servo'], 'moveit_msgs'),
]


@pytest.fixture
def without(tmp_path):
    """Return a function: the environment of an interpreter that does not find a package."""
    def hide(package):
        if find_spec(package) is None:
            return {}
        # Found first, and broken as a package that was never installed.
        (tmp_path / 'hidden').mkdir()
        (tmp_path / 'hidden' / f'{package}.py').write_text(
            f'raise ModuleNotFoundError("No module named {package!r}", name={package!r})\n')
        return {'PYTHONPATH': os.pathsep.join(
            [str(tmp_path / 'hidden'), os.environ.get('PYTHONPATH', '')])}
    return hide


@pytest.mark.parametrize(('name', 'parameters', 'package'), NEEDS,
                         ids=[f'{n} {p[-1]}' for n, p, _ in NEEDS])
def test_a_message_that_is_not_installed_is_named(graph, without, name, parameters, package):
    process = graph.start(name, *[word for p in parameters for word in ('-p', p)],
                          **without(package))
    assert process.wait(60) == 2, graph.log(name)
    said = graph.log(name).strip().splitlines()
    assert len(said) == 1, said
    parameter, value = parameters[-1].split(':=')
    assert said[0].startswith(f'error: parameter {parameter} = "{value}": ')
    assert package in said[0]
