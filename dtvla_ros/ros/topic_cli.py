"""``dtvla topic``: topics and services where the ros2 tools are not installed."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any

import typer

from dtvla_ros.errors import UserError
from dtvla_ros.ros.environment import require_one_ros

app = typer.Typer(
    name='topic',
    help='List, print, measure and publish topics, and call services, without the ros2 tools.',
    no_args_is_help=True,
    context_settings={'help_option_names': ['-h', '--help']},
)

Topic = Annotated[str, typer.Argument(help='Name of the topic, such as /vla/reasoning.')]
Type = Annotated[str | None, typer.Argument(
    help='Its type, such as std_msgs/msg/String. [default: asked of the graph]')]
_LONGEST = 24  # values printed of a sequence before it is cut short


def _run(build: Callable[[Any], None]) -> None:
    """Spin a nameless helper node that ``build`` fills, until Ctrl-C or `end`."""
    require_one_ros()
    from rclpy.node import Node

    from dtvla_ros.ros.run import run

    def factory() -> Node:
        node = Node(f'_dtvla_topic_{os.getpid()}', use_global_arguments=False)
        build(node)
        return node
    raise SystemExit(run(factory, []))


def _absolute(topic: str) -> str:
    full = topic if topic.startswith('/') else f'/{topic}'
    if not re.fullmatch(r'(/[A-Za-z_][A-Za-z0-9_]*)+', full):
        raise UserError(f'topic name {topic!r}: use letters, digits, _ and /')
    return full


def _message_type(name: str) -> Any:
    require_one_ros()
    from dtvla_ros.ros.conversions import message_type

    full = name if name.count('/') == 2 else name.replace('/', '/msg/', 1)
    try:
        return message_type(full)
    except KeyError:
        raise UserError(f'message type {name!r} is not known: write it as '
                        'std_msgs/msg/String') from None


def _listen(node: Any, topic: str, type_name: str | None, callback: Callable[[Any], Any]) -> None:
    """Subscribe as soon as the topic's type is known, with a QoS its publishers satisfy."""
    from dtvla_ros.ros import qos
    from dtvla_ros.ros.run import STEADY

    topic = _absolute(topic)

    def subscribe(kind: str, publishers: list[Any]) -> None:
        reliable, latched = (all(column) for column in zip(*qos.offered(publishers)))
        node.create_subscription(_message_type(kind), topic, callback,
                                 qos.profile(50, reliable, latched))
    started = time.monotonic()

    def look() -> None:
        publishers = node.get_publishers_info_by_topic(topic)
        if publishers:
            timer.cancel()
            subscribe(type_name or publishers[0].topic_type, publishers)
        elif time.monotonic() - started > 2.0:
            node.get_logger().warning(f'nobody publishes {topic} yet; waiting (Ctrl-C to stop)',
                                      once=True)
    if type_name:
        _message_type(type_name)
    timer = node.create_timer(0.02, look, clock=STEADY)


@app.command('list')
def list_topics(
    show_types: Annotated[bool, typer.Option('-t', '--show-types',
        help='Print the type beside the name.')] = False,
    spin_time: Annotated[float, typer.Option(min=0.0,
        help='Seconds to wait for discovery.')] = 1.0,
) -> None:
    """Print every topic on the graph.

    **Example:** `dtvla topic list -t`
    """
    def build(node: Any) -> None:
        from dtvla_ros.ros.run import STEADY, end

        def done() -> None:
            for topic, kinds in node.get_topic_names_and_types():
                print(f'{topic} [{", ".join(kinds)}]' if show_types else topic)
            end()
        node.create_timer(spin_time, done, clock=STEADY)
    _run(build)


@app.command()
def echo(
    topic: Topic,
    type_name: Type = None,
    once: Annotated[bool, typer.Option('--once', help='Stop after one message.')] = False,
    field: Annotated[str, typer.Option(
        help='Print only this field, such as data or pose.position.')] = '',
    full: Annotated[bool, typer.Option('--full', help='Print long sequences whole.')] = False,
) -> None:
    """Print the messages of a topic as YAML.

    **Examples**

    `dtvla topic echo /vla/reasoning --field data`

    `dtvla topic echo /joint_states --once`
    """
    import yaml

    def show(message: Any) -> None:
        from dtvla_ros.ros.conversions import to_plain
        from dtvla_ros.ros.run import end

        value = message
        for part in filter(None, field.split('.')):
            if not hasattr(value, part):
                end(UserError(f'--field {field}: {type(value).__name__} has no field {part!r}'))
                return
            value = getattr(value, part)
        plain = to_plain(value, None if full else _LONGEST)
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=99).rstrip() if (
            isinstance(plain, (dict, list))) else str(plain)
        print(f'{text}\n---', flush=True)
        if once:
            end()
    _run(lambda node: _listen(node, topic, type_name, show))


