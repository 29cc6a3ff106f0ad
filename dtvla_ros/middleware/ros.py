"""rclpy's names, flat, from whichever middleware this process uses.

``run`` is the main function of every node of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dtvla_ros.errors import UserError

from .backend import BACKEND
from .signals import SignalWatch

if TYPE_CHECKING or BACKEND == 'dds':
    from .dds.rclpy_names import *  # noqa: F403
    from .dds.rclpy_names import (
        BAD_INPUT,
        ExternalShutdownException,
        Node,
        SignalHandlerOptions,
        SingleThreadedExecutor,
        init,
        ok,
        try_shutdown,
    )
else:
    from .rclpy_names import *  # noqa: F403
    from .rclpy_names import (
        BAD_INPUT,
        ExternalShutdownException,
        Node,
        SignalHandlerOptions,
        SingleThreadedExecutor,
        init,
        ok,
        try_shutdown,
    )


def run(factory: Callable[[], Node], args: Sequence[str] | None = None) -> int:
    """Initialise, build a node, spin it until a signal or ``shutdown``; return the exit code.

    The node can still publish in its ``destroy_node``: a signal ends the spinning, not the
    context. ``args`` are the words after the program's name, ``sys.argv``'s if None. A UserError
    becomes one line on stderr and exit code 2.
    """
    bad_input: tuple[type[Exception], ...] = (UserError, *BAD_INPUT)
    try:
        return _run(factory, sys.argv[1:] if args is None else args)
    except bad_input as error:
        print('error: ' + ' '.join(str(error).split()), file=sys.stderr)
        return 2


def _run(factory: Callable[[], Node], args: Sequence[str]) -> int:
    words = list(args[:args.index('--ros-args')]) if '--ros-args' in args else list(args)
    if words:
        raise UserError(f'unknown argument {words[0]!r}: nodes take --ros-args -p name:=value, '
                        '-r from:=to, --params-file FILE')
    # rclpy takes a whole command line, program name included.
    try:
        init(args=['node', *args], signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # rcl's for arguments it cannot read
        raise UserError(f'{" ".join(args)}: {error}') from error
    stop: list[int] = []
    node = wake = None

    def on_signal(number: int) -> None:
        stop.append(number)
        if wake is not None:
            wake.trigger()
    watch = SignalWatch(on_signal, quiet=True)
    try:
        node = factory()
        # A guard condition wakes the wait of every rclpy there is; executor.wake is newer.
        wake = node.create_guard_condition(lambda: None)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            while ok() and not stop:
                executor.spin_once()
        except ExternalShutdownException:
            pass
        finally:
            executor.shutdown()
    finally:
        # A second signal must not cut off the stop commands, or wake what is destroyed.
        wake = None
        watch.ignore()
        if node is not None:
            node.destroy_node()
        try_shutdown()
        watch.close()
    return 0
