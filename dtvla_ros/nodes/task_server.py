"""Runs a task for whoever sends it as a goal: the action of dtvla_interfaces."""

from __future__ import annotations

import functools
import json
import time
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import Trigger

from dtvla_ros import conventions as names
from dtvla_ros.conventions import parameter, relative
from dtvla_ros.nodes.settings import declare_all
from dtvla_ros.nodes.task_run import Ending, Outcome, Said, TaskRun
from dtvla_ros.ros import conversions, interfaces, qos
from dtvla_ros.ros.run import STEADY, run

PERIOD = 0.05  # between two judgements [s]
SENT = 0.1  # in which a last order leaves the process [s]


@dataclass(frozen=True, slots=True)
class TaskServerSettings:
    """Parameters of the node."""

    start_gate: bool = parameter(
        False, 'a goal starts a gate that waits for its start; else somebody has to')
    client_timeout_s: float = parameter(
        1.0, 'time without any action client after which the arm is stopped; 0: never', low=0)


@dataclass(slots=True)
class Goal:
    """A goal and what becomes of it; ``told``: its last feedback."""

    handle: ServerGoalHandle
    run: TaskRun
    told: tuple[str, str] = '', ''
    ordered_stop: bool = False


class TaskServer(Node):
    """Offers the action run_task: a task in words, done by policy and gate, with its outcome.

    It is a user of both like any other: it tells the policy on its topic, and stops the arm by the
    gate's service. A goal that the policy refuses changes nothing; one that it takes ends the goal
    before.
    """

    def __init__(self) -> None:
        super().__init__('task_server')
        self._given = declare_all(self, TaskServerSettings())
        self._policy = self._gate = Said()
        self._tasks: list[str] = []
        self._thought = ''
        self._goals: list[Goal] = []  # that go on, in the order in which they came
        self._heard_client = time.monotonic()
        self._type = interfaces.action_type('RunTask')
        if self._type is None:
            self.get_logger().warning(f'run_task is not offered: {interfaces.NOT_INSTALLED}')
            return
        # Not latched: a policy that is started anew must not be told an old task.
        self._instruction = self.create_publisher(
            String, relative(names.INSTRUCTION), qos.LATEST)
        self._start, self._stop = (self.create_client(Trigger, name) for name in ('start', 'stop'))
        for kind, topic, receive, profile in (
                (DiagnosticStatus, names.VLA_STATE, self._on_policy, qos.LATCHED),
                (DiagnosticStatus, names.GATE_STATE, self._on_gate, qos.LATCHED),
                (String, names.VLA_TASKS, self._on_tasks, qos.LATCHED),
                (String, names.REASONING, self._on_thought, qos.LATEST)):
            self.create_subscription(kind, relative(topic), receive, profile)
        self._server = interfaces.serve(
            self, self._type, 'run_task', self._on_goal, self._on_cancel)
        self._status_topic = self.resolve_topic_name('run_task/_action/status')
        self.create_timer(PERIOD, self._judge, clock=STEADY)

    def destroy_node(self) -> None:
        """Stop the arm if somebody's task is being done."""
        if any(goal.run.taken for goal in self._goals):
            self._stop.call_async(Trigger.Request())
            time.sleep(SENT)
        super().destroy_node()

    def _on_policy(self, message: DiagnosticStatus) -> None:
        self._policy = _said(message)

    def _on_gate(self, message: DiagnosticStatus) -> None:
        self._gate = _said(message)

    def _on_tasks(self, message: String) -> None:
        self._tasks = json.loads(message.data)

    def _on_thought(self, message: String) -> None:
        self._thought = message.data

    def _on_goal(self, handle: ServerGoalHandle) -> None:
        now, request = time.monotonic(), handle.request
        for goal in self._goals.copy():
            if not goal.run.told:
                self._end(goal, (Outcome.PREEMPTED, 'another goal came before the policy was '
                                 'ready'))
        self._goals.append(Goal(handle, TaskRun(
            request.instruction, conversions.seconds(request.time_limit), now)))
        self._heard_client = now
        self._judge()

    def _on_cancel(self, handle: ServerGoalHandle) -> None:
        for goal in self._goals:
            if goal.handle == handle:
                goal.run.cancel()
                self._follow(goal, time.monotonic())  # the stop does not wait for a tick

    def _judge(self) -> None:
        now = time.monotonic()
        self._watch_clients(now)
        followed = None  # the goal whose task the policy has taken
        for place, goal in reversed([*enumerate(self._goals)]):
            if not goal.run.told and any(before.run.busy for before in self._goals[:place]):
                continue
            if followed is not None and goal.run.taken:
                ending: Ending | None = (
                    Outcome.PREEMPTED, f'another goal took its place: "{followed}"')
            else:
                ending = self._follow(goal, now)
            if goal.run.taken:
                followed = followed or goal.run.instruction
            if ending is not None:
                self._end(goal, ending)
            else:
                self._tell(goal)

    def _follow(self, goal: Goal, now: float) -> Ending | None:
        """Judge a goal and give the orders that it needs; return its ending."""
        task, was_taken = goal.run, goal.run.taken
        ending = task.judge(now, self._policy, self._gate, self._tasks)
        if task.taken and not was_taken:
            self._thought = ''
        if task.asks(now) and self._instruction.get_subscription_count():
            task.said(now)
            self._instruction.publish(String(data=task.instruction))
        if task.stopping and not goal.ordered_stop:
            goal.ordered_stop = True
            self._stop.call_async(Trigger.Request())
        if self._given.start_gate and task.wants_start(self._gate):
            task.start_answered(now, '')
            self._start.call_async(Trigger.Request()).add_done_callback(functools.partial(
                self._on_started, task))
        return ending

    def _on_started(self, task: TaskRun, future: Any) -> None:
        answer = future.result()
        task.start_answered(time.monotonic(), '' if answer.success else answer.message)

    def _tell(self, goal: Goal) -> None:
        """Send feedback where it is new."""
        thought = self._thought if goal.run.taken else ''
        state = goal.run.state(self._policy, self._gate)
        if (thought, state) != goal.told:
            goal.told = thought, state
            goal.handle.publish_feedback(self._type.Feedback(thought=thought, state=state))

    def _end(self, goal: Goal, ending: Ending) -> None:
        """Give a goal its result."""
        self._goals.remove(goal)
        outcome, reason = ending
        self.get_logger().info(f'"{goal.run.instruction}": {outcome.name}: {reason}')

        def finish(handle: ServerGoalHandle) -> Any:
            if outcome is Outcome.DONE:
                handle.succeed()
            elif handle.is_cancel_requested and outcome is Outcome.CANCELED:
                handle.canceled()
            else:
                handle.abort()
            return self._type.Result(outcome=int(outcome), reason=reason)
        self._server.notify_execute(goal.handle, finish)

    def _watch_clients(self, now: float) -> None:
        """Give up what nobody waits for any more."""
        # Every action client subscribes to it.
        if not self._goals or self.count_subscribers(self._status_topic):
            self._heard_client = now
        elif 0 < self._given.client_timeout_s < now - self._heard_client:
            for goal in self._goals:
                goal.run.cancel('nobody waits for it any more')


def _said(message: DiagnosticStatus) -> Said:
    return Said(message.message, conversions.status_values(message), time.monotonic())


main = functools.partial(run, TaskServer)

if __name__ == '__main__':
    raise SystemExit(main())
