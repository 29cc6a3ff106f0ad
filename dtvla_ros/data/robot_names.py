"""What a robot calls its topics, frames and joints: told once, kept in the bag, read from there.

A *name* is the package's own for a topic, without the leading slash: ``image_primary``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from dtvla_ros import conventions
from dtvla_ros.actions import osc
from dtvla_ros.actions.contract import (
    GRIPPER,
    JOINT_SPACES,
    OSC_POSE,
    OSC_POSE_ABSOLUTE,
    SPACES,
    ActionContract,
)
from dtvla_ros.errors import UserError
from dtvla_ros.ros.bringup import COMMAND_NAMES, told_by
from dtvla_ros.ros.params_file import ParameterFile
from dtvla_ros.ros.settings import GRIPPER_TOPICS, ActionSettings, OpeningSettings

KEY = 'dtvla'  # of the bag's custom data
NEAR = 3  # topics named in an error
MISSPELT = 0.88  # alikeness from which on a camera's name is a usual one misspelt
LISTED = 12
VALID_TOPIC = re.compile(r'(/[A-Za-z_][A-Za-z0-9_]*)+')
COMPRESSED = '/compressed'  # image_transport's name below the raw topic
CAMERAS = tuple(topic[1:] for topic in conventions.IMAGES.values())
IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
TYPES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(CAMERAS, IMAGES),
    'joint_states': ('sensor_msgs/msg/JointState',),
    'ee_pose': ('geometry_msgs/msg/PoseStamped',),
    'tf': ('tf2_msgs/msg/TFMessage',), 'tf_static': ('tf2_msgs/msg/TFMessage',),
    'instruction': ('std_msgs/msg/String',), 'sim/episode': ('std_msgs/msg/String',),
    'episode_mark': ('std_msgs/msg/String',),
    'vla/reasoning': ('std_msgs/msg/String',),
    'vla/action_chunk': ('trajectory_msgs/msg/JointTrajectory',),
    'action': ('trajectory_msgs/msg/JointTrajectory',),
    'twist_cmd': ('geometry_msgs/msg/TwistStamped',),
    'target_pose': ('geometry_msgs/msg/PoseStamped',),
    'joint_trajectory': ('trajectory_msgs/msg/JointTrajectory',),
    'joint_commands': ('std_msgs/msg/Float64MultiArray', 'sensor_msgs/msg/JointState'),
    'gripper_cmd': ('std_msgs/msg/Float64', 'std_msgs/msg/Float64MultiArray',
                    'trajectory_msgs/msg/JointTrajectory'),
    'gate_state': ('diagnostic_msgs/msg/DiagnosticStatus',),
    'vla/state': ('diagnostic_msgs/msg/DiagnosticStatus',)}
"""Message types of the topics that a dataset is made of, by name."""
NAMES = tuple(topic[1:] for topic in conventions.RECORDED)
COMMANDS = tuple(topic[1:] for topic in (*conventions.COMMANDS, *conventions.JOINT_TARGETS))


def types_of(name: str) -> tuple[str, ...]:
    """Return the message types of a name; a camera may have any, of others some have none."""
    return TYPES.get(name, IMAGES if name.startswith('image_') else ())


@dataclass(frozen=True, slots=True)
class RobotNames:
    """What differs from the package's own names.

    ``topics``: by name. ``base_frame``: of poses and commands. ``ee_frame``: of the gripper, where
    its pose is to be taken from ``/tf``. ``cameras``: the policy's, where they are not the usual
    ones. ``gripper_width`` and the fingers' positions: where these are in no metres, as
    `OpeningSettings`. ``action_space`` and the gripper's channel: of an arm that is commanded
    otherwise than by offsets of its end effector, as `ActionSettings`.
    """

    topics: Mapping[str, str] = field(default_factory=dict)
    base_frame: str = ''
    ee_frame: str = ''
    arm_joints: tuple[str, ...] = ()
    finger_joints: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    gripper_width: float = 0.0
    finger_open_position: float = 0.0
    finger_closed_position: float = 0.0
    action_space: str = ''
    gripper_channel: str = GRIPPER
    gripper_opens_at: float = osc.GRIPPER_OPEN
    gripper_closes_at: float = osc.GRIPPER_CLOSED

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the cameras' topics."""
        return tuple(conventions.image_topic(camera)[1:]
                     for camera in self.cameras or conventions.CAMERAS)

    @property
    def recorded(self) -> tuple[str, ...]:
        """Names of the topics of a bag."""
        others = [camera for camera in self.cameras if camera not in conventions.CAMERAS]
        return (*self.images, *(name for name in NAMES if name not in CAMERAS),
                *(conventions.camera_info_topic(camera)[1:] for camera in others))

    @property
    def opening(self) -> OpeningSettings:
        """How the fingers' positions tell the opening."""
        return OpeningSettings(
            self.gripper_width, self.finger_open_position, self.finger_closed_position)

    @property
    def is_joints(self) -> bool:
        """Whether the arm is commanded by its joints."""
        return self.action_space in JOINT_SPACES

    @property
    def is_pose(self) -> bool:
        """Whether actions are poses of the end effector."""
        return self.action_space == OSC_POSE_ABSOLUTE

    def contract(self, joints: Sequence[str]) -> ActionContract:
        """Return what the actions of an arm of these joints are, at the usual rate."""
        return ActionSettings(
            self.action_space or OSC_POSE, self.gripper_channel, self.gripper_opens_at,
            self.gripper_closes_at).contract(joints, conventions.CONTROL_RATE)

    @property
    def commands(self) -> tuple[str, ...]:
        """Names of the topics of which one commands the arm."""
        return tuple(topic[1:] for topic in (
            (*conventions.JOINT_TARGETS, conventions.ACTION) if self.is_joints else
            (conventions.TARGET_POSE, conventions.ACTION) if self.is_pose else
            conventions.COMMANDS))

    def topic(self, name: str) -> str:
        """Return the topic of a name."""
        return self.topics.get(name, f'/{name}')

    def candidates(self, name: str) -> list[str]:
        """Return the topics that a name may stand for: images also come compressed."""
        topic = self.topic(name)
        compressed = types_of(name) == IMAGES and not topic.endswith(COMPRESSED)
        return [topic, *([topic + COMPRESSED] if compressed else [])]

    def over(self, other: RobotNames) -> RobotNames:
        """Return these names, and where nothing is told those of ``other``."""
        told = (self if self.gripper_width else other).opening
        acts = self if self.action_space else other
        return RobotNames(
            {**other.topics, **self.topics}, self.base_frame or other.base_frame,
            self.ee_frame or other.ee_frame, self.arm_joints or other.arm_joints,
            self.finger_joints or other.finger_joints, self.cameras or other.cameras,
            told.gripper_width, told.finger_open_position, told.finger_closed_position,
            acts.action_space, acts.gripper_channel, acts.gripper_opens_at,
            acts.gripper_closes_at)

    def to_text(self) -> str:
        """Return what is told as JSON."""
        usual = asdict(RobotNames())
        return json.dumps({
            key: value for key, value in asdict(self).items() if value != usual[key]})

    @classmethod
    def from_text(cls, text: object) -> RobotNames:
        """Return what `to_text` wrote. Raises ``ValueError`` for anything else."""
        data = json.loads(text) if isinstance(text, str) else None
        kinds: dict[str, Any] = {f.name: type(getattr(cls(), f.name)) for f in fields(cls)}
        if not isinstance(data, dict):
            raise ValueError('no JSON object')
        if unknown := sorted(data.keys() - kinds):
            raise ValueError(f'{unknown[0]} unknown')
        values = {key: tuple(value) if kinds[key] is tuple and isinstance(value, list) else value
                  for key, value in data.items()}
        for key, value in values.items():
            parts = value.values() if isinstance(value, dict) else value
            if type(value) is not kinds[key] or (kinds[key] is not float and not all(
                    isinstance(p, str) for p in parts)):
                raise ValueError(f'{key} is {value!r}')
        if values.get('action_space', '') not in ('', *SPACES):
            raise ValueError(f'action_space is {values["action_space"]!r}, none of '
                             f'{", ".join(SPACES)}')
        return cls(**values)  # type: ignore[arg-type]