@app.command()
def hz(
    topic: Topic,
    type_name: Type = None,
    window: Annotated[int, typer.Option(min=2, help='Messages to average over.')] = 1000,
) -> None:
    """Print once a second how often a topic is published.

    **Example:** `dtvla topic hz /vla/state`
    """
    arrivals: deque[float] = deque(maxlen=window)

    def report() -> None:
        gaps = [later - earlier for earlier, later in zip(arrivals, list(arrivals)[1:])]
        if not gaps:
            print('no new messages', flush=True)
            return
        print(f'average rate: {len(gaps) / sum(gaps):.3f}\n\tmin: {min(gaps):.3f}s '
              f'max: {max(gaps):.3f}s std dev: {statistics.pstdev(gaps):.5f}s '
              f'window: {len(arrivals)}', flush=True)

    def build(node: Any) -> None:
        from dtvla_ros.ros.run import STEADY

        _listen(node, topic, type_name, lambda _: arrivals.append(time.monotonic()))
        node.create_timer(1.0, report, clock=STEADY)
    _run(build)


@app.command()
def pub(
    topic: Topic,
    type_name: Annotated[str, typer.Argument(help='Its type, such as std_msgs/msg/String.')],
    values: Annotated[str, typer.Argument(help='The fields as YAML. [default: all zero]')] = '{}',
    once: Annotated[bool, typer.Option('--once',
        help='Publish once, when somebody listens.')] = False,
    rate: Annotated[float, typer.Option(min=0.001, help='Messages per second.')] = 1.0,
    latched: Annotated[bool, typer.Option('--latched',
        help='Keep the last message for late subscribers (transient local).')] = False,
) -> None:
    """Publish a message, over and over or once.

    **Examples**

    `dtvla topic pub /vla/instruction std_msgs/msg/String "{data: stack the red cube}" --once --latched`

    `dtvla topic pub /estop std_msgs/msg/Bool "{data: true}" --rate 10 --latched`
    """  # noqa: E501
    import yaml

    kind = _message_type(type_name)
    from dtvla_ros.ros.conversions import from_plain

    try:
        message = from_plain(kind(), yaml.safe_load(values) or {})
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f'{type_name} from {values!r}: {str(error).splitlines()[0]}') from error

    def build(node: Any) -> None:
        from dtvla_ros.ros import qos
        from dtvla_ros.ros.run import STEADY, end

        publisher = node.create_publisher(
            kind, _absolute(topic), qos.profile(1, reliable=True, latched=latched))
        sent: list[float] = []

        def tick() -> None:
            if not once:
                publisher.publish(message)
            elif sent and time.monotonic() - sent[0] > 0.5:
                end()  # the message has had time to leave
            elif not sent and publisher.get_subscription_count():
                publisher.publish(message)
                sent.append(time.monotonic())
        node.create_timer(0.05 if once else 1.0 / rate, tick, clock=STEADY)
    _run(build)


@app.command()
def call(
    service: Annotated[str, typer.Argument(help='Name of the service, such as /start.')],
    values: Annotated[str, typer.Argument(help='The request as YAML. [default: all zero]')] = '{}',
    timeout: Annotated[float, typer.Option(min=0.1, help='Seconds to wait for the answer.')] = 5.0,
) -> None:
    """Call a service and print its answer; exit code 1 if it says that it did not succeed.

    **Examples**

    `dtvla topic call /start`

    `dtvla topic call /pause "{data: true}"`
    """
    import yaml

    def build(node: Any) -> None:
        from dtvla_ros.ros.conversions import from_plain, message_type, to_plain
        from dtvla_ros.ros.run import STEADY, end

        name = _absolute(service)
        started = time.monotonic()
        clients: list[Any] = []
        answers: list[Any] = []

        def ask(kind: str) -> None:
            try:
                request = from_plain(message_type(kind).Request(), yaml.safe_load(values) or {})
            except (yaml.YAMLError, ValueError) as error:
                end(UserError(f'{kind} from {values!r}: {str(error).splitlines()[0]}'))
                return
            answers.append(clients[0].call_async(request))

        def look() -> None:
            kinds = dict(node.get_service_names_and_types()).get(name)
            if answers and answers[0].done():
                print(yaml.safe_dump(to_plain(answers[0].result()), sort_keys=False,
                                     allow_unicode=True).rstrip())
                end(0 if getattr(answers[0].result(), 'success', True) else 1)
            elif time.monotonic() - started > timeout:
                end(UserError(f'{name} did not answer within {timeout:g} s' if kinds else
                              f'nobody offers {name}; there is: '
                              f'{", ".join(n for n, _ in node.get_service_names_and_types())}'))
            elif kinds and not clients:
                clients.append(node.create_client(message_type(kinds[0]), name))
            elif kinds and not answers and clients[0].service_is_ready():
                ask(kinds[0])
        node.create_timer(0.02, look, clock=STEADY)
    _run(build)
