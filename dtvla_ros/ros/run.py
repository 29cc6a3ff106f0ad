"""The main function of every node: executor, signals, one-line errors."""

from __future__ import annotations

import gc
import inspect
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode as RclpyLifecycleNode
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.logging import LoggingSeverity, get_logger_level, set_logger_level
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.signals import SignalHandlerOptions

from dtvla_ros.errors import UserError, one_line
from dtvla_ros.ros.bringup import OPTIONAL, node_processes
from dtvla_ros.ros.environment import prepare
from dtvla_ros.ros.parameters import require_known

STEADY = Clock(clock_type=ClockType.STEADY_TIME)
BAD_INPUT = (UserError, ParameterException, NameValidationException)  # not the code's fault
ACKNOWLEDGED = 0.2  # longest wait for a subscriber to confirm a last message [s]
_RCL = 'rcl'  # its logger
WAIT = 0.5  # longest wait between two looks for the end [s]; signals and tasks cut it short

AnyNode = TypeVar('AnyNode', bound=Node)
_outcomes: list[int | BaseException] = []  # why `run` ends, the first one counts


class LifecycleNode(RclpyLifecycleNode):
    """A managed node that answers no where a transition is impossible.

    Up to Jazzy such a request raises out of the service callback, and ends the process.
    """

    def _LifecycleNodeMixin__change_state(self, transition_id: int) -> TransitionCallbackReturn:
        try:
            return super()._LifecycleNodeMixin__change_state(  # type: ignore[misc]
                transition_id)
        except rclpy_implementation.RCLError as error:
            self.get_logger().error(f'Unable to start transition {transition_id}: {error}')
            return TransitionCallbackReturn.ERROR


def make_executor() -> Executor:
    """Return the executor that costs least here; call its ``spin_once`` with a time-out only.

    Jazzy's events executor waits forever on a CPU core without one, and has no guard conditions:
    see `call_soon`.
    """
    try:
        from rclpy.experimental.events_executor import EventsExecutor
    except ImportError:  # Humble, Iron
        return SingleThreadedExecutor()
    return EventsExecutor()


def call_soon(node: Node, callback: Callable[[], Any]) -> None:
    """Let the node's executor call back, from any thread; without an executor nothing happens."""
    def guarded() -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - an events executor dies of a task's error
            end(error)
    if node.executor is not None:
        node.executor.create_task(guarded)


def wait_until_heard(publisher: Publisher) -> None:
    """Wait until reliable subscribers have everything; what dies with its process is lost."""
    publisher.wait_for_all_acked(Duration(seconds=ACKNOWLEDGED))


def end(outcome: int | BaseException = 0) -> None:
    """Let `run` end after the present callback, with an exit code or by raising an error."""
    _outcomes.append(outcome)


def _settle() -> None:
    """Do now what would cost time in the first fault, or again and again.

    To name the caller of a first log message rclpy looks through all modules (0.1 s: a missed
    heartbeat); what lives as long as the process need not be looked through for garbage.
    """
    inspect.getmodule(inspect.currentframe())
    gc.collect()
    gc.freeze()


def run(factory: Callable[[], Node], args: Sequence[str] | None = None) -> int:
    """Initialise, build a node, spin it until a signal, a shutdown or `end`; return the exit code.

    ``args``: the words after the program's name, ``sys.argv``'s if None. The node can still
    publish in its ``destroy_node``. A UserError becomes one line on stderr and exit code 2.
    """
    args, closing = list(sys.argv[1:] if args is None else args), list[bool]()
    _outcomes.clear()

    def handle(number: int, _: Any) -> None:
        """End the run; a second Ctrl-C interrupts all but a node that sends its stop commands."""
        if _outcomes and number == signal.SIGINT and not closing:
            raise KeyboardInterrupt
        end(0)
    try:
        if args and args[0] in ('-h', '--help'):
            print(_help(factory))
            return 0
        if args and args[0] != '--ros-args':
            raise UserError(f'unknown argument {args[0]!r}: nodes take --ros-args -p name:=value, '
                            '-r from:=to, --params-file FILE')
        _init(args)
        with _handling(handle, signal.SIGINT, signal.SIGTERM), _ready(
                factory, closing) as (node, executor):
            require_known(node, args)
            while rclpy.ok() and not _outcomes:
                executor.spin_once(timeout_sec=WAIT)
        outcome = _outcomes[0] if _outcomes else 0
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome
    except Exception as error:
        message = str(error) if isinstance(error, BAD_INPUT) else one_line(error)
        if message is None:
            raise
        said = ' '.join(message.split())
        files = [value for option, value in zip(args, args[1:])
                 if option == '--params-file' and value not in said]
        print(' '.join(['error:', said, *(f'({file})' for file in files)]), file=sys.stderr)
        return 2


