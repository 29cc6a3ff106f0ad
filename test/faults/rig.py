"""The real policy and gate processes between a robot and a proxy of the test's own."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from support.graph import Graph
from trajectory_msgs.msg import JointTrajectory

from benchmarks.arm import Robot
from dtvla_ros.conventions import CAMERAS
from dtvla_ros.ros import conversions, qos

TASK = 'put the lemon in the blue bin'
T = 0.05  # a control tick [s]
STILL_TICKS = 4
PRIORITY = 20  # of the gate where times are measured, as config/robot_*.yaml has it
GATE_REMAPS = ['-r', 'vla/action_chunk:=/proxied/action_chunk', '-r', 'vla/state:=/proxied/state']
# What a robot's gate has, but without ramps: how fast a stop begins is measured, not its length.
GATE = {'preset': 'servo', 'profile': 'fidelity', 'max_latency_s': 0.5, 'blend_steps': 4}
# A starved machine is late by itself: where no time is measured, that must not be a fault.
PATIENT: dict[str, dict[str, object]] = {
    'vla_node': {'input_timeout_s': 1.5, 'gate_timeout_s': 5.0, 'max_age_s': 1.2,
                 'max_skew_s': 0.2, 'clock_domain_s': 2.0, 'deadline_s': 20.0},
    'command_gate': {'heartbeat_timeout_s': 5.0, 'thinking_deadline_s': 30.0,
                     'joints_timeout_s': 1.5, 'pose_timeout_s': 1.5, 'clock_stall_s': 1.5,
                     'clock_domain_s': 2.0, 'max_latency_s': 4.0, 'gripper_timeout_s': 5.0,
                     'human_timeout_s': 1.5}}
SENSOR = qos_profile_sensor_data
ROUTES: dict[str, tuple[Any, str, str, QoSProfile]] = {
    **{f'image_{c}': (Image, f'/robot/image_{c}', f'/image_{c}', SENSOR) for c in CAMERAS},
    'joint_states': (JointState, '/robot/joint_states', '/joint_states', SENSOR),
    'ee_pose': (PoseStamped, '/robot/ee_pose', '/ee_pose', SENSOR),
    'action_chunk': (JointTrajectory, '/vla/action_chunk', '/proxied/action_chunk', qos.LATEST),
    'state': (DiagnosticStatus, '/vla/state', '/proxied/state', qos.LATCHED)}
"""Topics that cross the proxy: type, where from, where to, quality of service."""


def drop(_: Any) -> None:
    """Forward nothing."""


def wheels(message: Any) -> Any:
    """Forward a mobile base's joints instead."""
    message.name, message.position = ['left_wheel', 'right_wheel'], [1.0, 2.0]
    return message


def in_parts(message: Any) -> list[Any]:
    """Forward fingers, wheels and arm apart."""
    def part(names: list[str], positions: list[float]) -> Any:
        return JointState(header=message.header, name=names, position=positions)
    names, positions = list(message.name), list(message.position)
    return [part(names[-2:], positions[-2:]), part(['left_wheel'], [1.0]),
            part(names[:-2], positions[:-2])]


def with_a_base(message: Any) -> list[Any]:
    """Forward a mobile base's joints and an empty message, too."""
    return [message, wheels(JointState(header=message.header)), JointState()]


def only_joints(part: slice) -> Callable[[Any], Any]:
    """Return a fault that leaves this part of the joints, in this order."""
    def fault(message: Any) -> Any:
        message.name, message.position = list(message.name)[part], list(message.position)[part]
        return message
    return fault


