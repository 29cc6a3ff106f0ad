"""A policy that is not sure holds and asks a person; whatever they do answers it."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from support.graph import NANO
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.nodes.question import question_of
from dtvla_ros.policy.confidence import WINDOW, Calibration, fields_of
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest
from dtvla_ros.ros import conversions, qos

TASK = 'put the can in the wooden bin'
WORDS = ('holding nothing done nothing now carry blue bin at x50 y-17 next place move forward '
         'left still')


@pytest.mark.parametrize(('field', 'words', 'question'), [
    ('object', WORDS, 'Which bin? I am unsure about the blue bin.'),
    ('object', WORDS.replace('blue bin', 'can'), 'Which thing? I am unsure about the can.'),
    ('place', WORDS, 'Where is the blue bin? I am unsure about 50 cm ahead and 17 cm to the '
                     'right.'),
    ('phase', WORDS, 'What now? I am unsure about carrying it to the blue bin.'),
    ('held', WORDS, 'Is my hand empty? I am not sure.'),
    ('held', WORDS.replace('holding nothing', 'holding can'), 'Do I hold the can? I am not sure.'),
    ('done', WORDS, 'Is nothing done yet? I am not sure.'),
    ('following', WORDS, 'What comes after carrying it to the blue bin? I am unsure about place.'),
    ('move', WORDS, 'Which way? I am unsure about moving forward and left.'),
    ('move', WORDS.replace('forward left', 'still still'),
     'Which way? I am unsure about keeping still.')])
def test_the_question_is_about_the_least_sure_field(field, words, question):
    fields = fields_of(words.split())
    sure = [math.log(0.5) if own == field else -0.01 for own in fields]
    assert question_of(words, fields, sure, TASK) == question
    how = f'I am not sure how to go on with "{TASK}"; tell me, correct my thought, or take over.'
    assert question_of(words, fields, [-0.01] * len(fields), TASK) == how
    assert question_of(words, fields, (), TASK) == how, 'graphs that tell nothing of words'
    assert question_of('move along', fields, sure, TASK) == how, 'no thought of the grammar'


UNSURE = Calibration(math.log(0.05 / 0.95), {'action_mean': 0.0}, 0.0, 1, 1,
                     (2_000_000, 2_000_000), 'tabletop')  # 0.05 for every decision


def copied(folder: Path, fitted: Calibration | None) -> Path:
    """Copy the small policy with another calibration."""
    shutil.copytree(NANO, folder)
    (folder / MANIFEST).write_text(replace(
        PolicyManifest.read(folder), calibration=fitted).to_json())
    return folder


def test_it_holds_and_asks_until_it_is_answered(graph, tmp_path):
    node = graph.listen(vla=(DiagnosticStatus, '/vla/state'), sim=(String, '/sim/tasks'),
                        gate=(DiagnosticStatus, '/gate_state'),
                        chunk=(JointTrajectory, '/vla/action_chunk'))
    graph.hear('question', String, '/vla/question', qos.LATCHED)
    told, override = (node.create_publisher(String, topic, profile) for topic, profile in (
        ('/instruction', qos.LATCHED), ('/vla/thought_override', qos.LATEST)))
    graph.start('vla_node', 'sim', policy=copied(tmp_path / 'policy', UNSURE),
                min_confidence=0.5)
    graph.start('command_gate', 'sim')
    graph.start('sim_bridge', 'sim', endless='true')
    graph.spin(lambda: graph.last('sim') and graph.said('vla')[0] == 'IDLE', 120, 'the nodes')

    def values():
        return conversions.status_values(graph.last('vla'))

    def sent():  # a chunk may be sent again
        return {conversions.seconds(m.header.stamp) for _, m in graph.of('chunk')}

    def asked():
        graph.spin(lambda: values().get('question'), 60, 'a question')
        assert graph.said('vla') == ('HOLDING', f'asks: {values()["question"]}')
        return values()

    told.publish(String(data=TASK))
    before, chunks = asked(), sent()
    assert before['confidence'] == '0.050' and int(before['step']) == WINDOW
    assert len(chunks) == WINDOW - 1, 'what it is not sure of is not executed'
    assert graph.last('question').data == before['question'] and before['question'].endswith('.')
    graph.spin(lambda: graph.said('gate')[0] == 'HOLD', 10, 'the gate holds')
    graph.wait(1.0)
    assert sent() == chunks and graph.said('vla')[0] == 'HOLDING'

    def go_on(step):
        graph.spin(lambda: int(values()['step']) > int(step), 60, 'it goes on')

    override.publish(String(data='the lemon'))
    go_on(before['step'])
    graph.spin(lambda: int(values()['step']) > 2 * WINDOW + 1, 90, 'decisions that are corrected')
    assert not values()['question'], 'a person has said what to think'
    override.publish(String())
    step = asked()['step']
    override.publish(String())  # as it would
    go_on(step)
    step = asked()['step']
    assert graph.call(Trigger, '/vla/reset_episode').success
    go_on(step)
    step = asked()['step']
    told.publish(String(data='put the lemon in the blue bin'))
    go_on(step)
    assert asked()['instruction'] == 'put the lemon in the blue bin'
    twists = node.create_publisher(TwistStamped, '/human_twist', 5)
    graph.every(0.05, lambda: twists.publish(TwistStamped(header=conversions.header(0.0, 'base'))))
    graph.spin(lambda: graph.call(SetBool, '/takeover', SetBool.Request(data=True)).success, 60,
               'the takeover')
    graph.spin(lambda: not values()['question'], 10, 'the person drives')
    assert graph.call(SetBool, '/takeover', SetBool.Request(data=False)).success
    asked()
    said = [message.data for _, message in graph.of('question')]
    assert '' in said and len([text for text in said if text]) >= 4


@pytest.mark.parametrize(('fitted', 'mode', 'remedy'), [
    (None, 'full', 'is not calibrated; run dtvla calibrate'), (UNSURE, 'masked', 'use mode full')])
def test_it_can_only_ask_where_it_has_a_confidence(graph, tmp_path, fitted, mode, remedy):
    graph.listen(vla=(DiagnosticStatus, '/vla/state'))
    graph.start('vla_node', 'sim', min_confidence=0.5, mode=mode,
                policy=copied(tmp_path / 'policy', fitted))
    graph.spin(lambda: remedy in graph.log('vla_node'), 60, remedy)
    assert 'or leave it at 0' in graph.log('vla_node')
    assert 'Traceback' not in graph.log('vla_node')
