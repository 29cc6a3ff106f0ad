"""A person and a running robot: its task, its e-stop, what it may be told, what it thinks."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from dtvla_ros import conventions as names
from dtvla_ros.errors import UserError
from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.guest import Guest, visit
from dtvla_ros.ros.run import wait_until_heard

DISCOVERY = 5.0  # longest wait for a node that is needed [s]
OTHER = 2.0  # longest wait for policy or gate beside the one that is needed [s]
ANSWER = 3.0  # longest wait for what an order leads to [s]
SETTLING = 0.5  # in which a state follows another node's [s]
STOPPED = ('STOPPED', 'STOP', 'FAULT')
STYLES = {**dict.fromkeys(STOPPED, 'bold red'), 'HOLDING': 'yellow', 'HOLD': 'yellow',
          'ACTING': 'green', 'RUN': 'green', 'DONE': 'green'}
START = ('start dtvla demo, play or run in another terminal, or export the ROS_DOMAIN_ID that it '
         'prints')


class Robot:
    """Policy and gate, as a guest hears them.

    ``policy``, ``gate``: values of the last status and its state under 'state'; empty before.
    """

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.policy: dict[str, str] = {}
        self.gate: dict[str, str] = {}
        for topic, heard in ((names.VLA_STATE, self.policy), (names.GATE_STATE, self.gate)):
            self.listen(DiagnosticStatus, topic, functools.partial(_keep, heard), qos.LATCHED)

    def listen(self, kind: Any, topic: str, receive: Callable[[Any], None], profile: Any) -> None:
        self.guest.node.create_subscription(kind, topic, receive, profile)

    def say(self, kind: Any, topic: str, data: Any) -> Any:
        """Publish once, for those that are discovered later, too; return the publisher."""
        publisher = self.guest.node.create_publisher(kind, topic, qos.LATCHED)
        publisher.publish(kind(data=data))
        return publisher

    def answer(self, taken: str = 'task', refusals: str = 'refusals',
               ) -> Callable[[], bool | None]:
        """Return what tells whether the policy refused what comes next; None without an answer.

        ``taken``, ``refusals``: keys of its state that count what it took and refused.
        """
        def counts() -> tuple[str, str]:
            return self.policy.get(taken, ''), self.policy.get(refusals, '')

        before = counts()
        return lambda: None if (now := counts()) == before else now[1] != before[1]

    def tell(self, topic: str, text: str, *counters: str) -> Callable[[], bool | None]:
        """Say a text to the policy and wait for its `answer`, which is returned.

        Raises UserError if no policy is heard, or it does not answer.
        """
        self.need(lambda: self.policy, names.VLA_STATE)
        refused = self.answer(*counters)
        self.say(String, topic, text)
        if not self.guest.until(lambda: refused() is not None, ANSWER):
            where = self.guest.where(topic, self.guest.node.count_subscribers)
            raise UserError(f'the policy did not answer within {ANSWER:g} s to what was said on '
                            f'{topic}; {where}')
        return refused

    def need(self, heard: Callable[[], Any], topic: str) -> None:
        """Wait for a topic; raise UserError if nothing comes."""
        if not self.guest.until(heard, DISCOVERY):
            where = self.guest.where(topic, self.guest.node.count_publishers)
            raise UserError(f'nothing is heard on {topic}; ' + (
                f'the policy is {_text(self.policy)}' if self.policy else f'{where}; {START}'))

    def policy_follows(self, stopped: bool) -> bool:
        """Wait until a policy, if there is one, has heard of the e-stop; return whether it has."""
        self.guest.until(lambda: self.policy, OTHER)
        return bool(self.guest.until(lambda: not self.policy or (
            self.policy['state'] == 'FAULT') == stopped, ANSWER))


def _keep(heard: dict[str, str], message: DiagnosticStatus) -> None:
    heard.clear()
    heard.update(conversions.status_values(message), state=message.message)


def tell(sentence: str) -> str:
    """Give the policy a task; return what became of it.

    Raises
    ------
    UserError
        If no policy is heard, or it refuses the sentence or does not answer.

    """
    with visit() as guest:
        robot = Robot(guest)
        refused = robot.tell(names.INSTRUCTION, sentence)
        policy, gate = robot.policy, robot.gate
        if refused():
            raise UserError(f'refused: {policy["rejected"]} (dtvla tasks lists what it takes)')
        if guest.until(lambda: gate, OTHER):
            guest.until(lambda: gate['state'] not in STOPPED, SETTLING)
    then = {'FAULT': 'dtvla stop --clear', 'STOP': 'dtvla topic call /start'}.get(
        gate.get('state', ''))
    return '\n'.join(filter(None, (
        f'taken: {policy["instruction"]}', conversions.meaning(policy), f'policy {_text(policy)}',
        f'gate {_text(gate) or "not heard"}' + (f'; then: {then}' if then else ''))))


def think(text: str) -> str:
    """Put words into the policy's thoughts, '' to take them back; return what became of it.

    Raises
    ------
    UserError
        If no policy is heard, or it refuses the words or does not answer.

    """
    with visit() as guest:
        robot = Robot(guest)
        refused = robot.tell(names.THOUGHT_OVERRIDE, text, 'overrides', 'override_refusals')
        # What it can not think around it refuses with the next decision.
        if guest.until(refused, SETTLING):
            raise UserError(f'refused: {robot.policy["override_rejected"]}')
        left = robot.policy['override_left']
    return 'cleared: it thinks for itself' if not text else f'taken: {text}, ' + (
        f'for {left} decisions' if left != '0' else 'until dtvla think --clear')


def stop() -> str:
    """Press the e-stop; return what became of it.

    Raises
    ------
    UserError
        If no gate is heard, or it does not stop.

    """
    with visit() as guest:
        robot, begun = Robot(guest), time.monotonic()
        pressed = robot.say(Bool, names.ESTOP, True)
        robot.need(lambda: robot.gate, names.GATE_STATE)
        if not guest.until(lambda: robot.gate['state'] == 'FAULT'
                           and pressed.get_subscription_count(), ANSWER):
            raise UserError(f'the gate did not stop within {ANSWER:g} s: it says '
                            f'{_text(robot.gate)}; use the stop of the arm itself')
        took = time.monotonic() - begun
        robot.policy_follows(stopped=True)
        wait_until_heard(pressed)
        return (f'stopped: gate {_text(robot.gate)}, {took:.1f} s after joining; release it with '
                'dtvla stop --clear')


def clear() -> str:
    """Release the e-stop and clear the gate's fault; return what became of it.

    Raises
    ------
    UserError
        If no gate is heard, or it refuses: somebody else presses, another node commands the arm.

    """
    with visit() as guest:
        robot = Robot(guest)
        robot.say(Bool, names.ESTOP, False)
        robot.need(lambda: robot.gate, names.GATE_STATE)
        client = guest.node.create_client(Trigger, '/clear_fault')
        end, answer = time.monotonic() + ANSWER, None
        while not (answer and answer.success) and time.monotonic() < end:
            if guest.until(client.service_is_ready, ANSWER):
                future = client.call_async(Trigger.Request())
                guest.until(future.done, ANSWER)
                answer = future.result()
        if answer is None:
            raise UserError(f'/clear_fault did not answer within {ANSWER:g} s; the gate says '
                            f'{_text(robot.gate)}')
        if not answer.success:
            raise UserError(f'not cleared: {answer.message}')
        if not robot.policy_follows(stopped=False):
            raise UserError(f'the gate is cleared, the policy still says {_text(robot.policy)}: '
                            'somebody else presses the e-stop')
        # The policy may be discovered later than the gate, and has to hear it, too.
        guest.until(lambda: robot.policy.get('state', 'FAULT') != 'FAULT', ANSWER)
    return (f'cleared: gate {answer.message}\nThe next dtvla tell moves the arm where auto_start '
            'is set; elsewhere dtvla topic call /start does')


def tasks() -> dict[str, list[str]]:
    """Return what 'policy' may be told and which scenes 'simulator' has, where there is one.

    Raises
    ------
    UserError
        If no policy is heard.

    """
    heard: dict[str, list[str]] = {}
    with visit() as guest:
        robot = Robot(guest)
        robot.listen(String, names.VLA_TASKS, lambda message: heard.update(
            policy=json.loads(message.data)), qos.LATCHED)
        robot.listen(String, names.SIM_TASKS, lambda message: heard.update(
            simulator=[task.replace('_', ' ') for task in json.loads(message.data)['tasks']]),
            qos.LATCHED)
        robot.need(lambda: 'policy' in heard, names.VLA_TASKS)
        guest.until(lambda: 'simulator' in heard, SETTLING)
    return dict(sorted(heard.items()))


def watch(console: Console) -> None:
    """Show the present thought, and a line for each task, its end and refusals, until Ctrl-C."""
    with suppress(KeyboardInterrupt), visit() as guest:
        robot, screen = Robot(guest), Screen(console)
        robot.listen(String, names.REASONING, screen.reasoning,
                     qos.profile(10, reliable=True, latched=False))
        robot.listen(String, names.REASONING_STREAM, screen.stream, qos.NEWEST)
        if not guest.until(lambda: robot.policy or robot.gate, DISCOVERY):
            where = guest.where(names.VLA_STATE, guest.node.count_publishers)
            console.print(Text(f'nothing is heard yet; {where}; {START}; waiting '
                               '(Ctrl-C to stop)', 'yellow'))
        with screen.live:
            while True:
                guest.until(lambda: False, 0.05)
                screen.show(robot.policy, robot.gate)


class Screen:
    """The present thought in place, below a line for each task, refusal, stop and end.

    A thought is forgotten when a task begins or is stopped.
    Where the console is no terminal every complete thought gets a line.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self._stopped = {'policy': '', 'gate': ''}
        self._before: dict[str, str] = {}
        self._thought = self._writing = ''

    def reasoning(self, message: String) -> None:
        """Take a thought."""
        self._thought, self._writing = message.data, ''
        if not self._console.is_terminal:
            self._print(message.data, 'cyan')

    def stream(self, message: String) -> None:
        """Take how far the next thought is written; it counts once it differs from the last."""
        if not self._thought.startswith(message.data):
            self._writing = message.data

    def show(self, policy: dict[str, str], gate: dict[str, str]) -> None:
        """Draw the thought and both states; print what was told, refused or stopped since."""
        before, self._before = self._before, dict(policy)
        if policy.get('instruction') and policy['task'] != before.get('task'):
            self._forget()
            self._print(f'told: {policy["instruction"]}', 'bold')
            if meaning := conversions.meaning(policy):
                self._print(meaning, 'bold')
        if policy.get('rejected') and policy['refusals'] != before.get('refusals'):
            self._print('refused: {rejected_instruction}: {rejected}'.format_map(policy), 'red')
        if policy.get('question') and policy['question'] != before.get('question'):
            self._print(f'asks: {policy["question"]}', 'bold yellow')
        if policy.get('state') == 'DONE' != before.get('state'):
            self._print(f'done: {policy["instruction"]}', 'bold green')
        for who, status in (('policy', policy), ('gate', gate)):
            stopped = _text(status) if status.get('state') in STOPPED else ''
            if _numberless(stopped) != _numberless(self._stopped[who]):
                if stopped:
                    self._forget()
                self._print(f'{who}: {stopped or "goes on"}', 'bold red' if stopped else 'green')
            self._stopped[who] = stopped
        if self._console.is_terminal:
            states = Text.assemble(*(
                (f'{who} {_text(status) or "not heard"}   ',
                 STYLES.get(status.get('state', ''), 'dim'))
                for who, status in (('policy', policy), ('gate', gate))))
            thought = Text(self._writing or self._thought, 'cyan')
            self.live.update(Group(thought, states), refresh=True)

    def _forget(self) -> None:
        self._thought = self._writing = ''

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(text, style), soft_wrap=not self._console.is_terminal)


def _text(status: dict[str, str]) -> str:
    return ' '.join(filter(None, (status.get('state'), status.get('reason'))))


def _numberless(text: str) -> str:
    """Return a reason without its numbers, which may change all the time."""
    return re.sub(r'\d', '', text)