def _help(factory: Callable[[], Node]) -> str:
    """Return what a node does and how it is started, by hand and with the others."""
    name = Path(sys.argv[0]).stem
    process = node_processes(dict.fromkeys(OPTIONAL, 'true'), simulated=True).get(name)
    example = [] if process is None else [
        'By itself, with names and parameters as the launch files give them:', '  ' + shlex.join(
            [name, *process.ros_arguments('config/sim_realtime.yaml')]), '']
    return '\n'.join([
        f'usage: {name} [--ros-args [-p NAME:=VALUE] [-r FROM:=TO] [--params-file FILE] ...]', '',
        (inspect.getdoc(factory) or '').replace('`', ''), '', *example,
        'Together with the other nodes, from one parameter file: dtvla run',
        'Topics, services and parameters: docs/nodes.md; of a running node: ros2 param describe.'])


def _init(args: Sequence[str]) -> None:
    prepare()
    set_logger_level(_RCL, LoggingSeverity.FATAL)  # its lines say again what the error says
    try:
        # rclpy takes a whole command line, program name included.
        rclpy.init(args=['node', *args], signal_handler_options=SignalHandlerOptions.NO)
    except rclpy_implementation.UnknownROSArgsError as error:
        raise UserError(f'unknown ROS arguments {error}') from error
    except RuntimeError as error:  # rcl's for arguments it cannot read
        raise UserError(': '.join(filter(None, (' '.join(args), _reason(error))))) from error
    finally:
        if get_logger_level(_RCL) == LoggingSeverity.FATAL:  # no --log-level rcl:=debug
            set_logger_level(_RCL, LoggingSeverity.UNSET)


@contextmanager
def _ready(factory: Callable[[], AnyNode],
           closing: list[bool]) -> Iterator[tuple[AnyNode, Executor]]:
    """Build a node and its executor; afterwards note that it is closing, and leave the graph."""
    warnings.filterwarnings('ignore', 'Failed to fini rosout publisher', RuntimeWarning)
    node = executor = None
    try:
        node = factory()
        _settle()
        executor = make_executor()
        executor.add_node(node)
        yield node, executor
    except rclpy_implementation.RCLError as error:
        if not str(error).startswith('error creating node'):
            raise
        raise UserError(_reason(error)) from error  # its environment keeps it from the graph
    finally:
        closing.append(True)
        if executor is not None:
            executor.shutdown()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


def _reason(error: Exception) -> str:
    """Return an error of rcl's without the places in its sources."""
    return re.sub(r'\s*, at \S+:\d+', '', str(error)).removeprefix('failed to initialize rcl: ')


@contextmanager
def _handling(handler: Callable[[int, Any], Any], *numbers: int) -> Iterator[None]:
    """Let signals be handled so, where Python lets us: in the main thread."""
    former = {number: signal.signal(number, handler) for number in numbers
              if threading.current_thread() is threading.main_thread()}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


@contextmanager
def joined(factory: Callable[[], AnyNode]) -> Iterator[tuple[AnyNode, Executor]]:
    """Join the graph for a loop of one's own; SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    _init([])
    with _handling(signal.default_int_handler, signal.SIGTERM), _ready(factory, []) as made:
        yield made
