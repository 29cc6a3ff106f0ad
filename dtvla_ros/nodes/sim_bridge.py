"""A MuJoCo scene that looks like a robot with cameras, and counts its successes."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

import dtvla_sim
from dtvla_ros.conventions import (
    ACTION,
    ARM_JOINTS,
    CAMERAS,
    EE_POSE,
    EPISODE,
    FINGER_JOINTS,
    IMAGES,
    INSTRUCTION,
    JOINT_STATES,
    VLA_STATE,
    relative,
)
from dtvla_ros.errors import UserError
from dtvla_ros.files import require_writable, write_json
from dtvla_ros.nodes.settings import declare
from dtvla_ros.nodes.sim_frames import BASE, VIEWS, Placed, SimFrames, optical_frame
from dtvla_ros.nodes.sim_services import SimServices
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.run import STEADY, end, run
from dtvla_ros.safety.gate import NOT_READY

ASK_AGAIN = 0.5  # wall time without an answer before the same moment is shown again [s]
HOLD_ACTION = 0.15  # real time: age at which the last action is no longer repeated [s]
BETWEEN_EPISODES = 1.0  # jump of the clock, longer than any chunk, so that old ones expire [s]
SIMULATORS = ('mujoco', 'robosuite')
TELL_AGAIN = 1.0  # wall time after a pause in which a policy may be found to have given up [s]
TELL_PERIOD = 1.0  # of sim/state where nothing happens, wall time [s]
FAREWELL = 0.5  # wall time for the last message to leave before the process ends [s]


@dataclass(slots=True)
class Tally:
    """Which episode runs, and what the finished ones came to."""

    plan: list[tuple[str, int]]
    index: int = -1
    step: int = 0
    touched: bool = False  # somebody stepped, reset or loaded the running episode
    results: dict[str, list[int]] = field(default_factory=dict)  # task -> [successes, episodes]
    episodes: list[dict[str, Any]] = field(default_factory=list)

    def count(self, success: bool) -> None:
        """Book the running episode."""
        task, seed = self.plan[self.index]
        result = self.results.setdefault(task, [0, 0])
        result[0] += int(success)
        result[1] += 1
        episode = {'task': task, 'seed': seed, 'success': success, 'steps': self.step}
        self.episodes.append({**episode, 'touched': True} if self.touched else episode)

    def report(self) -> dict[str, Any]:
        """Return the finished episodes with their sums and what ran them."""
        return {
            'n': len(self.episodes), 'successes': sum(e['success'] for e in self.episodes),
            'tasks': {task: {'n': n, 'successes': successes}
                      for task, (successes, n) in self.results.items()},
            'episodes': self.episodes,
            'versions': {'python': platform.python_version(),
                         **{name: metadata.version(name) for name in SIMULATORS}}}


class SimBridge(Node):
    """Runs episodes one after another and ends by itself after the last.

    Lock-step: simulated time waits for the action stamped with the present tick. Otherwise the
    scene runs at its control rate on the wall clock, whatever arrives. Every episode begins once
    the policy has acknowledged its instruction on ``vla/state``. While paused, time stands still
    and actions are not executed; what can be asked for is in `SimServices`.
    """

    def __init__(self) -> None:
        super().__init__('sim_bridge')
        suite = declare(self, 'suite', 'tabletop', 'scenes and tasks')
        tasks = _named(declare(self, 'tasks', [''], 'task names; empty: all'))
        episodes = declare(self, 'episodes', 1, 'episodes per task', low=1)
        seed = declare(self, 'seed', 1_000_000, 'of the first episode of each task', low=0)
        self._lockstep = declare(self, 'lockstep', True, 'time waits for the policy')
        self._every = declare(self, 'camera_every', 1, 'control steps per frame', low=1)
        self._max_steps = declare(self, 'max_steps', 0, 'per episode; 0: as the task says', low=0)
        size = declare(self, 'image_size', 0, 'side of the images [px]; 0: as the suite has it',
                       low=0)
        starts = declare(self, 'starts', '', 'where objects stand; empty: as the suite has it')
        perturb = _named(declare(self, 'perturb', [''], 'family:strength of what disturbs'))
        lean = {name: False for name in ('antialiasing', 'shadows')
                if not declare(self, name, True, "in LIBERO's pictures")}
        self._patience = declare(
            self, 'policy_timeout_s', 120.0, 'longest wait for the policy to take a task', low=1)
        self._paused = declare(self, 'start_paused', False, 'begin paused')
        result_file = declare(self, 'result_file', '', 'JSON of all episodes; empty: none')
        self._result = Path(result_file).expanduser() if result_file else None
        if self._result is not None:
            require_writable(self._result)
            self._result.unlink(missing_ok=True)  # an old one must not pass for this run's
        if lean and suite not in dtvla_sim.LIBERO_SUITES:
            raise UserError(f'parameter {next(iter(lean))}: {suite} is drawn without already')
        chosen = {'image_size': size, 'starts': starts}
        self._env = dtvla_sim.make(
            suite, perturb, **{k: v for k, v in chosen.items() if v}, **lean)
        self._perturb = perturb
        self._suite = suite
        unknown = [t for t in tasks if t not in self._env.tasks]
        if unknown:
            raise UserError(f'parameter tasks: unknown task "{unknown[0]}"; {suite} has: '
                            f'{", ".join(self._env.tasks)}')
        self._tally = Tally([(task, seed + k) for task in tasks or self._env.tasks
                             for k in range(episodes)])
        self._period_ns = round(1e9 / self._env.control_rate)
        self._clock_ns = 0
        self._running = False
        self._finished_at: float | None = None
        self._asked = self._began = self._told = time.monotonic()
        self._resumed = -np.inf
        self._policy: dict[str, str] = {}
        self._task_before = ''
        self._obs: Mapping[str, Any] = {}
        self._info: dict[str, Any] = {}
        self._action = np.zeros(7)
        self._action_at = 0.0

        sensor = qos_profile_sensor_data
        self._clock_topic = self.create_publisher(Clock, '/clock', qos.LATEST)
        self._cameras = {name: self.create_publisher(Image, relative(IMAGES[name]), sensor)
                         for name in CAMERAS}
        self._joints = self.create_publisher(JointState, relative(JOINT_STATES), sensor)
        self._pose = self.create_publisher(PoseStamped, relative(EE_POSE), sensor)
        self._instruction = self.create_publisher(String, relative(INSTRUCTION), qos.LATCHED)
        self._episode = self.create_publisher(String, relative(EPISODE), qos.LATCHED_10)
        self._frames = SimFrames(self, self._env)
        self._desk = SimServices(
            self, {'pause': self._pause, 'step': self._advance, 'begin': self._begin_again},
            self._state, suite, self._env.tasks)
        self.create_subscription(
            JointTrajectory, relative(ACTION), self._on_action, qos.LATEST)
        self.create_subscription(
            DiagnosticStatus, relative(VLA_STATE), self._on_policy, qos.LATCHED)
        self.create_timer(0.1, self._on_patience, clock=STEADY)
        if not self._lockstep:
            self.create_timer(self._period_ns * 1e-9, self._on_real_time, clock=STEADY)
        self._begin()
        for camera in CAMERAS:
            self._picture(camera)  # the first drawing builds the renderer, which takes seconds

    def destroy_node(self) -> None:
        """Free the renderer with the node."""
        self._env.close()
        super().destroy_node()

    @property
    def _now(self) -> float:
        return self._clock_ns * 1e-9

    def _begin(self) -> None:
        tally = self._tally
        tally.index += 1
        tally.step, tally.touched = 0, False
        task, seed = tally.plan[tally.index]
        self._obs, self._info = self._env.reset(seed=seed, options={'task': task})
        self._clock_ns += round(BETWEEN_EPISODES * 1e9)
        self._action = np.zeros(7)
        self._running = False
        self._task_before = self._policy.get('task', '')
        self._began = time.monotonic()
        self._frames.begin(self._now, self._gripper())
        self._announce()
        self._tell(done=False, success=False)
        if self._paused:
            self._show(look=True)
        self._tell_state()

    def _announce(self) -> None:
        self._asked = time.monotonic()
        self._instruction.publish(String(data=self._info['instruction']))

    def _on_policy(self, message: DiagnosticStatus) -> None:
        self._policy = {**conversions.status_values(message), 'state': message.message}
        taken = (self._policy.get('instruction') == self._info['instruction']
                 and self._policy.get('task') != self._task_before
                 and self._policy['state'] not in NOT_READY)
        if (self._policy['state'] == 'STOPPED' and not self._paused
                and time.monotonic() - self._resumed < TELL_AGAIN):
            self._resumed = -np.inf  # once: it gave the task up in the silence
            self._announce()
        idle = not (self._running or self._paused or self._finished_at is not None)
        if taken and idle:
            self._running = True
            self._show(look=True)
            self._tell_state()

    def _on_action(self, message: JointTrajectory) -> None:
        points = message.points
        action = np.array(points[0].positions if len(points) else [], np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            self.get_logger().error('action is not one point of 7 finite numbers: ignored')
            return
        if self._paused:
            return
        if not self._lockstep:
            self._action, self._action_at = action, time.monotonic()
        elif self._running and abs(conversions.seconds(message.header.stamp) - self._now) < 1e-3:
            self._step(action)

    def _on_real_time(self) -> None:
        if not self._running or self._paused:
            return
        if time.monotonic() - self._action_at > HOLD_ACTION:
            self._action[:6] = 0.0  # the gripper keeps its grip
        self._step(self._action)

    def _on_patience(self) -> None:
        steady = time.monotonic()
        if self._finished_at is not None:
            if steady - self._finished_at > FAREWELL:
                end()
            return
        if steady - self._told > TELL_PERIOD:
            self._tell_state()
        if self._paused:
            return
        if not self._running:
            if steady - self._began > self._patience:
                end(UserError(f'no policy took the task within {self._patience:g} s '
                              '(policy_timeout_s): is vla_node running in this domain?'))
            elif steady - self._asked > ASK_AGAIN:
                self._announce()
        elif self._lockstep and steady - self._asked > ASK_AGAIN:
            self._show(look=True)

    def _pause(self, on: bool) -> None:
        self._refuse_when_over()
        if on and self._paused:
            self._show(look=True)  # for whoever came to look meanwhile
        elif self._paused and not on:
            self._began = self._resumed = time.monotonic()
            if self._running:
                self._show(look=True)
        self._paused = on

    def _advance(self, steps: int) -> None:
        """Run control steps without motion, the grip as it is; no further than the episode."""
        self._refuse_when_over()
        if not self._paused:
            raise UserError('step moves a paused simulation; pause it first')
        tally = self._tally
        index = tally.index
        tally.touched = True
        for _ in range(steps):
            self._step(np.r_[np.zeros(6), self._action[6]])
            if tally.index != index or self._finished_at is not None:
                break

    def _begin_again(self, task: str | None, seed: int | None) -> None:
        """Put an episode in the running one's place; None keeps its task or seed."""
        self._refuse_when_over()
        tally = self._tally
        present, number = tally.plan[tally.index]
        tally.plan[tally.index] = (task or present, number if seed is None else seed)
        tally.index -= 1
        self._begin()
        tally.touched = True

    def _refuse_when_over(self) -> None:
        if self._finished_at is not None:
            raise UserError('all episodes ran; start sim_bridge again')

    def _state(self) -> dict[str, Any]:
        task, seed = self._tally.plan[self._tally.index]
        return {'state': 'paused' if self._paused else 'playing' if self._running else 'stopped',
                'suite': self._suite, 'task': task, 'seed': seed, 'step': self._tally.step,
                'time': self._now}

    def _tell_state(self) -> None:
        self._told = time.monotonic()
        self._desk.tell()

    def _step(self, action: NDArray[np.float64]) -> None:
        self._action = action
        self._obs, _, terminated, truncated, info = self._env.step(action)
        tally = self._tally
        tally.step += 1
        self._clock_ns += self._period_ns
        done = terminated or (
            tally.step >= self._max_steps if self._max_steps else truncated)
        if not done:
            self._tell(done=False, success=False)
            self._show(look=self._paused or tally.step % self._every == 0)
            return
        tally.count(bool(info['success']))
        self._show_cameras()  # without a pose: nobody is asked for another command
        if tally.index + 1 < len(tally.plan):
            self._tell(done=True, success=bool(info['success']))
            self._begin()
            return
        self._running = self._paused = False
        self._finished_at = time.monotonic()
        if self._result is not None:
            write_json(self._result, {
                'suite': self._suite, 'starts': self._env.starts, 'perturb': self._perturb,
                'lockstep': self._lockstep, **tally.report()})
        self._tell(done=True, success=bool(info['success']))
        self._tell_state()
        for task, (successes, n) in tally.results.items():
            self.get_logger().info(f'{task}: {successes} of {n}')

    def _show(self, look: bool) -> None:
        """Publish the present moment; with ``look`` also what the cameras see, if watched."""
        self._asked = time.monotonic()
        stamp, obs = conversions.time_message(self._now), self._obs
        self._clock_topic.publish(Clock(clock=stamp))
        head = conversions.header(self._now, BASE)
        fingers = np.abs(obs['robot0_gripper_qpos'])
        self._joints.publish(JointState(
            header=head, name=[*ARM_JOINTS, *FINGER_JOINTS],
            position=conversions.floats([*obs['robot0_joint_pos'], *fingers]),
            velocity=conversions.floats([*obs['robot0_joint_vel'], 0.0, 0.0])))
        gripper = self._gripper()
        p, q = conversions.floats(gripper[0]), conversions.floats(obs['robot0_eef_quat'])
        self._frames.show(self._now, gripper)
        if look:
            self._show_cameras()
        # Last: it is the gate's tick in lock-step, and the answer moves the scene on.
        self._pose.publish(PoseStamped(header=head, pose=Pose(
            position=Point(x=p[0], y=p[1], z=p[2]),
            orientation=Quaternion(x=q[0], y=q[1], z=q[2], w=q[3]))))

    def _show_cameras(self) -> None:
        stamp = conversions.time_message(self._now)
        for camera, topic in self._cameras.items():
            self._frames.show_camera(camera, self._now)
            if topic.get_subscription_count() > 0:
                topic.publish(images.serialize_image(
                    self._picture(camera), stamp, frame_id=optical_frame(camera)))

    def _picture(self, camera: str) -> NDArray[np.uint8]:
        """Return what a camera sees now; the first reading of a moment draws it."""
        picture: NDArray[np.uint8] = self._obs[f'{VIEWS[camera]}_image']
        return picture

    def _gripper(self) -> Placed:
        """Return where the gripper site is in the base frame."""
        return (np.asarray(self._obs['robot0_eef_pos'] - self._env.base_position),
                Rotation.from_quat(self._obs['robot0_eef_quat']))

    def _tell(self, done: bool, success: bool) -> None:
        tally = self._tally
        task, seed = tally.plan[tally.index]
        report = {
            'episode': tally.index, 'episodes': len(tally.plan), 'task': task, 'seed': seed,
            'instruction': self._info['instruction'], 'step': tally.step, 'success': success,
            'done': done, 'finished': done and tally.index + 1 == len(tally.plan)}
        if report['finished']:
            report['summary'] = tally.results
        self._episode.publish(String(data=json.dumps(report)))


def _named(values: Sequence[str]) -> list[str]:
    return [value for value in values if value]  # ROS has no empty list of strings


def main(args: list[str] | None = None) -> int:
    """Run the node."""
    return run(SimBridge, args)


if __name__ == '__main__':
    raise SystemExit(main())
