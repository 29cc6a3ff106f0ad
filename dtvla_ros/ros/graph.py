"""Simulator, policy and command gate as processes: started together, watched over topics."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from numpy.typing import NDArray
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros import conventions as names
from dtvla_ros.errors import NodeDied
from dtvla_ros.files import find_shared
from dtvla_ros.ros import bringup, conversions, images, qos
from dtvla_ros.ros.processes import NodeProcesses

SILENCE = 90.0  # longest wait for the next step of the simulation [s]
SUMMARY_TIMEOUT = 3.0  # longest wait for the summary of a simulator that ended [s]
# On a busy machine a burst of thoughts must wait until the thread that draws lets go.
_EVERYTHING = qos.profile(1000, reliable=True, latched=True)


@dataclass(slots=True)
class Seen:
    """State of a running graph. ``episodes``: one row per finished episode.

    A thought is forgotten when a task begins or is stopped.
    """

    thought: str = ''
    writing: str = ''  # the next one as far as it is written, once it differs
    thoughts: int = 0
    commands: int = 0
    vla_state: str = 'starting'
    refusals: int = 0  # instructions that the policy did not take, and the last one and why
    rejected: tuple[str, str] = '', ''
    refused: str = ''  # what was refused since the present task began
    vla_reason: str = ''
    task: str = ''  # how many tasks the policy has taken
    told: str = ''  # the policy's instruction
    understood: str = ''  # the task that it means
    meaning: str = ''  # what it was understood as, where that is another sentence
    gate_state: str = 'starting'
    gate_reason: str = ''
    stopped: str = ''  # why the gate has ended the task
    driver: str = names.POLICY
    episode: dict[str, Any] = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    latency: dict[str, list[float]] = field(default_factory=dict)  # seconds, by phase

    @property
    def stopped_task(self) -> str:
        """Why the gate has ended the task, '' where it only waits after a cleared fault."""
        return '' if self.stopped.startswith('cleared') else self.stopped

    def take_thought(self, sentence: str) -> None:
        """Take a complete thought."""
        self.thought, self.writing = sentence, ''
        self.thoughts += 1

    def take_writing(self, text: str) -> None:
        """Take how far the next thought is written."""
        # What is void may be written on; what the last thought began with may also be late.
        if not (self.stopped or self.thought.startswith(text)):
            self.writing = text

    def take_policy(self, message: DiagnosticStatus) -> dict[str, str]:
        """Take the policy's state; return its values."""
        values = conversions.status_values(message)
        before, self.refusals = self.refusals, int(values.get('refusals', 0))
        if self.refusals > before:
            self.rejected = values['rejected_instruction'], values['rejected']
        self.vla_state, self.vla_reason = message.message, values.get('reason', '')
        self.told = values.get('instruction', '')
        self.understood = values.get('understood', '')
        self.refused = values.get('rejected_instruction', '')
        self.meaning = conversions.meaning(values)
        task, self.task = self.task, values.get('task', '')
        if task not in ('', self.task):
            self._forget()
        return values

    def take_gate(self, message: DiagnosticStatus) -> None:
        """Take the gate's state."""
        self.gate_state = message.message
        values = conversions.status_values(message)
        self.gate_reason = values.get('reason', '')
        self.driver = values.get('driver', names.POLICY)
        before, self.stopped = self.stopped, conversions.stop_reason(message)
        if self.stopped and not before:
            self._forget()

    def _forget(self) -> None:
        self.thought = self.writing = ''


OnFrame = Callable[[dict[str, NDArray[np.uint8]], Seen], None]
OnEpisode = Callable[[dict[str, Any]], None]


