"""Services that pause, step and reset the simulator, and the topics that tell its state."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from dtvla_ros.conventions import SIM_STATE, SIM_TASKS, relative
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.settings import declare, refuse_changes
from dtvla_ros.ros import qos

Order = Callable[..., None]
LARGEST_SEED = 2**32 - 1
MOST_STEPS = 1000  # in one order; the node hears nothing else meanwhile


class SimServices:
    """Takes orders and tells the state, as simulation_interfaces would, with standard types.

    ``orders`` holds ``pause(on)``, ``step(n)`` and ``begin(task, seed)``, where None keeps the
    present one; each raises UserError where it is refused. What ``sim/step`` and ``sim/reset`` do
    is said by the parameters ``step_count``, ``reset_task`` and ``reset_seed``. ``state`` returns
    what `tell` writes to the latched ``sim/state``, with the number of orders heard and why the
    last one was refused; the latched ``sim/tasks`` lists what can be reset to.
    """

    def __init__(self, node: Node, orders: Mapping[str, Order],
                 state: Callable[[], dict[str, Any]], suite: str, tasks: Sequence[str]) -> None:
        self._node, self._orders, self._describe = node, orders, state
        self._tasks = json.dumps({'suite': suite, 'tasks': list(tasks)})
        self._heard, self._refused = 0, ''
        declare(node, 'step_count', 1, 'control steps of one sim/step', low=1, high=MOST_STEPS,
                changeable=True)
        task = declare(node, 'reset_task', '', 'task that sim/reset begins; empty: the present '
                       'one', changeable=True)
        declare(node, 'reset_seed', -1, 'seed that sim/reset begins with; -1: the present one',
                low=-1, high=LARGEST_SEED, changeable=True)
        unknown = 'parameter reset_task: unknown task "{}"; there is: ' + ', '.join(tasks)
        if task not in ('', *tasks):
            raise UserError(unknown.format(task))
        refuse_changes(node, ('reset_task',), lambda p: None if p.value in ('', *tasks) else (
            unknown.format(p.value)))
        self._state_topic = node.create_publisher(String, relative(SIM_STATE), qos.LATCHED)
        self._tasks_topic = node.create_publisher(String, relative(SIM_TASKS), qos.LATCHED)
        self._tasks_topic.publish(String(data=self._tasks))
        node.create_service(SetBool, 'sim/pause', self._on_pause)
        node.create_service(Trigger, 'sim/step', self._on_step)
        node.create_service(Trigger, 'sim/reset', self._on_reset)
        node.create_service(Trigger, 'sim/list_tasks', self._on_list)
        node.create_service(Trigger, 'sim/get_state', self._on_get_state)

    def tell(self) -> str:
        """Publish the state on ``sim/state``; return its JSON."""
        text = json.dumps(
            {**self._describe(), 'orders': self._heard, 'refused': self._refused})
        self._state_topic.publish(String(data=text))
        return text

    def _obey(self, response: Any, order: str, *values: Any) -> Any:
        """Carry an order out; answer with the state, or why not."""
        self._refused = ''
        try:
            self._orders[order](*values)
        except UserError as error:
            self._refused = str(error)
            self._node.get_logger().error(f'{order} refused: {error}')
        self._heard += 1
        told = self.tell()
        response.success, response.message = not self._refused, self._refused or told
        return response

    def _parameter(self, name: str) -> Any:
        return self._node.get_parameter(name).value

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        return self._obey(response, 'pause', request.data)

    def _on_step(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._obey(response, 'step', self._parameter('step_count'))

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        seed = self._parameter('reset_seed')
        return self._obey(response, 'begin', self._parameter('reset_task') or None,
                          None if seed < 0 else seed)

    def _on_list(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = True, self._tasks
        return response

    def _on_get_state(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = True, self.tell()
        return response
