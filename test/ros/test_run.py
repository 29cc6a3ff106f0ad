"""How nodes begin and end, as real processes: exit codes, one-line errors, signals; images."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ros.peer import CAMERA, Peer
from sensor_msgs.msg import Image
from std_msgs.msg import String

from dtvla_ros.ros import images, run

TIMEOUT = 60.0


@pytest.mark.parametrize(('words', 'variable', 'value'), [
    ('', 'ROS_DOMAIN_ID', 'x'), ('', 'ROS_DOMAIN_ID', '1000'), ('', 'ROS_DOMAIN_ID', '-1'),
    ('', 'ROS_AUTOMATIC_DISCOVERY_RANGE', 'moon'), ('', 'ROS_STATIC_PEERS', 'no host'),
    ('', 'FASTRTPS_DEFAULT_PROFILES_FILE', 'no/such/file.xml'),
    ('', 'FASTRTPS_DEFAULT_PROFILES_FILE', 'broken.xml'),
    ('--moon', '', '--moon'), ('--ros-args --moon', '', '--moon'),
    ('--ros-args -p rate:=fast', '', "'fast'"), ('--ros-args -p rate', '', '-p rate'),
    ('--ros-args -r __node:=a-b', '', '__node:=a-b'), ('--ros-args --log-level moon', '', 'moon'),
    *((f'--ros-args --params-file {name}', '', said) for name, said in (
        ('no/such/file.yaml', 'no/such/file.yaml'), ('open.yaml', 'open.yaml'),
        ('flat.yaml', ''), ('type.yaml', '')))])
def test_bad_input_is_one_line(
        graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any,
        words: str, variable: str, value: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (
            ('broken.xml', '<dds>'), ('open.yaml', 'a: ['), ('flat.yaml', 'peer: {rate: 3}'),
            ('type.yaml', '/**: {ros__parameters: {rate: fast}}')):
        Path(name).write_text(text)
    if variable:
        monkeypatch.setenv(variable, value)
    assert run.run(Peer, words.split()) == 2
    error = capfd.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1, error
    assert value in error and (variable != 'ROS_DOMAIN_ID' or variable in error)


def test_end_gives_the_exit_code_and_the_log_level_of_rcl_is_heeded(start_peer: Any) -> None:
    peer = start_peer(PEER='ending')
    assert peer.communicate(timeout=TIMEOUT) == ('', '') and peer.returncode == 3
    peer = start_peer('--ros-args', '--log-level', 'rcl:=debug', PEER='ending')
    assert '[DEBUG]' in peer.communicate(timeout=TIMEOUT)[1]


def test_error_of_a_task_from_a_thread_ends_the_node(start_peer: Any, refusal: Any) -> None:
    peer = start_peer(PEER='threaded')
    _, err = peer.communicate(timeout=TIMEOUT)
    assert (peer.returncode, err.splitlines()[-1]) == (1, 'RuntimeError: from a task')
    assert 'no such thing' in refusal(PEER='threaded user')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_waiting_node_and_interrupts_a_loop_that_has_joined(
        graph: Any, start_peer: Any, number: int) -> None:
    graph.listen()
    graph.hear('last', String, 'last_word', 5)
    peer, joined = start_peer(), start_peer(PEER='joined')
    assert [peer.stdout.readline() for _ in range(2)] == ['ready\n', 'heard\n']
    os.kill(peer.pid, number)
    graph.spin(lambda: graph.last('last'))
    assert [m.data for _, m in graph.of('last')] == ['stop commands go out last']
    assert joined.stdout.readline() == 'ready\n'
    os.kill(joined.pid, number)
    assert joined.communicate(timeout=TIMEOUT) == ('interrupted\n', '')
    assert peer.communicate(timeout=TIMEOUT) == ('', '')
    assert (joined.returncode, peer.returncode) == (0, 0)


def test_images_cross_unchanged_even_a_burst_of_large_ones(graph: Any, start_peer: Any) -> None:
    """The burst is more than Fast DDS's own segment of shared memory holds."""
    node = graph.listen()
    graph.hear('echoed', Image, 'echoed', CAMERA, raw=True)
    publisher = node.create_publisher(Image, 'sent', CAMERA)
    start_peer()
    stamp = node.get_clock().now().to_msg()
    random = np.random.default_rng(0)

    def send(height: int, width: int) -> np.ndarray:
        frame = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        publisher.publish(images.serialize_image(frame, stamp, 'camera'))
        return frame
    # The first ones are lost while the other side has not seen both of our ends yet.
    first = graph.every(0.3, lambda: send(2, 2))
    graph.spin(lambda: graph.last('echoed'))
    first.cancel()
    sent = [send(height, width) for height, width in (
        (1, 1), (224, 225), *((height, 640) for height in range(480, 486)))]

    def received() -> list[images.RawImage]:
        messages = (images.parse_image(data) for _, data in graph.of('echoed'))
        return [m for m in messages if m.height != 2]
    graph.spin(lambda: len(received()) == len(sent))
    for frame, message in zip(sent, received(), strict=True):
        assert (message.stamp, message.frame_id) == (stamp.sec + stamp.nanosec * 1e-9, 'camera')
        np.testing.assert_array_equal(images.image_to_numpy(message), frame)


def test_the_definitions_of_tf2_are_those_of_ros(graph: Any) -> None:
    """From apt or built by tools/build_interfaces; their hashes are what peers compare."""
    tf = pytest.importorskip('tf2_msgs.msg', reason='tf2_msgs is not there: make interfaces')
    node = graph.listen()
    node.create_publisher(tf.TFMessage, '/hash', 1)
    [info] = node.get_publishers_info_by_topic('/hash')
    if not hasattr(info, 'topic_type_hash'):
        pytest.skip('this ROS has no hashes of types')
    assert str(info.topic_type_hash) == (
        'RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087')
