"""Records the graph into bags when it is asked to: by a service, or by the action."""

from __future__ import annotations

import enum
import functools
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import SetBool

from dtvla_ros import conventions as names
from dtvla_ros.conventions import parameter, relative
from dtvla_ros.data.robot_names import NAMES, RobotNames, names_in_params
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.settings import declare_all
from dtvla_ros.recording.record import Recorder, wanted
from dtvla_ros.ros import conversions, interfaces, qos
from dtvla_ros.ros.params_file import ParameterFile
from dtvla_ros.ros.run import STEADY, run

PERIOD = 0.1  # between two looks at a recording [s]
TELL_EVERY = 10  # of these


class Outcome(enum.IntEnum):
    """How an episode went; the numbers are those of dtvla_interfaces/action/RecordEpisode."""

    UNMARKED = 0
    SUCCESS = 1
    FAILURE = 2


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """Parameters of the node."""

    folder: str = parameter('bags', 'folder in which bags are made; a relative one is below that '
                            'in which the node was started')
    params_file: str = parameter('', 'parameter file of the nodes, of which bags keep the frames '
                                 'and joints of the robot')


@dataclass(slots=True)
class Recording:
    """A bag that is being written.

    ``limit`` [s], 0: none. ``goal``: of the action that asked for it. ``marked``, ``judged``:
    whether the last episode succeeded, as a person and as the simulator say.
    """

    bag: Path
    recorder: Recorder
    limit: float
    goal: ServerGoalHandle | None
    marked: bool | None = None
    judged: bool | None = None

    @property
    def seconds(self) -> float:
        """How long it has been written."""
        return time.monotonic() - self.recorder.started

    def outcome(self) -> tuple[Outcome, str]:
        """Return how the last episode went, and who told."""
        for good, who in ((self.marked, 'marked by a person'),
                          (self.judged, 'judged by the simulator')):
            if good is not None:
                return Outcome.SUCCESS if good else Outcome.FAILURE, who
        return Outcome.UNMARKED, 'nobody marked it'


