"""Grippers behind an action: a real server hears a goal whenever the command changes."""

from __future__ import annotations

import pytest
from geometry_msgs.msg import TwistStamped
from rclpy.action import ActionServer

from dtvla_ros.nodes.command_adapters import make_adapter
from dtvla_ros.ros.conversions import floats

action = pytest.importorskip('control_msgs.action', reason='control_msgs is not installed')


class Gripper:
    """A gripper driver that notes every goal and fails it, as one that grasped something."""

    def __init__(self, node, kind):
        self._type, self.goals = kind, []
        self._server = ActionServer(node, kind, 'gripper_action', self._execute)

    def _execute(self, goal):
        self.goals.append(goal.request.command)
        goal.abort()
        return self._type.Result()

    def close(self):
        self._server.destroy()


@pytest.mark.parametrize('kind', ['gripper_command', 'parallel_gripper_command'])
def test_a_goal_is_sent_when_the_command_changes_and_then_only(graph, kind):
    node = graph.listen('--ros-args', '-p', f'gripper:={kind}',
                        twist=(TwistStamped, '/twist_cmd'))
    adapter = make_adapter(node, 'servo', 'base')

    def command(*channels):
        for channel in channels:
            heard = len(graph.of('twist'))
            adapter.send(floats([0.0] * 6 + [channel]), 1.0)
            graph.spin(lambda heard=heard: len(graph.of('twist')) > heard, 20)

    def positions():
        parallel = kind == 'parallel_gripper_command'
        return [(g.position[0], g.effort[0]) if parallel else (g.position, g.max_effort)
                for g in gripper.goals]

    command(-1.0)
    assert adapter.gripper.listeners() == 0
    gripper = Gripper(node, action.ParallelGripperCommand if kind.startswith('parallel')
                      else action.GripperCommand)
    graph.spin(lambda: adapter.gripper.listeners() == 1, 20)
    command(0.0)
    graph.wait(0.2)
    assert not gripper.goals, 'no command yet'

    command(-1.0, -1.0, -1.0)
    graph.spin(lambda: gripper.goals, 20)
    command(1.0, 1.0, 0.0, 1.0)
    graph.spin(lambda: len(gripper.goals) == 2, 20)
    command(-1.0, -1.0)
    graph.spin(lambda: len(gripper.goals) == 3, 20)
    graph.wait(0.3)
    assert positions() == [(0.04, 20.0), (0.0, 20.0), (0.04, 20.0)]
    if kind.startswith('parallel'):
        assert list(gripper.goals[0].name) == ['panda_finger_joint1']
    gripper.close()
    graph.spin(lambda: adapter.gripper.listeners() == 0, 20)
