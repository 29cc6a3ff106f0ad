"""The running simulator: pause, step, reset; its frames and cameras against MuJoCo's."""

import json
import time

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
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from dtvla_ros import conventions as names
from dtvla_ros.conventions import CAMERAS
from dtvla_ros.nodes.sim_bridge import LARGEST_SEED, MOST_STEPS
from dtvla_ros.nodes.sim_frames import optical_frame
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.frames import FrameTree
from dtvla_sim.tabletop.env import TabletopEnv  # chooses the renderer before MuJoCo is imported
from test.nodes.test_closed_loop import decide_in_process, finished, motion, start_all

TASK, OTHER = 'put_the_lemon_in_the_blue_bin', 'stack_the_red_cube_on_the_green_cube'
SEED = 1_000_000
TICK = 0.05
TOPICS = {
    'clock': (Clock, '/clock', 100), 'pose': (PoseStamped, '/ee_pose', qos_profile_sensor_data),
    **{f'{camera}_info': (CameraInfo, topic, qos_profile_sensor_data)
       for camera, topic in names.CAMERA_INFO.items()},
    'state': (String, '/sim/state', qos.LATCHED_100), 'tasks': (String, '/sim/tasks', qos.LATCHED),
    'episode': (String, '/sim/episode', qos.LATCHED_100),
    'instruction': (String, '/instruction', qos.LATCHED)}


def stamp_of(message):
    """Return the moment that a message shows [s]."""
    if isinstance(message, bytes):
        return images.parse_image(message).stamp
    if isinstance(message, Clock):
        return conversions.seconds(message.clock)
    header = (message.transforms[0] if hasattr(message, 'transforms') else message).header
    return conversions.seconds(header.stamp)


class Operator:
    """Somebody at the simulator: hears all of it, gives orders, and can stand for the policy."""

    def __init__(self, graph, **values):
        self.graph = graph
        node = graph.listen()
        for key, topic in TOPICS.items():
            graph.hear(key, *topic)
        for key in CAMERAS:
            graph.hear(key, Image, names.IMAGES[key], qos_profile_sensor_data, raw=True)
        self.watched = ['clock', 'pose', *CAMERAS, 'primary_info', 'wrist_info']
        self._action = node.create_publisher(JointTrajectory, '/action', qos.LATEST)
        self._policy = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
        graph.start('sim_bridge', tasks=f'[{TASK}]', **values)
        graph.spin(lambda: graph.of('state'), 60)

    def state(self):
        return json.loads(self.graph.last('state').data)

    def ask(self, name):
        """Call a service: 'pause', 'resume', or one that takes no argument."""
        if name in ('pause', 'resume'):
            return self.graph.call(SetBool, '/sim/pause', SetBool.Request(data=name == 'pause'))
        return self.graph.call(Trigger, f'/sim/{name}')

    def order(self, name, **values):
        """Set parameters, give an order; return its state, once the topic tells it as well."""
        results = self.graph.set('/sim_bridge', **values) if values else []
        assert all(result.successful for result in results), results
        answer = self.ask(name)
        assert answer.success, answer.message
        told = json.loads(answer.message)
        assert not told['refused']
        self.graph.spin(lambda: self.state()['orders'] >= told['orders'], 30)
        return told

    def shown(self, name, **values):
        """Give an order that shows the moment; return what it showed, images as arrays."""
        since = time.monotonic()
        state = self.order(name, **values)
        self.graph.spin(lambda: all(
            heard and stamp_of(heard[-1][1]) == pytest.approx(state['time'], abs=1e-9)
            for heard in (self.graph.of(key, since) for key in self.watched)), 30)
        seen = {key: self.graph.last(key) for key in self.watched}
        for camera in CAMERAS:
            image = images.parse_image(seen[camera])
            seen |= {camera: images.image_to_numpy(image), f'{camera}_frame': image.frame_id}
        return seen | {'state': state, 'now': stamp_of(seen['clock'])}

    def take_the_task(self):
        """Say on ``vla/state`` what a policy says that has understood its task."""
        self.graph.spin(lambda: self.graph.of('instruction'), 10)
        self.say('THINKING', instruction=self.graph.last('instruction').data,
                 task=time.monotonic_ns())
        self.graph.spin(lambda: self.state()['state'] == 'playing', 10)

    def say(self, state, **values):
        """Publish the state of a policy."""
        self._policy.publish(conversions.status_message('vla', state, values))

    def act(self, action):
        """Answer the newest moment."""
        self._action.publish(JointTrajectory(
            header=self.graph.last('pose').header,
            points=[JointTrajectoryPoint(positions=action)]))