class Rig(Graph):
    """Robot, proxy, ``vla_node`` and ``command_gate`` on one graph.

    ``faults``: by route, what takes a message and returns what to forward: a message, serialized
    or not, a list of messages, or None. What is not to be spoiled is forwarded as it came, never
    deserialized.

    ``strict``: reactions are timed, so nodes have their own time-outs and the gate its priority.
    Otherwise time-outs are wide and waiting is patient.
    """

    nap = 0.005

    def __init__(self, folder: Path, policy: tuple[Path, str], strict: bool) -> None:
        super().__init__(folder)
        # Heartbeats pass through here: to look for garbage in all that pytest holds takes 0.1 s.
        gc.collect()
        gc.freeze()
        self.policy, self.engine = policy
        self.strict = strict
        self.patience = 0.0 if strict else 60.0  # where only the order of a reaction counts
        self.faults: dict[str, Callable[[Any], Any]] = {}
        self.commands: list[tuple[float, np.ndarray]] = []  # steady time, velocity [m/s] or goal
        self.stamps: list[float] = []  # of twists, as the gate wrote them [s]
        node = self.join(partial(Node, 'watch'))
        self.robot = Robot(self.join(partial(Node, 'robot')))
        proxy = self.join(partial(Node, 'proxy'))
        for name, (kind, source, target, profile) in ROUTES.items():
            publisher = proxy.create_publisher(kind, target, profile)
            proxy.create_subscription(kind, source, partial(
                self._forward, name, kind, publisher), profile, raw=True)
        latched = qos.profile(50, reliable=True, latched=True)
        node.create_subscription(TwistStamped, '/twist_cmd', self._on_twist, 50)
        node.create_subscription(PoseStamped, '/target_pose', self._on_target, 50)
        self.hear('vla', DiagnosticStatus, '/vla/state', latched)
        self.hear('gate', DiagnosticStatus, '/gate_state', latched)
        self.hear('reasoning', String, '/vla/reasoning', latched)
        self.hear('chunk', JointTrajectory, '/vla/action_chunk', 50)
        self.instruction = node.create_publisher(String, '/instruction', qos.LATCHED)
        self.estop = node.create_publisher(Bool, '/estop', qos.LATCHED)

    def _forward(self, name: str, kind: Any, publisher: Any, data: bytes) -> None:
        fault = self.faults.get(name)
        out = fault(deserialize_message(data, kind)) if fault else data
        for message in out if isinstance(out, list) else [] if out is None else [out]:
            publisher.publish(message)

    def _on_twist(self, message: Any) -> None:
        self.stamps.append(conversions.seconds(message.header.stamp))
        v, w = message.twist.linear, message.twist.angular
        self.commands.append((time.monotonic(), np.array([v.x, v.y, v.z, w.x, w.y, w.z])))

    def _on_target(self, message: Any) -> None:
        self.commands.append((time.monotonic(), conversions.pose_arrays(message.pose)[0]))

    def begin(self, name: str, *arguments: str, code: str = '', **values: object) -> None:
        """Start ``vla_node`` or ``command_gate`` anew with parameters, after ``code``.

        ``arguments`` come before the usual ones: the first remapping that fits a name counts.
        """
        if name in self.processes:
            self.interrupt(name)
        self.wait(0.1)  # what a former process of this name said last
        self.heard['vla' if name == 'vla_node' else 'gate'].clear()
        self.commands.clear()
        usual = GATE if name == 'command_gate' else {'policy': self.policy, 'engine': self.engine}
        usual = usual | (PATIENT[name] if not self.strict else
                         {'priority': PRIORITY} if name == 'command_gate' else {})
        remaps = GATE_REMAPS if name == 'command_gate' else []
        self.start(name, '', *arguments, *remaps, code=code, **usual | values)

    def order(self, name: str) -> Any:
        """Ask the gate to start, stop or clear_fault; nobody waits for the answer."""
        return self.client(Trigger, f'/{name}').call_async(Trigger.Request())

    def obeyed(self, name: str) -> Any:
        """Order the gate and return its answer."""
        return self.call(Trigger, f'/{name}')

    @property
    def gate(self) -> tuple[str, str]:
        """The gate's last state and reason."""
        return self.said('gate')

    @property
    def vla(self) -> tuple[str, str]:
        """The policy's last state and reason."""
        return self.said('vla')

    def told(self, key: str) -> str:
        """Return a value of the policy's last state."""
        return conversions.status_values(self.last('vla'))[key]

    def inject(self, **faults: Callable[[Any], Any]) -> float:
        """Spoil topics from now on; return now."""
        self.faults.update(faults)
        return time.monotonic()

    def goes_on(self) -> None:
        """Heal everything; the arm must move again without being told, by a new chunk."""
        healed = time.monotonic()
        self.faults.clear()
        self.spin(self.moving, 10, 'motion by itself after the fault')
        first = next(t for t, v in self.commands if t > healed and v.any())
        assert any(t <= first for t, _ in self.of('chunk', healed)), 'by an old chunk'

    def moving(self) -> bool:
        """Whether the last commands all move the arm."""
        count, age = (6, 0.5) if self.strict else (3, 4.0)
        recent = [v for t, v in self.commands[-count:] if t > time.monotonic() - age]
        return len(recent) == count and all(v.any() for v in recent) and self.gate[0] == 'RUN'

    def ready(self, timeout: float = 60.0, heal: bool = True) -> Rig:
        """Heal everything and bring the arm to move under the policy, undisturbed."""
        if heal:
            self.faults.clear()
        self.robot.grip_moves, self.robot.target = True, None
        for switch in ('slow', 'waits', 'endless', 'hungry', 'offset'):
            (self.folder / switch).unlink(missing_ok=True)
        self.estop.publish(Bool(data=False))
        end = time.monotonic() + timeout
        self.spin(lambda: self.vla[0] not in ('', 'UNCONFIGURED', 'LOADING', 'INACTIVE')
                  and self.gate[0], timeout, 'both nodes up')
        while not self.moving():
            if self.gate[0] == 'FAULT':
                self.order('clear_fault')
            if self.vla[0] in ('IDLE', 'STOPPED'):
                self.instruction.publish(String(data=TASK))
            if self.gate[0] == 'STOP' and self.vla[0] in ('ACTING', 'THINKING'):
                self.order('start')
            self.wait(0.2 if self.strict else 0.5)
            if time.monotonic() > end:
                self.fail(f'the arm not in motion within {timeout:g} s')
        del self.commands[:-8]
        return self

    def still_after(self, since: float) -> float | None:
        """Return when the last moving command came, if ``STILL_TICKS`` still ones followed."""
        after = [(t, v.any()) for t, v in self.commands if t >= since]
        moved = [t for t, motion in after if motion]
        last = moved[-1] if moved else since
        return last if sum(t > last for t, _ in after) >= STILL_TICKS else None

    def stops(self, since: float, state: str, *words: str, timeout: float = 3.0) -> float:
        """Wait until the arm stands still in ``state``; return how long it moved on [s]."""
        def done() -> bool:
            return (self.still_after(since) is not None and self.gate[0] == state
                    and all(w in self.gate[1] for w in words))
        self.spin(done, timeout, f'{state} for {" ".join(words)}')
        last = self.still_after(since)
        assert last is not None
        return last - since
