"""Bags of made-up runs, of which every value is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace as Message

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from scipy.spatial.transform import Rotation

from dtvla_ros.actions import osc
from dtvla_ros.conventions import FINGER_JOINTS
from dtvla_ros.data.bag import message_types
from dtvla_ros.ros import images

DOWN = Rotation.from_euler('xyz', [np.pi, 0.1, 0.2])


class Bag:
    """Writes messages, each received a millisecond or more after the one before."""

    def __init__(self, path, storage=StoragePlugin.MCAP, **custom):
        self._writer = Writer(path, version=8, storage_plugin=storage)
        for key, text in custom.items():
            self._writer.set_custom_data(key, text)
        self._writer.open()
        self._topics = {}
        self.path, self.received = path, 10**18

    def put(self, topic, kind, data=None, **values):
        """Write a message's fields, or one that is serialised already."""
        types = message_types()
        if topic not in self._topics:
            self._topics[topic] = self._writer.add_connection(topic, kind, typestore=types)
        if not isinstance(data, bytes):
            values |= {} if data is None else {'data': data}
            data = types.serialize_cdr(Message(**values), kind)
        self.received += 10**6
        self._writer.write(self._topics[topic], self.received, data)

    def close(self):
        self._writer.close()
        return self.path


@dataclass
class Robot:
    """A made-up run of ``steps`` commands at 20 Hz, on a clock of its own; all stamps exact."""

    preset: str = 'action'
    steps: int = 12
    task: str = 'put the lemon in the blue bin'
    clock: float = 7.0
    camera_every: int = 1
    without: tuple[tuple[str, int], ...] = ()  # topic, step at which it is silent
    shade: int = 0
    thoughts: Callable[[int], Sequence[str]] | None = None  # published at a step
    late: bool = False  # the last step is received after the next run has begun
    actions: np.ndarray = field(init=False)
    begun: int = 0

    def __post_init__(self):
        rng = np.random.default_rng(0)
        self.actions = rng.uniform(-1, 1, (self.steps, 7)).astype(np.float32)
        self.actions[:, 6] = np.where(np.arange(self.steps) < 5, -1.0, 1.0)
        self.position = np.array([0.4, 0.0, 0.2]) + 0.01 * np.arange(self.steps)[:, None]

    def write(self, path, *more, episode=False, **kept):
        """Write this and ``more`` runs one after another into one bag; ``kept``: as of `Bag`."""
        bag, before = Bag(path, **kept), None
        for run in (self, *more):
            bag.received += 2 * 10**9
            run.begun = bag.received
            bag.put('/instruction', 'std_msgs/msg/String', data=run.task)
            if episode:
                run._report(bag, False)
            if before is not None and before.late:
                before._step(bag, before.steps - 1)
            for k in range(run.steps - run.late):
                run._step(bag, k)
            if episode:
                run._report(bag, True)
            before = run
        return bag.close()

    def _report(self, bag, done):
        bag.put('/sim/episode', 'std_msgs/msg/String', data=json.dumps({
            'episode': 0, 'task': self.task, 'seed': int(self.clock), 'instruction': self.task,
            'success': done and self.task.startswith('put'), 'done': done}))

    def _step(self, bag, k):
        bag.received = max(bag.received, self.begun + k * 5 * 10**7)
        ns = round((self.clock + 0.05 * k) * 1e9)
        stamp = Message(sec=ns // 10**9, nanosec=ns % 10**9)
        head = Message(stamp=stamp, frame_id='base')
        silent = {topic for topic, step in self.without if step == k}
        for topic in {'/image_primary', '/image_wrist'} - silent:
            if k % self.camera_every == 0:
                pixels = np.full((32, 32, 3), (10 * k + self.shade) % 256, np.uint8)
                bag.put(topic, 'sensor_msgs/msg/CompressedImage',
                        data=images.serialize_compressed(pixels, stamp))
        none = np.zeros(0)
        if '/joint_states' not in silent:
            bag.put('/joint_states', 'sensor_msgs/msg/JointState', header=head,
                    name=['panda_joint1', *FINGER_JOINTS],
                    position=np.array([0.1 * k, 0.03, 0.03]), velocity=none, effort=none)
        bag.put('/ee_pose', 'geometry_msgs/msg/PoseStamped', header=head,
                pose=pose(self.position[k], DOWN))
        trajectory = partial(bag.put, kind='trajectory_msgs/msg/JointTrajectory', header=head,
                             joint_names=[])
        if k % 4 == 0:
            for text in self.thoughts(k) if self.thoughts else (f'thought {k} of {self.task}',):
                bag.put('/vla/reasoning', 'std_msgs/msg/String', data=text)
            trajectory('/vla/action_chunk', points=[])
        if 'command' in silent:
            return
        action = self.actions[k].astype(float)
        if self.preset == 'action':
            return trajectory('/action', points=[Message(
                positions=action, velocities=none, accelerations=none, effort=none,
                time_from_start=Message(sec=0, nanosec=0))])
        if self.preset == 'twist':
            linear, angular = (vector(v) for v in np.split(osc.velocity(action), 2))
            bag.put('/twist_cmd', 'geometry_msgs/msg/TwistStamped', header=head,
                    twist=Message(linear=linear, angular=angular))
        else:
            goal, turn = osc.target_pose(action, self.position[k], DOWN.as_quat())
            bag.put('/target_pose', 'geometry_msgs/msg/PoseStamped', header=head,
                    pose=pose(goal, Rotation.from_quat(turn)))
        bag.put('/gripper_cmd', 'std_msgs/msg/Float64', data=(1.0 - action[6]) / 2.0)


def vector(values):
    """Return a message with the fields of a vector or quaternion."""
    return Message(**dict(zip('xyzw', np.asarray(values, float).tolist())))


def pose(position, rotation):
    return Message(position=vector(position), orientation=vector(rotation.as_quat()))
