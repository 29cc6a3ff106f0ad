"""Grippers behind an action: a real server hears a goal whenever the command changes."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from rclpy.action import ActionServer

from dtvla_ros.nodes.command_adapters import make_adapter

action = pytest.importorskip('control_msgs.action', reason='control_msgs is not installed')


@pytest.mark.parametrize('kind', ['gripper_command', 'parallel_gripper_command'])
def test_a_goal_is_sent_when_the_command_changes_and_then_only(graph, kind):
    node = graph.listen('--ros-args', '-p', f'gripper:={kind}', twist=(TwistStamped, '/twist_cmd'))
    adapter = make_adapter(node, 'servo', 'base')
    goals, parallel = [], kind == 'parallel_gripper_command'
    server_type = action.ParallelGripperCommand if parallel else action.GripperCommand

    def command(*channels, goals_then):
        for channel in channels:
            heard = len(graph.of('twist'))
            adapter.send(np.array([0.0] * 6 + [channel]), 1.0)
            graph.spin(lambda heard=heard: len(graph.of('twist')) > heard, 20)
        graph.spin(lambda: len(goals) >= goals_then, 20)

    def execute(goal):
        """Note a goal and fail it, as a gripper does that grasped something."""
        goals.append(goal.request.command)
        goal.abort()
        return server_type.Result()

    command(-1.0, goals_then=0)
    assert adapter.gripper.listeners() == 0
    server = ActionServer(node, server_type, 'gripper_action', execute)
    graph.spin(lambda: adapter.gripper.listeners() == 1, 20)
    command(0.0, goals_then=0)
    graph.wait(0.2)
    assert not goals, 'no command yet'
    command(-1.0, -1.0, -1.0, goals_then=1)
    command(1.0, 1.0, 0.0, 1.0, goals_then=2)
    command(-1.0, -1.0, goals_then=3)
    graph.wait(0.3)
    told = [(g.position[0], g.effort[0], *g.name) if parallel else (g.position, g.max_effort)
            for g in goals]
    joint = ('panda_finger_joint1',) * parallel
    assert told == [(0.04, 20.0, *joint), (0.0, 20.0, *joint), (0.04, 20.0, *joint)]
    server.destroy()
    graph.spin(lambda: adapter.gripper.listeners() == 0, 20)
