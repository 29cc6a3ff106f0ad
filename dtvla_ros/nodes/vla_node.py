"""The node that holds the policy: sees, writes down its thought, publishes a chunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.engine.engine import MODES, Drafting
from dtvla_ros.errors import UserError
from dtvla_ros.middleware import images, ros
from dtvla_ros.middleware.messages import (
    Bool,
    CompressedImage,
    DiagnosticArray,
    DiagnosticStatus,
    Image,
    JointState,
    JointTrajectory,
    PoseStamped,
    String,
)
from dtvla_ros.nodes import wire
from dtvla_ros.nodes.observer import Observer, refuse_instruction
from dtvla_ros.nodes.parameters import declare
from dtvla_ros.nodes.thinker import Outcome, Thinker
from dtvla_ros.safety.watchdog import Watchdog

HEARTBEAT_PERIOD = 0.025  # the gate gives up after 0.1 s of silence
STOP_WITHOUT_INPUT = 5.0
CAMERAS = ('primary', 'wrist')
DEVICES = ('cpu', 'cuda', 'tensorrt', 'auto')
STARVING = 3  # repetitions of one moment after which a new decision is made in mid-chunk
UNFINISHED = '…'
OSC_CONTRACT = ('OSC_POSE', osc.METRES_PER_UNIT, osc.RADIANS_PER_UNIT, osc.GRIPPER_CLOSED)
LEVELS = {
    'STOPPED': DiagnosticStatus.WARN, 'FAULT': DiagnosticStatus.ERROR,
    'HOLDING': DiagnosticStatus.WARN, 'LOADING': DiagnosticStatus.STALE,
}


class VlaNode(ros.Node):
    """Decides on the newest complete observation and publishes what it thought and chose.

    In lock-step it looks exactly every ``replan_steps`` control steps and publishes that many
    rows, so that a run is the same however long a thought takes. Otherwise it looks as soon as
    ``replan_steps`` have passed and publishes the whole chunk, whose tail covers the thinking.
    """

    def __init__(self) -> None:
        super().__init__('vla_node')
        self._lockstep = declare(self, 'lockstep', False, 'wait for no clock; repeatable runs')
        self._replan = declare(
            self, 'replan_steps', 0, 'control steps between looks; 0: as the policy says', low=0)
        self._deadline = declare(
            self, 'deadline_s', 5.0, 'longest decision before the task is stopped', low=0.01)
        self._on_cut = declare(
            self, 'on_cut', 'stop', 'what to do when a thought hits its cap',
            choices=('stop', 'act'))
        transport = declare(
            self, 'transport', 'raw', 'image topics', choices=('raw', 'compressed'))
        fingers = declare(
            self, 'finger_joints', ['panda_finger_joint1', 'panda_finger_joint2'],
            'joints whose absolute positions add up to the gripper opening')
        arm = declare(
            self, 'arm_joints', [f'panda_joint{i}' for i in range(1, 8)], 'joints of the arm')
        skew = declare(self, 'max_skew_s', 0.03, 'largest stamp difference in one look', low=0)
        late = declare(
            self, 'input_timeout_s', 0.2, 'silence of an input before HOLDING', low=0.05)
        self._observer = Observer(CAMERAS, arm, fingers, skew)
        self._alive = Watchdog(
            {} if self._lockstep else dict.fromkeys(
                [f'image_{c}' for c in CAMERAS] + ['joint_states', 'ee_pose'], late),
            own_period=HEARTBEAT_PERIOD)
        self._stamps: dict[str, float] = {}
        self._repeats: dict[str, int] = {}
        self._check_words: Callable[[str], object] | None = None
        self._instruction = ''
        self._task = 0
        self._ticket = 0
        self._decided: float | None = None
        self._sent: JointTrajectory | None = None
        self._period = 0.05
        self._estop = False
        self._stopped = ''
        self._note = ''
        self._input_lost_since: float | None = None
        self._latency: dict[str, float] = {}
        self._drafting = Drafting()
        self._decisions = 0
        self._answered = 0.0
        self._refused: dict[str, int] = {}

        self._reasoning = self.create_publisher(String, 'reasoning', wire.LATCHED_10)
        self._chunks = self.create_publisher(JointTrajectory, 'action_chunk', wire.LATEST)
        self._state = self.create_publisher(DiagnosticStatus, 'state', wire.LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        for camera in CAMERAS:
            self.create_subscription(
                Image if transport == 'raw' else CompressedImage, f'image_{camera}',
                self._image_callback(camera, transport), wire.NEWEST_FRAME)
        sensor = ros.qos_profile_sensor_data
        self.create_subscription(JointState, 'joint_states', self._on_joints, sensor)
        self.create_subscription(PoseStamped, 'ee_pose', self._on_pose, sensor)
        self.create_subscription(String, 'instruction', self._on_instruction, wire.LATCHED)
        self.create_subscription(Bool, 'estop', self._on_estop, wire.LATCHED)
        steady = ros.Clock(clock_type=ros.ClockType.STEADY_TIME)
        self.create_timer(HEARTBEAT_PERIOD, self._beat, clock=steady)
        self.create_timer(1.0, self._diagnose, clock=steady)
        wake = self.create_guard_condition(self._on_worker)
        self._thinker = Thinker(self._loader(), self._stream, wake.trigger)
        self._thinker.start()

    def destroy_node(self) -> None:
        """End the worker first, so that nothing is published by a dying node."""
        self._ticket += 1
        self._thinker.stop(timeout=1.0)
        super().destroy_node()

    def _loader(self) -> Callable[[], Callable[..., Any]]:
        path = declare(self, 'policy', 'models/nano', 'folder of the policy, its manifest inside')
        engine = declare(self, 'engine', 'onnx', 'what runs it', choices=('onnx', 'torch'))
        mode = declare(self, 'mode', 'full', 'the thought', choices=MODES)
        device = declare(self, 'device', 'cpu', 'where it runs', choices=DEVICES)
        threads = declare(self, 'threads', 1, 'threads of the engine on a CPU', low=1)
        tokens = declare(
            self, 'max_thought_tokens', 0,
            'length at which a thought is cut; 0: as the policy says', low=0)
        keep = declare(self, 'keep_thought', 4, 'decisions a frozen thought is kept for', low=1)
        seed = declare(self, 'seed', 0, 'of random and swapped thoughts')

        def load() -> Callable[..., Any]:
            # Here, not above: the imports take seconds and belong to the worker.
            from dtvla_ros.engine.load import load_policy
            from dtvla_ros.engine.think_act import ThinkAct
            from dtvla_ros.share import find

            loaded, transform, manifest = load_policy(
                find(path), engine=engine, threads=threads, device=device)
            cameras = tuple(transform.config.vision.cameras)
            if cameras != CAMERAS:
                raise UserError(f'{path} wants cameras {cameras}; this node has {CAMERAS}')
            contract = manifest.action
            if (contract.controller, contract.metres_per_unit, contract.radians_per_unit,
                    contract.gripper_close) != OSC_CONTRACT:
                raise UserError(f'{path}: its actions are {contract.controller} with '
                                f'{contract.metres_per_unit} m and {contract.radians_per_unit} '
                                "rad per unit; the gate speaks LIBERO's OSC_POSE only")
            self._check_words = transform.check_instruction
            self._period = 1.0 / contract.rate_hz
            self._replan = self._replan or contract.replan_steps
            decide = ThinkAct(
                loaded, transform, mode=mode,
                max_thought_tokens=tokens or manifest.max_thought_tokens,
                max_think_seconds=self._deadline, seed=seed, keep=keep).decide
            self.get_logger().info(f'policy {path} loaded, {engine} on {device}, {mode} thought')
            return decide

        return load

    def _image_callback(self, camera: str, transport: str) -> Callable[[Any], None]:
        decode = images.image_to_numpy if transport == 'raw' else images.compressed_to_numpy

        def receive(message: Any) -> None:
            stamp = wire.seconds(message.header.stamp)
            try:
                refused = self._observer.image(camera, decode(message), stamp)
            except images.ImageError as error:
                refused = str(error)
            self._received(f'image_{camera}', stamp, refused)
        return receive

    def _on_joints(self, message: JointState) -> None:
        stamp = wire.seconds(message.header.stamp)
        self._received('joint_states', stamp,
                       self._observer.joints(message.name, message.position, stamp))

    def _on_pose(self, message: PoseStamped) -> None:
        stamp = wire.seconds(message.header.stamp)
        self._received('ee_pose', stamp,
                       self._observer.pose(*wire.pose_arrays(message.pose), stamp))

    def _received(self, name: str, stamp: float, refused: str | None) -> None:
        """Note a sample; a repeated stamp is no sign of life, but in lock-step a request."""
        if refused:
            self._refused[name] = self._refused.get(name, 0) + 1
            self.get_logger().warning(f'{name} refused: {refused}', throttle_duration_sec=1.0)
            return
        if self._stamps.get(name) != stamp:
            self._stamps[name] = stamp
            self._repeats[name] = 0
            self._alive.feed(name, time.monotonic())
        else:
            self._repeats[name] += 1
        self._consider(asked_again=self._repeats[name] if self._lockstep else 0)

    def _on_instruction(self, message: String) -> None:
        refused = refuse_instruction(message.data)
        if not refused and self._check_words is not None:
            try:
                self._check_words(message.data)
            except UserError as error:
                refused = str(error)
        if refused:
            self._note = f'instruction rejected: {refused}'
            self.get_logger().error(self._note)
        else:
            self._note = ''
            self._instruction = message.data.strip()
            self._task += 1
            self._forget()
            self._observer.clear()
            self._stopped = ''
        self._beat()

    def _on_estop(self, message: Bool) -> None:
        self._estop = message.data
        if self._estop:
            self._forget()
        self._beat()

    def _forget(self) -> None:
        """Void the decision in flight and the memory of the last one."""
        self._ticket += 1
        self._decided = None
        self._sent = None

    def _consider(self, asked_again: int = 0) -> None:
        """Start a decision if one is due; a moment shown again asks for what got lost."""
        if (not self._instruction or self._estop or self._stopped
                or not self._thinker.loaded.is_set() or self._thinker.busy_since is not None):
            return
        observation = self._observer.look(self._instruction)
        if observation is None:
            return
        if self._decided is not None:
            since = observation.stamp - self._decided
            if asked_again and since == 0 and self._sent is not None:
                self._chunks.publish(self._sent)
                return
            # The gate, too, repeats what it has; after a few requests it has nothing. A clock
            # that went back belongs to another run: look again.
            starving = asked_again >= STARVING and since > 0
            if 0 <= since < self._replan * self._period - 1e-6 and not starving:
                return
        self._decided = observation.stamp
        self._sent = None
        self._thinker.think(observation, self._ticket)
        self._beat()

    def _on_worker(self) -> None:
        if self._thinker.load_error is not None:
            raise self._thinker.load_error
        while (outcome := self._thinker.take()) is not None:
            if outcome.ticket == self._ticket:
                self._publish(outcome)
            self._consider()
        self._beat()

    def _publish(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._stop(f'the policy failed: {type(outcome.error).__name__}: {outcome.error}')
            return
        decision = outcome.decision
        assert decision is not None
        self._latency = {**decision.timings, 'total': outcome.seconds}
        self._drafting = decision.drafting
        self._decisions += 1
        self._answered = outcome.observation.stamp
        self._reasoning.publish(String(data=decision.reasoning))
        self._note = ''
        if decision.outcome != 'complete':
            self._note = 'the thought was cut at its cap'
            self.get_logger().warning(self._note, throttle_duration_sec=1.0)
            if self._on_cut == 'stop':
                self._stop(self._note)
                return
        if not np.isfinite(decision.chunk).all():
            self._stop('the policy chose a non-finite action')
            return
        rows = decision.chunk[:self._replan] if self._lockstep else decision.chunk
        self._sent = wire.chunk_message(Chunk(outcome.observation.stamp, self._period, rows))
        self._chunks.publish(self._sent)

    def _stop(self, reason: str) -> None:
        self._stopped = reason
        self._forget()
        self.get_logger().error(f'stopped: {reason}')

    def _stream(self, text: str) -> None:
        self._reasoning.publish(String(data=text + UNFINISHED))

    def _judge(self) -> tuple[str, str]:
        """Return the state and its reason."""
        steady = time.monotonic()
        if self._estop:
            return 'FAULT', 'e-stop'
        if not self._thinker.loaded.is_set():
            return 'LOADING', self._note
        if self._stopped:
            return 'STOPPED', self._stopped
        if not self._instruction:
            return 'IDLE', self._note or 'no instruction'
        busy = self._thinker.busy_since
        if busy is not None and steady - busy > self._deadline:
            self._stop(f'no decision within {self._deadline:g} s')
            return 'STOPPED', self._stopped
        late = self._alive.late(steady)
        if late:
            self._input_lost_since = self._input_lost_since or steady
            reason = f'{late[0]} missing or late'
            if steady - self._input_lost_since > STOP_WITHOUT_INPUT:
                self._stop(f'{reason} for {STOP_WITHOUT_INPUT:g} s')
                return 'STOPPED', self._stopped
            return 'HOLDING', reason
        self._input_lost_since = None
        if busy is not None or self._sent is None:
            return 'THINKING', self._note or (
                '' if busy is not None else self._observer.missing)
        return 'ACTING', self._note

    def _beat(self) -> None:
        state, reason = self._judge()
        self._state.publish(self._status(state, reason))

    def _status(self, state: str, reason: str) -> DiagnosticStatus:
        values: dict[str, object] = {
            'reason': reason, 'task': self._task, 'step': self._decisions,
            'instruction': self._instruction}
        if self._decided is not None:
            now = self.get_clock().now().nanoseconds * 1e-9
            values['observation_age'] = now - self._decided
        if self._decisions:
            values['stamp'] = f'{self._answered:.9f}'
        values.update({f'latency_{k}': v for k, v in self._latency.items()})
        values.update({f'draft_{k}': v for k, v in asdict(self._drafting).items()})
        return wire.status_message(self.get_fully_qualified_name(), state, values,
                                   LEVELS.get(state, DiagnosticStatus.OK))

    def _diagnose(self) -> None:
        status = self._status(*self._judge())
        counts = {f'refused_{name}': n for name, n in self._refused.items()}
        status.values = [*status.values, *wire.status_message('', '', counts).values]
        now = self.get_clock().now().nanoseconds * 1e-9
        self._diagnostics.publish(DiagnosticArray(header=wire.header(now), status=[status]))


def main(args: list[str] | None = None) -> int:
    """Run the node."""
    return ros.run(VlaNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
