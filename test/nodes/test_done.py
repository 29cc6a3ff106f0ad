"""A policy that says that its task is complete, among the real simulator and gate."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import String
from std_srvs.srv import Trigger
from support.graph import NANO
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.ros import conversions, qos

LEMON = 'put the lemon in the blue bin'
WAIT = 'holding nothing done can now wait can at x50 y-17 next wait move still still still'
SAYS_SO = f"""
from dataclasses import replace
from dtvla_ros.engine import policy
_decide, _made = policy.Policy.infer, []
def decide(self, *arguments):
    _made.append(0)
    decision = _decide(self, *arguments)
    return decision if len(_made) < 3 else replace(decision, reasoning={WAIT!r})
policy.Policy.infer = decide
"""


@pytest.mark.parametrize('config', [
    'sim_realtime', pytest.param('sim', marks=pytest.mark.slow)])
def test_the_node_ends_the_task_and_begins_nothing_else_until_it_is_told(graph, config):
    node = graph.listen(
        chunk=(JointTrajectory, '/vla/action_chunk'), vla=(DiagnosticStatus, '/vla/state'),
        gate=(DiagnosticStatus, '/gate_state'), action=(JointTrajectory, '/action'),
        reasoning=(String, '/vla/reasoning'), sim=(String, '/sim/tasks'))
    say = node.create_publisher(String, '/instruction', qos.LATCHED)
    graph.start('vla_node', config, code=SAYS_SO, policy=NANO)
    graph.start('command_gate', config)
    graph.start('sim_bridge', config, endless='true')
    graph.spin(lambda: graph.last('sim') and graph.said('vla')[0] == 'IDLE', 90, 'the nodes')

    def ends(decisions):
        """Return how many chunks there were when a task has ended; nothing follows."""
        graph.spin(lambda: graph.said('vla')[0] == 'DONE', 30, 'the end')
        graph.spin(lambda: graph.said('gate') == ('HOLD', 'policy says that the task is done'),
                   10, 'the gate')
        before = len(graph.of('chunk'))
        graph.wait(0.5)
        assert graph.said('vla') == ('DONE', 'the policy says that the task is complete')
        assert graph.said('gate')[0] == 'HOLD' and len(graph.of('chunk')) == before
        assert len(graph.of('reasoning')) == decisions
        return len({conversions.seconds(m.header.stamp) for _, m in graph.of('chunk')})

    say.publish(String(data=LEMON))
    assert ends(5) == 4
    if config == 'sim_realtime':
        assert not np.any(graph.last('action').points[0].positions[:6]), 'the arm is still'
    say.publish(String(data=LEMON))
    graph.spin(lambda: graph.said('vla')[0] != 'DONE', 10, 'the same once more')
    assert ends(8) == 6
    assert graph.call(Trigger, '/vla/reset_episode').success
    graph.spin(lambda: graph.said('vla')[0] != 'DONE', 10, 'the task anew')
    assert ends(11) == 8
    assert f'done: {LEMON}' in graph.log('vla_node')