@pytest.fixture
def paused(graph):
    """Return a paused simulator without any policy, everything heard at least once."""
    operator = Operator(graph, start_paused='true', seed=SEED)
    while not all(graph.of(key) for key in (*CAMERAS, 'primary_info', 'wrist_info')):
        operator.order('pause')  # shows the moment again, now that we are known to listen
    graph.wait(0.2)
    return operator


@pytest.fixture(scope='module')
def env():
    """Return a scene of our own."""
    made = TabletopEnv()
    yield made
    made.close()


def test_pause_step_reset_and_what_is_refused(paused, env):
    first = paused.shown('pause')
    assert first['state']['state'] == 'paused' and first['state']['step'] == 0
    assert json.loads(paused.graph.last('tasks').data) == {
        'suite': 'tabletop', 'tasks': list(env.tasks)}
    clocks = len(paused.graph.of('clock'))
    paused.graph.wait(0.5)
    assert len(paused.graph.of('clock')) == clocks, 'the clock stands still'
    np.testing.assert_array_equal(
        first['primary'], env.reset(seed=SEED, options={'task': TASK})[0]['agentview_image'])

    stepped = paused.shown('step')
    assert stepped['now'] == pytest.approx(first['now'] + TICK, abs=1e-9)
    assert stepped['state']['step'] == 1
    more = paused.shown('step', step_count=30)
    assert more['now'] == pytest.approx(first['now'] + 31 * TICK, abs=1e-9)
    before, after = (conversions.pose_arrays(seen['pose'].pose)[0] for seen in (first, more))
    assert 0 < np.abs(after - before).max() < 0.01, 'steps are without motion'
    np.testing.assert_allclose(more['state']['home'], np.concatenate(
        conversions.pose_arrays(first['pose'].pose)), atol=1e-4)

    def episode(seen):
        return [seen['state'][key] for key in ('state', 'step', 'task', 'seed')]
    again = paused.shown('reset')
    assert episode(again) == ['paused', 0, TASK, SEED]
    assert again['now'] > more['now'], 'time never goes back'
    for name in CAMERAS:
        np.testing.assert_array_equal(again[name], first[name])
    assert again['pose'].pose == first['pose'].pose
    other = paused.shown('reset', reset_task=OTHER, reset_seed=SEED + 7)
    assert episode(other) == ['paused', 0, OTHER, SEED + 7]
    obs, info = env.reset(seed=SEED + 7, options={'task': OTHER})
    np.testing.assert_array_equal(other['primary'], obs['agentview_image'])
    paused.graph.spin(lambda: paused.graph.last('instruction').data == info['instruction'], 5)
    assert episode(paused.shown('reset', reset_task='', reset_seed=SEED)) == [
        'paused', 0, OTHER, SEED]
    assert TASK in json.loads(paused.ask('list_tasks').message)['tasks']
    assert json.loads(paused.ask('get_state').message)['state'] == 'paused'

    before = paused.state()
    for name, values, why in (
            ('step_count', (0, MOST_STEPS + 1), str(MOST_STEPS)), ('seed', (7,), 'read-only'),
            ('step_count', (2.5, 'two', True), 'INTEGER'), ('reset_task', ('fly_away',), TASK),
            ('reset_seed', (-2, LARGEST_SEED + 1), str(LARGEST_SEED))):
        for value in values:
            [result] = paused.graph.set('/sim_bridge', **{name: value})
            assert not result.successful and why in result.reason, (name, value, result.reason)
    assert paused.order('reset') == before | {
        'orders': before['orders'] + 1, 'time': paused.state()['time']}, 'nothing was taken'
    assert paused.order('resume')['state'] == 'stopped', 'no policy yet'
    before, answer = paused.state(), paused.ask('step')
    assert not answer.success and 'pause it first' in answer.message
    paused.graph.spin(lambda: paused.state()['orders'] > before['orders'], 10)
    assert paused.state() == before | {'refused': answer.message, 'orders': before['orders'] + 1}


