"""Manifests, instructions and chunks: used, or refused with a reason; never another error."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla_ros.errors import UserError
from dtvla_ros.policy.instructions import nearest, refuse_instruction, shown
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest
from dtvla_ros.policy.transform import transform_of
from dtvla_ros.policy.understanding import NotUnderstood, understanding_of
from dtvla_ros.ros import conversions

NANO = Path(__file__).resolve().parents[2] / 'models' / 'nano'
SOON = timedelta(seconds=2)
MISSING = object()  # in place of a value
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([[], {}, [[]], {'a': {}}, -1, 0, 10**30, 'NaN', '../x', [1] * 7, 1e400]))

if not (NANO / MANIFEST).exists():
    pytest.skip('models/nano is not there', allow_module_level=True)

WHOLE = json.loads((NANO / MANIFEST).read_text())
TASKS = PolicyManifest.read(NANO).tasks
TRANSFORM = transform_of(NANO, PolicyManifest.read(NANO))
UNDERSTANDING = understanding_of(NANO, PolicyManifest.read(NANO))


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value of a JSON tree."""
    for key in (tree if isinstance(tree, dict) else
                range(len(tree)) if isinstance(tree, list) else ()):
        yield tree, key
        yield from places(tree[key])


def read(folder: Path, data: bytes) -> None:
    """Read these bytes as a manifest; a refusal must name the folder."""
    (folder / MANIFEST).write_bytes(data)
    try:
        PolicyManifest.read(folder).verified_weights(folder)
    except UserError as error:
        assert str(folder) in str(error)


@settings(max_examples=800, deadline=SOON)
@given(number=st.integers(0, len(list(places(WHOLE))) - 1), value=VALUES | st.just(MISSING))
def test_a_manifest_with_any_value_or_none_in_any_place(
        tmp_path_factory: Any, number: int, value: Any) -> None:
    tree = copy.deepcopy(WHOLE)
    place, key = list(places(tree))[number]
    if value is MISSING:
        del place[key]
    else:
        place[key] = value
    read(tmp_path_factory.getbasetemp(), json.dumps(tree).encode())


@settings(max_examples=200, deadline=SOON)
@given(content=st.binary(max_size=80) | st.sampled_from(
    [b'[' * 5_000, b'{"a":' * 5_000, b'9' * 5_000, b'"\\ud800"', b'\xff\xfe', b'1e999']))
def test_any_bytes_as_a_manifest(tmp_path_factory: Any, content: bytes) -> None:
    read(tmp_path_factory.getbasetemp(), content)


@settings(max_examples=400, deadline=SOON)
@given(text=st.text(max_size=200) | st.text('put the lemon in blue bin<>|_\n', max_size=400))
def test_any_text_as_an_instruction(text: str) -> None:
    assert nearest(text, TASKS) in TASKS and shown(text).isprintable()
    if not refuse_instruction(text):
        with suppress(UserError):
            assert TRANSFORM.check_instruction(text)
    with suppress(NotUnderstood):
        meant = UNDERSTANDING.understand(text)
        assert meant.task in TASKS and 0.0 <= meant.confidence <= 1.0


POINT = st.builds(
    lambda positions, sec, nanosec: SimpleNamespace(
        positions=positions, time_from_start=SimpleNamespace(sec=sec, nanosec=nanosec)),
    st.lists(st.floats(), max_size=9), st.integers(-2**31, 2**31 - 1), st.integers(0, 2**32 - 1))


@settings(max_examples=300, deadline=SOON)
@given(points=st.lists(POINT, max_size=12), names=st.lists(st.text(max_size=5), max_size=9),
       sec=st.integers(-2**31, 2**31 - 1), now=st.floats(0, 2e9))
def test_any_trajectory_as_a_chunk(points: list[Any], names: list[str], sec: int,
                                   now: float) -> None:
    from dtvla_ros.safety.gate import Gate, GateConfig
    from dtvla_ros.safety.limits import Limits

    gate = Gate(GateConfig(auto_start=True, lockstep=True, max_latency_s=0.0), Limits())
    message = SimpleNamespace(points=points, joint_names=names, header=SimpleNamespace(
        stamp=SimpleNamespace(sec=sec, nanosec=0)))
    gate.on_heartbeat(1.0, 'ACTING', '', '1')
    dropped = gate.on_chunk(conversions.chunk_from(message, 0.05), now)
    assert abs(gate.tick(now, 1.0).action).max() <= 1.0
    assert dropped or len(names) == 7
