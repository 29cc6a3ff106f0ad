"""The node that holds the policy: sees, writes down its thought, publishes a chunk."""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import (
    ACTION_CHUNK,
    ESTOP,
    GATE_STATE,
    HEARTBEAT_PERIOD,
    INSTRUCTION,
    LATENCY,
    REASONING,
    UNFINISHED,
    VLA_STATE,
    relative,
)
from dtvla_ros.engine.engine import SpeculativeStats
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.inference_worker import (
    InferenceWorker,
    Outcome,
    give_back_memory,
    out_of_memory,
)
from dtvla_ros.nodes.inputs import Inputs
from dtvla_ros.nodes.observer import refuse_instruction
from dtvla_ros.nodes.parameters import declare, refuse_changes
from dtvla_ros.nodes.pose_source import PoseSource
from dtvla_ros.nodes.settings import SETTINGS, declare_settings, load, read_settings
from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.lifecycle import LifecycleNode
from dtvla_ros.ros.run import STEADY, call_soon, end, run, wait_until_heard
from dtvla_ros.safety.watchdog import Watchdog

STOP_WITHOUT_INPUT = 5.0
STARVING = 3  # repetitions of one moment after which a new decision is made in mid-chunk
VERIFY_PATIENCE = 4.0  # a lifecycle manager waits for at most 5 s [s]
ASK_AGAIN = 1.0  # between attempts to activate [s]
GATE = relative(GATE_STATE)
NAMESPACE = '/vla'
DONE, REFUSED = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
LEVELS = {
    'STOPPED': DiagnosticStatus.WARN, 'FAULT': DiagnosticStatus.ERROR,
    'HOLDING': DiagnosticStatus.WARN, 'LOADING': DiagnosticStatus.STALE,
    'UNCONFIGURED': DiagnosticStatus.STALE, 'INACTIVE': DiagnosticStatus.STALE,
}


