"""The operator node: what a browser is sent, and that it may order only where it is let."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import numpy as np
import pytest
from std_msgs.msg import String
from support.operated import SPEED, TASKS, Operated

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.nodes.operator import READ_ONLY
from dtvla_ros.ros import conversions, images, qos

pytest.importorskip('uvicorn', reason="the page needs pip install 'dtvla_ros[operator]'")
from websockets.sync.client import connect  # noqa: E402


class Browser:
    """What a page has been sent."""

    def __init__(self, operated, address):
        self.graph, self.state, self.images = operated.graph, {}, {}
        place = urlsplit(address).netloc
        self._left = ExitStack()
        self._socket = self._left.enter_context(connect(
            f'ws://{place}/live', origin=f'http://{place}', max_queue=None))
        self.close = self._left.close

    @property
    def said(self):
        return self.state['said'][-1]['text'] if self.state['said'] else ''

    def order(self, name, value=''):
        self._socket.send(json.dumps({'order': name, 'value': value}))

    def until(self, condition, what):
        self.graph.spin(lambda: self._read() and condition(), 30, what)

    def _read(self):
        with suppress(TimeoutError):
            while True:
                data = self._socket.recv(0)
                if isinstance(data, bytes):
                    self.images[CAMERAS[data[0]]] = data[1:]
                else:
                    self.state |= json.loads(data)
        return self.state


@pytest.fixture
def operated(graph):
    return Operated(graph)


@pytest.fixture
def browser(operated):
    made = Browser(operated, operated.start(allow_control='true'))
    yield made
    made.close()


def transforms(node):
    """Publish where both cameras are: one metre above the base, looking down."""
    try:
        kind = conversions.message_type('tf2_msgs/msg/TFMessage')
    except KeyError:
        pytest.skip('no tf2_msgs: make interfaces builds it, or a sourced ROS has it')
    from geometry_msgs.msg import TransformStamped
    found = []
    for camera in CAMERAS:
        placed = TransformStamped(header=conversions.header(1.0, 'base'),
                                  child_frame_id=f'camera_{camera}_optical_frame')
        placed.transform.translation.x, placed.transform.translation.z = 0.5, 1.0
        placed.transform.rotation.x, placed.transform.rotation.w = 1.0, 0.0
        found.append(placed)
    publisher = node.create_publisher(kind, '/tf_static', qos.LATCHED)
    publisher.publish(kind(transforms=found))
    return publisher


def test_a_page_is_sent_what_the_nodes_say_and_costs_nothing_unwatched(operated, graph):
    address = operated.start()
    operated.say('/vla/reasoning', 'Nothing in hand. Moving left.')
    operated.say('/vla/reasoning', 'Nothing in hand. Moving right.')
    graph.wait(0.5)
    for topic in ('/image_primary', '/ee_pose', '/camera_wrist/camera_info', '/twist_cmd'):
        assert graph.node.count_subscribers(topic) == 0, topic
    page = Browser(operated, address)
    page.until(lambda: {'policy', 'gate', 'motion', 'tasks'} <= page.state.keys()
               and len(page.images) == 2 and len(page.state['motion']) > 20, 'state and images')
    told = page.state
    assert told['control'] is False and told['able'] == {} and told['tasks'] == TASKS
    assert told['policy'] == {'state': 'ACTING', 'reason': '', 'level': 'good'}
    assert told['task'] == {'asked': 'the lemon, please', 'refused': '', 'why': '',
                            'meaning': f'understood as: {TASKS[1]}'}
    assert told['thought'] == {'parts': [['Nothing in hand. Moving right.', False]],
                               'whole': True, 'draft': '12 of 16 drafted tokens kept, '
                               'newly decoded: place, move',
                               'corrected': '', 'confidence': '0.820', 'question': ''}
    assert told['thoughts'][0]['parts'] == [['Nothing in hand. Moving', False], ['right.', True]]
    assert told['latency']['total'] == 0.04 and told['latency']['phases'] == [['think', 0.03]]
    assert told['latency']['budget'] == pytest.approx(0.2)
    commanded, measured = np.array(told['motion'])[-5:, 1], np.array(told['motion'])[-5:, 4]
    np.testing.assert_allclose(commanded, SPEED, atol=1e-3)
    assert np.median(measured) == pytest.approx(SPEED, abs=2e-3)
    for camera, channel in (('primary', 0), ('wrist', 2)):
        pixels = images.compressed_to_numpy(images.RawCompressedImage(
            0.0, '', 'jpeg', np.frombuffer(page.images[camera], np.uint8)))
        assert pixels.shape == (96, 128, 3) and pixels[..., channel].min() > 150

    operated.say('/vla/reasoning_stream', 'Nothing in hand. Moving up.')
    page.until(lambda: page.state['thought']['parts'][-1] == ['up.', True], 'the stream')
    assert not page.state['thought']['whole']
    operated.policy = ('HOLDING', 'image_primary is late')
    operated.values['question'] = 'Which bin?'
    page.until(lambda: page.state['policy']['state'] == 'HOLDING'
               and page.state['thought']['question'] == 'Which bin?', 'the state and question')
    operated.values['question'] = ''
    operated.policy, operated.values['task'] = ('ACTING', ''), 2
    page.until(lambda: page.state['thought']['parts'] == [['', False]], 'a new task')
    operated.values |= {'overrides': 1, 'override': 'move up', 'override_refusals': 0}
    operated.say('/vla/reasoning', 'Nothing in hand. Moving up. (told: move up)')
    page.until(lambda: page.state['thought']['corrected'] == 'move up' and page.said == (
        'thought corrected: move up'), 'a correction')
    assert page.state['thoughts'][0]['told'] == 'move up'
    assert page.state['thoughts'][0]['parts'] == [['Nothing in hand. Moving', False],
                                                  ['up.', True]]
    operated.values |= {'override_refusals': 1, 'override_rejected': '"fly": no'}
    page.until(lambda: page.said == 'refused: "fly": no', 'a refusal')
    operated.scene['done'] = 'put_it'
    page.until(lambda: page.state['episodes'], 'an episode')
    assert page.state['episodes'][0]['outcome'] == 'done, judges the simulator'

    for topic in ('/vla/tasks', '/sim/episode', '/sim/state'):
        for text in ('no JSON', '3', '{"done": 3}', '[' * 9000):
            operated.say(topic, text)
    page.until(lambda: page.state['tasks'] == [], 'that the tasks are none')
    page.order('stop')
    page.order('start')
    page.until(lambda: [said['text'] for said in page.state['said'][-2:]] == [READ_ONLY] * 2,
               'that it is read-only')
    graph.wait(0.3)
    assert not operated.orders and not graph.of('estop')
    page.close()
    graph.spin(lambda: graph.node.count_subscribers('/image_primary') == 0, 20, 'unsubscribed')
    assert graph.interrupt('operator') == 0


def test_the_place_of_the_thought_and_the_path_are_marked(operated, browser):
    publisher = transforms(operated.graph.node)
    operated.say('/vla/reasoning', 'Holding the lemon.')
    browser.until(lambda: {'ring', 'path'} <= browser.state.get('marks', {}).get(
        'primary', {}).keys(), 'marks')
    marks = browser.state['marks']['primary']
    assert marks['name'] == 'blue bin' and len(marks['ring']) == 25
    np.testing.assert_allclose(np.mean(marks['ring'][:-1], axis=0), [0.5, 0.5], atol=1e-3)
    path = np.array(marks['path'])  # 8 rows of 13 mm along x; 100 px per metre at 0.8 m of depth
    np.testing.assert_allclose(path[:, 1], 0.5, atol=1e-3)
    assert path[-1, 0] - path[0, 0] == pytest.approx(8 * 0.267 * 0.05 / 0.8 * 100 / 128, rel=0.01)
    assert marks['closed'] == [False] * 5 + [True] * 4
    assert publisher.get_subscription_count() == 1


def test_every_order_is_a_service_or_a_topic_that_others_use(operated, browser):
    graph = operated.graph
    browser.until(lambda: browser.state.get('able') and all(browser.state['able'].values()),
                  'all services')
    for order, value, service, data in (
            ('start', '', 'start', None), ('end', '', 'stop', None),
            ('pause', True, 'pause', True), ('pause', False, 'pause', False),
            ('again', '', 'vla/reset_episode', None), ('sim_reset', '', 'sim/reset', None),
            ('sim_knock', '', 'sim/knock', None), ('sim_pause', True, 'sim/pause', True),
            ('film', True, 'play/film', True), ('record', True, 'record', True),
            ('record', False, 'record', False)):
        browser.order(order, value)
        browser.until(lambda service=service, data=data: operated.orders[-1:] == [
            (service, data)], order)
    operated.refusal = 'it holds nothing'
    browser.order('sim_knock')
    browser.until(lambda: browser.said == 'sim/knock refused: it holds nothing', 'the refusal')
    operated.refusal = ''
    for state, level, said in (('RECORDING', b'\0', '3 s, into /bags/x'),
                               ('IDLE', b'\2', '/bags/x: No space left on device')):
        operated.tell_of_record(state, level, said)
        browser.until(lambda state=state, said=said: browser.state['recording'] == {
            'on': state == 'RECORDING', 'said': said}, said)
    browser.until(lambda: browser.said == '/bags/x: No space left on device', 'the full disk')
    for order, key, text in (('tell', 'told', 'caf\u00e9, please'), ('tell', 'told', 'x' * 9000),
                             ('override', 'override', 'move left'), ('override', 'override', '')):
        browser.order(order, text)
        browser.until(lambda key=key, text=text: graph.of(key)
                      and graph.last(key) == String(data=text), order)
    operated.values['task'] = 2
    browser.until(lambda: browser.state['task']['asked'], 'a task')
    for mark in ('failure', 'success'):
        browser.order('mark', mark)
        browser.until(lambda mark=mark: browser.said == f'marked: {mark}', mark)
        assert graph.last('mark') == String(data=mark)
    operated.policy = ('DONE', '')
    browser.until(lambda: browser.state['episodes'], 'an episode')
    assert browser.state['episodes'][0]['outcome'] == 'success, says a person'
    browser.order('mark', 'failure')
    browser.until(lambda: not browser.state['episodes'][0]['good'], 'a later mark')
    browser.order('mark', 'perhaps')
    browser.until(lambda: 'no order "mark"' in browser.said, 'what is no mark')
    operated.policy = ('ACTING', '')
    browser.order('fly')
    browser.until(lambda: 'no order "fly"' in browser.said, 'what is unknown')
    browser.order('stop')
    browser.until(lambda: 'page at' in browser.state['fault'], 'the stop')
    assert graph.last('estop').data is True
    browser.order('clear')
    browser.until(lambda: browser.state['fault'] == '', 'cleared')
    assert graph.last('estop').data is False and operated.orders[-1] == ('clear_fault', None)


def test_one_page_drives_and_is_missed_when_it_is_gone(operated):
    graph, address = operated.graph, operated.start(allow_control='true')
    one, other = Browser(operated, address), Browser(operated, address)
    one.until(lambda: one.state.get('able', {}).get('takeover'), 'a gate')
    assert graph.node.count_publishers('/human_twist') == 0, 'others may drive'

    def drives(who, page):
        one.until(lambda: one.state['driver'] == {'who': who, 'page': page}, who)
    one.order('takeover', 'me')
    drives('person', 'me')
    assert operated.orders[-1] == ('takeover', True)
    one.order('drive', '0.1 0 0 0 0 0.2')
    one.until(lambda: graph.of('twist'), 'a twist')
    sent = graph.last('twist')
    assert (sent.twist.linear.x, sent.twist.angular.z, sent.header.frame_id) == (0.1, 0.2, 'base')
    for nonsense in ('nan 0 0 0 0 0', '1 2', 'x'):
        one.order('drive', nonsense)
    other.order('takeover', 'you')
    other.until(lambda: other.said == 'a page drives already', 'the refusal')
    other.order('drive', '0.3 0 0 0 0 0')
    one.order('grip', True)
    one.until(lambda: graph.of('grip'), 'a grip')
    assert graph.last('grip').data == 0.0 and len(graph.of('twist')) == 1
    one.order('home', 'fast')
    one.order('home', '0.1')
    one.until(lambda: len(graph.of('twist')) == 2, 'the way home')
    along = graph.last('twist').twist.linear
    assert along.y < -0.05 < along.z == 0.0 and np.hypot(along.x, along.y) == pytest.approx(0.1)
    del operated.scene['home']
    one.until(lambda: not one.state['able']['home'], 'that no home is known')
    one.order('home', '0.1')
    one.order('takeover', '')
    drives('policy', '')
    operated.refusal = 'fault: e-stop'
    one.order('takeover', 'me')
    one.until(lambda: one.said == 'takeover refused: fault: e-stop', 'why not')
    operated.refusal = ''
    one.order('takeover', 'me')
    drives('person', 'me')
    one.close()
    other.until(lambda: operated.orders[-1] == ('stop', None), 'the stop')
    graph.spin(lambda: graph.node.count_publishers('/human_twist') == 0, 20, 'the publisher gone')
    other.close()
