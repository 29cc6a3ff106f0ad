"""The simulator as a robot with cameras: runs episodes, counts successes, takes orders."""

from __future__ import annotations

import functools
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

import dtvla_sim
from dtvla_ros import conventions as names
from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.conventions import parameter, relative
from dtvla_ros.errors import UserError
from dtvla_ros.files import require_writable, write_json
from dtvla_ros.nodes.settings import declare, declare_all
from dtvla_ros.nodes.sim_frames import BASE, Placed, SimFrames, optical_frame
from dtvla_ros.policy.instructions import shown, spelling
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.run import STEADY, end, run
from dtvla_ros.ros.waiting import PERIOD, tell_what_lacks, why_silent
from dtvla_ros.safety.gate import NOT_READY

ASK_AGAIN = 0.5  # wall time without an answer before the same moment is shown again [s]
HOLD_ACTION = 0.15  # real time: age at which the last action is no longer repeated [s]
BETWEEN_EPISODES = 1.0  # jump of the clock, longer than any chunk, so that old ones expire [s]
SIMULATORS = ('mujoco', 'robosuite')
ANNOUNCE_AGAIN = 1.0  # wall time after a pause in which a policy may have given up [s]
STATE_PERIOD = 1.0  # of sim/state where nothing happens, wall time [s]
LAST_MESSAGE = 0.5  # wall time for it to leave before the process ends [s]
LARGEST_SEED = 2**32 - 1
MOST_STEPS = 1000  # in one order; the node hears nothing else meanwhile


@dataclass(frozen=True, slots=True)
class SimSettings:
    """Parameters of the simulator."""

    suite: str = parameter('tabletop', 'scenes and tasks')
    tasks: tuple[str, ...] = parameter(('',), 'task names; empty: all')
    episodes: int = parameter(1, 'episodes per task', low=1)
    instructions: tuple[str, ...] = parameter(
        ('',), "what is said in each episode, in order; empty: the task's own sentence")
    seed: int = parameter(1_000_000, 'of the first episode of each task', low=0)
    lockstep: bool = parameter(True, 'time waits for the policy')
    camera_every: int = parameter(1, 'control steps per frame', low=1)
    max_steps: int = parameter(0, 'per episode; 0: as the task says', low=0)
    after_success: int = parameter(
        0, 'control steps that an episode goes on for the policy to say that it is done', low=0)
    endless: bool = parameter(
        False, 'one scene that never ends: no limit, no success, no instruction, and in '
        'lock-step no faster than time')
    policy_timeout_s: float = parameter(120.0, 'longest wait for the policy to take a task', low=1)
    start_paused: bool = parameter(False, 'begin paused')
    result_file: str = parameter('', 'JSON of all episodes; empty: none')
    image_size: int = parameter(0, 'side of the images [px]; 0: as the suite has it', low=0)
    starts: str = parameter('', 'where objects stand; empty: as the suite has it')
    perturb: tuple[str, ...] = parameter(('',), 'family:strength of what disturbs')
    antialiasing: bool = parameter(True, "in LIBERO's images")
    shadows: bool = parameter(True, "in LIBERO's images")
    step_count: int = parameter(
        1, 'control steps of one sim/step', low=1, high=MOST_STEPS, changeable=True)
    reset_seed: int = parameter(-1, 'seed that sim/reset begins with; -1: the present one', low=-1,
                                high=LARGEST_SEED, changeable=True)


@dataclass(slots=True)
class Progress:
    """Which episode runs, and the results of the finished ones."""

    plan: list[tuple[str, int]]  # tasks and seeds
    index: int = -1
    task: str = ''
    seed: int = 0
    step: int = 0
    solved: int | None = None  # step of the first success
    touched: bool = False  # somebody stepped, reset or loaded the running episode
    episodes: list[dict[str, Any]] = field(default_factory=list)

    def results(self) -> dict[str, list[int]]:
        """Return successes and episodes of every task that has been run."""
        won: dict[str, list[bool]] = {}
        for episode in self.episodes:
            won.setdefault(episode['task'], []).append(episode['success'])
        return {task: [sum(outcomes), len(outcomes)] for task, outcomes in won.items()}

    def report(self) -> dict[str, Any]:
        """Return the finished episodes with their sums and what ran them."""
        return {
            'n': len(self.episodes), 'successes': sum(e['success'] for e in self.episodes),
            'tasks': {task: {'n': n, 'successes': successes}
                      for task, (successes, n) in self.results().items()},
            'episodes': self.episodes, 'versions': {
                'python': platform.python_version(),
                **{name: metadata.version(name) for name in SIMULATORS}}}


