"""The three nodes as processes in a ROS domain of their own, and a node that listens to them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from std_msgs.msg import String

from dtvla_ros.ros import qos
from dtvla_ros.ros.environment import prepare
from dtvla_ros.ros.run import make_executor

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / 'models' / 'nano'
SHARED = ('image_primary', 'image_wrist', 'joint_states', 'ee_pose', 'instruction', 'estop',
          'gate_state')
IN_NAMESPACE = ['-p', 'autostart:=true', '-r', '__ns:=/vla',
                *(w for n in SHARED for w in ('-r', f'{n}:=/{n}'))]


@pytest.fixture(scope='session')
def policy(tmp_path_factory) -> tuple[Path, str]:
    """Return the default policy and its engine, or random weights where there is none yet."""
    if (NANO / 'manifest.json').exists():
        return NANO, 'onnx'
    import torch

    from dtvla_ros.actions.normalize import ActionStatistics
    from dtvla_ros.policy.checkpoint import save_weights
    from dtvla_ros.policy.config import DecoderConfig
    from dtvla_ros.policy.manifest import TOKENIZER, WEIGHTS, PolicyManifest, sha256
    from dtvla_ros.policy.model import HybridDecoder
    from dtvla_ros.policy.vocabulary import build_tokenizer, special_ids

    folder = tmp_path_factory.mktemp('policy')
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = DecoderConfig.nano(tokenizer.get_vocab_size(), special_ids(tokenizer))
    save_weights(HybridDecoder(config), folder / WEIGHTS)
    tokenizer.save(str(folder / TOKENIZER))
    manifest = PolicyManifest(
        name='random', license='Apache-2.0', config=config, max_thought_tokens=8,
        statistics=ActionStatistics((-0.5,) * 7, (0.5,) * 7),
        files={n: sha256(folder / n) for n in (WEIGHTS, TOKENIZER)})
    (folder / 'manifest.json').write_text(manifest.to_json())
    return folder, 'torch'


class Graph:
    """Node processes in one domain, and what a node of ours heard from them."""

    def __init__(self, folder: Path) -> None:
        prepare()
        self._folder = folder
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.heard: list[tuple[float, str, Any]] = []
        self.node: Any = None
        self._executor: Executor | None = None

    def start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a node of ours with ``--ros-args`` and these arguments."""
        with (self._folder / f'{name}.log').open('w') as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, '-m', f'dtvla_ros.nodes.{name}', '--ros-args', *arguments],
                stdout=log, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                env={**os.environ, 'OMP_NUM_THREADS': '1', **environment})
        return self.processes[name]

    def log(self, name: str) -> str:
        """Return what a process has printed."""
        return (self._folder / f'{name}.log').read_text()

    def join(self, factory: Callable[[], Any], *arguments: str) -> Any:
        """Initialise rclpy with a command line, build our node and let `spin` run it."""
        rclpy.init(args=['test', *arguments])
        self.node = factory()
        self._executor = make_executor()
        self._executor.add_node(self.node)
        return self.node

    def listen(self, *arguments: str, **topics: tuple[Any, str]) -> Any:
        """Make a node that notes (time, key, message) of every topic; return it."""
        node = self.join(lambda: Node('listener'), *arguments)
        for key, (kind, topic) in topics.items():
            self.hear(key, kind, topic, (
                qos.profile(200, reliable=True, latched=True)
                if kind in (String, DiagnosticStatus) else
                qos_profile_sensor_data if topic in ('/joint_states', '/ee_pose') else 200))
        return node

    def hear(self, key: str, kind: Any, topic: str, profile: Any, raw: bool = False) -> None:
        """Note (time, key, message) of a topic; ``raw``: the bytes of the message."""
        self.node.create_subscription(kind, topic, lambda message: self.heard.append(
            (time.monotonic(), key, message)), profile, raw=raw)

    def of(self, key: str, since: float = 0.0) -> list[tuple[float, Any]]:
        """Return (time, message) of what was heard under ``key``."""
        return [(t, m) for t, k, m in self.heard if k == key and t >= since]

    def spin(self, until: Callable[[], Any], timeout: float) -> None:
        """Listen until a condition holds; fail with every log after ``timeout`` seconds."""
        assert self._executor is not None
        end = time.monotonic() + timeout
        while not until():
            self._executor.spin_once(timeout_sec=0.02)
            if time.monotonic() > end:
                logs = '\n'.join(f'--- {n}\n{self.log(n)}' for n in self.processes)
                raise AssertionError(f'not within {timeout} s; the nodes said:\n{logs}')

    def wait(self, seconds: float) -> None:
        """Listen for so long."""
        end = time.monotonic() + seconds
        self.spin(lambda: time.monotonic() > end, seconds + 10)

    def call(self, kind: Any, name: str, request: Any, timeout: float = 30.0) -> Any:
        """Call a service once it is there; return its response."""
        client = self.node.create_client(kind, name)
        self.spin(client.service_is_ready, timeout)
        future = client.call_async(request)
        self.spin(future.done, timeout)
        self.node.destroy_client(client)
        return future.result()

    def interrupt(self, name: str) -> int:
        """Interrupt a process and return its exit code."""
        self.processes[name].send_signal(signal.SIGINT)
        return self.processes[name].wait(20)

    def close(self) -> None:
        """End every process, then our node."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        if self._executor is not None:
            self._executor.shutdown()
        if self.node is not None:
            self.node.destroy_node()
        rclpy.try_shutdown()


@pytest.fixture
def graph(tmp_path, monkeypatch) -> Iterator[Graph]:
    """A graph nobody else is on; its processes are gone after the test."""
    # Above what other tests draw from; a killed participant haunts its domain for 10 s.
    monkeypatch.setenv('ROS_DOMAIN_ID', str(random.SystemRandom().randint(101, 220)))
    made = Graph(tmp_path)
    yield made
    made.close()
