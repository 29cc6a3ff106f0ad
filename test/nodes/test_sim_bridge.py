"""The running simulator: pause, step, reset, load; its frames and cameras against MuJoCo's."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from dtvla_ros.nodes.pose_source import FrameTree
from dtvla_ros.nodes.sim_frames import optical_frame
from dtvla_ros.ros import conversions, images, qos
from dtvla_sim.env import TabletopEnv  # chooses the renderer before MuJoCo is imported
from test.nodes.test_closed_loop import decide_in_process, motion, start_all

TASK, OTHER = 'put_the_lemon_in_the_blue_bin', 'stack_the_red_cube_on_the_green_cube'
SEED = 1_000_000
TICK = 0.05
SENSOR = qos_profile_sensor_data
TOPICS = {
    'clock': (Clock, '/clock', 100), 'primary': (Image, '/image_primary', SENSOR),
    'wrist': (Image, '/image_wrist', SENSOR), 'pose': (PoseStamped, '/ee_pose', SENSOR),
    'primary_info': (CameraInfo, '/camera_primary/camera_info', SENSOR),
    'wrist_info': (CameraInfo, '/camera_wrist/camera_info', SENSOR),
    'tf': (TFMessage, '/tf', 100), 'tf_static': (TFMessage, '/tf_static', qos.LATCHED_10),
    'state': (String, '/sim/state', qos.LATCHED_10),
    'tasks': (String, '/sim/tasks', qos.LATCHED),
    'episode': (String, '/sim/episode', qos.LATCHED_10),
    'instruction': (String, '/instruction', qos.LATCHED),
}


class Operator:
    """Somebody at the simulator: hears all of it, gives orders, and can stand for the policy."""

    def __init__(self, graph: Any, *arguments: str) -> None:
        self.graph = graph
        node = self.node = graph.listen()
        for key, (kind, topic, qos) in TOPICS.items():
            node.create_subscription(kind, topic, lambda m, key=key: graph.heard.append(
                (time.monotonic(), key, m)), qos)
        self._orders = node.create_publisher(String, '/sim/command', 10)
        self._action = node.create_publisher(JointTrajectory, '/action', qos.LATEST)
        self._policy = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
        graph.start('sim_bridge', '-p', f'tasks:=[{TASK}]', *arguments)
        graph.spin(lambda: graph.of('state') and self._orders.get_subscription_count(), 60)

    def newest(self, key: str) -> Any:
        return self.graph.of(key)[-1][1]

    def state(self) -> dict[str, Any]:
        return json.loads(self.newest('state').data)

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.graph.spin(lambda: time.monotonic() > end, seconds + 5)

    def order(self, words: str, *keys: str) -> dict[str, Any]:
        """Give an order on the topic; return the state it led to, ``keys`` heard anew."""
        since, heard = time.monotonic(), self.state()['orders']
        self._orders.publish(String(data=words))
        self.graph.spin(lambda: self.state()['orders'] > heard
                        and all(self.graph.of(key, since) for key in keys), 30)
        return self.state()

    def call(self, kind: Any, name: str, request: Any) -> Any:
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=10)
        future = client.call_async(request)
        self.graph.spin(future.done, 30)
        return future.result()

    def look(self, words: str) -> dict[str, Any]:
        """Give an order that shows the moment; return its pictures and CameraInfos too."""
        keys = ('clock', 'pose', 'tf', 'primary', 'wrist', 'primary_info', 'wrist_info')
        state = self.order(words, *keys)
        seen = {key: self.newest(key) for key in keys}
        return seen | {'state': state, 'now': conversions.seconds(seen['clock'].clock)} | {
            name: images.image_to_numpy(seen[name]) for name in ('primary', 'wrist')}

    def take_the_task(self) -> None:
        """Say on ``vla/state`` what a policy says that has understood its task."""
        self.graph.spin(lambda: self.graph.of('instruction'), 10)
        self._policy.publish(conversions.status_message('vla', 'THINKING', {
            'instruction': self.newest('instruction').data, 'task': time.monotonic_ns()}))

    def act(self, action: list[float]) -> None:
        """Answer the newest moment."""
        self._action.publish(JointTrajectory(
            header=self.newest('pose').header,
            points=[JointTrajectoryPoint(positions=action)]))

    def frames(self) -> FrameTree:
        tree = FrameTree()
        for static in ('tf_static', 'tf'):
            tree.take(self.newest(static), static == 'tf_static')
        return tree


@pytest.fixture
def paused(graph):
    """A paused simulator without any policy, everything heard at least once."""
    operator = Operator(graph, '-p', 'start_paused:=true', '-p', f'seed:={SEED}')
    cameras = ('primary', 'wrist', 'primary_info', 'wrist_info')
    while not all(graph.of(key) for key in cameras):
        operator.order('pause')  # shows the moment again, now that we are known to listen
    operator.wait(0.2)
    return operator


@pytest.fixture
def env():
    made = TabletopEnv()
    yield made
    made.close()


def test_pause_step_reset_load(paused, env):
    first = paused.look('pause')
    assert first['state']['state'] == 'paused' and first['state']['step'] == 0
    assert json.loads(paused.newest('tasks').data) == {
        'suite': 'tabletop', 'tasks': list(env.tasks)}
    clocks = len(paused.graph.of('clock'))
    paused.wait(1.5)
    assert len(paused.graph.of('clock')) == clocks, 'the clock stands still'
    np.testing.assert_array_equal(
        first['primary'], env.reset(seed=SEED, options={'task': TASK})[0]['agentview_image'])

    stepped = paused.look('step')
    assert stepped['now'] == pytest.approx(first['now'] + TICK, abs=1e-9)
    assert stepped['state']['step'] == 1 and stepped['state']['time'] == stepped['now']
    more = paused.look('{"step": 30}')
    assert more['now'] == pytest.approx(first['now'] + 31 * TICK, abs=1e-9)
    moved = conversions.pose_arrays(more['pose'].pose)[0] - conversions.pose_arrays(first['pose'].pose)[0]
    assert 0 < np.abs(moved).max() < 0.01, 'steps are without motion'

    again = paused.look('reset')
    assert (again['state']['state'], again['state']['step']) == ('paused', 0)
    assert (again['state']['task'], again['state']['seed']) == (TASK, SEED)
    assert again['now'] > more['now'], 'time never goes back'
    for name in ('primary', 'wrist'):
        np.testing.assert_array_equal(again[name], first[name])
    assert again['pose'].pose == first['pose'].pose

    other = paused.look(json.dumps({'load': {'task': OTHER, 'seed': SEED + 7}}))
    assert (other['state']['task'], other['state']['seed']) == (OTHER, SEED + 7)
    obs, info = env.reset(seed=SEED + 7, options={'task': OTHER})
    np.testing.assert_array_equal(other['primary'], obs['agentview_image'])
    paused.graph.spin(lambda: paused.newest('instruction').data == info['instruction'], 5)
    same = paused.look(json.dumps({'reset': {'seed': SEED}}))
    assert (same['state']['task'], same['state']['seed']) == (OTHER, SEED)


def test_services_and_what_is_refused(paused):
    answer = paused.call(Trigger, '/sim/step', Trigger.Request())
    assert answer.success and json.loads(answer.message)['step'] == 1
    answer = paused.call(Trigger, '/sim/reset', Trigger.Request())
    assert answer.success and json.loads(answer.message)['step'] == 0
    answer = paused.call(Trigger, '/sim/list_tasks', Trigger.Request())
    assert TASK in json.loads(answer.message)['tasks']
    answer = paused.call(Trigger, '/sim/get_state', Trigger.Request())
    assert json.loads(answer.message)['state'] == 'paused'

    before = paused.state()
    for words, why in (
            ('fly', '"fly"'), ('{"load": {}}', 'names a task'), ('{"step": 0}', 'from 1 to'),
            ('{"load": {"task": "fly_to_the_moon"}}', TASK), ('{"step": true}', 'whole number'),
            ('{"reset": {"seed": -1}}', '-1'), ('{"reset": 3}', '3'), ('{"pause": 1}', 'true'),
            ('{"reset": {"suite": "x"}}', 'suite'), ('{"a": 1, "b": 2}', 'one order'),
            ('{', 'no JSON'), ('[1]', 'unknown order')):
        state = paused.order(words)
        assert why in state['refused'], words
        assert state | {'refused': '', 'orders': 0} == before | {'orders': 0}, words

    answer = paused.call(SetBool, '/sim/pause', SetBool.Request(data=False))
    assert answer.success and json.loads(answer.message)['state'] == 'stopped', 'no policy yet'
    answer = paused.call(Trigger, '/sim/step', Trigger.Request())
    assert not answer.success and 'pause it first' in answer.message
    assert paused.graph.processes['sim_bridge'].poll() is None


def test_steps_end_with_their_episode_and_the_result_says_that_somebody_stepped(graph, tmp_path):
    result = tmp_path / 'result.json'
    operator = Operator(graph, '-p', 'start_paused:=true', '-p', 'max_steps:=3', '-p',
                        'episodes:=2', '-p', f'result_file:={result}')
    state = operator.order('{"step": 1000}')
    assert (state['seed'], state['step'], state['state']) == (SEED + 1, 0, 'paused')
    operator.order('{"step": 2}')
    assert operator.order('step')['state'] == 'stopped'
    assert graph.processes['sim_bridge'].wait(15) == 0
    episodes = json.loads(result.read_text())['episodes']
    assert [(e['steps'], e['touched']) for e in episodes] == [(3, True), (3, True)]


@pytest.mark.parametrize('lockstep', [True, False])
def test_pause_in_a_running_episode(graph, lockstep):
    operator = Operator(graph, '-p', f'lockstep:={str(lockstep).lower()}', '-p', 'max_steps:=40',
                        '-p', 'episodes:=2')
    operator.take_the_task()
    up = [0.0, 0.0, 0.5, 0.0, 0.0, 0.0, -1.0]

    def height():
        return conversions.pose_arrays(operator.newest('pose').pose)[0][2]

    def run(steps):
        goal = operator.state()['step'] + steps
        heard = len(graph.of('pose'))

        def there():
            nonlocal heard
            if len(graph.of('pose')) > heard:
                heard = len(graph.of('pose'))
                operator.act(up)
            return json.loads(operator.newest('episode').data)['step'] >= goal
        if lockstep:
            operator.act(up)
        graph.spin(there, 20)

    graph.spin(lambda: operator.state()['state'] == 'playing' and graph.of('pose'), 10)
    low = height()
    run(10)
    assert height() > low + 0.02
    assert operator.order('pause')['state'] == 'paused'
    operator.wait(0.2)
    still, clocks = height(), len(graph.of('clock'))
    for _ in range(10):
        operator.act(up)
        operator.wait(0.05)
    assert len(graph.of('clock')) == clocks and height() == still
    before = conversions.seconds(operator.newest('clock').clock)
    since = time.monotonic()
    assert operator.order('resume')['state'] == 'playing'
    run(3)
    first = next(conversions.seconds(m.clock) for _, m in graph.of('clock', since)
                 if conversions.seconds(m.clock) > before)
    assert first == pytest.approx(before + TICK, abs=1e-9)

    assert operator.order('reset')['step'] == 0
    assert operator.state()['state'] == 'stopped', 'until the policy took the task again'
    operator.take_the_task()
    graph.spin(lambda: operator.state()['state'] == 'playing', 10)
    assert not json.loads(operator.newest('episode').data)['done']


def test_frames_and_cameras_are_mujocos(paused, env):
    seen = paused.look('{"step": 3}')
    env.reset(seed=SEED, options={'task': TASK})
    for _ in range(3):
        env.step(np.zeros(7))
    data, model = env.scene.sim.data, env.scene.sim.model
    frames = paused.frames()
    position, rotation, stamp = frames.look_up('base', 'gripper')
    told, quaternion = conversions.pose_arrays(seen['pose'].pose)
    np.testing.assert_allclose(position, told, atol=1e-12)
    assert (rotation.inv() * Rotation.from_quat(quaternion)).magnitude() < 1e-9
    assert stamp == pytest.approx(seen['now'])
    for name, camera in (('primary', 'agentview'), ('wrist', 'robot0_eye_in_hand')):
        info, number = seen[f'{name}_info'], model.camera_name2id(camera)
        position, rotation, _ = frames.look_up('base', optical_frame(name))
        np.testing.assert_allclose(
            position, data.cam_xpos[number] - env.base_position, atol=1e-5)
        right, up, back = np.reshape(data.cam_xmat[number], (3, 3)).T
        np.testing.assert_allclose(  # REP 103: x right, y down, z forward
            rotation.as_matrix(), np.stack([right, -up, -back], axis=1), atol=1e-5)
        assert (info.width, info.height) == (128, 128) == seen[name].shape[1::-1]
        assert info.header.frame_id == paused.newest(name).header.frame_id == optical_frame(name)
        assert info.header.stamp == paused.newest(name).header.stamp
        k = np.reshape(info.k, (3, 3))
        fovy = 2 * np.degrees(np.arctan2(info.height / 2, k[1, 1]))
        assert fovy == pytest.approx(model.cam_fovy[number], abs=1e-9) and k[0, 0] == k[1, 1]
        np.testing.assert_allclose(np.reshape(info.p, (3, 4))[:, :3], k)


def test_a_camera_sees_the_fingers_move_where_it_projects_the_gripper(graph):
    operator = Operator(graph, '-p', 'lockstep:=true')
    operator.take_the_task()
    graph.spin(lambda: operator.state()['state'] == 'playing' and graph.of('primary')
               and graph.of('wrist_info'), 20)
    before = {name: images.image_to_numpy(operator.newest(name)) for name in ('primary', 'wrist')}
    for _ in range(8):
        poses = len(graph.of('pose'))
        operator.act([0.0] * 6 + [1.0])
        graph.spin(lambda poses=poses: len(graph.of('pose')) > poses, 5)
    operator.order('pause')
    after = operator.look('pause')
    for name in ('primary', 'wrist'):
        changed = np.abs(after[name].astype(int) - before[name]).max(axis=-1) > 40
        rows, columns = np.nonzero(changed)
        assert len(rows) > 10, name
        position, rotation, _ = operator.frames().look_up(optical_frame(name), 'gripper')
        u, v, w = np.reshape(after[f'{name}_info'].k, (3, 3)) @ position
        print(name, (u / w, v / w), (columns.mean(), rows.mean()), len(rows))
        assert np.hypot(columns.mean() - u / w, rows.mean() - v / w) < 8, name


def paused_for(graph, policy, seconds, config, steps):
    """Pause the real three processes in mid-episode; return when the pause was over."""
    node = start_all(graph, policy, config, '-p', f'max_steps:={steps}')
    orders = node.create_publisher(String, '/sim/command', 10)
    graph.spin(lambda: sum(motion(m).any() for _, m in graph.of('action')) >= 6, 90)
    orders.publish(String(data='pause'))
    end = time.monotonic() + seconds
    graph.spin(lambda: time.monotonic() > end, seconds + 5)
    return orders


def finish(graph, orders):
    """Resume, wait for the end of all episodes; return whether anything was commanded."""
    resumed = time.monotonic()
    orders.publish(String(data='resume'))
    graph.spin(lambda: any(json.loads(m.data)['finished'] for _, m in graph.of('episode')), 60)
    return any(motion(m).any() for _, m in graph.of('action', resumed))


@pytest.mark.slow
def test_a_pause_in_lock_step_changes_no_decision(graph, policy):
    steps = 14
    orders = paused_for(graph, policy, 1.0, 'sim', steps)
    assert len({conversions.seconds(m.header.stamp) for _, m in graph.of('action')}) < steps
    assert finish(graph, orders)
    chunks = {c.stamp: c.values for c in (conversions.chunk_from(m, TICK) for _, m in graph.of('chunk'))}
    in_process, _ = decide_in_process(policy, steps)
    np.testing.assert_allclose(list(chunks.values()), in_process, atol=1e-5)


@pytest.mark.slow
def test_a_policy_that_gave_up_in_a_pause_is_told_its_task_again(graph, policy):
    orders = paused_for(graph, policy, 1.0, 'sim_realtime', 120)
    graph.spin(lambda: graph.of('vla')[-1][1].message == 'STOPPED', 15)
    assert 'late for 5 s' in conversions.status_values(graph.of('vla')[-1][1])['reason']
    assert finish(graph, orders)