class Watcher(Node):
    """Collects `Seen`; hands on finished episodes, and each moment's images when the next comes.

    ``cameras``: whose.
    """

    def __init__(self, on_frame: OnFrame, on_episode: OnEpisode,
                 cameras: Sequence[str] = names.CAMERAS):
        super().__init__('demo_watcher')
        self.seen = Seen()
        self._on_frame, self._on_episode = on_frame, on_episode
        self._cameras = tuple(cameras)
        self._pair: dict[str, NDArray[np.uint8]] = {}
        self._stamp = -1.0
        self._decision = ''
        for name in self._cameras:
            self.create_subscription(
                Image, names.image_topic(name), functools.partial(self._image, name),
                qos_profile_sensor_data, raw=True)
        for kind, topic, listen in (
                (String, names.REASONING, self._reasoning), (String, names.EPISODE, self._episode),
                (DiagnosticStatus, names.VLA_STATE, self._vla_state),
                (DiagnosticStatus, names.GATE_STATE, self.seen.take_gate)):
            self.create_subscription(kind, topic, listen, _EVERYTHING)
        self.create_subscription(String, names.REASONING_STREAM, self._stream, qos.NEWEST)
        self.create_subscription(JointTrajectory, names.ACTION, self._action, 100)

    def _image(self, name: str, data: bytes) -> None:
        try:
            message = images.parse_image(data)
            image = images.image_to_numpy(message)
        except images.ImageError as error:
            self.get_logger().warning(f'{name}: {error}')
            return
        if message.stamp != self._stamp:
            self._hand_on()
            self._stamp = message.stamp
        self._pair[name] = image

    def _hand_on(self) -> None:
        """Hand on the images that are waiting for their thought."""
        if len(self._pair) == len(self._cameras):
            self._on_frame({k: self._pair[k] for k in self._cameras}, self.seen)
        self._pair = {}

    def _reasoning(self, message: String) -> None:
        self.seen.take_thought(message.data)

    def _stream(self, message: String) -> None:
        self.seen.take_writing(message.data)

    def _episode(self, message: String) -> None:
        row = self.seen.episode = json.loads(message.data)
        if row.get('done'):
            self._hand_on()
            self.seen.episodes.append(row)
            self._on_episode(row)
        self.seen.finished |= bool(row.get('finished'))

    def _vla_state(self, message: DiagnosticStatus) -> None:
        values = self.seen.take_policy(message)
        if (decision := values.get('stamp', '')) != self._decision:
            self._decision = decision
            for phase, value in conversions.latencies(values).items():
                self.seen.latency.setdefault(phase, []).append(value)

    def _action(self, message: JointTrajectory) -> None:
        self.seen.commands += 1


def frame_interval(replan_steps: int) -> int:
    """Return control steps per frame: few enough for a film, and every decision's among them."""
    return next(k for k in (3, 2, 4, 5, replan_steps) if replan_steps % k == 0)


def start_nodes(nodes: NodeProcesses, config: str, policy: Mapping[str, object],
                scene: Mapping[str, object], page: Mapping[str, object] | None = None) -> None:
    """Start the three nodes, and if asked for the operator's page and what records for it.

    They are given a file of the package.
    ``policy``, ``scene`` and ``page``: parameters of vla_node, sim_bridge and operator that differ
    from the file's; of the policy's the gate gets ``action_space``, too.
    """
    given: dict[str, Mapping[str, object]] = {
        'vla_node': policy, 'sim_bridge': scene, 'operator': page or {},
        'command_gate': {name: policy[name] for name in ('action_space',) if name in policy}}
    beside = {} if page is None else {'operator': 'true', 'record_server': 'true'}
    for name, node in bringup.node_processes(beside, simulated=True).items():
        values = given.get(name, {})
        nodes.start(name, f'dtvla_ros.nodes.{name}',
                    node.given(values).ros_arguments(str(find_shared(config))),
                    {'OMP_NUM_THREADS': str(values.get('threads', 1))})


def watch(executor: Executor, watcher: Watcher, nodes: NodeProcesses) -> Iterator[None]:
    """Spin the watcher until the last episode is over; yields many times a second.

    A fault of the gate lasts until somebody clears it: no step is expected meanwhile.
    Raises ``UserError`` for refused input, ``NodeDied`` for a dead node or no step in `SILENCE`.
    """
    seen = watcher.seen
    progress: tuple[Any, ...] = ()
    moved = checked = time.monotonic()
    while not seen.finished:
        executor.spin_once(timeout_sec=0.1)
        yield
        now = time.monotonic()
        if now - checked < 0.2:
            continue
        checked = now
        nodes.require_running(may_end=('sim_bridge',))
        latest = (len(seen.episodes), seen.episode.get('step'), seen.thoughts)
        if latest != progress or seen.gate_state == 'FAULT':
            progress, moved = latest, now
        if nodes.exit_code('sim_bridge') == 0 and now - moved > SUMMARY_TIMEOUT:
            raise NodeDied(
                f'sim_bridge ended after {len(seen.episodes)} episodes without its summary')
        if now - moved > SILENCE:
            raise NodeDied(
                f'no step for {SILENCE:.0f} s (policy {seen.vla_state}, gate {seen.gate_state} '
                f'{seen.gate_reason}); see {nodes.log("sim_bridge").parent}')
