"""A gate fed by hand, at 20 Hz."""

import dataclasses

import numpy as np
import pytest

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.safety.gate import Gate, GateConfig, GateState
from dtvla_ros.safety.limits import PROFILES

DT = 0.05
USUAL = {'auto_start': True, 'heartbeat_timeout_s': 0.12, 'joints_timeout_s': 0.15,
         'pose_timeout_s': 0.15, 'clock_stall_s': 0.12, 'gripper_timeout_s': 0.0}


class Rig:
    """A gate fed like a live system at 20 Hz, unless told to leave something out."""

    def __init__(self, limits=PROFILES['fidelity'], contract=ActionContract(), **config):
        config = GateConfig(**{**USUAL, **config})
        self.period, self.gate = 1.0 / config.rate, Gate(config, limits, contract)
        self.now, self.steady, self.task = 100.0, 7.0, '0'
        self.heal()

    def heal(self):
        self.position, self.policy_state, self.joints = [0.5, 0.0, 0.3], 'THINKING', 0.0
        self.quaternion = osc.HOME.as_quat()
        self.silent, self.joint_stamp, self.pose_ahead, self.clock_stands = '', None, 0.0, False
        self.gate.on_estop(False)
        self.gate.arm_unable = ''
        self.gate.pause(False)

    def chunk(self, value=0.5, rows=8, stamp=None, **change):
        values = np.full((rows, 7), value, np.float32)
        values[:, 6] = 1.0
        made = Chunk(self.now if stamp is None else stamp, DT, values)
        return self.gate.on_chunk(dataclasses.replace(made, **change), self.now)

    def tick(self):
        self.now += self.period * (not self.clock_stands)
        self.steady += self.period
        gate, now, steady = self.gate, self.now, self.steady
        if self.silent != 'heartbeat':
            gate.on_heartbeat(steady, self.policy_state, 'because', self.task)
        if self.silent != 'joints':
            gate.on_joints(np.full(7, self.joints), self.joint_stamp or now, steady)
        if self.silent != 'pose':
            gate.on_pose(self.position, self.quaternion, now + self.pose_ahead, steady)
        return gate.tick(now, steady)

    def moving(self, value=0.5, rows=8):
        """It moves with a new chunk."""
        self.tick()
        assert self.chunk(value, rows) is None
        command = self.tick()
        assert command.state is GateState.RUN and command.action[0] == pytest.approx(value)
        return self


def still(command, gripper=1.0):
    """Whether a command keeps the arm still and the gripper as it is."""
    np.testing.assert_array_equal(command.action, [0, 0, 0, 0, 0, 0, gripper])
    return True
