"""What arrives over the network is a message or MalformedMessage, soon and in little memory."""

from __future__ import annotations

import struct
import tracemalloc
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import Trigger, get_service
from dtvla_ros.middleware.plain import to_plain

if ros.BACKEND != 'dds':
    pytest.skip("the DDS client's own codec", allow_module_level=True)

from dtvla_ros.middleware.dds import graph, types
from dtvla_ros.middleware.dds.definitions import SERVICES
from dtvla_ros.middleware.dds.transport import TransportError

# What the nodes, the recorder's default topics and the client itself listen to.
MESSAGES = [
    'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/CameraInfo',
    'sensor_msgs/msg/JointState', 'geometry_msgs/msg/PoseStamped',
    'geometry_msgs/msg/TwistStamped', 'tf2_msgs/msg/TFMessage',
    'trajectory_msgs/msg/JointTrajectory', 'std_msgs/msg/String', 'std_msgs/msg/Bool',
    'std_msgs/msg/Int8', 'std_msgs/msg/Float64', 'rosgraph_msgs/msg/Clock',
    'diagnostic_msgs/msg/DiagnosticStatus', 'diagnostic_msgs/msg/DiagnosticArray',
    'visualization_msgs/msg/MarkerArray', 'std_msgs/msg/Float64MultiArray', 'nav_msgs/msg/Path',
    'rcl_interfaces/msg/Log', 'rcl_interfaces/msg/ParameterEvent',
    'lifecycle_msgs/msg/TransitionEvent', 'rmw_dds_common/msg/ParticipantEntitiesInfo']
SERVED = [f'{name}_{part}' for name in SERVICES for part in ('Request', 'Response')]
HEADERS = [b'\0\1\0\0', b'\0\0\0\0', b'\0\7\0\0', b'\1\1\0\0', b'']
LENGTHS = [0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 8]
HUGE = 32 * 2**20


def _filled(kind: str) -> Any:
    """Return a message with two entries in every sequence, so that there is much to break."""
    cls = types.message_class(kind)
    message = cls()
    for name, spelled in cls.get_fields_and_field_types().items():
        value = getattr(message, name)
        if isinstance(value, str):
            object.__setattr__(message, name, 'wörd')
        elif spelled.startswith('sequence<string'):
            object.__setattr__(message, name, ['a', ''])
        elif spelled.startswith('sequence<') and '/' in spelled:
            inner = spelled[len('sequence<'):-1].replace('/', '/msg/', 1)
            object.__setattr__(message, name, [_filled(inner) for _ in range(2)])
        elif hasattr(value, 'get_fields_and_field_types'):
            object.__setattr__(message, name, _filled(value.__msgtype__))
        elif spelled.startswith('sequence<'):
            object.__setattr__(message, name, value.__class__((2,), value.dtype))
    return message


@st.composite
def _broken(draw: Any, kind: str) -> bytes:
    """Draw CDR of a filled message with flipped bits, lying lengths, cuts and insertions."""
    data = bytearray(types.serialize(_filled(kind)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        change = draw(st.sampled_from(['flip', 'length', 'cut', 'insert', 'header']))
        if change == 'flip' and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == 'length' and len(data) >= 8:
            place = 4 + (place - 4) // 4 * 4 if place >= 4 else 4
            data[place:place + 4] = struct.pack('<I', draw(st.sampled_from(LENGTHS)))
        elif change == 'cut':
            del data[place:]
        elif change == 'insert':
            data[place:place] = draw(st.binary(max_size=9))
        else:
            data[:4] = draw(st.sampled_from(HEADERS))
    return bytes(data)


def _decode(data: bytes, kind: str) -> None:
    tracemalloc.reset_peak()
    try:
        message = types.deserialize(data, types.message_class(kind))
    except types.MalformedMessage as error:
        assert kind in str(error)
    else:
        assert type(message) is types.message_class(kind)
        to_plain(message, 10)
        repr(message)
    assert tracemalloc.get_traced_memory()[1] < HUGE


@pytest.fixture(autouse=True, scope='module')
def _traced() -> Any:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize('kind', MESSAGES + SERVED)
def test_broken_messages(kind: str) -> None:
    @settings(max_examples=60, deadline=timedelta(seconds=2))
    @given(data=_broken(kind))
    def check(data: bytes) -> None:
        _decode(data, kind)
    check()


@settings(max_examples=300, deadline=timedelta(seconds=2))
@given(data=st.binary(max_size=200), header=st.sampled_from(HEADERS),
       kind=st.sampled_from(MESSAGES + SERVED))
def test_noise(data: bytes, header: bytes, kind: str) -> None:
    _decode(header + data, kind)


@pytest.mark.parametrize('kind', MESSAGES)
@pytest.mark.parametrize('length', LENGTHS[2:])
def test_every_length_may_lie(kind: str, length: int) -> None:
    whole = bytes(types.serialize(_filled(kind)))
    for place in range(4, len(whole) - 3, 4):
        _decode(whole[:place] + struct.pack('<I', length) + whole[place + 4:], kind)


@settings(max_examples=200, deadline=timedelta(seconds=2))
@given(data=_broken('rmw_dds_common/msg/ParticipantEntitiesInfo') | st.binary(max_size=80))
def test_node_announcements(data: bytes) -> None:
    heard = graph.read_node_infos(data)
    if heard is not None:
        gid, nodes = heard
        assert isinstance(gid, bytes)
        assert all(isinstance(node.name, str) for node in nodes)


def test_a_server_survives_what_it_cannot_read() -> None:
    """Raw bytes through real DDS endpoints: refused by the writer or dropped by the reader."""
    ros.init(args=['test'])
    node = ros.Node('fuzzed')
    node.create_service(Trigger, 'go', lambda request, response: response)
    set_parameters = get_service('rcl_interfaces/srv/SetParameters')
    client = node.create_client(set_parameters, '/fuzzed/set_parameters')
    assert client.wait_for_service(timeout_sec=10.0)
    request = bytes(types.serialize(set_parameters.Request(parameters=[
        ros.Parameter('use_sim_time', value=False).to_parameter_msg()])))

    @settings(max_examples=150, deadline=timedelta(seconds=2))
    @given(data=_broken('rcl_interfaces/srv/SetParameters_Request') | st.binary(max_size=60),
           identity=st.binary(min_size=16, max_size=16))
    def send(data: bytes, identity: bytes) -> None:
        try:
            client.end._out.write(data[:4] + identity + data[4:])
        except TransportError:
            return
        for _ in range(3):
            ros.spin_once(node, timeout_sec=0.0)
    send()
    future = client.call_async(types.deserialize(request, set_parameters.Request))
    ros.spin_until_future_complete(node, future, timeout_sec=10.0)
    assert future.result().results[0].successful
    node.destroy_node()
    ros.try_shutdown()
