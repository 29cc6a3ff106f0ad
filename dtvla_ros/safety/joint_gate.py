"""The gate of an arm that is commanded by its joints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.actions import osc
from dtvla_ros.actions.contract import JOINT_DELTA, ActionContract
from dtvla_ros.actions.joints import JointCommand
from dtvla_ros.safety.gate import Command, Gate, GateConfig, GateState
from dtvla_ros.safety.joint_limits import JointBounds, JointLimiter
from dtvla_ros.safety.limits import Limits

NO_TWISTS = ('a person drives by twists of the end effector, which an arm commanded by its joints '
             'does not follow')
NOT_MEASURED = 'no joint positions yet'
BEYOND = 0.05  # rad or m by which a row may miss a joint's range without breaking the contract


class JointGate(Gate):
    """Decides like `Gate`; its commands have ``joints``, and ``action`` is what they say [D].

    A row is a goal, of positions or of offsets from those measured when the row begins. The
    command goes there in the row's time, or as soon as the limits let it. Standing still it stays
    where it is; after STOP it begins anew from where the arm is measured. The pose of the end
    effector bounds nothing here, and is not waited for.
    """

    def __init__(self, config: GateConfig, bounds: JointBounds, contract: ActionContract) -> None:
        super().__init__(replace(config, pose_timeout_s=0.0), Limits(), contract)
        self._ticks_per_row, self._period = config.ticks_per_row, 1.0 / config.rate
        self.joint_limiter = JointLimiter(bounds, self._period)
        self._measured: NDArray[np.float64] | None = None
        self._goal = self._from = np.zeros(len(bounds.names))
        self._row: NDArray[Any] | None = None  # the present one
        self._ticks = 0  # of it

    def use(self, bounds: JointBounds) -> None:
        """Limit by other bounds from the next tick on, at rest."""
        before, self.joint_limiter = self.joint_limiter, JointLimiter(bounds, self._period)
        if before.commanded is not None:
            self.joint_limiter.rebase(before.commanded)

    def on_joints(self, positions: ArrayLike, stamp: float, steady: float) -> None:
        """Take positions [J] of the arm's joints, in the contract's order [rad or m]."""
        super().on_joints(positions, stamp, steady)
        if np.isfinite(positions).all():
            self._measured = np.asarray(positions, np.float64)
            if self.joint_limiter.commanded is None:
                self.joint_limiter.rebase(self._measured)

    def take_over(self, steady: float) -> str | None:
        """Return why nobody can drive this arm by twists."""
        return NO_TWISTS

    def _begin(self) -> None:
        if self._measured is not None:  # somebody may have moved the arm meanwhile
            self.joint_limiter.rebase(self._measured)
        super()._begin()

    def _speed(self, command: Command) -> NDArray[np.float64]:
        return self.joint_limiter.velocity if command.joints is None else (
            command.joints.velocities)

    def _play(self, row: NDArray[Any], now: float, first_tick: bool) -> Command:
        limiter, contract = self.joint_limiter, self._contract
        if self._measured is None or limiter.commanded is None:
            self._enter(GateState.HOLD, NOT_MEASURED)
            return self._stay(now)
        values = row.astype(np.float64)
        if row is not self._row:
            self._row = row
            self._goal, self._from, self._ticks = values[contract.motion], limiter.commanded, 0
            if contract.controller == JOINT_DELTA:
                self._goal = self._measured + self._goal
            far = limiter.bounds.beyond(self._goal)
            broken = float(far.max()) > BEYOND
            self._contract_breaks = self._contract_breaks + 1 if broken else 0
            if self._contract_breaks >= self._config.contract_breaks:
                worst = int(far.argmax())
                self.fault(f'{self._contract_breaks} actions in a row beyond the range of '
                           f'{limiter.bounds.names[worst]}')
                return self._stay(now)
        if contract.gripper_index is not None:
            said = float(contract.switch(values[contract.gripper_index]))
            self._grip = osc.gripper_command(said, self._grip)
        self._ticks += 1
        share = min(1.0, self._ticks / self._ticks_per_row)
        self._enter(GateState.RUN, '')
        limiter.clamp(self._from + share * (self._goal - self._from), self._measured)
        return self._command(now, played=True, first_tick=first_tick)

    def _stay(self, now: float, played: bool = False) -> Command:
        """Brake within the limits, or be still at once where the task has ended."""
        self._continuity.pause()
        if self.arm_unable and self._measured is not None:  # nothing to catch up with afterwards
            self.joint_limiter.rebase(self._measured)
        if self.ended or self.joint_limiter.commanded is None:
            self.joint_limiter.reset()
        else:
            self.joint_limiter.brake()
        return self._command(now, played, first_tick=True)

    def _command(self, now: float, played: bool, first_tick: bool) -> Command:
        limiter = self.joint_limiter
        if limiter.commanded is None:
            return Command(now, np.zeros(self._contract.dim), self.state, self.reason, played)
        moving = self.state is GateState.RUN or bool(limiter.velocity.any())
        joints = JointCommand(
            now, self._period, limiter.bounds.names, limiter.commanded.copy(),
            limiter.velocity.copy(), self._grip, moving, first_tick)
        action = np.empty(self._contract.dim)
        action[self._contract.motion] = limiter.commanded
        if (k := self._contract.gripper_index) is not None:
            action[k] = self._grip
        return Command(now, action, self.state, self.reason, played, first_tick, joints)