def test_steps_end_with_their_episode_and_the_result_says_that_somebody_stepped(graph, tmp_path):
    operator = Operator(graph, start_paused='true', max_steps=3, episodes=2,
                        result_file=tmp_path / 'result.json', step_count=MOST_STEPS)
    state = operator.order('step')
    assert (state['seed'], state['step'], state['state']) == (SEED + 1, 0, 'paused')
    operator.order('step', step_count=2)
    assert operator.order('step')['state'] == 'stopped'
    assert graph.processes['sim_bridge'].wait(15) == 0
    result = json.loads((tmp_path / 'result.json').read_text())
    assert [(e['steps'], e['touched'], e['reason']) for e in result['episodes']] == [
        (3, True, 'not done within 3 steps')] * 2
    assert json.loads(graph.last('episode').data)['reason'] == 'not done within 3 steps'
    assert (result['n'], result['successes'], result['tasks']) == (
        2, 0, {TASK: {'n': 2, 'successes': 0}})
    assert result['versions'].keys() == {'python', 'mujoco', 'robosuite'}


def test_a_policy_that_refuses_the_task_ends_the_simulator_with_its_reason(graph):
    operator, text = Operator(graph), TASK.replace('_', ' ')
    graph.spin(lambda: len(graph.of('instruction')) > 1, 20, 'the task announced again')
    for refusals in (4, 5):  # the first one may be of another run
        graph.wait(0.5)
        assert graph.processes['sim_bridge'].poll() is None
        operator.say('IDLE', refusals=refusals, rejected='why', rejected_instruction=text)
    assert graph.processes['sim_bridge'].wait(15) == 2
    assert f'error: the policy refuses "{text}": why' in graph.log('sim_bridge')


def test_an_endless_scene_has_no_limit_no_instruction_and_lets_go_when_told(graph):
    operator = Operator(graph, endless='true', max_steps=3)
    graph.spin(lambda: operator.state()['state'] == 'playing', 10)
    goal, begun = -1, time.monotonic()
    while operator.state()['step'] < 8:
        graph.spin(lambda goal=goal: len(graph.of('pose')) > goal, 10)
        goal = len(graph.of('pose'))
        operator.act([0.0] * 6 + [-1.0])
        operator.ask('get_state')
    assert time.monotonic() - begun > 6 * TICK, 'no faster than time'
    assert not graph.of('episode') and not graph.of('instruction')
    answer = operator.ask('knock')
    assert not answer.success and 'holds nothing' in answer.message
    told = operator.order('reset', reset_seed=SEED + 3)
    assert (told['state'], told['step'], told['seed']) == ('playing', 0, SEED + 3)


def test_a_failed_episode_says_why(graph):
    operator = Operator(graph, max_steps=1, episodes=3)
    gate = graph.node.create_publisher(DiagnosticStatus, '/gate_state', qos.LATCHED)
    reasons = []
    for policy, gate_state, reason in (
            ({'state': 'FAULT', 'reason': 'e-stop'}, 'FAULT', 'policy FAULT: e-stop'),
            ({}, 'STOP', 'stopped: of the gate'),
            ({'instruction': 'do another thing'}, 'RUN', 'told otherwise: do another thing')):
        graph.spin(lambda: operator.state()['seed'] == SEED + len(reasons), 10)
        operator.take_the_task()
        told = {'instruction': graph.last('instruction').data, 'task': 1, 'state': 'ACTING'}
        told |= policy
        gate.publish(conversions.status_message('gate', gate_state, {'reason': 'of the gate'}))
        operator._policy.publish(conversions.status_message('vla', told.pop('state'), told))
        graph.wait(0.3)
        reasons.append(reason)

        def ended(count=len(reasons)):
            operator.act([0.0] * 7)
            rows = [json.loads(m.data) for _, m in graph.of('episode')]
            return [row['reason'] for row in rows if row['done']][:count] == reasons
        graph.spin(ended, 20)


