"""``dtvla play``: one scene without end, and a person who says what the arm should do."""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import time
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rich.align import Align
from rich.console import Group
from rich.text import Text
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

import dtvla_sim
from dtvla_ros import conventions as names
from dtvla_ros.actions.contract import require_offsets
from dtvla_ros.caption import FAINT, WARNING, Caption
from dtvla_ros.errors import EXTRAS, UserError
from dtvla_ros.evaluation.results import evaluation_seed
from dtvla_ros.files import find_shared
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.rollout.env import require_square
from dtvla_ros.ros import qos
from dtvla_ros.ros.environment import take_domain
from dtvla_ros.ros.estop import EStop
from dtvla_ros.ros.graph import Seen, Watcher, start_nodes
from dtvla_ros.ros.processes import NodeProcesses
from dtvla_ros.ros.run import joined

from .display import GATE_STYLE, SAID, Filming, Screen, program
from .keyboard import STOP_KEYS, Keyboard

CONFIG = 'config/sim.yaml'
FILM_EVERY = 2  # images: enough to see, half the drawing
DRAW = 0.05  # between two drawings of the terminal [s]
CHECK = 0.3  # between two looks whether every node lives [s]
THOUGHT_LINES = 3  # of a terminal of 80 columns
WAITING = 'waiting for a task'
ORDERS = {
    'a number, or a sentence': 'what the arm should do',
    'SPACE on an empty line, ESC always': 'the e-stop, at once; also: stop',
    'clear, or c': 'clear a stop; the arm moves again when it is told something',
    'reset, or reset 7': 'the scene as it began, or start state 7; an open task goes on',
    'knock': 'force the fingers open while they hold something',
    'film': 'begin a film; once more: end it',
    'tasks': 'list them again',
    'quit, or Ctrl-C': 'end'}
"""What may be typed, and its meaning."""


class Prompt:
    """The line that a person types."""

    def __init__(self) -> None:
        self.text = ''

    def press(self, key: str) -> str | None:
        """Take a key; return the line that it ends, else None."""
        if key in '\r\n':
            line, self.text = self.text.strip(), ''
            return line
        if key in '\x08\x7f':
            self.text = self.text[:-1]
        elif key == '\x15':  # Ctrl-U
            self.text = ''
        elif key.isprintable():
            self.text += key
        return None


