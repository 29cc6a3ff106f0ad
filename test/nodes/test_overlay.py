"""The overlay as a process: real frames in, a readable image and a path in space out."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.caption import CAMERA, HEIGHT, LINES, TOP, WIDTH, Caption, draw_frame
from dtvla_ros.conventions import CAMERAS
from dtvla_ros.nodes.overlay import latency_line
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.thought import Thought

STAMP = 12.5
START = np.array([0.4, -0.1, 0.2])
RED, BLUE = (220, 20, 20), (20, 20, 220)


class Robot:
    """Publishes what a robot and a policy publish, over and over."""

    def __init__(self, graph, kind):
        node, sensor = graph.node, qos_profile_sensor_data
        self.serialize = images.serialize_image if kind is Image else images.serialize_compressed
        self.thought, self.gate = 'holding nothing now reach can', ('RUN', '')
        self.cameras = {n: node.create_publisher(kind, f'/image_{n}', sensor) for n in CAMERAS}
        self.pose = node.create_publisher(PoseStamped, '/ee_pose', sensor)
        self.thoughts = node.create_publisher(String, '/vla/reasoning', qos.LATCHED_10)
        self.chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
        self.states = {t: node.create_publisher(DiagnosticStatus, t, qos.LATCHED)
                       for t in ('/vla/state', '/gate_state')}
        graph.every(0.05, self.publish)

    def publish(self):
        for (name, publisher), colour in zip(self.cameras.items(), (RED, BLUE)):
            pixels = np.full((96, 128, 3), colour, np.uint8)
            publisher.publish(self.serialize(pixels, conversions.time_message(STAMP), name))
        for stamp, offset in ((STAMP, 0.0), (STAMP + 0.05, 0.5)):
            self.pose.publish(conversions.pose_message(
                conversions.header(stamp, 'fr3_link0'), START + offset, [0.0, 0.0, 0.0, 1.0]))
        if self.gate[0] == 'RUN':
            self.thoughts.publish(String(data=self.thought))
        self.states['/vla/state'].publish(conversions.status_message(
            'vla', 'ACTING', {'instruction': 'put it up', 'stamp': STAMP, 'latency_think': 0.03}))
        self.states['/gate_state'].publish(
            conversions.status_message('gate', self.gate[0], {'reason': self.gate[1]}))
        rows = np.zeros((8, 7), np.float32)
        rows[:, [0, 2]] = 1.0, -0.5
        rows[:, 6] = [-1, -1, -1, -1, 1, 1, 0, 0]
        self.chunks.publish(conversions.chunk_message(Chunk(STAMP, 0.05, rows)))


@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_cameras_thought_and_path_once_somebody_watches(graph, transport):
    node = graph.listen(path=(MarkerArray, '/planned_path'))
    robot = Robot(graph, Image if transport == 'raw' else CompressedImage)
    graph.start('overlay', transport=transport, rate=20.0, base_frame='fr3_link0')
    graph.spin(lambda: node.count_publishers('/overlay/compressed'), 30)
    graph.wait(0.5)
    assert node.count_subscribers('/image_primary') == 0, 'nobody watches: nothing is read'

    watching = graph.hear('image', CompressedImage, '/overlay/compressed', 5)
    left, right = (TOP + CAMERA // 2, CAMERA // 2), (TOP + CAMERA // 2, CAMERA + CAMERA // 2)

    def complete():
        image = images.compressed_to_numpy(graph.last('image'))
        return (image[left][0] > 150 and image[right][2] > 150
                and image[:, 2 * CAMERA:].max() > 200)
    graph.spin(lambda: graph.last('image') and complete(), 30)
    before = images.compressed_to_numpy(graph.last('image'))
    assert before.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose([before[left], before[right]], [RED, BLUE], atol=12)
    assert conversions.seconds(graph.last('image').header.stamp) == STAMP

    robot.thought = 'holding can now carry it to the wooden bin'

    def change():
        return np.abs(images.compressed_to_numpy(graph.last('image')).astype(int) - before)
    graph.spin(lambda: change()[130:250, 2 * CAMERA:].max() > 120, 10)
    assert change()[:, :2 * CAMERA].max() < 30, 'the cameras stay as they are'

    graph.spin(lambda: graph.last('path'), 30)
    [marker] = graph.last('path').markers
    assert marker.type == Marker.LINE_STRIP and marker.header.frame_id == 'fr3_link0'
    assert conversions.seconds(marker.header.stamp) == STAMP
    points = np.array([(p.x, p.y, p.z) for p in marker.points])
    assert points.shape == (9, 3) and len(marker.colors) == 9
    np.testing.assert_allclose(points[0], START)
    metres = osc.METRES_PER_SECOND_PER_UNIT * 0.05
    np.testing.assert_allclose(points[-1], START + 8 * metres * np.array([1, 0, -0.5]), atol=1e-9)
    shades = [(c.r, c.g, c.b) for c in marker.colors]
    assert [len(set(s)) for s in (shades, shades[:5], shades[5:])] == [2, 1, 1], 'a grip is kept'

    robot.gate = ('FAULT', 'e-stop')

    def band_and_no_thought():
        image = images.compressed_to_numpy(graph.last('image')).astype(int)
        red = image[TOP // 2, ::8, 0] - image[TOP // 2, ::8, 1] > 100
        return red.mean() > 0.6 and image[136:250, 2 * CAMERA + 16:].max() < 60
    graph.spin(band_and_no_thought, 10)

    node.destroy_subscription(watching)
    graph.spin(lambda: node.count_subscribers('/image_primary') == 0, 10)
    assert graph.interrupt('overlay') == 0


def test_of_a_long_thought_the_end_is_shown_and_what_is_missing_is_named():
    def ink(thought):
        states = (('policy: ACTING', (9, 9, 9)), ('gate: RUN', (9, 9, 9)), ('act 1 ms', (9, 9, 9)))
        return draw_frame(dict.fromkeys(CAMERAS), Caption('do', thought, states=states)
                          ).astype(int)

    many = ' '.join(['first'] * 60)
    change = np.abs(ink(many) - ink(many + ' last'))
    assert change[134:134 + 24 * LINES].max() > 100
    assert not change[HEIGHT - 66:].any(), 'states keep their place'
    assert ink(many)[TOP:, :CAMERA].max() > 100, 'no image_primary'
    sentence = Thought('can', None, None, 'lift', 'can', 50, 0, 'carry', ('still',) * 3)
    np.testing.assert_array_equal(ink(sentence.compact()), ink(sentence.sentence()))


def test_what_the_instruction_was_understood_as_stands_below_it():
    def ink(**more):
        return draw_frame(dict.fromkeys(CAMERAS), Caption('do it, please', 'now', **more)
                          ).astype(int)

    change = np.abs(ink(meaning='understood as: do it') - ink())
    assert change[84:106, 2 * CAMERA:].max() > 100
    assert not change[:84].any() and not change[106:].any()


def test_what_a_person_put_into_the_thought_stands_below_it_in_another_colour():
    def ink(thought):
        return draw_frame(dict.fromkeys(CAMERAS), Caption('do it', thought)).astype(int)

    change = ink('Moving left. (told: move left)') - ink('Moving left.')
    assert not change[:150].any(), 'the sentence is as without'
    told = change[150:200, 2 * CAMERA:]
    assert told[..., 0].max() > 150 > 80 > told[..., 2].max(), 'yellow'


def test_the_latency_line_begins_with_the_sum():
    values = {'reason': '', 'latency_see': '0.0052', 'latency_think': '0.0314',
              'latency_total': '0.0601', 'draft_passes': '2'}
    assert latency_line(values) == '60 ms, see 5, think 31'
    assert latency_line({}) == ''