class SimBridge(Node):
    """Runs episodes one after another and ends by itself after the last.

    Lock-step: simulated time waits for the action stamped with the present tick; otherwise the
    scene runs on the wall clock. Episodes begin once the policy has acknowledged the instruction
    on ``vla/state``. While paused, time stands still. Orders are services as in
    simulation_interfaces, in standard types. The latched ``sim/state`` holds the number of orders
    heard and why the last one was refused; ``sim/tasks`` lists what can be reset to.
    """

    def __init__(self) -> None:
        super().__init__('sim_bridge')
        given = self._given = declare_all(self, SimSettings())
        self._paused = given.start_paused
        self._result = Path(given.result_file).expanduser() if given.result_file else None
        if self._result is not None:
            require_writable(self._result)
            self._result.unlink(missing_ok=True)  # an old one must not pass for this run's
        self._env = dtvla_sim.with_release(self._make_env())
        known, tasks = self._env.tasks, _named(given.tasks)
        if unknown := [task for task in tasks if task not in known]:
            raise UserError(f'parameter tasks: unknown task "{unknown[0]}"; {given.suite} has: '
                            f'{", ".join(known)}')
        declare(self, 'reset_task', '', 'task that sim/reset begins; empty: the present one',
                choices=('', *known), changeable=True)
        plan = [(task, given.seed + k) for task in tasks or known for k in range(given.episodes)]
        self._progress = Progress(plan[:1] if given.endless else plan)
        self._said = given.instructions if any(given.instructions) else ()
        if self._said and len(self._said) != len(plan):
            raise UserError(f'parameter instructions: {len(self._said)} sentences for {len(plan)} '
                            'episodes; give as many')
        self._period_ns = round(1e9 / self._env.control_rate)
        self._clock_ns = self._orders = 0
        self._running = False
        self._finished_at: float | None = None
        self._asked = self._began = self._published = time.monotonic()
        self._resumed = -np.inf
        self._policy: dict[str, str] = {}
        self._gate = ''  # why it ended the task
        self._sentences: dict[str, str] = {}  # of the scene's tasks, where none is asked for
        self._done, self._open = '', False  # the told one, once it is done; whether it was not
        self._holds = False  # whether it is now, be it that it was before
        self._task_before = self._refused = self._understood = self._refusal = ''
        self._moved = self._asked
        self._obs: Mapping[str, Any] = {}
        self._home: list[float] = []  # where the gripper began: position and quaternion
        self._info: dict[str, Any] = {}
        # The gate turns poses into offsets; joints it commands by their names.
        self._contract: ActionContract = (
            self._env.contract if self._env.contract.is_joints else ActionContract())
        self._action, self._action_at = np.zeros(self._contract.dim), 0.0
        self._next: NDArray[np.float64] | None = None  # of the step that is due
        self._open_topics()
        self._open_services()
        self.create_timer(0.1, self._on_timer, clock=STEADY)
        if given.endless or not given.lockstep:
            self.create_timer(
                self._period_ns * 1e-9, self._on_paced if given.lockstep else self._on_real_time,
                clock=STEADY)
        self._begin_next()
        for camera in self._env.views:
            self._image(camera)  # the first drawing builds the renderer, which takes seconds

    def _make_env(self) -> Any:
        given = self._given
        chosen: dict[str, Any] = {
            name: value for name in ('image_size', 'starts') if (value := getattr(given, name))}
        drawing = {name: False for name in ('antialiasing', 'shadows') if not getattr(given, name)}
        if drawing and given.suite not in dtvla_sim.LIBERO_SUITES:
            raise UserError(f'parameter {next(iter(drawing))}: {given.suite} is drawn without')
        return dtvla_sim.make(given.suite, _named(given.perturb), **chosen, **drawing)

    def _open_topics(self) -> None:
        sensor = qos_profile_sensor_data
        self._clock_topic = self.create_publisher(Clock, '/clock', qos.LATEST)
        self._cameras = {
            name: self.create_publisher(Image, relative(names.image_topic(name)), sensor)
            for name in self._env.views}
        self._joints = self.create_publisher(JointState, relative(names.JOINT_STATES), sensor)
        self._pose = self.create_publisher(PoseStamped, relative(names.EE_POSE), sensor)
        self._instruction = self.create_publisher(String, relative(names.INSTRUCTION), qos.LATCHED)
        self._episode = self.create_publisher(String, relative(names.EPISODE), qos.LATCHED_100)
        self._state = self.create_publisher(String, relative(names.SIM_STATE), qos.LATCHED)
        self._tasks = self.create_publisher(String, relative(names.SIM_TASKS), qos.LATCHED)
        self._frames = SimFrames(self, self._env)
        self._actions = self.create_subscription(
            JointTrajectory, relative(names.ACTION), self._on_action, qos.LATEST)
        self._policies = self.create_subscription(
            DiagnosticStatus, relative(names.VLA_STATE), self._on_policy, qos.LATCHED)
        self.create_subscription(
            DiagnosticStatus, relative(names.GATE_STATE), self._on_gate, qos.LATCHED)
        tell_what_lacks(self, self._lacking)

    def _open_services(self) -> None:
        listed = json.dumps({'suite': self._given.suite, 'tasks': list(self._env.tasks)})
        self._tasks.publish(String(data=listed))
        orders: dict[str, Callable[[Any], object]] = {
            'pause': lambda request: self._pause(request.data),
            'step': lambda _: self._advance(), 'reset': lambda _: self._begin_again(),
            'knock': lambda _: self._env.release()}
        for name, order in orders.items():
            self.create_service(SetBool if name == 'pause' else Trigger, f'sim/{name}',
                                functools.partial(self._obey, name, order))
        for name, text in (('list_tasks', lambda: listed), ('get_state', self._publish_state)):
            self.create_service(Trigger, f'sim/{name}', functools.partial(_answer, text))

    def _obey(
        self, order: str, carry_out: Callable[[Any], object], request: Any, response: Any) -> Any:
        """Carry an order out; answer with the state, or why not."""
        self._refused = ''
        try:
            if self._finished_at is not None:
                raise UserError('all episodes ran; start sim_bridge again')
            carry_out(request)
        except UserError as error:
            self._refused = str(error)
            self.get_logger().error(f'{order} refused: {error}')
        self._orders += 1
        state = self._publish_state()
        response.success, response.message = not self._refused, self._refused or state
        return response

    def destroy_node(self) -> None:
        self._env.close()
        super().destroy_node()

    @property
    def _now(self) -> float:
        return self._clock_ns * 1e-9

    def _begin_next(self) -> None:
        self._progress.index += 1
        self._begin(*self._progress.plan[self._progress.index])

    def _begin(self, task: str, seed: int, touched: bool = False) -> None:
        progress = self._progress
        progress.task, progress.seed, progress.step, progress.touched = task, seed, 0, touched
        progress.solved = None
        self._obs, self._info = self._env.reset(seed=seed, options={'task': task})
        position, turned = self._gripper()
        self._home = np.round([*position, *turned.as_quat()], 4).tolist()
        if self._said and task == progress.plan[progress.index][0] and (
                said := self._said[progress.index]):
            self._info = {**self._info, 'instruction': said}
        self._clock_ns += round(BETWEEN_EPISODES * 1e9)
        rest = np.zeros(len(names.CHANNELS))
        self._action = self._env.action_of(rest) if self._contract.is_joints else rest
        self._next, self._running = None, self._given.endless
        self._task_before = self._policy.get('task', '')
        self._understood = self._refusal = ''
        self._began = time.monotonic()
        self._frames.begin(self._now, self._gripper())
        if self._given.endless:
            self._sentences = {spelling(self._env.instructions[name]): name
                               for name in self._env.alternatives()}
        else:
            self._announce()
            self._publish_episode(done=False)
        if self._paused or self._running:
            self._show(cameras=True)
        self._publish_state()

    def _announce(self) -> None:
        self._asked = time.monotonic()
        self._instruction.publish(String(data=self._info['instruction']))

    def _on_policy(self, message: DiagnosticStatus) -> None:
        state, told = message.message, conversions.status_values(message)
        before, self._policy = self._policy, told | {'state': state}
        if self._given.endless:
            if told.get('task') != before.get('task'):
                self._open = False
                if self._next is None:
                    self._show(cameras=True)  # what it begins with
            return
        wanted = self._info['instruction']
        if (before and not self._running and told.get('refusals') != before.get('refusals')
                and told.get('rejected_instruction') == shown(wanted)):
            if self._said and self._finished_at is None:
                self._refusal = told['rejected']
                return self._end_episode()
            end(UserError(f'the policy refuses "{wanted}": {told["rejected"]} '
                          '(parameter on_unlisted = "warn" lets it try)'))
        if (state == 'STOPPED' and not self._paused
                and time.monotonic() - self._resumed < ANNOUNCE_AGAIN):
            self._resumed = -np.inf  # once: it gave the task up in the silence
            self._announce()
        if state == 'DONE' and self._running:
            return self._end_episode(
                said_done=self._progress.step, too_early=not self._info['success'])
        taken = (spelling(told.get('instruction', '')) == spelling(wanted)
                 and told.get('task') != self._task_before and state not in NOT_READY)
        if taken and not (self._running or self._paused or self._finished_at is not None):
            self._running, self._understood = True, told.get('understood', '')
            self._show(cameras=True)
            self._publish_state()

    def _on_gate(self, message: DiagnosticStatus) -> None:
        self._gate = conversions.stop_reason(message)

    def _on_action(self, message: JointTrajectory) -> None:
        points = message.points
        action = np.array(points[0].positions if len(points) else [], np.float64)
        wanted, told = self._contract.channels, tuple(message.joint_names)
        if told not in ((), wanted):
            end(UserError(f'the gate commands {", ".join(told)}, the arm of {self._given.suite} '
                          f'takes {", ".join(wanted)}: choose another suite, or the preset, '
                          'action_space and arm_joints of this one'))
        elif action.shape != (len(wanted),) or not np.isfinite(action).all():
            self.get_logger().error(
                f'action is not one point of {len(wanted)} finite numbers: ignored')
        elif self._paused:
            pass
        elif not self._given.lockstep:
            self._action, self._action_at = action, time.monotonic()
        elif self._running and abs(conversions.seconds(message.header.stamp) - self._now) < 1e-3:
            if self._given.endless:
                self._next = action
            else:
                self._step(action)

    def _on_paced(self) -> None:
        """Run the step that was asked for, so that time waits for the policy but never runs."""
        if self._next is not None and not self._paused:
            action, self._next = self._next, None
            self._step(action)

    def _on_real_time(self) -> None:
        if self._running and not self._paused:
            if time.monotonic() - self._action_at > HOLD_ACTION:
                self._action = self._contract.at_rest(self._action)
            self._step(self._action)

    def _on_timer(self) -> None:
        """Ask again where an answer is overdue; give up, or end, when it is time."""
        steady = time.monotonic()
        if self._finished_at is not None:
            if steady - self._finished_at > LAST_MESSAGE:
                end()
            return
        if steady - self._published > STATE_PERIOD:
            self._publish_state()
        if self._paused:
            return
        if not self._running:
            if steady - self._began > self._given.policy_timeout_s:
                end(UserError(f'no policy took the task within {self._given.policy_timeout_s:g} s '
                              '(policy_timeout_s): is vla_node running in this domain?'))
            elif steady - self._asked > ASK_AGAIN:
                self._announce()
        elif self._given.lockstep and steady - self._asked > ASK_AGAIN:
            self._show(cameras=True)

    def _lacking(self) -> Iterator[str]:
        """Yield what the scene waits for to move on."""
        if self._paused or self._finished_at is not None:
            return
        told = self._policy
        policy = (f'the policy is {told["state"]} {told.get("reason", "")}' if told else
                  why_silent(self, self._policies)).rstrip()
        if not self._running:
            yield f'somebody to take "{self._info["instruction"]}": {policy}'
        elif self._given.endless and not told:
            yield policy
        elif (self._given.lockstep and not self._given.endless
                and time.monotonic() - self._moved > PERIOD):
            yield (f'an action: {policy}' if self.count_publishers(self._actions.topic_name) else
                   why_silent(self, self._actions))

    def _pause(self, on: bool) -> None:
        if self._paused:
            if not on:
                self._began = self._resumed = time.monotonic()
            if on or self._running:
                self._show(cameras=True)  # for whoever has subscribed meanwhile, too
        self._paused = on

    def _advance(self) -> None:
        """Run control steps without motion, the grip as it is; no further than the episode."""
        if not self._paused:
            raise UserError('step moves a paused simulation; pause it first')
        index, self._progress.touched = self._progress.index, True
        for _ in range(self.get_parameter('step_count').value):
            self._step(self._contract.at_rest(self._action))
            if self._progress.index != index or self._finished_at is not None:
                break

    def _begin_again(self) -> None:
        """Put the episode of the reset parameters in the running one's place."""
        task, seed = (self.get_parameter(name).value for name in ('reset_task', 'reset_seed'))
        progress = self._progress
        self._begin(task or progress.task, progress.seed if seed < 0 else seed, touched=True)

    def _publish_state(self) -> str:
        """Publish the state on ``sim/state``; return its JSON."""
        self._published, progress = time.monotonic(), self._progress
        text = json.dumps({
            'state': 'paused' if self._paused else 'playing' if self._running else 'stopped',
            'suite': self._given.suite, 'task': progress.task, 'seed': progress.seed,
            'step': progress.step, 'time': self._now, 'home': self._home,
            **({'done': self._done, 'holds': self._holds} if self._given.endless else {}),
            'orders': self._orders, 'refused': self._refused})
        self._state.publish(String(data=text))
        return text

    def _step(self, action: NDArray[np.floating]) -> None:
        self._action = action
        self._obs, _, _, truncated, info = self._env.step(
            action if self._contract.is_joints else self._env.action_of(action))
        progress, given = self._progress, self._given
        self._info['success'] = success = bool(info['success'])
        progress.step += 1
        self._moved = time.monotonic()
        self._clock_ns += self._period_ns
        if given.endless:
            self._judge()
            return self._show(cameras=self._paused or progress.step % given.camera_every == 0)
        if success and progress.solved is None:
            progress.solved = progress.step
        late = progress.step >= given.max_steps if given.max_steps else truncated
        if (late if progress.solved is None else
                progress.step >= progress.solved + given.after_success):
            return self._end_episode()
        self._publish_episode(done=False)
        return self._show(cameras=self._paused or progress.step % given.camera_every == 0)

    def _end_episode(self, **said: Any) -> None:
        """Keep the episode's result, with when the policy ``said`` it, and begin the next one."""
        progress, given = self._progress, self._given
        success = progress.solved is not None
        progress.episodes.append({
            'task': progress.task, 'seed': progress.seed, 'success': success,
            'steps': progress.solved or progress.step, **said,
            **({} if success else {'reason': self._why_failed()}),
            **({'touched': True} if progress.touched else {})})
        if progress.step:
            self._show_cameras()  # without a pose: nobody is asked for another command
        if progress.index + 1 < len(progress.plan):
            self._publish_episode(done=True, **said)
            return self._begin_next()
        self._running = self._paused = False
        self._finished_at = time.monotonic()
        if self._result is not None:
            write_json(self._result, {
                'suite': given.suite, 'starts': self._env.starts, 'perturb': _named(given.perturb),
                'lockstep': given.lockstep, **progress.report()})
        self._publish_episode(done=True, **said)
        self._publish_state()
        for task, (successes, n) in progress.results().items():
            self.get_logger().info(f'{task}: {successes} of {n}')

    def _judge(self) -> None:
        """Tell when the task that the policy was told, and that was open then, becomes done."""
        task = self._sentences.get(spelling(self._policy.get('understood', '')), '')
        holds = bool(task) and self._env.done(task)
        self._open |= not holds
        done = task if holds and self._open else ''
        if (done, holds) != (self._done, self._holds):
            self._done, self._holds = done, holds
            self._publish_state()

    def _why_failed(self) -> str:
        told, asked = self._policy, self._info['instruction']
        if self._refusal:
            return f'refused: {self._refusal}'
        if told.get('state') == 'DONE':
            return 'the policy says that it is done'
        if told.get('state') in ('STOPPED', 'FAULT'):
            return f'policy {told["state"]}: {told.get("reason", "")}'
        if self._gate:
            return f'stopped: {self._gate}'
        if spelling(told.get('instruction', asked)) != spelling(asked):
            return f'told otherwise: {told["instruction"]}'
        return f'not done within {self._progress.step} steps'

    def _show(self, cameras: bool) -> None:
        """Publish the present moment; with ``cameras`` also their images, if subscribed to."""
        self._asked, obs, gripper = time.monotonic(), self._obs, self._gripper()
        self._clock_topic.publish(Clock(clock=conversions.time_message(self._now)))
        head = conversions.header(self._now, BASE)
        fingers = np.abs(obs['robot0_gripper_qpos'])
        self._joints.publish(JointState(
            header=head, name=[*names.ARM_JOINTS, *names.FINGER_JOINTS],
            position=conversions.floats([*obs['robot0_joint_pos'], *fingers]),
            velocity=conversions.floats([*obs['robot0_joint_vel'], 0.0, 0.0])))
        self._frames.show(self._now, gripper)
        if cameras:
            self._show_cameras()
        # Last: it is the gate's tick in lock-step, and the answer moves the scene on.
        self._pose.publish(conversions.pose_message(head, gripper[0], obs['robot0_eef_quat']))

    def _show_cameras(self) -> None:
        stamp = conversions.time_message(self._now)
        for camera, topic in self._cameras.items():
            self._frames.show_camera(camera, self._now)
            if topic.get_subscription_count() > 0:
                topic.publish(images.serialize_image(
                    self._image(camera), stamp, frame_id=optical_frame(camera)))

    def _image(self, camera: str) -> NDArray[np.uint8]:
        """Return a camera's image of now; the first reading of a moment draws it."""
        image: NDArray[np.uint8] = self._obs[self._env.views[camera]]
        return image

    def _gripper(self) -> Placed:
        """Return where the gripper site is in the base frame."""
        return (np.asarray(self._obs['robot0_eef_pos'] - self._env.base_position),
                Rotation.from_quat(self._obs['robot0_eef_quat']))

    def _publish_episode(self, done: bool, **said: Any) -> None:
        progress = self._progress
        success = progress.solved is not None
        finished = done and progress.index + 1 == len(progress.plan)
        self._episode.publish(String(data=json.dumps({
            'episode': progress.index, 'episodes': len(progress.plan), 'task': progress.task,
            'seed': progress.seed, 'instruction': self._info['instruction'],
            'understood': self._understood, 'step': progress.step, 'success': success,
            'done': done, 'finished': finished, 'solved': progress.solved, **said,
            **({'reason': self._why_failed()} if done and not success else {}),
            **({'summary': progress.results()} if finished else {})})))


def _answer(text: Callable[[], str], _: Trigger.Request, response: Any) -> Any:
    response.success, response.message = True, text()
    return response


def _named(values: Sequence[str]) -> list[str]:
    return [value for value in values if value]  # ROS has no empty list of strings


main = functools.partial(run, SimBridge)

if __name__ == '__main__':
    raise SystemExit(main())
