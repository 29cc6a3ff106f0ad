"""The real policy and gate processes between a robot and a proxy of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.client import Client
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from benchmarks.arm import Robot
from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.environment import prepare
from dtvla_ros.ros.run import make_executor
from test.faults.proxy import FaultProxy
from test.nodes.conftest import IN_NAMESPACE

ROOT = Path(__file__).resolve().parents[2]
TASK = 'put the lemon in the blue bin'
STILL_TICKS = 4
PRIORITY = 20  # of the gate where times are measured, as config/robot_*.yaml has it
PATIENCE = 20.0  # s that a reaction may take where only its order counts
ORDERS = {'start': Trigger, 'stop': Trigger, 'clear_fault': Trigger, 'pause': SetBool}
GATE_REMAPS = ['-r', 'vla/action_chunk:=/proxied/action_chunk', '-r', 'vla/state:=/proxied/state']
# What a robot's gate has, but without ramps: how fast a stop begins is measured, not its length.
GATE = {'preset': 'servo', 'profile': 'fidelity', 'max_latency_s': 0.5, 'blend_steps': 4}
# A starved machine is late by itself: where no time is measured, that must not be a fault.
PATIENT: dict[str, dict[str, object]] = {
    'vla_node': {'input_timeout_s': 1.0, 'gate_timeout_s': 1.0, 'max_age_s': 0.9,
                 'max_skew_s': 0.2},
    'command_gate': {'heartbeat_timeout_s': 1.0, 'joints_timeout_s': 0.8, 'pose_timeout_s': 0.8,
                     'clock_stall_s': 0.8, 'max_latency_s': 2.0, 'gripper_timeout_s': 3.0},
}


def parameters(values: dict[str, object]) -> list[str]:
    """Return the arguments that set a node's parameters."""
    return [word for name, value in values.items() for word in ('-p', f'{name}:={value}')]