def test_a_policy_that_says_it_is_done_ends_its_episode(graph, tmp_path):
    """The next one, which it says of an earlier task, goes on."""
    operator = Operator(graph, episodes=2, after_success=20, max_steps=4,
                        result_file=tmp_path / 'result.json')
    operator.take_the_task()

    def act(steps):
        def there():
            operator.act([0.0] * 6 + [-1.0])
            return json.loads(graph.last('episode').data)['step'] >= steps
        graph.spin(there, 20)
    act(2)
    told = {'instruction': graph.last('instruction').data, 'task': time.monotonic_ns()}
    operator.say('DONE', reason='it says so', **told)
    graph.spin(lambda: operator.state()['seed'] == SEED + 1, 10)
    operator.say('DONE', reason='it says so', **told)
    graph.wait(0.2)
    assert operator.state()['state'] == 'stopped'
    operator.take_the_task()
    act(4)
    assert graph.processes['sim_bridge'].wait(15) == 0
    first, last = json.loads((tmp_path / 'result.json').read_text())['episodes']
    assert first == {'task': TASK, 'seed': SEED, 'success': False, 'steps': 2, 'said_done': 2,
                     'too_early': True, 'reason': 'the policy says that it is done'}
    assert (last['steps'], last['reason']) == (4, 'not done within 4 steps')


def test_a_wording_that_the_policy_refuses_fails_and_the_next_one_is_told(graph):
    wordings = [f'do as I say, please: {"now " * 80}', 'do "it": now', '']
    operator = Operator(graph, max_steps=1, episodes=3, instructions=json.dumps(wordings))

    def told():
        return graph.last('instruction').data
    graph.spin(lambda: len(graph.of('instruction')) > 1, 20, 'the task announced again')
    assert told() == wordings[0]
    operator.say('IDLE', refusals=0, task=0, instruction='')
    graph.wait(0.5)
    operator.say('IDLE', refusals=1, task=0, rejected='no such task', instruction='',
                 rejected_instruction=f'{wordings[0][:200]}…')
    graph.spin(lambda: told() == wordings[1], 10)
    operator.say('ACTING', instruction=wordings[1], understood='do it', task=1, refusals=1)
    graph.spin(lambda: operator.state()['state'] == 'playing', 10)

    def ended():
        operator.act([0.0] * 7)
        return told() not in wordings
    graph.spin(ended, 20)
    assert told() == TASK.replace('_', ' '), 'its own words'
    rows = [json.loads(m.data) for _, m in graph.of('episode')]
    assert [[row[key] for key in ('instruction', 'understood', 'step', 'reason')]
            for row in rows if row['done']] == [
                [wordings[0], '', 0, 'refused: no such task'],
                [wordings[1], 'do it', 1, 'not done within 1 steps']]


@pytest.mark.parametrize('lockstep', [True, False])
def test_pause_in_a_running_episode(graph, lockstep):
    operator = Operator(graph, lockstep=str(lockstep).lower(), max_steps=40, episodes=2)
    operator.take_the_task()
    up = [0.0, 0.0, 0.5, 0.0, 0.0, 0.0, -1.0]

    def height():
        return conversions.pose_arrays(graph.last('pose').pose)[0][2]

    def run(steps):
        goal, heard = operator.state()['step'] + steps, -1

        def there():
            nonlocal heard
            if len(graph.of('pose')) > heard:
                heard = len(graph.of('pose'))
                operator.act(up)
            return json.loads(graph.last('episode').data)['step'] >= goal
        graph.spin(there, 20)

    graph.spin(lambda: graph.of('pose'), 10)
    low = height()
    run(10)
    assert height() > low + 0.02
    assert operator.order('pause')['state'] == 'paused'
    graph.wait(0.2)
    still, clocks = height(), len(graph.of('clock'))
    for _ in range(10):
        operator.act(up)
        graph.wait(0.05)
    assert len(graph.of('clock')) == clocks and height() == still
    before, since = stamp_of(graph.last('clock')), time.monotonic()
    assert operator.order('resume')['state'] == 'playing'
    run(3)
    first = next(t for _, m in graph.of('clock', since) if (t := stamp_of(m)) > before)
    assert first == pytest.approx(before + TICK, abs=1e-9)
    assert operator.order('reset')['state'] == 'stopped', 'until the policy takes the task again'
    operator.take_the_task()
    assert not json.loads(graph.last('episode').data)['done']


