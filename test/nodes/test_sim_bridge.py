"""The running simulator: pause, step, reset; its frames and cameras against MuJoCo's."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from dtvla_ros.nodes.pose_source import FrameTree
from dtvla_ros.nodes.sim_bridge import LARGEST_SEED, MOST_STEPS
from dtvla_ros.nodes.sim_frames import optical_frame
from dtvla_ros.ros import conversions, images, qos
from dtvla_sim.tabletop.env import TabletopEnv  # chooses the renderer before MuJoCo is imported
from test.nodes.test_closed_loop import decide_in_process, motion, start_all

TASK, OTHER = 'put_the_lemon_in_the_blue_bin', 'stack_the_red_cube_on_the_green_cube'
SEED = 1_000_000
TICK = 0.05
SENSOR = qos_profile_sensor_data
CAMERAS = ('primary', 'wrist')
TOPICS = {
    'clock': (Clock, '/clock', 100), 'pose': (PoseStamped, '/ee_pose', SENSOR),
    'primary_info': (CameraInfo, '/camera_primary/camera_info', SENSOR),
    'wrist_info': (CameraInfo, '/camera_wrist/camera_info', SENSOR),
    'state': (String, '/sim/state', qos.LATCHED_10),
    'tasks': (String, '/sim/tasks', qos.LATCHED),
    'episode': (String, '/sim/episode', qos.LATCHED_10),
    'instruction': (String, '/instruction', qos.LATCHED),
}


def stamp_of(message: Any) -> float:
    """Return the moment that a message shows [s]."""
    if isinstance(message, bytes):
        return images.parse_image(message).stamp
    if isinstance(message, Clock):
        return conversions.seconds(message.clock)
    header = (message.transforms[0] if hasattr(message, 'transforms') else message).header
    return conversions.seconds(header.stamp)


class Operator:
    """Somebody at the simulator: hears all of it, gives orders, and can stand for the policy."""

    def __init__(self, graph: Any, *arguments: str) -> None:
        self.graph = graph
        node = graph.listen()
        for key, topic in TOPICS.items():
            graph.hear(key, *topic)
        for key in CAMERAS:
            graph.hear(key, Image, f'/image_{key}', SENSOR, raw=True)
        self._shown = ['clock', 'pose', *CAMERAS, 'primary_info', 'wrist_info']
        self._action = node.create_publisher(JointTrajectory, '/action', qos.LATEST)
        self._policy = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
        graph.start('sim_bridge', '-p', f'tasks:=[{TASK}]', *arguments)
        graph.spin(lambda: graph.of('state'), 60)

    def follow_frames(self) -> None:
        """Hear the transforms too."""
        kind = pytest.importorskip('tf2_msgs.msg', reason='tf2_msgs is not installed').TFMessage
        self.graph.hear('tf', kind, '/tf', 100)
        self.graph.hear('tf_static', kind, '/tf_static', qos.LATCHED_10)
        self._shown.append('tf')
        self.graph.spin(lambda: self.graph.of('tf_static')
                        and self.graph.node.count_publishers('/tf'), 20)

    def newest(self, key: str) -> Any:
        return self.graph.of(key)[-1][1]

    def state(self) -> dict[str, Any]:
        return json.loads(self.newest('state').data)

    def wait(self, seconds: float) -> None:
        self.graph.wait(seconds)

    def ask(self, name: str) -> Any:
        """Call a service: 'pause', 'resume', or one that takes no argument."""
        if name in ('pause', 'resume'):
            return self.graph.call(SetBool, '/sim/pause', SetBool.Request(data=name == 'pause'))
        return self.graph.call(Trigger, f'/sim/{name}', Trigger.Request())

    def order(self, name: str) -> dict[str, Any]:
        """Give an order; return the state it led to, once the topic tells it as well."""
        answer = self.ask(name)
        assert answer.success, answer.message
        told = json.loads(answer.message)
        assert not told['refused']
        self.graph.spin(lambda: self.state()['orders'] >= told['orders'], 30)
        return told

    def refusal(self, name: str) -> str:
        """Give an order that is refused, which changes nothing; return why."""
        before = self.state()
        answer = self.ask(name)
        assert not answer.success
        self.graph.spin(lambda: self.state()['orders'] > before['orders'], 10)
        assert self.state() == before | {'refused': answer.message,
                                         'orders': before['orders'] + 1}
        return answer.message

    def set(self, **values: Any) -> list[Any]:
        """Set parameters as ``ros2 param set`` does; return the results."""
        return self.graph.call(
            SetParameters, '/sim_bridge/set_parameters', SetParameters.Request(parameters=[
                Parameter(name, value=value).to_parameter_msg()
                for name, value in values.items()])).results

    def choose(self, **values: Any) -> None:
        """Set parameters that must be taken."""
        results = self.set(**values)
        assert all(result.successful for result in results), results

    def look(self, name: str) -> dict[str, Any]:
        """Give an order that shows the moment; return what it showed, pictures as arrays."""
        since = time.monotonic()
        state = self.order(name)
        self.graph.spin(lambda: all(
            heard and stamp_of(heard[-1][1]) == pytest.approx(state['time'], abs=1e-9)
            for heard in (self.graph.of(key, since) for key in self._shown)), 30)
        seen = {key: self.newest(key) for key in self._shown}
        pictures = {name: images.parse_image(seen[name]) for name in CAMERAS}
        return seen | {'state': state, 'now': conversions.seconds(seen['clock'].clock)} | {
            name: images.image_to_numpy(picture) for name, picture in pictures.items()} | {
            f'{name}_frame': picture.frame_id for name, picture in pictures.items()}

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
    while not all(graph.of(key) for key in (*CAMERAS, 'primary_info', 'wrist_info')):
        operator.order('pause')  # shows the moment again, now that we are known to listen
    operator.wait(0.2)
    return operator


@pytest.fixture
def env():
    made = TabletopEnv()
    yield made
    made.close()


def test_pause_step_reset(paused, env):
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
    assert stepped['state']['step'] == 1
    paused.choose(step_count=30)
    more = paused.look('step')
    assert more['now'] == pytest.approx(first['now'] + 31 * TICK, abs=1e-9)
    before, after = (conversions.pose_arrays(seen['pose'].pose)[0] for seen in (first, more))
    assert 0 < np.abs(after - before).max() < 0.01, 'steps are without motion'

    again = paused.look('reset')
    assert (again['state']['state'], again['state']['step']) == ('paused', 0)
    assert (again['state']['task'], again['state']['seed']) == (TASK, SEED)
    assert again['now'] > more['now'], 'time never goes back'
    for name in CAMERAS:
        np.testing.assert_array_equal(again[name], first[name])
    assert again['pose'].pose == first['pose'].pose

    paused.choose(reset_task=OTHER, reset_seed=SEED + 7)
    other = paused.look('reset')
    assert (other['state']['task'], other['state']['seed']) == (OTHER, SEED + 7)
    obs, info = env.reset(seed=SEED + 7, options={'task': OTHER})
    np.testing.assert_array_equal(other['primary'], obs['agentview_image'])
    paused.graph.spin(lambda: paused.newest('instruction').data == info['instruction'], 5)
    paused.choose(reset_task='', reset_seed=SEED)
    same = paused.look('reset')
    assert (same['state']['task'], same['state']['seed']) == (OTHER, SEED)


def test_services_and_what_is_refused(paused):
    assert paused.order('step')['step'] == 1
    assert paused.order('reset')['step'] == 0
    assert TASK in json.loads(paused.ask('list_tasks').message)['tasks']
    assert json.loads(paused.ask('get_state').message)['state'] == 'paused'

    before = paused.state()
    for name, values, why in (
            ('step_count', (0, MOST_STEPS + 1), str(MOST_STEPS)),
            ('step_count', (2.5, 'two', True), 'INTEGER'),
            ('reset_seed', (-2, LARGEST_SEED + 1), str(LARGEST_SEED)),
            ('reset_task', ('fly_to_the_moon',), TASK),
            ('seed', (7,), 'read-only')):
        for value in values:
            [result] = paused.set(**{name: value})
            assert not result.successful, (name, value)
            assert why in result.reason, (name, value, result.reason)
    assert paused.order('reset') == before | {
        'orders': before['orders'] + 1, 'time': paused.state()['time']}, 'nothing was taken'

    assert paused.order('resume')['state'] == 'stopped', 'no policy yet'
    assert 'pause it first' in paused.refusal('step')
    assert paused.graph.processes['sim_bridge'].poll() is None


def test_steps_end_with_their_episode_and_the_result_says_that_somebody_stepped(graph, tmp_path):
    result = tmp_path / 'result.json'
    operator = Operator(graph, '-p', 'start_paused:=true', '-p', 'max_steps:=3', '-p',
                        'episodes:=2', '-p', f'result_file:={result}', '-p',
                        f'step_count:={MOST_STEPS}')
    state = operator.order('step')
    assert (state['seed'], state['step'], state['state']) == (SEED + 1, 0, 'paused')
    operator.choose(step_count=2)
    operator.order('step')
    assert operator.order('step')['state'] == 'stopped'
    assert graph.processes['sim_bridge'].wait(15) == 0
    episodes = json.loads(result.read_text())['episodes']
    assert [(e['steps'], e['touched']) for e in episodes] == [(3, True), (3, True)]


@pytest.mark.parametrize(('parameter', 'word'), [
    ('step_count:=0', '1'), ('reset_seed:=-7', '-7'), ('reset_task:=fly_to_the_moon', TASK)])
def test_an_order_that_could_never_be_carried_out_is_refused_at_the_start(graph, parameter, word):
    process = graph.start('sim_bridge', '-p', parameter)
    assert process.wait(60) == 2
    last = graph.log('sim_bridge').strip().splitlines()[-1]
    assert last.startswith('error: ') and parameter.partition(':')[0] in last and word in last


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


CAMERA_NAMES = {'primary': 'agentview', 'wrist': 'robot0_eye_in_hand'}


@pytest.fixture
def stepped(paused, env):
    """Step the simulator and a scene of our own alike."""
    env.reset(seed=SEED, options={'task': TASK})
    for _ in range(3):
        env.step(np.zeros(7))
    paused.choose(step_count=3)
    return paused


def test_cameras_project_as_mujocos_do(stepped, env):
    seen, model = stepped.look('step'), env.scene.sim.model
    for name, camera in CAMERA_NAMES.items():
        info = seen[f'{name}_info']
        assert (info.width, info.height) == (128, 128) == seen[name].shape[1::-1]
        assert info.header.frame_id == seen[f'{name}_frame'] == optical_frame(name)
        k = np.reshape(info.k, (3, 3))
        fovy = 2 * np.degrees(np.arctan2(info.height / 2, k[1, 1]))
        assert fovy == pytest.approx(model.cam_fovy[model.camera_name2id(camera)], abs=1e-9)
        assert k[0, 0] == k[1, 1]
        np.testing.assert_allclose(np.reshape(info.p, (3, 4))[:, :3], k)


def test_frames_are_mujocos(stepped, env):
    stepped.follow_frames()
    seen = stepped.look('step')
    data, model = env.scene.sim.data, env.scene.sim.model
    frames = stepped.frames()
    position, rotation, stamp = frames.look_up('base', 'gripper')
    told, quaternion = conversions.pose_arrays(seen['pose'].pose)
    np.testing.assert_allclose(position, told, atol=1e-12)
    assert (rotation.inv() * Rotation.from_quat(quaternion)).magnitude() < 1e-9
    assert stamp == pytest.approx(seen['now'])
    for name, camera in CAMERA_NAMES.items():
        number = model.camera_name2id(camera)
        position, rotation, _ = frames.look_up('base', optical_frame(name))
        np.testing.assert_allclose(
            position, data.cam_xpos[number] - env.base_position, atol=1e-5)
        right, up, back = np.reshape(data.cam_xmat[number], (3, 3)).T
        np.testing.assert_allclose(  # REP 103: x right, y down, z forward
            rotation.as_matrix(), np.stack([right, -up, -back], axis=1), atol=1e-5)


def test_a_camera_sees_the_fingers_move_where_it_projects_the_gripper(graph):
    operator = Operator(graph, '-p', 'lockstep:=true')
    operator.follow_frames()
    operator.take_the_task()
    graph.spin(lambda: operator.state()['state'] == 'playing' and graph.of('primary')
               and graph.of('wrist') and graph.of('wrist_info'), 20)
    before = {name: images.image_to_numpy(images.parse_image(operator.newest(name)))
              for name in CAMERAS}
    for _ in range(8):
        poses = len(graph.of('pose'))
        operator.act([0.0] * 6 + [1.0])
        graph.spin(lambda poses=poses: len(graph.of('pose')) > poses, 5)
    operator.order('pause')
    after = operator.look('pause')
    for name in CAMERAS:
        changed = np.abs(after[name].astype(int) - before[name]).max(axis=-1) > 40
        rows, columns = np.nonzero(changed)
        assert len(rows) > 10, name
        position, rotation, _ = operator.frames().look_up(optical_frame(name), 'gripper')
        u, v, w = np.reshape(after[f'{name}_info'].k, (3, 3)) @ position
        assert np.hypot(columns.mean() - u / w, rows.mean() - v / w) < 8, name


def paused_for(graph, policy, seconds, config, steps):
    """Pause the real three processes in mid-episode for so long."""
    start_all(graph, policy, config, '-p', f'max_steps:={steps}')
    graph.spin(lambda: sum(motion(m).any() for _, m in graph.of('action')) >= 6, 90)
    assert graph.call(SetBool, '/sim/pause', SetBool.Request(data=True)).success
    graph.wait(seconds)


def finish(graph):
    """Resume, wait for the end of all episodes; return whether anything was commanded."""
    resumed = time.monotonic()
    assert graph.call(SetBool, '/sim/pause', SetBool.Request(data=False)).success
    graph.spin(lambda: any(json.loads(m.data)['finished'] for _, m in graph.of('episode')), 60)
    return any(motion(m).any() for _, m in graph.of('action', resumed))


@pytest.mark.slow
def test_a_pause_in_lock_step_changes_no_decision(graph, policy):
    steps = 14
    paused_for(graph, policy, 1.0, 'sim', steps)
    assert len({conversions.seconds(m.header.stamp) for _, m in graph.of('action')}) < steps
    assert finish(graph)
    heard = (conversions.chunk_from(m, TICK) for _, m in graph.of('chunk'))
    chunks = {chunk.stamp: chunk.values for chunk in heard}
    in_process, _ = decide_in_process(policy, steps)
    np.testing.assert_allclose(list(chunks.values()), in_process, atol=1e-5)


@pytest.mark.slow
def test_a_policy_that_gave_up_in_a_pause_is_told_its_task_again(graph, policy):
    paused_for(graph, policy, 1.0, 'sim_realtime', 120)
    graph.spin(lambda: graph.of('vla')[-1][1].message == 'STOPPED', 15)
    assert 'late for 5 s' in conversions.status_values(graph.of('vla')[-1][1])['reason']
    assert finish(graph)