class PlayScreen(Screen):
    """Shows the present thought, both states and the prompt, below what happened."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__()
        self.prompt = prompt
        self.resting = ''  # why there is no thought until a task is told

    def _panel(self, seen: Seen, fault: str) -> Group:
        thought = (Text(f'STOPPED: {fault}; clear with c, then Enter', 'bold white on red')
                   if fault else Text(
                     f'{WAITING}: type a number or a sentence, then Enter'
                     if self.resting == WAITING else self.resting, 'green') if self.resting else
                   Text(f'{seen.writing}▌' if seen.writing else seen.thought, 'bold cyan'))
        states = Text.assemble(
            'gate ', (seen.gate_state, GATE_STYLE.get(seen.gate_state, '')),
            (f' {seen.gate_reason}', 'dim'), f'   policy {seen.vla_state}',
            (f' {seen.vla_reason}', 'dim'), style='dim')
        prompt = Text(f'> {self.prompt.text}▏')
        for line in (states, prompt):
            line.no_wrap, line.overflow = True, 'ellipsis'
        # As high for a short thought, or the prompt would jump.
        return Group(Align(thought, vertical='top', height=THOUGHT_LINES), states, prompt)


class Player(Watcher):
    """Obeys the person at the terminal; the rest of the graph may say the same over topics.

    ``tasks``: the sentences of the policy, None before it has named them. ``ready``: whether all
    nodes have been heard. ``over``: whether the person has had enough. ``says_done``: the policy
    ends a task; for another the simulator's judgement does.
    """

    def __init__(self, screen: PlayScreen, folder: Path, rate: float, seed: int,
                 says_done: bool = False) -> None:
        super().__init__(self._on_frame, lambda row: None)
        self._screen, self._folder, self._seed = screen, folder, seed
        self._says_done = says_done
        self._rate = rate / FILM_EVERY
        self._estop = EStop(self)
        self._lines: queue.Queue[str] = queue.Queue()
        self.tasks: list[str] | None = None
        self.over = self._scene = self._begun = self._holds = False
        self.fault = self._stopped = self._done = ''
        self._told: tuple[str, str] = '', ''  # task number and sentence that the policy has
        self._film: Filming | None = None
        self._frames = self._step = 0
        self._instruction = self.create_publisher(String, names.INSTRUCTION, qos.LATCHED)
        self.create_subscription(String, names.VLA_TASKS, self._on_tasks, qos.LATCHED)
        self.create_subscription(String, names.SIM_STATE, self._on_scene, qos.LATCHED)
        self.create_service(SetBool, '/play/film', self._on_film)
        self._orders = {name: self.create_client(Trigger, name)
                        for name in ('/sim/reset', '/sim/knock', '/stop')}
        self._start = self.create_client(SetParameters, '/sim_bridge/set_parameters')

    def on_key(self, key: str) -> None:
        """Take a key of the terminal, from any thread; a stop does not wait for `tick`."""
        prompt = self._screen.prompt
        if key in STOP_KEYS and not (key == ' ' and prompt.text):
            prompt.text = ''
            self._estop.press(STOP_KEYS[key])
        elif line := prompt.press(key):
            self._lines.put(line)

    def tick(self) -> None:
        """Do what was typed; say what has happened since."""
        while not self._lines.empty():
            self._obey(self._lines.get())
        say, seen = self._screen.say, self.seen
        before, self.fault = self.fault, self._estop.tick(seen)
        if self.fault and self.fault != before:
            say(f'STOPPED: {self.fault}; clear with c, then Enter', 'bold red')
        elif before and not self.fault:
            self._screen.resting = WAITING
            say('cleared: it moves again when it is told something', 'green')
        if unsaid := self._estop.take_unsaid():
            say(unsaid, 'red')
        if self._told != (seen.task, seen.told):
            self._told = seen.task, seen.told
            self._screen.resting = '' if seen.told or not self._begun else WAITING
            if seen.told:
                say(f'told: {seen.told}', 'bold')
                if seen.meaning:
                    say(seen.meaning, 'bold')
        if seen.vla_state == 'DONE' and not self._screen.resting:
            self._rest(f'{SAID}: {seen.understood}' + (
                '' if self._holds else ' (the simulator does not)'))
        stopped = '' if self.fault or self._screen.resting else seen.stopped_task
        if stopped and stopped != self._stopped:
            say(f'stopped: {stopped}; tell it again what to do', 'red')
        self._stopped = stopped

    def close(self) -> None:
        """End the film."""
        if self._film is not None:
            self._screen.say(self._filming(False))

    @property
    def ready(self) -> bool:
        return self._scene and self.tasks is not None and self.seen.gate_state != 'starting'

    def begin(self, keys: bool) -> None:
        """Take orders from now on; say which, ``keys``: whether they can be typed."""
        self._begun = True
        self._screen.resting = self._screen.resting or ('' if self.seen.told else WAITING)
        self.teach(keys)

    def teach(self, keys: bool = True) -> None:
        """Print what may be said, and with ``keys`` what may be typed."""
        for k, task in enumerate(self.tasks or (), 1):
            self._screen.say(f'  {k:>2}  {task}')
        for typed, meaning in ORDERS.items() if keys else ():
            self._screen.say(f'  {typed:<36}{meaning}', 'dim')

    def _obey(self, line: str) -> None:
        order, _, rest = line.partition(' ')
        if order in ('c', 'clear') and not rest:
            if not self._estop.clear():
                self._screen.say('nothing is stopped')
        elif order == 'stop' and not rest:
            self._estop.press('stop')
        elif order in ('quit', 'exit', 'q') and not rest:
            self.over = True
        elif not self._begun:
            self._screen.say(f'"{line}" comes too early: the nodes still start', 'yellow')
        elif order == 'reset' and re.fullmatch('[0-9]{0,9}', rest):
            self._reset(rest)
        elif order == 'knock' and not rest:
            self._order('/sim/knock', 'knocked: the fingers are forced open')
        elif order == 'film' and not rest:
            self._screen.say(self._filming(self._film is None))
        elif order in ('tasks', 'help', '?') and not rest:
            self.teach()
        elif self.fault or self._estop.pending:
            self._screen.say('it is stopped: clear that with c, then Enter', 'red')
        else:
            known = {str(k): task for k, task in enumerate(self.tasks or (), 1)}
            if line.isdecimal() and known and line not in known:
                return self._screen.say(f'there is no task {line}: 1 to {len(known)}', 'red')
            self._instruction.publish(String(data=known.get(line, line)))
        return None

    def _order(self, service: str, well: str, client: Any = None, request: Any = None) -> None:
        """Call a service; say how it went."""
        client = client or self._orders[service]
        if not client.service_is_ready():
            return self._screen.say(f'{service} is not there yet', 'red')
        client.call_async(request or Trigger.Request()).add_done_callback(
            lambda future: self._screen.say(*(
                (well, 'green') if future.result().success else
                (f'refused: {future.result().message}', 'red'))))
        return None

    def _reset(self, start: str) -> None:
        """Begin the scene anew, from a start state if one is given."""
        def reset(future: Any = None) -> None:
            if future and (refused := [r for r in future.result().results if not r.successful]):
                return self._screen.say(f'refused: {refused[0].reason}', 'red')
            return self._order('/sim/reset', 'the scene begins anew')
        if not start:
            return reset()
        seed = Parameter('reset_seed', value=self._seed + int(start)).to_parameter_msg()
        if not self._start.service_is_ready():
            return self._screen.say('the simulator is not there yet', 'red')
        self._start.call_async(SetParameters.Request(parameters=[seed])).add_done_callback(reset)
        return None

    def _on_tasks(self, message: String) -> None:
        self.tasks = json.loads(message.data)

    def _on_scene(self, message: String) -> None:
        self._scene, scene = True, json.loads(message.data)
        step, self._step = self._step, scene.get('step', 0)
        if self._screen.resting and self._step < step:
            self._screen.resting = WAITING
        done, self._holds = scene.get('done', ''), scene.get('holds', False)
        before, self._done = self._done, done
        if not done or done == before or self._screen.resting:
            return None
        if self._says_done:
            return self._screen.say(
                f'done, as the simulator judges: {self.seen.understood}', 'green')
        self._rest(f'done: {self.seen.understood}')
        if self._orders['/stop'].service_is_ready():  # or the policy looks for more of the kind
            self._orders['/stop'].call_async(Trigger.Request())
        return None

    def _rest(self, why: str) -> None:
        self._screen.resting = why
        self._screen.say(why, 'green')

    def _on_film(self, request: SetBool.Request, response: Any) -> Any:
        response.success, response.message = True, self._filming(request.data)
        self._screen.say(response.message)
        return response

    def _filming(self, on: bool) -> str:
        """Begin or end a film; return what became of it."""
        if on and self._film is None:
            taken = {path.name for path in self._folder.glob('play-*.mp4')}
            name = next(n for k in range(1, len(taken) + 2) if (n := f'play-{k}.mp4') not in taken)
            self._film = Filming(self._folder / name, self._rate)
            return f'filming {self._film.path}'
        if not on and self._film is not None:
            film, self._film = self._film, None
            film.close()
            return (f'filmed {film.path}' if film.written else
                    'nothing was filmed: no image came meanwhile')
        return 'it is filming' if on else 'it is not filming'

    def _on_frame(self, images: dict[str, Any], seen: Seen) -> None:
        self._frames += 1
        if self._film is not None and self._frames % FILM_EVERY == 0:
            resting = self._screen.resting
            gate = f'gate {seen.gate_state}'
            driven = seen.driver == names.PERSON
            self._film.add(images, Caption(
                seen.told, '' if resting else seen.thought, '' if driven else resting or gate,
                states=((gate, FAINT), ('a person drives', WARNING)) if driven else (),
                stopped=self.fault or ('' if resting else seen.stopped_task),
                meaning=seen.meaning))


def run_play(policy: Path, suite: str, scene: str, seed: int | None, out: Path,
             mode: str = 'full', engine: str = 'onnx', open_page: bool = False) -> None:
    """Play until the person ends it. Films and logs are in ``out``.

    ``scene``: the task whose scene it is, where every task has its own; '': the suite's first.
    ``open_page``: serve the operator's page, and open it where there is a display.
    Raises UserError if a node refuses its input, NodeDied if one dies.
    """
    for module in EXTRAS['operator'].split() if open_page else ():
        import_module(module)  # or the page's node misses it a minute later
    seed, folder = evaluation_seed(seed), find_shared(policy)
    manifest = PolicyManifest.read(folder)
    require_offsets(manifest.action, str(policy), 'dtvla play')
    dtvla_sim.require_offsets(suite, 'dtvla play')
    require_square(manifest.images.sizes, str(policy), suite)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {out}: {error.strerror}; choose another --out') from error
    page = None
    if open_page:
        page = {'port': free_port(), **({} if suite == 'tabletop' else {'table_z': 0.0})}
    take_domain()
    screen = PlayScreen(Prompt())
    screen.say('starting the simulator, the policy and the command gate …', 'dim')
    try:
        with joined(lambda: Player(screen, out, manifest.action.rate_hz, seed,
                                   manifest.says_done)) as (player, executor), \
                Keyboard(player.on_key) as keyboard, screen.live, \
                NodeProcesses(out / 'logs') as nodes:
            try:
                start_nodes(nodes, CONFIG, {'policy': folder, 'engine': engine, 'mode': mode}, {
                    'suite': suite, 'tasks': [scene], 'seed': seed, 'endless': True}, page)
                _loop(player, screen, keyboard, nodes, lambda: executor.spin_once(DRAW),
                      f'http://127.0.0.1:{page["port"]}/' if page else '')
            finally:
                player.close()
    except KeyboardInterrupt:
        screen.say('ended')


def free_port() -> int:
    """Return a port of this machine that nobody uses, the operator's own if it is free."""
    for port in (names.PAGE_PORT, 0):
        with suppress(OSError), socket.create_server(('127.0.0.1', port)) as free:
            return int(free.getsockname()[1])
    raise UserError('no port is free on this machine for the page; leave --open out')


def _loop(player: Player, screen: PlayScreen, keyboard: Keyboard, nodes: NodeProcesses,
          spin: Callable[[], None], page: str) -> None:
    ready, drawn, checked = False, 0.0, time.monotonic()
    while not player.over:
        spin()
        now = time.monotonic()
        if player.ready and not ready:
            ready = True
            player.begin(keyboard.present)
            screen.say(f'From another terminal: export ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]}'
                       f'; {program()} tell "..."; {program()} stop', 'dim')
            if page:
                screen.say(f'page: {page}', 'bold')
                if os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY'):
                    webbrowser.open(page)  # without a display it could take the terminal
            if not keyboard.present:
                screen.say('stdin is no terminal: no keys are read', 'yellow')
        if now - drawn > DRAW:
            drawn = now
            player.tick()
            screen.update(player.seen, player.fault)
        if now - checked > CHECK:
            checked = now
            nodes.require_running()
