"""What one can ask of the simulator: services, and the same as words or JSON on a topic."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dtvla_ros.errors import UserError
from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import SetBool, String, Trigger
from dtvla_ros.nodes import wire

Order = Callable[..., None]
LARGEST_SEED = 2**32 - 1
MOST_STEPS = 1000  # in one order; the node hears nothing else meanwhile
FORMS = ('pause, resume, step, reset, list_tasks, get_state, or {"pause": true}, {"step": 5}, '
         '{"reset": {"task": ..., "seed": ...}}, {"load": {"task": ..., "seed": ...}}')


class SimServices:
    """Takes orders and tells the state, as simulation_interfaces would, with standard types.

    ``orders`` holds ``pause(on)``, ``step(n)`` and ``begin(task, seed)``, where None keeps the
    present one; each raises UserError where it is refused. ``state`` returns what `tell` writes
    to the latched ``sim/state``, with the number of orders heard and why the last one was
    refused; the latched ``sim/tasks`` lists what can be loaded.
    """

    def __init__(self, node: ros.Node, orders: Mapping[str, Order],
                 state: Callable[[], dict[str, Any]], suite: str, tasks: Sequence[str]) -> None:
        self._node, self._orders, self._describe = node, orders, state
        self._known = tuple(tasks)
        self._tasks = json.dumps({'suite': suite, 'tasks': list(tasks)})
        self._heard, self._refused = 0, ''
        self._state_topic = node.create_publisher(String, 'sim/state', wire.LATCHED)
        self._tasks_topic = node.create_publisher(String, 'sim/tasks', wire.LATCHED)
        self._tasks_topic.publish(String(data=self._tasks))
        node.create_subscription(String, 'sim/command', self._on_command, ros.QoSProfile(depth=10))
        node.create_service(SetBool, 'sim/pause', self._on_pause)
        for name in ('step', 'reset', 'get_state'):
            node.create_service(Trigger, f'sim/{name}', self._trigger(name))
        node.create_service(Trigger, 'sim/list_tasks', self._on_list)

    def tell(self) -> str:
        """Publish the state on ``sim/state``; return its JSON."""
        text = json.dumps(
            {**self._describe(), 'orders': self._heard, 'refused': self._refused})
        self._state_topic.publish(String(data=text))
        return text

    def _obey(self, text: str) -> tuple[bool, str]:
        """Do what a word or JSON says; return whether, and the state or why not."""
        refused = ''
        try:
            self._do(*_parse(text))
        except UserError as error:
            refused = str(error)
            self._node.get_logger().error(f'order refused: {refused}')
        self._heard, self._refused = self._heard + 1, refused
        told = self.tell()
        return not refused, refused or told

    def _do(self, verb: str, what: Any) -> None:
        if verb == 'pause':
            if not isinstance(what, bool):
                raise UserError(f'pause is true or false, not {what!r}')
            self._orders['pause'](what)
        elif verb == 'step':
            self._orders['step'](_whole('step', what, 1, MOST_STEPS))
        elif verb in ('reset', 'load'):
            self._orders['begin'](*self._start(verb, what))
        elif verb == 'list_tasks':
            self._tasks_topic.publish(String(data=self._tasks))
        elif verb != 'get_state':
            raise UserError(f'unknown order "{verb}"; there is: {FORMS}')

    def _start(self, verb: str, what: Any) -> tuple[str | None, int | None]:
        if not isinstance(what, Mapping) or set(what) - {'task', 'seed'}:
            raise UserError(f'{verb} takes {{"task": ..., "seed": ...}}, not {what!r}')
        task, seed = what.get('task'), what.get('seed')
        if verb == 'load' and task is None:
            raise UserError('load names a task; the present one begins anew with reset')
        if task is not None and task not in self._known:
            raise UserError(f'unknown task {task!r}; there is: {", ".join(self._known)}')
        return task, None if seed is None else _whole('seed', seed, 0, LARGEST_SEED)

    def _on_command(self, message: String) -> None:
        self._obey(message.data)

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success, response.message = self._obey('pause' if request.data else 'resume')
        return response

    def _on_list(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = True, self._tasks
        return response

    def _trigger(self, word: str) -> Callable[[Any, Any], Any]:
        def answer(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            response.success, response.message = self._obey(word)
            return response
        return answer


def _parse(text: str) -> tuple[str, Any]:
    """Return verb and what it is about; a bare word stands for its usual form."""
    words = {'pause': ('pause', True), 'resume': ('pause', False), 'step': ('step', 1),
             'reset': ('reset', {})}
    text = text.strip()
    if not text.startswith('{'):
        return words.get(text, (text, None))
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'no JSON ({error}); there is: {FORMS}') from None
    if not isinstance(data, dict) or len(data) != 1:
        raise UserError(f'one order at a time; there is: {FORMS}')
    return next(iter(data.items()))


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f'{name} is a whole number from {low} to {high}, not {value!r}')
    return value
