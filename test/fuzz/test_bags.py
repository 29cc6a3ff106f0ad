"""A damaged bag becomes a dataset, with what is missing told, or one line says why it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from support.bags import OPEN, SO101, JointRobot, Robot

from dtvla_ros.data.bag import message_types
from dtvla_ros.data.robot_names import RobotNames

from .mutations import damaged, one_line, seeds

KINDS = ('sensor_msgs/msg/Image', 'geometry_msgs/msg/PoseStamped', 'std_msgs/msg/String',
         'sensor_msgs/msg/JointState', 'tf2_msgs/msg/TFMessage', 'std_msgs/msg/Float64',
         'trajectory_msgs/msg/JointTrajectory', 'geometry_msgs/msg/TwistStamped')
Entry = tuple[str, str, int, bytes]  # topic, type, received [ns], message


@pytest.fixture(scope='module')
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp('bags')
    names = RobotNames({'image_wrist': '/image_wrist'}, 'base', '', ('panda_joint1',))
    arm = RobotNames({}, 'base_link', 'gripper_link', SO101, ('gripper',), (), 0.1, OPEN, 0.0,
                     'JOINT_POSITION')
    return [Robot('action', steps=5).write(folder / 'action', episode=True),
            Robot('twist', steps=5).write(folder / 'twist', dtvla=names.to_text()),
            Robot('target', steps=5).write(folder / 'target', storage=StoragePlugin.SQLITE3),
            *(JointRobot(preset, steps=5).write(folder / preset, dtvla=arm.to_text())
              for preset in ('joint_trajectory', 'joint_commands', 'leader'))]


def convert(bag: Path, out: Path, random: Random, what: str) -> None:
    """Make a dataset of a bag with some options; where it is written it holds frames."""
    options = random.choice(((), ('--stamps', 'received'), ('--gripper', 'measured'),
                             ('--instruction', 'put it there'), ('--tolerance', '1'),
                             ('--base-frame', 'base', '--ee-frame', 'hand')))
    done = one_line('data', 'from-bag', bag, '--out', out, *options, what=f'{what}; {options}')
    assert out.exists() == (' frames' in done.output.partition('\n')[0]), what


def test_a_damaged_folder(bags: list[Path], tmp_path: Path, total: int) -> None:
    for seed in seeds('bags', total, 2):
        random = Random(seed)
        with damaged(random.choice(bags), tmp_path, seed) as (folder, what):
            target = folder if random.random() < 0.7 else next(
                path for path in (*folder.glob('*.mcap'), *folder.glob('*.db3'), folder))
            convert(target, tmp_path / f'out{seed}', random, f'seed {seed}: {what}')


def test_damaged_messages(bags: list[Path], tmp_path: Path, total: int) -> None:
    entries = [list(read(bag)) for bag in bags]
    for seed in seeds('bags', total, 2):
        random = Random(seed)
        mutated, what = mutate(random.choice(entries), random)
        bag = write(mutated, tmp_path / f'bag{seed}')
        convert(bag, tmp_path / f'out{seed}', random, f'seed {seed}: {what}')


def read(bag: Path) -> Iterator[Entry]:
    with Reader(bag) as reader:
        for connection, received, data in reader.messages():
            yield connection.topic, connection.msgtype, received, bytes(data)


def write(entries: list[Entry], path: Path) -> Path:
    types, known = message_types(), dict[tuple[str, str], Any]()
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, kind, received, data in entries:
            if (topic, kind) not in known:
                known[topic, kind] = writer.add_connection(topic, kind, typestore=types)
            writer.write(known[topic, kind], received, data)
    return path


def mutate(entries: list[Entry], random: Random) -> tuple[list[Entry], str]:
    """Damage one message, or all messages of its topic; return that and what was done."""
    place = random.randrange(len(entries))
    hit = entries[place][0]
    how = random.choice(('one byte', 'cut off', 'longer', 'emptied', 'zeros', 'all ones', 'type',
                         'dropped', 'twice', 'renamed', 'earlier', 'late', 'numbers'))
    everywhere = random.random() < 0.4
    kind, at = random.choice(KINDS), random.random()
    value = random.choice((b'\0\0\0\0\0\0\xf8\x7f', b'\0\0\0\0\0\0\xf0\x7f', b'\xff' * 8, bytes(8),
                           b'\0\0\0\0\0\0\xf0\x47', random.randbytes(8)))

    def changed(entry: Entry) -> list[Entry]:
        topic, own, received, data = entry
        k = int(at * len(data))
        aligned = min(4 + (k - k % 8), len(data))
        return {
            'one byte': [(topic, own, received, data[:k] + bytes([random.randrange(256)])
                          + data[k + 1:])],
            'cut off': [(topic, own, received, data[:k])],
            'longer': [(topic, own, received, data + bytes(8))],
            'emptied': [(topic, own, received, b'')],
            'zeros': [(topic, own, received, data[:4] + bytes(max(len(data) - 4, 0)))],
            'all ones': [(topic, own, received, data[:4] + b'\xff' * (len(data) - 4))],
            'type': [(topic, kind, received, data)], 'dropped': [], 'twice': [entry, entry],
            'renamed': [(f'/other{topic}', own, received, data)],
            'earlier': [(topic, own, received - 10**9, data)],
            'late': [(topic, own, received + 10**10, data)],
            'numbers': [(topic, own, received, data[:aligned] + value + data[aligned + 8:])],
        }[how]
    found = [new for k, entry in enumerate(entries)
             for new in (changed(entry) if k == place or everywhere and entry[0] == hit
                         else [entry])]
    return found, f'{how} of {hit}{" everywhere" if everywhere else ""}, message {place}'