class VlaNode(LifecycleNode):
    """Decides on the newest complete observation and publishes what it thought and chose.

    In lock-step it looks exactly every ``replan_steps`` control steps and publishes that many
    rows, so that a run is the same however long a thought takes. Otherwise it looks as soon as
    ``replan_steps`` have passed, thinks while the arm plays, and publishes the whole chunk,
    whose tail covers the thinking.

    Configure checks the policy's files and loads it in the background; activate is refused until
    it is loaded. With ``autostart`` the node does both by itself, again and again while refused.
    """

    def __init__(self) -> None:
        super().__init__('vla_node')
        declare_settings(self)
        autostart = declare(self, 'autostart', False, 'configure and activate without a manager')
        refuse_changes(self, SETTINGS, lambda p: None if self._thinker is None else (
            f'{p.name} is fixed while the node is configured: clean it up first'))
        self._pose_source = PoseSource(
            self, lambda *pose: self._inputs.on_pose(*pose))  # type: ignore[has-type]
        self._settings = read_settings(self)
        self._inputs = self._build_inputs()
        self._thinker: InferenceWorker | None = None
        self._gate = Watchdog({}, own_period=HEARTBEAT_PERIOD)
        self._gate_heard = False
        self._is_active = False
        self._refusal = ''
        self._instruction = ''
        self._task = 0
        self._ticket = 0
        self._decided: float | None = None
        self._sent: JointTrajectory | None = None
        self._estop = False
        self._stopped = ''
        self._note = ''
        self._input_lost_since: float | None = None
        self._latency: dict[str, float] = {}
        self._drafting = SpeculativeStats()
        self._decisions = 0
        self._answered = 0.0

        self._reasoning = self.create_publisher(
            String, relative(REASONING, NAMESPACE), qos.LATCHED_10)
        self._chunks = self.create_publisher(
            JointTrajectory, relative(ACTION_CHUNK, NAMESPACE), qos.LATEST)
        self._heart = self.create_publisher(
            DiagnosticStatus, relative(VLA_STATE, NAMESPACE), qos.LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        qos.listen_to_anyone(self, String, relative(INSTRUCTION), self._on_instruction)
        qos.listen_to_anyone(self, Bool, relative(ESTOP), self._on_estop)
        self.create_subscription(DiagnosticStatus, GATE, self._on_gate, qos.LATCHED)
        self.create_service(Trigger, 'reset_episode', self._on_reset)
        self.create_timer(HEARTBEAT_PERIOD, self._on_worker, clock=STEADY)
        self.create_timer(1.0, self._diagnose, clock=STEADY)
        if autostart:
            self._started = self.create_timer(0.0, self._start_by_itself, clock=STEADY)

    def destroy_node(self) -> None:
        """End the worker first, so that nothing is published by a dying node."""
        self._release(patience=1.0)
        self._beat()
        wait_until_heard(self._heart)
        super().destroy_node()

    def _build_inputs(self) -> Inputs:
        return Inputs(self, self._settings, self._pose_source, HEARTBEAT_PERIOD, self._consider)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check the policy's files, begin to load them, subscribe."""
        settings = self._settings = read_settings(self)
        thinker = InferenceWorker(lambda on_verified: load(settings, on_verified), self._stream,
                          lambda: call_soon(self, self._on_worker))
        thinker.start()
        thinker.wait_verified(VERIFY_PATIENCE)
        if thinker.load_error is not None:
            return self._refuse('configure', str(thinker.load_error))
        self._thinker = thinker
        self._gate = Watchdog({GATE: settings.gate_timeout_s}, own_period=HEARTBEAT_PERIOD)
        self._gate_heard = False
        self._inputs = self._build_inputs()
        self._inputs.open()
        return DONE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to decide, unless the policy or an input is not what it should be."""
        thinker = self._thinker
        assert thinker is not None
        if thinker.load_error is not None:
            return self._refuse('activate', f'the policy was not loaded: {thinker.load_error}')
        if not thinker.loaded.is_set():
            return self._refuse('activate', 'the policy is still being loaded')
        wrong = self._inputs.wrong()
        if wrong:
            return self._refuse('activate', wrong)
        self._refusal = ''
        self._is_active = True
        if self._instruction:
            self._take_instruction(self._instruction)
        self._beat()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Void the decision in flight, then tell the gate that there is nothing to wait for."""
        self._is_active = False
        self._forget()
        self._beat()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the policy and unsubscribe."""
        self._release(patience=1.0)
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything."""
        self._release(patience=1.0)
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything; the node can be configured again."""
        self._release(patience=1.0)
        return DONE

    def _refuse(self, what: str, reason: str) -> TransitionCallbackReturn:
        if reason != self._refusal:
            self.get_logger().error(f'{what} refused: {reason}')
        self._refusal = reason
        self._beat()
        return REFUSED

    def _release(self, patience: float) -> None:
        self._is_active = False
        self._forget()
        if self._thinker is not None:
            thinker, self._thinker = self._thinker, None
            self._inputs.close()
            thinker.stop(timeout=patience)
            give_back_memory()

    def _start_by_itself(self) -> None:
        if self._thinker is None:
            self._started.cancel()
            if self.trigger_configure() != DONE:
                end(UserError(self._refusal))
            self._started = self.create_timer(ASK_AGAIN, self._start_by_itself, clock=STEADY)
        elif self._thinker.load_error is not None:
            self._started.cancel()
            end(self._thinker.load_error)
        elif not self._thinker.loaded.is_set():
            return
        elif self.trigger_activate() == DONE:
            self._started.cancel()

    def _on_instruction(self, message: String) -> None:
        refused = refuse_instruction(message.data)
        if refused:
            self._reject(refused)
        else:
            self._take_instruction(message.data.strip())
        self._beat()

    def _take_instruction(self, text: str) -> None:
        """Begin a task, unless the policy does not know the words or they are not allowed."""
        allowed = [t for t in self._settings.allowed_instructions if t]
        if allowed and text not in allowed:
            if self._settings.on_unlisted == 'reject':
                self._reject(f'"{text}" is not among allowed_instructions')
                return
            self.get_logger().warning(f'instruction "{text}" is not among allowed_instructions')
        if self._thinker is not None and self._thinker.loaded.is_set():
            try:
                self._thinker.policy.check_instruction(text)
            except UserError as error:
                self._reject(str(error))
                return
        self._note = ''
        self._instruction = text
        self._task += 1
        self._forget()
        self._inputs.clear()
        self._input_lost_since = None
        self._stopped = ''

    def _reject(self, reason: str) -> None:
        self._note = f'instruction rejected: {reason}'
        self.get_logger().error(self._note)

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Begin the same task anew, as the same instruction once more does."""
        response.success = bool(self._instruction)
        if response.success:
            self._take_instruction(self._instruction)
        response.message = self._instruction or 'there was no instruction yet'
        self._beat()
        return response

    def _on_estop(self, message: Bool) -> None:
        self._estop = message.data
        if self._estop:
            self._forget()
        self._beat()

    def _on_gate(self, _: DiagnosticStatus) -> None:
        self._gate.feed(GATE, time.monotonic())
        self._gate_heard = True

    def _forget(self) -> None:
        """Void the decision in flight and the memory of the last one."""
        self._ticket += 1
        self._decided = None
        self._sent = None

    def _consider(self, repeats: int = 0) -> None:
        """Start a decision if one is due; a moment shown again asks for what got lost."""
        thinker, settings = self._thinker, self._settings
        if (thinker is None or not self._is_active or not self._instruction or self._estop
                or self._stopped or thinker.busy_since is not None
                or self._inputs.trouble(time.monotonic())):
            return
        observation = self._inputs.look(self._instruction)
        if observation is None:
            return
        if self._decided is not None:
            since = observation.stamp - self._decided
            asked_again = repeats if settings.lockstep else 0
            if asked_again and since == 0 and self._sent is not None:
                self._chunks.publish(self._sent)
                return
            # The gate, too, repeats what it has; after a few requests it has nothing. A clock
            # that went back belongs to another run: look again.
            starving = asked_again >= STARVING and since > 0
            policy = thinker.policy
            if 0 <= since < policy.replan_steps * policy.period - 1e-6 and not starving:
                return
        self._decided = observation.stamp
        self._sent = None
        thinker.think(observation, self._ticket)
        self._beat()

    def _on_worker(self) -> None:
        thinker = self._thinker
        while thinker is not None and (outcome := thinker.take()) is not None:
            if outcome.ticket == self._ticket:
                self._publish(outcome)
            self._consider()
        self._beat()

    def _publish(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._fail(outcome.error)
            return
        decision, thinker = outcome.decision, self._thinker
        assert decision is not None and thinker is not None
        self._latency = {**decision.timings, 'total': outcome.seconds}
        self._drafting = decision.drafting
        self._decisions += 1
        self._answered = outcome.observation.stamp
        self._reasoning.publish(String(data=decision.reasoning))
        self._note = ''
        if decision.outcome != 'complete':
            self._note = 'the thought was cut at its cap'
            self.get_logger().warning(self._note, throttle_duration_sec=1.0)
            if self._settings.on_cut == 'stop':
                self._stop(self._note)
                return
        if not np.isfinite(decision.chunk).all():
            self._stop('the policy chose a non-finite action')
            return
        rows = decision.chunk
        if self._settings.lockstep:
            rows = rows[:thinker.policy.replan_steps]
        self._sent = conversions.chunk_message(
            Chunk(outcome.observation.stamp, thinker.policy.period, rows))
        self._chunks.publish(self._sent)

    def _fail(self, error: Exception) -> None:
        if not out_of_memory(error):
            self._stop(f'the policy failed: {type(error).__name__}: {error}')
            return
        self._stop('DEGRADED: out of memory, the policy was released; clean up and configure '
                   'again')
        self._beat()
        assert self._thinker is not None
        error.__traceback__ = None  # its frames hold the policy
        self._thinker.stop(timeout=1.0)
        give_back_memory()

    def _stop(self, reason: str) -> None:
        self._stopped = reason
        self._forget()
        self.get_logger().error(f'stopped: {reason}')

    def _stream(self, text: str) -> None:
        self._reasoning.publish(String(data=text + UNFINISHED))

    def _judge(self) -> tuple[str, str]:
        """Return the state and its reason."""
        steady = time.monotonic()
        thinker = self._thinker
        if self._estop:
            return 'FAULT', 'e-stop'
        if thinker is None:
            return 'UNCONFIGURED', self._refusal or 'not configured'
        if not self._is_active:
            loading = not thinker.loaded.is_set() and thinker.load_error is None
            state = 'LOADING' if loading else 'INACTIVE'
            return state, self._refusal or self._note or (
                "the policy's weights are being read" if loading else 'not activated')
        if self._stopped:
            return 'STOPPED', self._stopped
        if not self._instruction:
            return 'IDLE', self._note or 'no instruction'
        if self._gate_heard and self._gate.late(steady):
            self._stop('command_gate is silent')
            return 'STOPPED', self._stopped
        busy, deadline = thinker.busy_since, self._settings.deadline_s
        if busy is not None and steady - busy > deadline:
            self._stop(f'no decision within {deadline:g} s')
            return 'STOPPED', self._stopped
        trouble = self._inputs.trouble(steady)
        if trouble:
            self._input_lost_since = self._input_lost_since or steady
            if steady - self._input_lost_since > STOP_WITHOUT_INPUT:
                self._stop(f'{trouble} for {STOP_WITHOUT_INPUT:g} s')
                return 'STOPPED', self._stopped
            return 'HOLDING', trouble
        self._input_lost_since = None
        if busy is None and self._inputs.missing:
            return 'THINKING', f'waiting for {self._inputs.missing}'
        thinking = busy is not None or self._sent is None
        return 'THINKING' if thinking else 'ACTING', self._note

    def _beat(self) -> None:
        self._heart.publish(self._status(*self._judge()))

    def _status(self, state: str, reason: str) -> DiagnosticStatus:
        values: dict[str, object] = {
            'reason': reason, 'task': self._task, 'step': self._decisions,
            'instruction': self._instruction}
        if self._decided is not None:
            now = self.get_clock().now().nanoseconds * 1e-9
            values['observation_age'] = now - self._decided
        if self._decisions:
            values['stamp'] = f'{self._answered:.9f}'
        values.update({f'{LATENCY}{k}': v for k, v in self._latency.items()})
        values.update({f'draft_{k}': v for k, v in asdict(self._drafting).items()})
        return conversions.status_message(self.get_fully_qualified_name(), state, values,
                                   LEVELS.get(state, DiagnosticStatus.OK))

    def _diagnose(self) -> None:
        status = self._status(*self._judge())
        counts = {f'refused_{name}': n for name, n in self._inputs.refused.items()}
        status.values = [*status.values, *conversions.status_message('', '', counts).values]
        now = self.get_clock().now().nanoseconds * 1e-9
        self._diagnostics.publish(DiagnosticArray(header=conversions.header(now), status=[status]))


def main(args: list[str] | None = None) -> int:
    """Run the node."""
    return run(VlaNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
