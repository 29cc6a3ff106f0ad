"""Bags of made-up runs, of which every value is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace as Message

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from scipy.spatial.transform import Rotation

from dtvla_ros.actions import osc
from dtvla_ros.conventions import FINGER_JOINTS
from dtvla_ros.data.bag import message_types
from dtvla_ros.ros import images

DOWN = Rotation.from_euler('xyz', [np.pi, 0.1, 0.2])
TRAJECTORY = 'trajectory_msgs/msg/JointTrajectory'
SO101 = ('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll')
OPEN = 1.74533  # angle of an SO-101's jaw [rad]


class Bag:
    """Writes messages, each received a millisecond or more after the one before."""

    def __init__(self, path, storage=StoragePlugin.MCAP, **custom):
        self._writer = Writer(path, version=8, storage_plugin=storage)
        for key, text in custom.items():
            self._writer.set_custom_data(key, text)
        self._writer.open()
        self._topics, self.names = {}, {}
        self.path, self.received = path, 10**18

    def put(self, topic, kind, data=None, **values):
        """Write a message's fields, or one that is serialised already."""
        types, topic = message_types(), self.names.get(topic, topic)
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
    names: dict[str, str] = field(default_factory=dict)  # of topics that are called otherwise
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
        bag.names = self.names
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
            names, positions = self._measured(k)
            bag.put('/joint_states', 'sensor_msgs/msg/JointState', header=head, name=names,
                    position=positions, velocity=none, effort=none)
        self._pose(bag, k, head)
        if k % 4 == 0:
            for text in self.thoughts(k) if self.thoughts else (f'thought {k} of {self.task}',):
                bag.put('/vla/reasoning', 'std_msgs/msg/String', data=text)
            bag.put('/vla/action_chunk', TRAJECTORY, header=head, joint_names=[], points=[])
        if 'command' not in silent:
            self._command(bag, k, head)

    def _measured(self, k):
        return ['panda_joint1', *FINGER_JOINTS], np.array([0.1 * k, 0.03, 0.03])

    def _pose(self, bag, k, head):
        bag.put('/ee_pose', 'geometry_msgs/msg/PoseStamped', header=head,
                pose=pose(self.position[k], DOWN))

    def _command(self, bag, k, head):
        action = self.actions[k].astype(float)
        if self.preset == 'action':
            return bag.put('/action', TRAJECTORY, header=head, joint_names=[], points=[
                point(action)])
        if self.preset == 'twist':
            linear, angular = (vector(v) for v in np.split(osc.velocity(action), 2))
            bag.put('/twist_cmd', 'geometry_msgs/msg/TwistStamped', header=head,
                    twist=Message(linear=linear, angular=angular))
        else:
            goal, turn = osc.target_pose(action, self.position[k], DOWN.as_quat())
            bag.put('/target_pose', 'geometry_msgs/msg/PoseStamped', header=head,
                    pose=pose(goal, Rotation.from_quat(turn)))
        bag.put('/gripper_cmd', 'std_msgs/msg/Float64', data=(1.0 - action[6]) / 2.0)


@dataclass
class JointRobot(Robot):
    """An SO-101 that is where it was sent a step later, its commands unstamped but a leader's.

    ``preset``: 'joint_trajectory', 'joint_commands', 'leader' (five times as often), 'action' (of
    the simulator, its gripper a channel), or ''.
    """

    targets: np.ndarray = field(init=False)

    def __post_init__(self):
        super().__post_init__()
        steps = np.random.default_rng(1).uniform(-0.05, 0.05, (self.steps + 1, len(SO101)))
        self.targets = np.cumsum(steps, axis=0)
        self.closed = np.arange(self.steps + 1) >= 5

    def _jaw(self, k):
        return 0.0 if self.closed[k] else OPEN

    def _measured(self, k):
        before = max(k - 1, 0)
        return [*SO101, 'gripper'], np.append(self.targets[before], self._jaw(before))

    def _pose(self, bag, k, head):
        place = Message(translation=vector(self.position[k]), rotation=vector(DOWN.as_quat()))
        head = Message(stamp=head.stamp, frame_id='base_link')
        bag.put('/tf', 'tf2_msgs/msg/TFMessage', transforms=[Message(
            header=head, child_frame_id='gripper_link', transform=place)])

    def _command(self, bag, k, head):
        goal, now = self.targets[k], Message(stamp=Message(sec=0, nanosec=0), frame_id='')
        if self.preset == 'joint_trajectory':
            order = np.argsort(SO101)
            goal = goal[order]
            bag.put('/joint_trajectory', TRAJECTORY, header=now,
                    joint_names=[SO101[j] for j in order],
                    points=[point(goal + 9.0), point(goal, 0.1), point(goal + 9.0, 0.2)])
        if self.preset == 'joint_commands':
            bag.put('/joint_commands', 'std_msgs/msg/Float64MultiArray', data=goal,
                    layout=Message(dim=[], data_offset=0))
        for part in range(5 if self.preset == 'leader' else 0):
            ns = head.stamp.sec * 10**9 + head.stamp.nanosec + part * 10**7
            between = goal + part / 5 * (self.targets[k + 1] - goal)
            bag.put('/joint_commands', 'sensor_msgs/msg/JointState', header=Message(
                stamp=Message(sec=ns // 10**9, nanosec=ns % 10**9), frame_id=''),
                name=['gripper', *SO101], position=np.append(self._jaw(k), between),
                velocity=np.zeros(0), effort=np.zeros(0))
        if self.preset == 'action':
            bag.put('/action', TRAJECTORY, header=head, joint_names=[*SO101, 'gripper'], points=[
                point(np.append(goal, 1.0 if self.closed[k] else -1.0))])
        if self.preset.startswith('joint_'):
            bag.put('/gripper_cmd', 'std_msgs/msg/Float64', data=float(not self.closed[k]))


def point(positions, after=0.0):
    """Return a point of a trajectory, ``after`` seconds from its start."""
    none = np.zeros(0)
    return Message(positions=positions, velocities=none, accelerations=none, effort=none,
                   time_from_start=Message(sec=0, nanosec=round(after * 1e9)))


def vector(values):
    """Return a message with the fields of a vector or quaternion."""
    return Message(**dict(zip('xyzw', np.asarray(values, float).tolist())))


def pose(position, rotation):
    return Message(position=vector(position), orientation=vector(rotation.as_quat()))
