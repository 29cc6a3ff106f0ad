"""Which sentences a policy node takes, and what a refusal says."""

import json
import shutil

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from std_msgs.msg import String
from support.graph import NANO

import dtvla_sim
from dtvla_ros.policy.instructions import known_as, nearest, shown, spelling
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.ros import conversions, qos

TASKS = PolicyManifest.read(NANO).tasks
LEMON, STACK = TASKS[1], 'stack the red cube on the green cube'


def test_the_default_policy_names_the_tasks_of_its_suite():
    env = dtvla_sim.make('tabletop')
    assert [spelling(task) for task in env.tasks] == list(TASKS)
    env.close()


@pytest.mark.parametrize('text', [
    LEMON, 'Put the lemon in the blue bin.', ' put  the lemon\tin the blue bin !',
    'put_the_lemon_in_the_blue_bin', 'PUT THE LEMON IN THE BLUE BIN'])
def test_case_space_underscores_and_end_marks_do_not_matter(text):
    assert known_as(text, TASKS) == LEMON


def test_a_known_sentence_is_taken_as_it_was_trained():
    assert known_as('pick it up', ('Pick it up.', 'pick it up')) == 'pick it up'
    assert known_as('PICK IT UP', ('Pick it up.', 'pick it up')) == 'Pick it up.'


@pytest.mark.parametrize(('text', 'close'), [
    ('stack red on green', STACK), ('please drop the lemon into the blue box', LEMON),
    ('can you put the banana in the blue bin', None), ('asdf qwer zxcv', None), ('?!', None),
    ('put the lemon', LEMON), ('put the lemmon in the blue bin', LEMON), ('x' * 9_000, None),
    ('put the can and the red cube in the blue bin', TASKS[5])])
def test_other_sentences_are_not_known_and_the_nearest_is_named(text, close):
    assert known_as(text, TASKS) is None
    assert nearest(text, TASKS) in ([close] if close else TASKS)


def test_what_is_shown_fits_a_line():
    assert shown('put it\x07\n') == 'put it\\x07\\n'
    assert len(shown('x' * 10_000)) < 250


class Told:
    """The policy node on a graph, and what it says about instructions."""

    def __init__(self, graph, **values):
        self.graph = graph
        self._said = graph.listen(vla=(DiagnosticStatus, '/vla/state')).create_publisher(
            String, '/instruction', qos.LATCHED)
        graph.hear('tasks', String, '/vla/tasks', qos.LATCHED)
        graph.start('vla_node', **{'policy': NANO} | values)

    def values(self):
        return conversions.status_values(self.graph.last('vla'))

    def tell(self, text):
        """Publish a sentence; return the values of the state that follows it."""
        before = self.values() if self.graph.last('vla') else {}
        self._said.publish(String(data=text))
        self.graph.spin(lambda: self.graph.last('vla') and any(
            self.values()[k] != before.get(k) for k in ('task', 'refusals')), 20, text)
        return self.values()

    def reached(self, state):
        self.graph.spin(lambda: self.graph.said('vla')[0] == state, 60, state)


def test_by_default_a_policy_takes_its_own_tasks_and_refuses_what_else_its_words_can_say(graph):
    told = Told(graph)
    told.reached('IDLE')
    graph.spin(lambda: graph.last('tasks'), 10, 'the tasks')
    assert json.loads(graph.last('tasks').data) == list(TASKS)
    values = told.tell('stack green on red')
    assert {key: values[key] for key in (
        'refusals', 'rejected_instruction', 'instruction', 'understood')} == {
            'refusals': '1', 'rejected_instruction': 'stack green on red', 'instruction': '',
            'understood': ''}
    assert 'the 6 tasks of the policy' in values['rejected'] and STACK in values['rejected']
    assert graph.said('vla')[0] == 'IDLE' and values['rejected'] in values['reason']
    values = told.tell('Put the lemon in the blue bin.')
    assert (values['instruction'], values['understood'], values['refusals'], values['rejected']
            ) == ('Put the lemon in the blue bin.', LEMON, '1', '')
    assert f'understood as: {LEMON}' in graph.log('vla_node')
    assert told.tell('')['rejected'] == 'it is empty'
    assert told.values()['understood'] == LEMON, 'the task goes on'


def test_a_sentence_told_before_the_policy_was_there_is_judged_when_it_is(graph):
    told = Told(graph, autostart='false')
    told.reached('UNCONFIGURED')
    assert told.tell('stack green on red')['refusals'] == '0'
    assert told.values()['action_space'] == '', 'no policy, no chunks'
    assert graph.change(Transition.TRANSITION_CONFIGURE)
    told.reached('INACTIVE')
    assert told.values()['action_space'] == 'OSC_POSE'
    assert graph.change(Transition.TRANSITION_ACTIVATE)
    told.reached('IDLE')
    graph.spin(lambda: told.values()['refusals'] == '1', 10, 'the refusal')
    assert told.values()['instruction'] == ''


def test_a_given_list_takes_the_place_of_the_tasks(graph):
    told = Told(graph, allowed_instructions='["Put the lemon in the blue bin.", " ", '
                                            '"stack red on green"]')
    told.reached('IDLE')
    assert 'was not trained on "stack red on green"' in graph.log('vla_node')
    refused = told.tell('push the green cube onto the yellow mark')['rejected']
    assert 'in allowed_instructions' in refused and 'nearest: "' in refused
    assert told.tell('Stack red on green')['understood'] == 'stack red on green'
    assert told.tell('PUT THE LEMON IN THE BLUE BIN')['understood'] == LEMON, 'as it was trained'
    graph.spin(lambda: graph.last('tasks'), 10, 'the tasks')
    assert json.loads(graph.last('tasks').data) == [
        LEMON, 'stack red on green']


@pytest.mark.parametrize('way', ['warn', 'no tasks named'])
def test_other_wording_is_tried_where_that_is_asked_for_or_the_policy_names_no_tasks(
        graph, tmp_path, way):
    values = {'on_unlisted': 'warn'}
    if way != 'warn':
        folder = tmp_path / 'policy'
        shutil.copytree(NANO, folder)
        manifest = json.loads((folder / 'manifest.json').read_text())
        del manifest['tasks']
        (folder / 'manifest.json').write_text(json.dumps(manifest))
        values = {'policy': folder}
    told = Told(graph, **values)
    told.reached('IDLE')
    assert told.tell('stack green on red')['understood'] == 'stack green on red'
    assert ('nearest' in graph.log('vla_node')) == (way == 'warn')
    assert "'please' is no word" in told.tell('please stack green on red')['rejected']