class RecordServer(Node):
    """Writes everything that the package defines into a bag, one at a time, as dtvla record does.

    The service record begins and ends one for a person, a goal of the action record_episode for a
    program. Topics have the names to which this node's are remapped.
    """

    def __init__(self) -> None:
        super().__init__('record_server')
        given = declare_all(self, RecordSettings())
        self._folder = Path(given.folder).expanduser().absolute()
        self._names = RobotNames({name: topic for name in NAMES if (
            topic := self.resolve_topic_name(name)) != f'/{name}'}).over(
            names_in_params(ParameterFile.read(Path(given.params_file)))
            if given.params_file else RobotNames())
        self._recording: Recording | None = None
        self._last = DiagnosticStatus.OK, f'nothing recorded yet; bags come into {self._folder}'
        self._ticks = 0
        self._state = self.create_publisher(
            DiagnosticStatus, relative(names.RECORD_STATE), qos.LATCHED)
        self.create_subscription(String, relative(names.EPISODE_MARK), self._on_mark, qos.LATEST)
        self.create_subscription(String, relative(names.EPISODE), self._on_report,
                                 qos.LATCHED_100)
        self.create_service(SetBool, 'record', self._on_record)
        self._type = interfaces.action_type('RecordEpisode')
        if self._type is None:
            self.get_logger().info(f'record_episode is not offered: {interfaces.NOT_INSTALLED}')
        else:
            self._server = interfaces.serve(self, self._type, 'record_episode', self._on_goal)
        self.create_timer(PERIOD, self._tick, clock=STEADY)
        self._tell()

    def destroy_node(self) -> None:
        """Finish the bag that is being written."""
        if self._recording is not None:
            self._recording.recorder.destroy_node()
        super().destroy_node()

    def _on_mark(self, message: String) -> None:
        if self._recording is not None:
            self._recording.marked = names.MARKS.get(
                message.data.strip(), self._recording.marked)

    def _on_report(self, message: String) -> None:
        if self._recording is not None:
            with suppress(ValueError, AttributeError, RecursionError):
                row = json.loads(message.data)
                if row.get('done'):
                    self._recording.judged = bool(row.get('success'))

    def _on_record(self, request: SetBool.Request, answer: SetBool.Response) -> SetBool.Response:
        if request.data:
            refused = self._begin()
            answer.success = not refused
            answer.message = refused or f'{self._recording and self._recording.bag}'
        elif self._recording is None:
            answer.message = 'nothing is being recorded'
        else:
            answer.success, answer.message = self._finish('ended by the service record')
        return answer

    def _on_goal(self, handle: ServerGoalHandle) -> None:
        goal = handle.request
        if refused := self._begin(goal.name, goal.instruction.strip(),
                                  conversions.seconds(goal.time_limit), handle):
            self._end(handle, False, reason=refused)

    def _begin(self, name: str = '', instruction: str = '', limit: float = 0.0,
               goal: ServerGoalHandle | None = None) -> str:
        """Begin a bag; return why that cannot be, '' where it has begun."""
        if self._recording is not None:
            return f'{self._recording.bag} is being recorded; end it first'
        if Path(name).is_absolute() or '..' in Path(name).parts:
            return f'name {name}: give one below {self._folder}, which parameter folder says'
        bag = self._folder / (name or time.strftime('%Y-%m-%d_%H-%M-%S'))
        try:
            if bag.exists():
                return f'{bag} exists already; give another name'
            recorder = Recorder(bag, wanted(self._names), 0.0, self._names,
                                on_end=lambda: None, instruction=instruction)
        except UserError as error:
            return f'{error} (parameter folder)'
        except (OSError, ValueError) as error:  # of a name that cannot be one
            return f'name {name[:60]!r}: {getattr(error, "strerror", error)}; give another name'
        assert self.executor is not None
        self.executor.add_node(recorder)
        self._recording = Recording(bag, recorder, limit, goal)
        self._tell()
        return ''

    def _tick(self) -> None:
        """End what is to be ended; tell how far it is."""
        self._ticks += 1
        if (recording := self._recording) is not None:
            if recording.recorder.writer.error is not None:
                self._finish('')
            elif recording.goal is not None and recording.goal.is_cancel_requested:
                self._finish('canceled')
            elif 0.0 < recording.limit <= recording.seconds:
                self._finish(f'the time limit of {recording.limit:g} s is over')
        if self._ticks % TELL_EVERY == 0:
            self._tell()

    def _finish(self, why: str) -> tuple[bool, str]:
        """End the bag; return whether all of it was written, and what became of it."""
        recording, self._recording = self._recording, None
        assert recording is not None and self.executor is not None
        recorder = recording.recorder
        self.executor.remove_node(recorder)
        recorder.destroy_node()
        trouble = recorder.trouble()
        said = trouble or f'{recording.bag}: {recorder.progress()}'
        self._last = (DiagnosticStatus.ERROR if trouble else DiagnosticStatus.OK), said
        (self.get_logger().error if trouble else self.get_logger().info)(said)
        self._tell()
        if recording.goal is not None:
            outcome, who = recording.outcome()
            self._end(recording.goal, not trouble, outcome, str(recording.bag),
                      f'{trouble or why}; {who}')
        return not trouble, said

    def _end(self, goal: ServerGoalHandle, good: bool, outcome: Outcome = Outcome.UNMARKED,
             bag: str = '', reason: str = '') -> None:
        """Give a goal its result."""
        def finish(handle: ServerGoalHandle) -> Any:
            if not good:
                handle.abort()
            elif handle.is_cancel_requested:
                handle.canceled()
            else:
                handle.succeed()
            return self._type.Result(outcome=int(outcome), bag=bag, reason=reason)
        self._server.notify_execute(goal, finish)

    def _tell(self) -> None:
        """Publish the state, and the feedback of a goal."""
        level, said = self._last
        state, bag = 'IDLE', ''
        if (recording := self._recording) is not None:
            state, bag, level = names.RECORDING, str(recording.bag), DiagnosticStatus.OK
            recorder = recording.recorder
            said = f'{recorder.progress()}, into {bag}'
            if recording.goal is not None:
                recording.goal.publish_feedback(self._type.Feedback(
                    seconds=recording.seconds, bytes=recorder.writer.bytes,
                    messages=sum(recorder.writer.written.values())))
        self._state.publish(conversions.status_message(
            self.get_name(), state, {'bag': bag, 'reason': said}, level))


main = functools.partial(run, RecordServer)

if __name__ == '__main__':
    raise SystemExit(main())