def test_cameras_and_frames_are_mujocos(paused, env):
    env.reset(seed=SEED, options={'task': TASK})
    for _ in range(3):
        env.step(np.zeros(7))
    transforms = pytest.importorskip('tf2_msgs.msg', reason='tf2_msgs is not installed')
    graph, frames = paused.graph, FrameTree()
    graph.hear('tf', transforms.TFMessage, '/tf', 100)
    graph.hear('tf_static', transforms.TFMessage, '/tf_static', qos.LATCHED_100)
    paused.watched.append('tf')
    graph.spin(lambda: graph.of('tf_static') and graph.node.count_publishers('/tf'), 20)
    seen = paused.shown('step', step_count=3)
    for key in ('tf_static', 'tf'):
        frames.take(graph.last(key), key == 'tf_static')
    data, model = env.scene.sim.data, env.scene.sim.model
    position, rotation, stamp = frames.look_up('base', 'gripper')
    told, quaternion = conversions.pose_arrays(seen['pose'].pose)
    np.testing.assert_allclose(position, told, atol=1e-12)
    assert (rotation.inv() * Rotation.from_quat(quaternion)).magnitude() < 1e-9
    assert stamp == pytest.approx(seen['now'])
    for name, view in env.views.items():
        camera = view.removesuffix('_image')
        number = model.camera_name2id(camera)
        info = seen[f'{name}_info']
        assert (info.width, info.height) == (128, 128) == seen[name].shape[1::-1]
        assert info.header.frame_id == seen[f'{name}_frame'] == optical_frame(name)
        k = np.reshape(info.k, (3, 3))
        fovy = 2 * np.degrees(np.arctan2(info.height / 2, k[1, 1]))
        assert fovy == pytest.approx(model.cam_fovy[number], abs=1e-9)
        assert k[0, 0] == k[1, 1]
        np.testing.assert_allclose(np.reshape(info.p, (3, 4))[:, :3], k)
        position, rotation, _ = frames.look_up('base', optical_frame(name))
        np.testing.assert_allclose(position, data.cam_xpos[number] - env.base_position, atol=1e-5)
        right, up, back = np.reshape(data.cam_xmat[number], (3, 3)).T
        np.testing.assert_allclose(  # REP 103: x right, y down, z forward
            rotation.as_matrix(), np.stack([right, -up, -back], axis=1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(('config', 'steps'), [('sim', 14), ('sim_realtime', 120)])
def test_a_pause_changes_no_decision_and_a_policy_that_gave_up_hears_its_task_again(
        graph, policy, config, steps):
    start_all(graph, policy, config, max_steps=steps, camera_every=2)
    graph.spin(lambda: sum(motion(m).any() for _, m in graph.of('action')) >= 6, 90)
    assert graph.call(SetBool, '/sim/pause', SetBool.Request(data=True)).success
    graph.wait(1.0)
    assert len({conversions.seconds(m.header.stamp) for _, m in graph.of('action')}) < steps
    if config == 'sim_realtime':
        graph.spin(lambda: graph.said('vla')[0] == 'STOPPED', 15)
        assert 'late for 5 s' in graph.said('vla')[1]
    resumed = time.monotonic()
    assert graph.call(SetBool, '/sim/pause', SetBool.Request(data=False)).success
    graph.spin(lambda: finished(graph), 60)
    assert any(motion(m).any() for _, m in graph.of('action', resumed))
    if config == 'sim':
        heard = (conversions.chunk_from(m, TICK) for _, m in graph.of('chunk'))
        chunks = {chunk.stamp: chunk.values for chunk in heard}
        in_process, _ = decide_in_process(policy, steps)
        np.testing.assert_allclose(list(chunks.values()), in_process, atol=1e-5)
