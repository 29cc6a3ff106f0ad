"""The policy as a managed node: every state says why it is so."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState

from dtvla_ros.ros import conversions
from test.nodes.conftest import IN_NAMESPACE

MANAGED = [word.replace('autostart:=true', 'autostart:=false') for word in IN_NAMESPACE]


def test_every_state_has_a_reason_and_what_is_impossible_changes_nothing(graph, policy):
    folder, engine = policy
    graph.listen(vla=(DiagnosticStatus, '/vla/state'))
    graph.start('vla_node', *MANAGED, '-p', f'policy:={folder}', '-p', f'engine:={engine}')

    def reached(state):
        heard = [m for _, m in graph.of('vla')[-1:] if m.message == state]
        return [conversions.status_values(m)['reason'] for m in heard]

    def change(transition):
        return graph.call(ChangeState, '/vla/vla_node/change_state', ChangeState.Request(
            transition=Transition(id=transition))).success

    graph.spin(lambda: reached('UNCONFIGURED'), 60)
    assert reached('UNCONFIGURED') == ['not configured']
    assert not change(Transition.TRANSITION_ACTIVATE), 'before it was configured'
    assert not change(77)
    assert graph.processes['vla_node'].poll() is None

    assert change(Transition.TRANSITION_CONFIGURE)
    graph.spin(lambda: reached('INACTIVE'), 60)
    for _ in range(2):
        assert reached('INACTIVE') == ['not activated']
        assert change(Transition.TRANSITION_ACTIVATE)
        graph.spin(lambda: reached('IDLE'), 20)
        assert reached('IDLE') == ['no instruction']
        assert change(Transition.TRANSITION_DEACTIVATE)
        graph.spin(lambda: reached('INACTIVE'), 20)

    assert change(Transition.TRANSITION_CLEANUP)
    graph.spin(lambda: reached('UNCONFIGURED'), 20)
    assert reached('UNCONFIGURED') == ['not configured']
    state = graph.call(GetState, '/vla/vla_node/get_state', GetState.Request()).current_state
    assert state.id == State.PRIMARY_STATE_UNCONFIGURED
    assert graph.interrupt('vla_node') == 0