def parse_topics(words: Iterable[str], option: str = '--topic') -> dict[str, str]:
    """Return topics by name from ``NAME=/TOPIC`` words; ``NAME=`` alone says nothing.

    Raises ``UserError`` naming the word.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, topic = word.partition('=')
        name, topic = name.strip().strip('/'), topic.strip()
        if not equals or (topic and not VALID_TOPIC.fullmatch(topic)):
            raise UserError(f'{option} {word}: write NAME=/TOPIC, as in '
                            'image_primary=/front/image_raw')
        camera = name.startswith('image_') and not get_close_matches(name, CAMERAS, 1, MISSPELT)
        if name not in NAMES and not camera:
            near = get_close_matches(name, NAMES, 1, 0.5)
            raise UserError(f'{option} {word}: no name {name!r}; ' + (
                f'did you mean {near[0]}?' if near else f'choose from {", ".join(NAMES)}'))
        if topic:
            found[name] = topic
    return found


def parse_cameras(cameras: Sequence[str], option: str = '--cameras') -> tuple[str, ...]:
    """Return the names of cameras. Raises ``UserError`` for what is none, or there twice."""
    for camera in cameras:
        if not VALID_TOPIC.fullmatch(topic := conventions.image_topic(camera)) or (
                topic.count('/') > 1 or cameras.count(camera) > 1):
            raise UserError(f'{option} {camera}: name each once, as in primary,wrist')
    return tuple(cameras)


def names_in_params(file: ParameterFile) -> RobotNames:
    """Return topics, frames and joints in a parameter file of the nodes; the later ones count.

    Raises ``UserError``.
    """
    found = {name: value for _, section in file.sections for name, value in section.items()}
    if found.get('pose_source') != 'tf':
        found.pop('ee_frame', None)
    told = {key: value for key, value in found.items()
            if key in RobotNames.__slots__ and key != 'topics'}
    topics = told_by(file)
    topics |= dict.fromkeys(COMMAND_NAMES if 'command_topic' in topics else (),
                            topics.get('command_topic', ''))
    if str(found.get('gripper')) in GRIPPER_TOPICS and topics.get('gripper_topic'):
        topics['gripper_cmd'] = topics['gripper_topic']
    told['topics'] = {name: topic for name, topic in topics.items() if name in NAMES}
    try:
        return RobotNames.from_text(json.dumps(told))
    except (TypeError, ValueError) as error:
        raise UserError(f'{file.path}: {error}; write a name there') from None


def nearest(name: str, names: RobotNames, published: Mapping[str, str]) -> list[str]:
    """Return topics of a name's type, most alike first; ``published``: types by topic."""
    wanted, known = names.topic(name), {names.topic(n) for n in TYPES if n != name}
    fitting = [topic for topic, kind in published.items()
               if kind in (types_of(name) or (kind,)) and topic not in known]
    return sorted(fitting, key=lambda t: -SequenceMatcher(None, wanted, t).ratio())[:NEAR]


def remedy(name: str, names: RobotNames, published: Mapping[str, str]) -> str:
    """Return what to do where the topic of a name is not among those published."""
    if near := nearest(name, names, published):
        others = f' (or {", ".join(near[1:])})' if len(near) > 1 else ''
        return f'if it is {near[0]}{others}, give --topic {name}={near[0]}'
    return f'publish and record one of type {" or ".join(types_of(name))}'


def listed(topics: Sequence[str]) -> str:
    """Return topics in one line, not too many."""
    more = f' and {len(topics) - LISTED} more' if len(topics) > LISTED else ''
    return (', '.join(sorted(topics)[:LISTED]) or 'nothing') + more
