"""The policy node: observations in, thoughts and chunks of actions out."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros import conventions as names
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import HEARTBEAT_PERIOD, PERSON, POLICY, relative
from dtvla_ros.correction import Correction
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.decision_monitor import WAITING, DecisionMonitor, DecisionState, Readings
from dtvla_ros.nodes.inference_worker import InferenceWorker, Outcome, give_back_memory, load
from dtvla_ros.nodes.inputs import Inputs
from dtvla_ros.nodes.question import Question, question_of
from dtvla_ros.nodes.settings import declare_all, declare_former, guard, read_all
from dtvla_ros.nodes.thought_override import ThoughtOverride, understood
from dtvla_ros.policy.completion import Completion, decisions_in_a_row
from dtvla_ros.policy.instructions import refuse_instruction, shown
from dtvla_ros.policy.understanding import NotUnderstood
from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.run import STEADY, LifecycleNode, call_soon, end, run, wait_until_heard
from dtvla_ros.ros.settings import VlaSettings
from dtvla_ros.ros.waiting import tell_what_lacks
from dtvla_ros.thought import Thought, as_sentence, as_told, phrases

if TYPE_CHECKING:
    from dtvla_ros.engine.engine import Decision

NAMESPACE = '/vla'
REQUESTS_BEFORE_NEW = 3  # repetitions of one moment after which a new decision is made
LOAD_TIMEOUT = 4.0  # a lifecycle manager waits for at most 5 s [s]
RELEASE_TIMEOUT = 1.0  # longest wait for the worker to end [s]
ASK_AGAIN = 1.0  # between attempts to activate [s]
SUCCEEDED, REFUSED = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
LEVELS = {
    **dict.fromkeys(WAITING, DiagnosticStatus.STALE), DecisionState.FAULT: DiagnosticStatus.ERROR,
    DecisionState.HOLDING: DiagnosticStatus.WARN, DecisionState.STOPPED: DiagnosticStatus.WARN}


class VlaNode(LifecycleNode):
    """Decides on the newest complete observation and publishes its thought and its chunk.

    A task ends when the thoughts say that it is complete: the arm holds still until the next one.

    In lock-step it decides exactly every ``replan_steps`` control steps and publishes that many
    rows, so that a run is the same however long a thought takes. Otherwise it thinks while the arm
    plays, as soon as ``replan_steps`` have passed, and publishes the whole chunk. Configure loads
    the policy and lets it prove itself; what takes longer than ``LOAD_TIMEOUT`` goes on in the
    background, and activate is refused until it is done. With
    ``autostart`` the node does both by itself. The heartbeat alone ticks the `DecisionMonitor`.
    """

    def __init__(self) -> None:
        super().__init__('vla_node')
        self._settings = declare_all(self, VlaSettings(), changeable=True)
        declare_former(self)
        guard(self, [setting.name for setting in fields(VlaSettings)], lambda p:
                       None if self._worker is None else
                       f'{p.name} is fixed while the node is configured: clean it up first')
        self._inputs = Inputs(self, self._settings, HEARTBEAT_PERIOD, self._consider)
        self._monitor = DecisionMonitor(HEARTBEAT_PERIOD)
        self._worker: InferenceWorker | None = None
        self._is_active = False
        self._instruction = self._understood = ''  # what was said, and the task that it means
        self._task = self._request_id = self._decisions = self._refusals = 0
        self._rejected = dict.fromkeys(('rejected', 'rejected_instruction'), '')
        self._decided: float | None = None  # stamp of the last observation decided on
        self._sent: JointTrajectory | None = None
        self._completion = Completion()
        self._override = ThoughtOverride()
        self._question = Question()
        self._gate_stopped = ''  # why the gate ended the task
        self._driver = POLICY
        self._account: dict[str, object] = {}  # of the last decision
        self._thought = ''  # the last one on this task that is of the grammar, else the first
        self._said = ''  # of the thought that is being written

        own = functools.partial(relative, namespace=NAMESPACE)
        self._reasoning = self.create_publisher(String, own(names.REASONING), qos.LATCHED_10)
        self._writing = self.create_publisher(String, own(names.REASONING_STREAM), qos.NEWEST)
        self._chunks = self.create_publisher(JointTrajectory, own(names.ACTION_CHUNK), qos.LATEST)
        self._state = self.create_publisher(DiagnosticStatus, own(names.VLA_STATE), qos.LATCHED)
        self._tasks = self.create_publisher(String, own(names.VLA_TASKS), qos.LATCHED)
        self._questions = self.create_publisher(String, own(names.QUESTION), qos.LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        qos.listen_to_anyone(self, String, relative(names.INSTRUCTION), self._on_instruction)
        qos.listen_to_anyone(self, String, own(names.THOUGHT_OVERRIDE), self._on_override)
        qos.listen_to_anyone(self, Bool, relative(names.ESTOP), self._on_estop)
        self.create_subscription(
            DiagnosticStatus, relative(names.GATE_STATE), self._on_gate, qos.LATCHED)
        self.create_service(Trigger, 'reset_episode', self._on_reset)
        self.create_timer(HEARTBEAT_PERIOD, self._on_worker, clock=STEADY)
        self.create_timer(1.0, self._diagnose, clock=STEADY)
        tell_what_lacks(self, self._lacking)
        if self._settings.autostart:
            self._started = self.create_timer(0.0, self._start_by_itself, clock=STEADY)

    def destroy_node(self) -> None:
        """End the worker first, so that nothing is published by a dying node."""
        self._release()
        self._heartbeat()
        wait_until_heard(self._state)
        super().destroy_node()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to load the policy, wait for a small one, subscribe."""
        settings = self._settings = read_all(self, VlaSettings)
        worker = InferenceWorker(functools.partial(load, settings), self._stream,
                                 lambda: call_soon(self, self._on_worker))
        worker.settled.wait(LOAD_TIMEOUT)
        if worker.load_error is not None:
            return self._refuse('configure', str(worker.load_error))
        self._worker = worker
        self._monitor.configure(settings.deadline_s, settings.gate_timeout_s)
        self._inputs.open(settings)
        return SUCCEEDED

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to decide, unless the policy or an input is not what it should be."""
        worker = self._worker
        assert worker is not None
        if worker.loaded.is_set():
            self._inputs.expect(worker.manifest.images.sizes)
        wrong = (f'the policy was not loaded: {worker.load_error}' if worker.load_error else
                 self._inputs.wrong() if worker.loaded.is_set() else
                 'the policy is still being loaded')
        if wrong:
            return self._refuse('activate', wrong)
        self._monitor.refusal = ''
        if ready := worker.policy.engine.ready:
            self.get_logger().info(ready)
        self._is_active = True
        taken, trained = worker.understanding.tasks, worker.manifest.tasks
        self._tasks.publish(String(data=json.dumps(taken)))
        if trained and (new := next((t for t in taken if t not in trained), None)):
            self.get_logger().warning(
                f'allowed_instructions: the policy was not trained on "{shown(new)}"')
        # What was told before may be none of its tasks.
        told, self._instruction, self._understood = self._instruction, '', ''
        self._monitor.has_task = self._monitor.done = False
        if told:
            self._take_instruction(told)
        else:
            topic = self.resolve_topic_name(relative(names.INSTRUCTION))
            self.get_logger().info(f'active, no task yet: dtvla tell TASK, which is on {topic}')
        self._heartbeat()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Void the decision in flight, then tell the gate that there is nothing to wait for."""
        self._is_active = False
        self._forget()
        self._heartbeat()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the policy and unsubscribe; the node can be configured again."""
        self._release()
        return SUCCEEDED

    on_shutdown = on_error = on_cleanup

    def _refuse(self, what: str, reason: str) -> TransitionCallbackReturn:
        if reason != self._monitor.refusal:
            self.get_logger().error(f'{what} refused: {reason}')
        self._monitor.refusal = reason
        self._heartbeat()
        return REFUSED

    def _release(self) -> None:
        self._is_active = False
        self._forget()
        if self._worker is not None:
            worker, self._worker = self._worker, None
            self._inputs.close()
            worker.stop(RELEASE_TIMEOUT)
            give_back_memory()

    def _start_by_itself(self) -> None:
        if self._worker is None:
            self._started.cancel()
            if self.trigger_configure() != SUCCEEDED:
                end(UserError(self._monitor.refusal))
            self._started = self.create_timer(ASK_AGAIN, self._start_by_itself, clock=STEADY)
        elif self._worker.load_error is not None:
            self._started.cancel()
            end(self._worker.load_error)
        elif self._worker.loaded.is_set() and self.trigger_activate() == SUCCEEDED:
            self._started.cancel()

    def _on_instruction(self, message: String) -> None:
        if refused := refuse_instruction(message.data):
            self._reject(message.data, refused)
        else:
            self._take_instruction(message.data.strip())
        self._heartbeat()

    def _take_instruction(self, text: str) -> None:
        """Begin the task that a sentence means; refuse what is none or has unknown words."""
        try:
            self._understood = self._meaning(text)
        except UserError as error:
            return self._reject(text, str(error))
        if meaning := names.understood_as(self._understood, text):
            self.get_logger().info(meaning)
        self._instruction = text
        self._rejected = dict.fromkeys(self._rejected, '')
        self._task += 1
        self._forget()
        self._inputs.clear()
        self._completion = Completion()
        self._monitor.begin_task()

    def _meaning(self, text: str) -> str:
        """Return the task that a sentence means; '' before the policy is there to tell."""
        worker = self._worker
        if worker is None or not worker.loaded.is_set():
            return ''
        try:
            task = worker.understanding.understand(text).task
        except NotUnderstood as error:
            if self._settings.on_unlisted == 'reject':
                raise
            self.get_logger().warning(f'instruction "{shown(text)}": {error}')
            task = text
        worker.policy.transform.check_instruction(task)
        return task

    def _reject(self, text: str, reason: str) -> None:
        self._refusals += 1
        self._rejected = {'rejected': reason, 'rejected_instruction': shown(text)}
        self._monitor.note = f'instruction "{shown(text)}" rejected: {reason}'
        self.get_logger().error(self._monitor.note)

    def _on_gate(self, message: DiagnosticStatus) -> None:
        self._monitor.on_gate(time.monotonic())
        self._gate_stopped = conversions.stop_reason(message)
        if self._gate_stopped:
            self._override.clear()
            self._answered()
        before = self._driver
        self._driver = conversions.status_values(message).get('driver', POLICY)
        if self._driver != before:
            self._completion = Completion()
            self._answered()
            if self._driver == POLICY:  # which goes on by what it sees from now on
                self._void()
                self._inputs.clear()
            self._heartbeat()

    def _on_override(self, message: String) -> None:
        """Correct the thoughts from the next decision on, or refuse; '' corrects no more."""
        text, decisions = message.data.strip(), self._settings.override_decisions
        try:
            self._override.take(self._correction(text) if text else None, decisions)
        except UserError as error:
            self._monitor.note = self._override.reject(text, str(error))
            self.get_logger().error(self._monitor.note)
        else:
            self._answered()
            stands = self._override.correction
            self.get_logger().info('thought override ' + (
                f'"{stands.said}" ' + (f'for {decisions} decisions' if decisions else
                                       'until it is cleared') if stands else 'cleared'))
        self._heartbeat()

    def _correction(self, text: str) -> Correction:
        worker = self._worker
        if worker is None or not self._is_active or not self._monitor.ready:
            state, reason = self._monitor.status
            raise UserError(f'no task is being done ({state.name}, {reason}); tell one before')
        if self._gate_stopped:
            raise UserError(f'command_gate ended the task: {self._gate_stopped}; start it before')
        return understood(text, worker, self._understood, self._thought)

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Begin the same task anew, as the same instruction once more does."""
        response.success = bool(self._instruction)
        if response.success:
            self._take_instruction(self._instruction)
        response.message = self._instruction or 'there was no instruction yet'
        self._heartbeat()
        return response

    def _on_estop(self, message: Bool) -> None:
        self._monitor.estop = message.data
        if message.data:
            self._forget()
        self._heartbeat()

    def _forget(self) -> None:
        """Void the decision in flight, the memory of the last one, what a person put into it."""
        self._void()
        self._override.clear()
        self._answered()

    def _void(self) -> None:
        self._request_id += 1
        self._decided = self._sent = None
        self._thought = ''

    def _consider(self, repeats: int = 0) -> None:
        """Start a decision if one is due; a moment shown again asks for what got lost."""
        worker, settings = self._worker, self._settings
        if (worker is None or not self._is_active or not self._monitor.ready
                or self._question.text or worker.busy_since is not None
                or self._inputs.trouble(time.monotonic())):
            return
        if (observation := self._inputs.poll(self._understood)) is None:
            return
        if self._decided is not None:
            since = observation.stamp - self._decided
            asked_again = repeats if settings.lockstep else 0
            if asked_again and since == 0 and self._sent is not None:
                return self._chunks.publish(self._sent)
            # The gate, too, repeats what it has; after a few requests it has nothing. A clock
            # that went back belongs to another run: decide again.
            queue_empty = asked_again >= REQUESTS_BEFORE_NEW and since > 0
            interval = self._replan_steps(worker) / worker.manifest.action.rate_hz
            if 0 <= since < interval - 1e-6 and not queue_empty:
                return
        first = self._decided is None
        self._decided, self._sent = observation.stamp, None
        worker.request(observation, self._request_id, self._override.correction, first)
        self._heartbeat()

    def _replan_steps(self, worker: InferenceWorker) -> int:
        return self._settings.replan_steps or worker.manifest.action.replan_steps

    def _on_worker(self) -> None:
        """Publish what the worker has finished, ask for more, send the heartbeat."""
        worker = self._worker
        while worker is not None and (outcome := worker.take()) is not None:
            if outcome.request_id == self._request_id:
                self._publish(outcome, worker)
            self._consider()
        self._heartbeat()

    def _publish(self, outcome: Outcome, worker: InferenceWorker) -> None:
        decision, stamp = outcome.decision, outcome.observation.stamp
        if decision is None:
            return self._fail(outcome.error, worker)
        if outcome.correction is not None and Thought.parse(decision.reasoning) is None:
            return self._drop_correction(outcome.correction, decision.reasoning)
        self._decisions += 1
        self._account = {
            'stamp': f'{stamp:.9f}', 'thought': decision.reasoning,
            'forced': json.dumps(decision.forced) if decision.forced else '',
            **{f'{names.LATENCY}{phase}': seconds for phase, seconds in decision.timings.items()},
            f'{names.LATENCY}total': outcome.seconds,
            **{f'draft_{key}': n for key, n in asdict(decision.drafting).items()},
            'decoded': ', '.join(decision.decoded),
            'confidence': '' if (sure := decision.confidence) is None else f'{sure:.3f}'}
        sentence = as_sentence(decision.reasoning)
        if not self._thought or Thought.parse(decision.reasoning):
            self._thought = decision.reasoning
        if outcome.correction is not None and decision.forced:
            sentence = as_told(sentence, outcome.correction.said)
        self._reasoning.publish(String(data=sentence))
        self._monitor.note = ''
        if self._override.count(outcome.correction):
            self.get_logger().info('thought override over')
        if decision.outcome != 'complete':
            self._monitor.note = 'the thought was cut at its cap'
            self.get_logger().warning(self._monitor.note, throttle_duration_sec=1.0)
            if self._settings.on_cut == 'stop':
                return self._stop(self._monitor.note)
        if not np.isfinite(decision.chunk).all():
            return self._stop('the policy chose a non-finite action')
        # That the task is complete only the policy says, while it drives.
        needed = decisions_in_a_row(self._replan_steps(worker), worker.manifest.action.rate_hz)
        if self._driver != PERSON and self._completion.add(
                '' if 'phase' in decision.forced else decision.reasoning, needed):
            self.get_logger().info(f'done: {self._instruction}')
            self._monitor.done = True
            return self._forget()
        # A person who drives, or has said what to think, need not be asked.
        if self._driver != PERSON and outcome.correction is None and self._question.due(
                decision.confidence, self._settings.min_confidence):
            return self._ask(decision, worker)
        rows = decision.chunk[:self._replan_steps(worker) if self._settings.lockstep else None]
        action = worker.manifest.action
        self._sent = conversions.chunk_message(
            Chunk(stamp, 1.0 / action.rate_hz, rows, action.channels))
        self._chunks.publish(self._sent)

    def _ask(self, decision: Decision, worker: InferenceWorker) -> None:
        """Hold, and ask a person; whatever they do answers it."""
        self._question.text = self._monitor.question = question_of(
            decision.reasoning, worker.policy.fields(decision.thought_tokens),
            decision.thought_log_probs, self._instruction)
        self._questions.publish(String(data=self._question.text))
        self.get_logger().warning(f'asks: {self._question.text}')

    def _answered(self) -> None:
        """Take the question back, if there is one, and decide anew."""
        if self._question.text:
            self._questions.publish(String())
            self._decided = self._sent = None
        self._question.clear()
        self._monitor.question = ''

    def _drop_correction(self, correction: Correction, thought: str) -> None:
        """Decide anew, without what the policy could not think around."""
        self._override.clear()
        self._monitor.note = self._override.reject(
            correction.said, f'the policy wrote no whole thought around it: "{shown(thought)}"')
        self.get_logger().error(self._monitor.note)
        self._decided = None

    def _fail(self, error: Exception | None, worker: InferenceWorker) -> None:
        if not isinstance(error, MemoryError):  # an engine raises OutOfMemory, which is one
            return self._stop(f'the policy failed: {type(error).__name__}: {error}')
        self._stop('DEGRADED: out of memory, policy released; clean up and configure again')
        self._heartbeat()
        error.__traceback__ = None  # its frames hold the policy
        worker.stop(RELEASE_TIMEOUT)
        give_back_memory()

    def _stop(self, reason: str) -> None:
        self._monitor.stopped = reason
        self._forget()
        self.get_logger().error(f'stopped: {reason}')

    def _stream(self, request_id: int, text: str) -> None:
        """Publish what a thought says so far, when another phrase of it is complete."""
        said = ''.join(phrases(text))
        if said not in ('', self._said) and request_id == self._request_id:
            self._writing.publish(String(data=said))
        self._said = said

    def _lacking(self) -> Iterator[str]:
        """Yield what the node waits for before it can decide; its next task is not among it."""
        state, reason = self._monitor.status
        if state in WAITING:
            by_hand = state is not DecisionState.LOADING and not self._settings.autostart
            yield f'its activation: {state.name}, {reason}' + (
                f': ros2 lifecycle set {self.get_fully_qualified_name()} '
                f'{"activate" if self._worker else "configure"}, or autostart: true'
                if by_hand else '')
        if self._worker is not None and (self._monitor.has_task or not self._settings.lockstep):
            yield from self._inputs.lacking()

    def _readings(self, now: float) -> Readings:
        worker = self._worker
        if worker is None:
            return Readings(DecisionState.UNCONFIGURED)
        if not self._is_active:
            loading = not worker.loaded.is_set() and worker.load_error is None
            return Readings(DecisionState.LOADING if loading else DecisionState.INACTIVE)
        trouble = self._inputs.trouble(now) if self._monitor.ready else None
        return Readings(None, worker.busy_since, trouble, self._inputs.missing,
                        self._sent is not None)

    def _heartbeat(self) -> None:
        """Let the monitor judge, obey it, publish the state."""
        now, stopped = time.monotonic(), self._monitor.stopped
        self._monitor.tick(now, self._readings(now))
        if self._monitor.stopped and not stopped:
            self._stop(self._monitor.stopped)
        self._state.publish(self._status())

    def _status(self, **more: object) -> DiagnosticStatus:
        """Return the monitor's last status with what belongs to it; judges nothing."""
        state, reason = self._monitor.status
        loaded = self._worker if self._worker and self._worker.loaded.is_set() else None
        age = {} if self._decided is None else {'observation_age': self._now() - self._decided}
        return conversions.status_message(self.get_fully_qualified_name(), state.name, {
            'reason': reason, 'driver': self._driver, 'task': self._task, 'step': self._decisions,
            'action_space': loaded.manifest.action.controller if loaded else '',
            'instruction': self._instruction, 'understood': self._understood,
            'refusals': self._refusals, **self._rejected, **self._override.values(), **age,
            'question': self._question.text,
            **self._account, **more},
            LEVELS.get(state))

    def _diagnose(self) -> None:
        refused = {f'refused_{name}': n for name, n in self._inputs.refused.items()}
        self._diagnostics.publish(DiagnosticArray(
            header=conversions.header(self._now()), status=[self._status(**refused)]))

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9


main = functools.partial(run, VlaNode)

if __name__ == '__main__':
    raise SystemExit(main())
