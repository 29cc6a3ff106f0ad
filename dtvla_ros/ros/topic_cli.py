"""``dtvla topic``: topics and services where the ros2 tools are not installed."""

from __future__ import annotations

import math
import re
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from typer import Argument, Option

from dtvla_ros.errors import UserError
from dtvla_ros.ros.environment import require_one_ros, scope

if TYPE_CHECKING:
    from dtvla_ros.ros.guest import Guest

app = typer.Typer(
    name='topic', no_args_is_help=True, context_settings={'help_option_names': ['-h', '--help']},
    help='List, print, measure and publish topics, and call services, without the ros2 tools.')

Topic = Annotated[str, Argument(help='Name of the topic, such as /vla/reasoning.')]
Type = Annotated[str | None, Argument(
    help='Its type, such as std_msgs/msg/String. [default: asked of the graph]')]
_LONGEST = 24  # values printed of a sequence before it is cut short
_SAID_AFTER = 2.0  # wait for the other side before it is said that it is missing [s]
_EVERY_NODES = re.compile(r'/((describe|get|list|set)_parameter\w*|get_type_description)$')
_LEAVING = 0.5  # time that a last message gets to leave [s]


@contextmanager
def _visiting() -> Iterator[Guest]:
    """Join the graph, until Ctrl-C."""
    require_one_ros()
    from dtvla_ros.ros.guest import visit

    with suppress(KeyboardInterrupt), visit() as guest:
        yield guest


def _absolute(topic: str) -> str:
    full = topic if topic.startswith('/') else f'/{topic}'
    if not re.fullmatch(r'(/[A-Za-z_][A-Za-z0-9_]*)+', full):
        raise UserError(f'topic name {topic!r}: use letters, digits, _ and /')
    return full


def _message_type(name: str) -> Any:
    require_one_ros()
    from dtvla_ros.ros.conversions import message_type

    try:
        return message_type(name if name.count('/') == 2 else name.replace('/', '/msg/', 1))
    except KeyError:
        raise UserError(f'message type {name!r} is not known: write it as '
                        'std_msgs/msg/String') from None


def _fill(message: Any, type_name: str, values: str) -> Any:
    from dtvla_ros.ros.conversions import from_plain

    try:
        return from_plain(message, yaml.safe_load(values) or {})
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f'{type_name} from {values!r}: {str(error).splitlines()[0]}') from error


def _yaml(plain: Any) -> str:
    if not isinstance(plain, (dict, list)):
        return str(plain)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=99).rstrip()


def _listen(guest: Guest, topic: str, type_name: str | None,
            callback: Callable[[Any], Any]) -> None:
    """Wait for the topic's first publisher; subscribe with a QoS that all of them satisfy."""
    from dtvla_ros.ros import qos

    node = guest.node
    publishers = partial(node.get_publishers_info_by_topic, topic)
    if not guest.until(publishers, _SAID_AFTER):
        _waiting(f'nobody publishes {topic}', guest.where(topic, node.count_publishers))
    found = guest.until(publishers)
    node.create_subscription(_message_type(type_name or found[0].topic_type), topic, callback,
                             qos.profile(50, *qos.common(found)))


def _waiting(what: str, where: str) -> None:
    print(f'{what} yet; {where}; waiting (Ctrl-C to stop)', file=sys.stderr, flush=True)


@app.command('list')
def list_topics(
    show_types: Annotated[bool, Option('-t', '--show-types',
        help='Print the type beside the name.')] = False,
    spin_time: Annotated[float, Option(min=0.0, help='Seconds to wait for discovery.')] = 1.0,
) -> None:
    """Print every topic on the graph.

    **Example:** `dtvla topic list -t`
    """
    with _visiting() as guest:
        guest.until(lambda: False, spin_time)
        for topic, kinds in guest.node.get_topic_names_and_types():
            print(f'{topic} [{", ".join(kinds)}]' if show_types else topic)


@app.command()
def echo(
    topic: Topic,
    type_name: Type = None,
    once: Annotated[bool, Option('--once', help='Stop after one message.')] = False,
    field: Annotated[str, Option(
        help='Print only this field, such as data or pose.position.')] = '',
    full: Annotated[bool, Option('--full', help='Print long sequences whole.')] = False,
) -> None:
    """Print the messages of a topic as YAML.

    **Examples:** `dtvla topic echo /vla/reasoning --field data`, `dtvla topic echo /clock --once`
    """
    topic = _absolute(topic)
    if type_name:
        _message_type(type_name)
    messages: list[Any] = []
    with _visiting() as guest:
        from dtvla_ros.ros.conversions import to_plain

        _listen(guest, topic, type_name, messages.append)
        while guest.until(lambda: messages):
            value = messages.pop(0)
            try:
                value = attrgetter(field)(value) if field else value
            except AttributeError as error:
                raise UserError(f'--field {field}: {error}') from error
            print(f'{_yaml(to_plain(value, None if full else _LONGEST))}\n---', flush=True)
            if once:
                return


