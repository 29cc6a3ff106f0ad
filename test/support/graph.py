"""Processes in a ROS domain of their own, and a node of the test's that listens to them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.bringup import OPTIONAL, node_processes
from dtvla_ros.ros.environment import prepare
from dtvla_ros.ros.run import STEADY, make_executor

from .beside import fresh_domain

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / 'models' / 'nano'


def noise(height: int = 128, width: int = 128) -> np.ndarray:
    """Return an image [height, width, 3] that is never the same twice."""
    return np.random.default_rng().integers(0, 255, (height, width, 3), np.uint8)


class Graph:
    """Processes in one domain, and what a node of ours heard from them.

    ``patience``: the least time-out of waiting [s]; ``nap``: the longest sleep meanwhile [s].
    """

    patience, nap = 0.0, 0.02

    def __init__(self, folder: Path) -> None:
        prepare()
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.heard: dict[str, list[tuple[float, Any]]] = defaultdict(list)
        self.nodes: list[Node] = []
        self._started: list[subprocess.Popen[str]] = []
        self._logs: dict[str, Path] = {}
        self._clients: dict[str, Any] = {}
        self._executor: Any = None

    @property
    def node(self) -> Any:
        """The first node of ours."""
        return self.nodes[0]

    def launch(self, name: str, *words: str) -> subprocess.Popen[str]:
        """Start Python with these words; what it prints is `log`."""
        self._logs[name] = self.folder / f'{name}_{len(self._started)}.log'
        with self._logs[name].open('w') as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *words], stdout=log, stderr=subprocess.STDOUT, text=True,
                cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        self._started.append(self.processes[name])
        return self.processes[name]

    def start(self, name: str, config: str = '', *arguments: str, code: str = '',
              **values: object) -> subprocess.Popen[str]:
        """Start a node of ours with a file of config/ and parameters; ``code`` is run before it.

        The policy's is put in its namespace, not managed unless ``autostart`` says so.
        """
        module = f'dtvla_ros.nodes.{name}'
        program = ('-m', module) if not code else ('-c', (
            f'{code}\nimport runpy\n'
            f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"))
        own = ('-p', 'autostart:=true') if name == 'vla_node' else ()
        process = node_processes(dict.fromkeys(OPTIONAL, 'true'), simulated=True)[name]
        usual = process.ros_arguments(f'config/{config}.yaml' if config else '')
        words = [word for key, value in values.items() for word in ('-p', f'{key}:={value}')]
        return self.launch(name, *program, '--ros-args', *arguments, *usual[1:], *own, *words)

    def log(self, name: str) -> str:
        """Return what a process has printed."""
        return self._logs[name].read_text()

    def join(self, factory: Callable[[], Any], *arguments: str) -> Any:
        """Build a node of ours and let `spin` run it; the first one initialises rclpy."""
        if not self.nodes:
            rclpy.init(args=['test', *arguments], signal_handler_options=SignalHandlerOptions.NO)
            self._executor = make_executor()
        self.nodes.append(factory())
        self._executor.add_node(self.nodes[-1])
        return self.nodes[-1]

    def listen(self, *arguments: str, **topics: tuple[Any, str]) -> Any:
        """Make a node that notes (time, message) of every topic by key; return it."""
        node = self.join(lambda: Node('listener'), *arguments)
        for key, (kind, topic) in topics.items():
            self.hear(key, kind, topic, (
                qos.profile(200, reliable=True, latched=True)
                if kind in (String, DiagnosticStatus) else
                qos_profile_sensor_data if topic in ('/joint_states', '/ee_pose') else 200))
        return node

    def hear(self, key: str, kind: Any, topic: str, profile: Any, raw: bool = False) -> Any:
        """Note (time, message) of a topic; ``raw``: the bytes of the message."""
        heard = self.heard[key]
        return self.node.create_subscription(kind, topic, lambda message: heard.append(
            (time.monotonic(), message)), profile, raw=raw)

    def of(self, key: str, since: float = 0.0) -> list[tuple[float, Any]]:
        """Return (time, message) of what was heard under ``key``."""
        return [(t, m) for t, m in self.heard[key] if t >= since]

    def last(self, key: str) -> Any:
        """Return the last message heard under ``key``, None before the first."""
        return self.heard[key][-1][1] if self.heard[key] else None

    def said(self, key: str) -> tuple[str, str]:
        """Return state and reason of the last status heard under ``key``, else empty."""
        message = self.last(key)
        return ('', '') if message is None else (
            message.message, conversions.status_values(message)['reason'])

    def spin(self, until: Callable[[], Any], timeout: float = 60.0, what: str = '') -> None:
        """Run our nodes until a condition holds; fail with every log after ``timeout`` seconds."""
        timeout = max(timeout, self.patience)
        end = time.monotonic() + timeout
        while not until():
            self._executor.spin_once(timeout_sec=self.nap)
            if time.monotonic() > end:
                self.fail(f'{what} not within {timeout:g} s')

    def fail(self, what: str) -> None:
        """Raise AssertionError with what the processes have printed."""
        logs = '\n'.join(f'--- {n}\n{self.log(n)[-2000:]}' for n in self.processes)
        raise AssertionError(f'{what}; they said:\n{logs}')

    def wait(self, seconds: float) -> None:
        """Run our nodes for so long."""
        end = time.monotonic() + seconds
        self.spin(lambda: time.monotonic() >= end, seconds + 10)

    def client(self, kind: Any, name: str) -> Any:
        """Return a client of a service, the same one each time: it has been discovered then."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        return self._clients[name]

    def call(self, kind: Any, name: str, request: Any = None) -> Any:
        """Call a service once it is there; return its response."""
        client = self.client(kind, name)
        self.spin(client.service_is_ready, 30, name)
        future = client.call_async(kind.Request() if request is None else request)
        self.spin(future.done, 30, name)
        return future.result()

    def change(self, transition: int) -> bool:
        """Ask the policy node for a transition; return whether it succeeded."""
        request = ChangeState.Request()
        request.transition.id = transition
        return self.call(ChangeState, '/vla/vla_node/change_state', request).success

    def set(self, node: str, **values: Any) -> list[Any]:
        """Set a node's parameters as ``ros2 param set`` does; return the results."""
        return self.call(SetParameters, f'{node}/set_parameters', SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()
                        for name, value in values.items()])).results

    def every(self, period: float, *callbacks: Callable[[], Any]) -> Any:
        """Call back regularly, on the steady clock; return the timer."""
        return self.node.create_timer(period, lambda: [c() for c in callbacks], clock=STEADY)

    def kill(self, name: str, number: int = signal.SIGKILL) -> subprocess.Popen[str]:
        """Signal a process that is to end; nobody waits for it here."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process

    def interrupt(self, name: str) -> int:
        """Interrupt a process and return its exit code."""
        return self.kill(name, signal.SIGINT).wait(30)

    def close(self) -> None:
        """End every process, then our nodes."""
        for process in self._started:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.communicate()
        if self._executor is not None:
            self._executor.shutdown()
        for node in self.nodes:
            node.destroy_node()
        rclpy.try_shutdown()
        gc.collect()  # a node is on the graph until nothing refers to it


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    """Return a graph nobody else is on; its processes are gone after the test."""
    monkeypatch.setenv('ROS_DOMAIN_ID', fresh_domain())
    made = Graph(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope='session')
def policy() -> tuple[Path, str]:
    """Return the default policy and its engine."""
    return NANO, 'onnx'
