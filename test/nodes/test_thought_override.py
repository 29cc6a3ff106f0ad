"""What a person puts into the thoughts of the policy node, over the real topics."""

import json
import re

from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from support.graph import NANO
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.ros import conversions, qos
from dtvla_ros.thought import EXAMPLE, as_sentence, parse_sentence

CAN = 'put the can in the wooden bin'
WAIT = 'Nothing in hand. Task complete, waiting by the can, 50 cm straight ahead. Keeping still.'

# A policy that finds no way on from 'wait'.
NO_WAY_ON = """
from dataclasses import replace
from dtvla_ros.engine import policy
_decide = policy.Policy.infer
def decide(self, observation, on_text=None, correction=None):
    decision = _decide(self, observation, on_text, correction)
    if correction is None or correction.said != 'wait':
        return decision
    begun = decision.reasoning.partition(' next ')[0]
    return replace(decision, reasoning=begun, outcome='truncated')
policy.Policy.infer = decide
"""


class Corrected:
    """Policy, gate and simulator, and what the policy says of its thoughts."""

    def __init__(self, graph, code='', **values):
        self.graph = graph
        node = graph.listen(vla=(DiagnosticStatus, '/vla/state'),
                            chunk=(JointTrajectory, '/vla/action_chunk'),
                            reasoning=(String, '/vla/reasoning'), sim=(String, '/sim/tasks'))
        self._told, self._stop = (node.create_publisher(*topic, qos.LATCHED) for topic in (
            (String, '/instruction'), (Bool, '/estop')))
        # As ros2 topic pub has it.
        self._override = node.create_publisher(String, '/vla/thought_override', qos.LATEST)
        graph.start('vla_node', 'sim', code=code, **{'policy': NANO} | values)
        graph.start('command_gate', 'sim')
        graph.start('sim_bridge', 'sim', endless='true')
        self.reached('IDLE')
        graph.spin(lambda: graph.last('sim'), 90, 'the simulator')

    def values(self):
        return conversions.status_values(self.graph.last('vla'))

    def reached(self, *states):
        self.graph.spin(lambda: self.graph.said('vla')[0] in states, 90, ' or '.join(states))

    def tell(self, task=CAN):
        before = self.values()['task']
        self._told.publish(String(data=task))
        self.graph.spin(lambda: self.values()['task'] != before, 30, task)

    def estop(self, pressed):
        self._stop.publish(Bool(data=pressed))

    def say(self, text):
        """Publish an override; return the values of the state that answers it."""
        before = self.answers()
        self._override.publish(String(data=text))
        self.graph.spin(lambda: self.answers() != before, 30, text)
        return self.values()

    def answers(self):
        return [self.values()[key] for key in ('overrides', 'override_refusals')]

    def decided(self, wanted, what):
        """Wait for a decision by the values of its state; return them."""
        self.graph.spin(lambda: wanted(self.values()), 60, what)
        return self.values()


def test_a_corrected_thought_is_marked_followed_and_ends(graph):
    policy = Corrected(graph)
    refused = policy.say('the lemon')
    assert 'no task is being done (IDLE, ' in refused['override_rejected']
    policy.tell()
    policy.decided(lambda v: 'now reach can' in v.get('thought', ''), 'the can')
    values = policy.say('the lemon')
    assert (values['override'], values['override_left']) == ('the lemon', '0')
    values = policy.decided(lambda v: v.get('forced'), 'the lemon')
    assert json.loads(values['forced']) == {'object': 'lemon'}
    assert 'now reach lemon at' in values['thought']
    marked = [m.data for _, m in graph.of('reasoning') if m.data.endswith(' (told: the lemon)')]
    assert marked and parse_sentence(marked[0]).object == 'lemon'
    assert not any('(told' in m.data and 'the can,' in m.data for _, m in graph.of('reasoning'))
    for nonsense, told in (('the banana', 'no thing of this policy.*say one of can, lemon'),
                           ('open the can', "'open' is not in the vocabulary"),
                           ('fly', 'no thing'), ('put\x07', 'control characters')):
        values = policy.say(nonsense)
        assert re.search(told, values['override_rejected'])
        assert values['override'] == 'the lemon', 'what stood before stands'
    assert 'thought override "the banana": ' in graph.log('vla_node')
    policy.say('')
    values = policy.decided(lambda v: not v['forced'], 'its own thought')
    assert 'lemon' not in values['thought'] and values['override'] == ''
    policy.say(EXAMPLE)
    values = policy.decided(lambda v: v['forced'], 'the sentence')
    assert as_sentence(values['thought']) == EXAMPLE
    policy.tell()
    assert policy.values()['override'] == '', 'a new task clears it'
    assert graph.set('/vla/vla_node', override_decisions=3)[0].successful is False


def test_it_counts_for_so_many_decisions_and_no_stop_leaves_it(graph):
    policy = Corrected(graph, NO_WAY_ON, override_decisions=3)
    policy.tell()
    policy.decided(lambda v: v.get('thought'), 'a thought')
    assert policy.say('move up')['override_left'] == '3'
    policy.decided(lambda v: v['override'] == '', 'three decisions')
    told = [m.data.endswith('(told: move up)') for _, m in graph.of('reasoning')]
    assert sum(told) == 3 and 'thought override over' in graph.log('vla_node')
    policy.say(WAIT)
    policy.decided(lambda v: v['override'] == '', 'three decisions')
    assert graph.said('vla')[0] in ('THINKING', 'ACTING'), 'only the policy says done'
    refusals = int(policy.say('wait')['override_refusals'])
    values = policy.decided(lambda v: int(v['override_refusals']) > refusals, 'the refusal')
    assert '"wait": the policy wrote no whole thought around it: "' in values['override_rejected']
    assert values['override'] == '' and not any(
        'waiting' in m.data for _, m in graph.of('reasoning') if '(told: wait)' in m.data)
    policy.decided(lambda v: not v['forced'], 'a thought of its own')
    policy.say('move up')
    policy.estop(True)
    policy.reached('FAULT')
    chunks = len(graph.of('chunk'))
    assert policy.values()['override'] == ''
    assert 'FAULT, e-stop' in policy.say('move down')['override_rejected']
    policy.say('')
    graph.wait(0.5)
    assert len(graph.of('chunk')) == chunks and policy.values()['override'] == ''
    policy.estop(False)
    assert graph.call(Trigger, '/clear_fault').success
