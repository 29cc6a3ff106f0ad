"""A policy and a gate of ours, which a task server tells what to do; a client of its action."""

from __future__ import annotations

from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.action import ActionClient
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import Trigger

from dtvla_ros.policy.instructions import shown
from dtvla_ros.ros import conversions, interfaces, qos

from .graph import Graph

TASKS = ['put the can in the wooden bin', 'put the lemon in the blue bin']
PERIOD = 0.05


class Tasked:
    """Takes the instructions of `TASKS` and refuses others, as policy and gate do.

    ``policy``, ``gate``: state and reason; None is silent. ``orders``: services that were called.
    ``auto_start`` of the gate.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.orders, self.auto_start = graph, list[str](), True
        self.policy: tuple[str, str] | None = ('IDLE', 'no instruction')
        self.gate: tuple[str, str] | None = ('HOLD', 'policy is idle')
        self.values = {'task': 0, 'refusals': 0, 'instruction': '', 'rejected': '',
                       'rejected_instruction': ''}
        node = graph.listen()
        for name in ('start', 'stop'):
            node.create_service(Trigger, name, lambda _, answer, name=name: self._obey(
                name, answer))
        qos.listen_to_anyone(node, String, '/instruction', self._on_instruction)
        self._states = {topic: node.create_publisher(DiagnosticStatus, topic, qos.LATCHED)
                        for topic in ('/vla/state', '/gate_state')}
        self._reasoning = node.create_publisher(String, '/vla/reasoning', qos.LATCHED_10)
        tasks = node.create_publisher(String, '/vla/tasks', qos.LATCHED)
        tasks.publish(String(data=str(TASKS).replace("'", '"')))
        graph.every(PERIOD, self._publish)

    def start(self, **parameters: object) -> None:
        """Start the task server."""
        self.graph.start('task_server', **parameters)

    def think(self, sentence: str) -> None:
        self._reasoning.publish(String(data=sentence))

    def _on_instruction(self, message: String) -> None:
        values, text = self.values, message.data
        if text in TASKS:
            values.update(task=values['task'] + 1, instruction=text)
            self.policy = 'ACTING', ''
            if self.gate and (self.gate[0] == 'HOLD' or self.auto_start):
                self.gate = 'RUN', ''
        else:
            values.update(refusals=values['refusals'] + 1, rejected='it is none of its tasks',
                          rejected_instruction=shown(text))
        self._publish()

    def _obey(self, name: str, answer: Any) -> Any:
        self.orders.append(name)
        if self.gate:
            self.gate = ('RUN', '') if name == 'start' else ('STOP', 'asked to stop')
        answer.success = True
        return answer

    def _publish(self) -> None:
        for topic, state, values in (('/vla/state', self.policy, self.values),
                                     ('/gate_state', self.gate, {})):
            if state is not None:
                self._states[topic].publish(conversions.status_message(
                    topic, state[0], {'reason': state[1], **values}))


class Client:
    """A client of an action in a node of its own.

    ``feedback`` of its goals, in order; ``answer``: the last result.
    """

    def __init__(self, graph: Graph, kind: str = 'RunTask', name: str = '/run_task') -> None:
        self.graph, self.feedback = graph, list[Any]()
        self.type, self.answer = interfaces.action_type(kind), None
        self.node = graph.join(lambda: Node('client'))
        self._client = ActionClient(self.node, self.type, name)

    def send(self, instruction: str = '', seconds: int = 0, **fields: str) -> Any:
        """Send a goal; return its handle once it is accepted."""
        self.graph.spin(self._client.server_is_ready, 120, 'the action server')
        goal = self.type.Goal(instruction=instruction, **fields)
        goal.time_limit.sec = seconds
        sent = self._client.send_goal_async(
            goal, feedback_callback=lambda message: self.feedback.append(message.feedback))
        self.graph.spin(sent.done, 60, 'an answer')
        assert sent.result().accepted
        return sent.result()

    def result(self, handle: Any) -> tuple[int, int, str]:
        """Wait for a goal's status, outcome and reason."""
        found = handle.get_result_async()
        self.graph.spin(found.done, 60, 'the result')
        result = found.result()
        self.answer = result.result
        return result.status, self.answer.outcome, self.answer.reason

    def cancel(self, handle: Any) -> None:
        """Cancel a goal; nobody waits for the answer."""
        handle.cancel_goal_async()

    def leave(self) -> None:
        """Leave the graph."""
        self._client.destroy()