class Rig:
    """Robot, proxy, ``vla_node`` and ``command_gate`` on one graph.

    ``strict``: reactions are timed, so nodes have their own time-outs and the gate its priority.
    Otherwise time-outs are wide and waiting is patient.
    """

    def __init__(self, folder: Path, policy: tuple[Path, str], strict: bool) -> None:
        self.folder = folder
        self.policy, self.engine = policy
        self.strict = strict
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self._ended: list[subprocess.Popen[str]] = []
        self._logged: dict[str, int] = {}  # length of a log when its process began
        self.commands: list[tuple[float, np.ndarray]] = []  # steady time, velocity [m/s] or goal
        self.stamps: list[float] = []  # of twists, as the gate wrote them [s]
        self.gate_states: list[tuple[float, str, str]] = []
        self.vla_states: list[tuple[float, str, dict[str, str]]] = []
        self.chunks: list[tuple[float, Any]] = []
        self.reasoning: list[tuple[float, str]] = []
        prepare()
        rclpy.init(args=['faults'], signal_handler_options=SignalHandlerOptions.NO)
        self.nodes = {name: Node(name) for name in ('robot', 'proxy', 'watch')}
        self.robot = Robot(self.nodes['robot'])
        self.proxy = FaultProxy(self.nodes['proxy'])
        node = self.node = self.nodes['watch']
        latched = qos.profile(50, reliable=True, latched=True)
        node.create_subscription(TwistStamped, '/twist_cmd', self._on_twist, 50)
        node.create_subscription(PoseStamped, '/target_pose', self._on_target, 50)
        node.create_subscription(DiagnosticStatus, '/gate_state', self._on_gate, latched)
        node.create_subscription(DiagnosticStatus, '/vla/state', self._on_vla, latched)
        node.create_subscription(String, '/vla/reasoning', lambda m: self.reasoning.append(
            (time.monotonic(), m.data)), latched)
        node.create_subscription(JointTrajectory, '/vla/action_chunk', lambda m:
                                 self.chunks.append((time.monotonic(), m)), 50)
        self.instruction = node.create_publisher(String, '/instruction', qos.LATCHED)
        self.estop = node.create_publisher(Bool, '/estop', qos.LATCHED)
        self._orders = {name: node.create_client(kind, f'/{name}')
                        for name, kind in ORDERS.items()}
        self.executor = make_executor()
        for each in self.nodes.values():
            self.executor.add_node(each)

    def _on_twist(self, message: Any) -> None:
        self.stamps.append(conversions.seconds(message.header.stamp))
        v, w = message.twist.linear, message.twist.angular
        self.commands.append((time.monotonic(), np.array([v.x, v.y, v.z, w.x, w.y, w.z])))

    def _on_target(self, message: Any) -> None:
        self.commands.append((time.monotonic(), conversions.pose_arrays(message.pose)[0]))

    def _on_gate(self, message: Any) -> None:
        self.gate_states.append(
            (time.monotonic(), message.message, conversions.status_values(message)['reason']))

    def _on_vla(self, message: Any) -> None:
        self.vla_states.append(
            (time.monotonic(), message.message, conversions.status_values(message)))

    def start(self, name: str, *arguments: str, code: str = '',
              remaps: Sequence[str] = ()) -> None:
        """Start ``vla_node`` or ``command_gate``; ``code`` is run in its process before.

        ``remaps`` come before the usual ones: the first that fits a name counts.
        """
        self.wait(0.1)  # what a former process of this name said last
        (self.vla_states if name == 'vla_node' else self.gate_states).clear()
        self.commands.clear()
        if name == 'vla_node':
            values = {'policy': self.policy, 'engine': self.engine}
            common = [*IN_NAMESPACE, *parameters(values)]
        else:
            common = [*parameters(GATE), *GATE_REMAPS]
        if not self.strict:
            common += parameters(PATIENT[name])
        elif name == 'command_gate':
            common += parameters({'priority': PRIORITY})
        module = f'dtvla_ros.nodes.{name}'
        program = (['-c', f'{code}\nimport runpy\nrunpy.run_module({module!r}, '
                          "run_name='__main__', alter_sys=True)"] if code else ['-m', module])
        path = self.folder / f'{name}.log'
        self._logged[name] = path.stat().st_size if path.exists() else 0
        with path.open('a') as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *program, '--ros-args', *remaps, *common, *arguments], stdout=log,
                stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                env={**os.environ, 'OMP_NUM_THREADS': '1'},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))

    def kill(self, name: str, number: int = signal.SIGKILL) -> subprocess.Popen[str]:
        """Signal a process that is to end; nobody waits for it here."""
        process = self.processes.pop(name)
        process.send_signal(number)
        self._ended.append(process)
        return process

    def log(self, name: str) -> str:
        """Return what a process has printed."""
        with (self.folder / f'{name}.log').open() as log:
            log.seek(self._logged[name])
            return log.read()

    def spin(self, until: Callable[[], Any], timeout: float, what: str = '') -> None:
        """Run the test's nodes until a condition holds; fail with every log after ``timeout``.

        Unless reactions are timed, `PATIENCE` is the least time-out.
        """
        timeout = timeout if self.strict else max(timeout, PATIENCE)
        end = time.monotonic() + timeout
        while not until():
            self.executor.spin_once(timeout_sec=0.005)
            if time.monotonic() > end:
                self._fail(f'{what} not within {timeout:g} s')

    def _fail(self, what: str) -> NoReturn:
        logs = '\n'.join(f'--- {n}\n{self.log(n)[-2000:]}' for n in self.processes)
        raise AssertionError(f'{what}; gate {self.gate_states[-1:]}, policy '
                             f'{self.vla_states[-1:]}; the nodes said:\n{logs}')

    def wait(self, seconds: float) -> None:
        """Run the test's nodes for some time."""
        end = time.monotonic() + seconds
        self.spin(lambda: time.monotonic() >= end, seconds + 5)

    def order(self, name: str, **request: Any) -> Future:
        """Ask the gate to start, stop, clear_fault or pause; nobody waits for the answer."""
        return self._orders[name].call_async(ORDERS[name].Request(**request))

    def obeyed(self, name: str, **request: Any) -> Any:
        """Order the gate and return its answer."""
        return self._answer(self._orders[name], ORDERS[name].Request(**request))[0]

    def call(self, kind: Any, service: str, request: Any) -> tuple[Any, float]:
        """Call a service and return the response and how long it took [s]."""
        client = self.node.create_client(kind, service)
        try:
            return self._answer(client, request)
        finally:
            self.node.destroy_client(client)

    def _answer(self, client: Client, request: Any) -> tuple[Any, float]:
        self.spin(client.service_is_ready, 10, client.srv_name)
        begun = time.monotonic()
        future = client.call_async(request)
        self.spin(future.done, 5, client.srv_name)
        return future.result(), time.monotonic() - begun

    @property
    def gate(self) -> tuple[str, str]:
        """Return the gate's last state and reason."""
        return self.gate_states[-1][1:] if self.gate_states else ('', '')

    @property
    def vla(self) -> tuple[str, str]:
        """Return the policy's last state and reason."""
        if not self.vla_states:
            return '', ''
        return self.vla_states[-1][1], self.vla_states[-1][2]['reason']

    def moving(self) -> bool:
        """Whether the last commands all move the arm."""
        count, age = (6, 0.5) if self.strict else (3, 2.0)
        recent = [v for t, v in self.commands[-count:] if t > time.monotonic() - age]
        return len(recent) == count and all(v.any() for v in recent) and self.gate[0] == 'RUN'

    def ready(self, timeout: float = 60.0) -> Rig:
        """Heal everything and bring the arm to move under the policy, undisturbed."""
        self.proxy.faults.clear()
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
                self._fail(f'the arm not in motion within {timeout:g} s')
        self.commands = self.commands[-8:]
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

    def silent_after(self, since: float) -> float:
        """Return how long commands went on after ``since`` [s]."""
        return max((t - since for t, _ in self.commands), default=0.0)

    def close(self) -> None:
        """End all processes and leave the graph."""
        for process in [*self._ended, *self.processes.values()]:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        self.executor.shutdown()
        for node in self.nodes.values():
            node.destroy_node()
        rclpy.try_shutdown()