@app.command()
def hz(
    topic: Topic,
    type_name: Type = None,
    window: Annotated[int, Option(min=2, help='Messages to average over.')] = 1000,
) -> None:
    """Print once a second how often a topic is published.

    **Example:** `dtvla topic hz /vla/state`
    """
    topic = _absolute(topic)
    arrivals: deque[float] = deque(maxlen=window)
    with _visiting() as guest:
        _listen(guest, topic, type_name, lambda _: arrivals.append(time.monotonic()))
        while True:
            guest.until(lambda: False, 1.0)
            gaps = [later - earlier for earlier, later in pairwise(arrivals)]
            print(f'average rate: {len(gaps) / sum(gaps):.3f}\n\tmin: {min(gaps):.3f}s '
                  f'max: {max(gaps):.3f}s std dev: {statistics.pstdev(gaps):.5f}s '
                  f'window: {len(arrivals)}' if gaps else 'no new messages', flush=True)


@app.command()
def pub(
    topic: Topic,
    type_name: Annotated[str, Argument(help='Its type, such as std_msgs/msg/String.')],
    values: Annotated[str, Argument(help='The fields as YAML. [default: all zero]')] = '{}',
    once: Annotated[bool, Option('--once', help='Publish once, when somebody listens.')] = False,
    timeout: Annotated[float | None, Option(min=0.1, help='With --once: longest wait for a '
        'listener [s]. [default: as long as it takes]')] = None,
    rate: Annotated[float, Option(min=0.001, help='Messages per second.')] = 1.0,
    latched: Annotated[bool, Option('--latched',
        help='Keep the last message for late subscribers (transient local).')] = False,
) -> None:
    """Publish a message, over and over or once.

    With `--once` it waits for a listener. After 2 s it says that there is none and which topics
    have a similar name; after `--timeout` it gives up with exit code 2.

    To talk to the policy and to the gate: `dtvla tell`, `dtvla stop`.

    **Examples**

    `dtvla topic pub /instruction std_msgs/msg/String "{data: put the lemon in the blue bin}" --once`

    `dtvla topic pub /estop std_msgs/msg/Bool "{data: true}" --rate 10 --latched`
    """  # noqa: E501
    topic, kind = _absolute(topic), _message_type(type_name)
    message = _fill(kind(), type_name, values)
    if timeout and not once:
        raise UserError('--timeout is for --once: without it nobody is waited for')
    with _visiting() as guest:
        from dtvla_ros.ros import qos
        from dtvla_ros.ros.run import STEADY

        publisher = guest.node.create_publisher(
            kind, topic, qos.profile(1, reliable=True, latched=latched))
        if once:
            _await_listener(guest, publisher, timeout)
            publisher.publish(message)
            guest.until(lambda: False, _LEAVING)
            return
        guest.node.create_timer(1.0 / rate, lambda: publisher.publish(message), clock=STEADY)
        guest.until(lambda: False)


def _await_listener(guest: Guest, publisher: Any, timeout: float | None) -> None:
    """Wait until somebody listens; say after a while that nobody does."""
    topic, listeners = publisher.topic_name, publisher.get_subscription_count
    at_first = min(_SAID_AFTER, timeout or _SAID_AFTER)
    if not guest.until(listeners, at_first):
        nobody = f'nobody listens to {topic}'
        _waiting(nobody, guest.where(topic, guest.node.count_subscribers))
        if not guest.until(listeners, math.inf if timeout is None else timeout - at_first):
            raise UserError(f'{nobody}: given up after {timeout:g} s')


@app.command()
def call(
    service: Annotated[str, Argument(help='Name of the service, such as /start.')],
    values: Annotated[str, Argument(help='The request as YAML. [default: all zero]')] = '{}',
    timeout: Annotated[float, Option(min=0.1, help='Seconds to wait for the answer.')] = 5.0,
) -> None:
    """Call a service and print its answer; exit code 1 if it says that it did not succeed.

    **Examples:** `dtvla topic call /start`, `dtvla topic call /pause "{data: true}"`
    """
    name, due = _absolute(service), time.monotonic() + timeout
    with _visiting() as guest:
        node, until = guest.node, guest.until
        from dtvla_ros.ros.conversions import message_type, to_plain

        services = node.get_service_names_and_types
        if not (kinds := until(lambda: dict(services()).get(name), timeout)):
            there = [other for other in dict(services()) if not _EVERY_NODES.search(other)]
            raise UserError(f'nobody offers {name}; there is: {", ".join(there) or "none"} '
                            f'({scope()})')
        kind = kinds[0]
        client = node.create_client(message_type(kind), name)
        request = _fill(message_type(kind).Request(), kind, values)
        until(client.service_is_ready, due - time.monotonic())
        future = client.call_async(request)
        if not until(future.done, due - time.monotonic()):
            raise UserError(f'{name} did not answer within {timeout:g} s')
        print(_yaml(to_plain(future.result())))
        if not getattr(future.result(), 'success', True):
            raise typer.Exit(1)
