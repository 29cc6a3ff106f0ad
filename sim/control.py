"""A control step of robosuite's arm that computes each thing once, for every suite here.

robosuite 1.4.0 runs ``mj_forward`` twice before every ``mj_step``, which computes the same once
more. Here the controller reads between the two halves of one ``mj_step``. Torques are robosuite's
own, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtvla_ros.actions import osc


def scene_settings() -> dict[str, Any]:
    """Return the arguments LIBERO's own evaluation gives to its environments, without cameras."""
    from robosuite.controllers import load_controller_config

    return {
        'robots': ['Panda'], 'gripper_types': 'default', 'initialization_noise': None,
        'controller_configs': load_controller_config(default_controller='OSC_POSE'),
        'control_freq': 20, 'ignore_done': True, 'hard_reset': False, 'has_renderer': False,
        'has_offscreen_renderer': False, 'use_camera_obs': False,
    }


class ArmControl:
    """Operational-space control of a robosuite Panda at the rate of the physics.

    Parameters
    ----------
    env
        A robosuite environment with one arm under ``OSC_POSE``: fixed impedance, deltas, no
        interpolation.

    Raises ValueError if the controller is set up otherwise.
    """

    def __init__(self, env: Any):
        from robosuite.utils import control_utils

        self._law = control_utils
        self.robot = robot = env.robots[0]
        controller = robot.controller
        if (controller.impedance_mode, controller.use_delta, controller.uncoupling,
                controller.interpolator_pos, controller.interpolator_ori) != (
                'fixed', True, True, None, None):
            raise ValueError('the arm must run OSC_POSE with fixed impedance and deltas')
        self.model: mujoco.MjModel = env.sim.model._model
        self.data: mujoco.MjData = env.sim.data._data
        self.substeps = int(env.control_timestep / env.model_timestep)
        self.site = self.model.site(controller.eef_name).id
        self.qpos, self.qvel = controller.qpos_index, controller.qvel_index
        self.arm_motors = robot._ref_joint_actuator_indexes
        self.torque_limits = self.model.actuator_ctrlrange[self.arm_motors].T.copy()  # [2, 7]
        self.finger_motors = [self.model.actuator(n).id for n in robot.gripper.actuators]
        span = self.model.actuator_ctrlrange[self.finger_motors]  # [2, low/high]
        self.finger_bias = 0.5 * (span[:, 1] + span[:, 0])
        self.finger_weight = 0.5 * (span[:, 1] - span[:, 0])
        self._finger_geoms = [{self.model.geom(g).id for g in robot.gripper.important_geoms[side]}
                              for side in ('left_finger', 'right_finger')]
        self._jacobian = np.zeros((2, 3, self.model.nv))  # position, orientation
        self._mass = np.zeros((self.model.nv, self.model.nv))

    def step(self, action: NDArray[np.float64]) -> None:
        """Run one control step (50 ms) under a command [7], as ``MujocoEnv.step`` would."""
        model, data, controller = self.model, self.data, self.robot.controller
        motion, grip = action[:-1], action[-1:]
        for substep in range(self.substeps):
            mujoco.mj_step1(model, data)
            if controller.new_update:  # robosuite begins an episode with what it read in reset
                self._read()
            if substep == 0:
                self._set_goal(motion)
            fingers = self.robot.gripper.format_action(grip)
            data.ctrl[self.arm_motors] = np.clip(self._torques(), *self.torque_limits)
            data.ctrl[self.finger_motors] = self.finger_bias + self.finger_weight * fingers
            mujoco.mj_step2(model, data)
            controller.new_update = True

    @property
    def base(self) -> NDArray[np.float64]:
        """World position [3] of the robot's base [m]; its axes are the world's."""
        return np.array(self.data.xpos[self.model.body(self.robot.robot_model.root_body).id])

    def towards(self, action: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the motion part of what leads where an action of OSC_POSE [>=6] does, from here.

        As `step` takes it, without the gripper.
        """
        return np.asarray(action, np.float64)[:6]

    def _set_goal(self, motion: NDArray[np.float64]) -> None:
        self.robot.controller.set_goal(motion)

    def holds(self, geoms: Collection[int]) -> bool:
        """Return whether both fingers touch one of an object's ``geoms``."""
        touched = {b for contact in self.data.contact[:self.data.ncon]
                   for a, b in ((contact.geom1, contact.geom2), (contact.geom2, contact.geom1))
                   if a in geoms}
        return all(touched & finger for finger in self._finger_geoms)

    def end_effector(self) -> NDArray[np.float64]:
        """World position [3] of the grip site [m]."""
        return np.array(self.data.site_xpos[self.robot.eef_site_id])

    def opening(self) -> float:
        """Return the distance between the fingers [m]."""
        left, right = self.data.qpos[self.robot._ref_gripper_joint_pos_indexes]
        return float(left - right)

    def _read(self) -> None:
        """Bring to the controller what its own ``update`` would, without its ``mj_forward``."""
        data, controller = self.data, self.robot.controller
        mujoco.mj_jacSite(self.model, data, *self._jacobian, self.site)
        controller.ee_pos = np.array(data.site_xpos[self.site])
        controller.ee_ori_mat = np.array(data.site_xmat[self.site].reshape(3, 3))
        controller.ee_pos_vel, controller.ee_ori_vel = (
            np.dot(j, data.qvel) for j in self._jacobian)
        controller.joint_pos = np.array(data.qpos[self.qpos])
        controller.joint_vel = np.array(data.qvel[self.qvel])
        controller.J_pos, controller.J_ori = (j[:, self.qvel] for j in self._jacobian)
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        mujoco.mj_fullM(self.model, self._mass, data.qM)
        controller.mass_matrix = self._mass[self.qvel, :][:, self.qvel]
        controller.new_update = False

    def _torques(self) -> NDArray[np.float64]:
        """Return joint torques [7] N m towards the controller's goal, gravity compensated.

        O. Khatib, "A unified approach for motion and force control of robot manipulators: The
        operational space formulation", IEEE J. Robotics and Automation 3(1), 1987.
        """
        c, law = self.robot.controller, self._law
        force = (c.goal_pos - c.ee_pos) * c.kp[:3] + -c.ee_pos_vel * c.kd[:3]
        torque = (law.orientation_error(c.goal_ori, c.ee_ori_mat) * c.kp[3:]
                  + -c.ee_ori_vel * c.kd[3:])
        _, inertia_pos, inertia_ori, nullspace = law.opspace_matrices(
            c.mass_matrix, c.J_full, c.J_pos, c.J_ori)
        wrench = np.concatenate([np.dot(inertia_pos, force), np.dot(inertia_ori, torque)])
        torques = np.dot(c.J_full.T, wrench) + self.data.qfrc_bias[self.qvel]
        torques += law.nullspace_torques(
            c.mass_matrix, nullspace, c.initial_joint, c.joint_pos, c.joint_vel)
        return np.array(torques)


class PoseControl(ArmControl):
    """The same law towards poses in the base frame, rows of OSC_POSE_ABSOLUTE."""

    def towards(self, action: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the pose [6] to which an action of OSC_POSE [>=6] leads, from here."""
        goal = Rotation.from_matrix(self.robot.controller.goal_ori) * self._mount()
        return osc.pose_row(*osc.target_pose(
            action, self.end_effector() - self.base, self._turned().as_quat(), goal.as_quat()))

    def _set_goal(self, motion: NDArray[np.float64]) -> None:
        position, turned = osc.pose_of(motion)
        goal = Rotation.from_quat(turned) * self._mount().inv()
        self.robot.controller.goal_pos = self.base + position
        self.robot.controller.goal_ori = goal.as_matrix()

    def _turned(self) -> Rotation:
        """Orientation of the gripper, as observations have it."""
        body = self.model.body(self.robot.robot_model.eef_name).id
        return Rotation.from_matrix(self.data.xmat[body].reshape(3, 3))

    def _mount(self) -> Rotation:
        """How the gripper is turned away from the grip site, whose goals the controller has."""
        return Rotation.from_matrix(
            self.data.site_xmat[self.site].reshape(3, 3)).inv() * self._turned()


class JointControl(ArmControl):
    """Position control of some of a Panda's joints; the others hold where an episode begins.

    robosuite's JOINT_POSITION law, towards absolute positions. ``joints``: which ones of the arm's
    are commanded, from 0.
    """

    KP = 300.0  # [1/s^2], critically damped
    # Offset of a goal that moves the end effector as fast as a unit of OSC_POSE does [m, rad].
    METRES_PER_UNIT, RADIANS_PER_UNIT = 0.0375, 0.375
    TURN_WEIGHT = 0.2  # of a radian against a metre
    DAMPING = 1e-3  # of the least squares
    MARGIN = 0.01  # of goals from the ends of a joint's range [rad]

    def __init__(self, env: Any, joints: Sequence[int]):
        super().__init__(env)
        self.joints = list(joints)
        self._goal = np.array(self.robot.init_qpos, np.float64)
        ids = [self.model.joint(name).id for name in self.robot.robot_joints]
        self._range = self.model.jnt_range[ids][self.joints].T + [[self.MARGIN], [-self.MARGIN]]

    def positions(self) -> NDArray[np.float64]:
        """Return where the commanded joints are [rad]."""
        return np.array(self.data.qpos[self.qpos][self.joints])

    def towards(self, action: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the positions that lead where an action of OSC_POSE [>=6] does, from here.

        By damped least squares; what the joints cannot turn stays as it is.
        """
        mujoco.mj_jacSite(self.model, self.data, *self._jacobian, self.site)
        jacobian = self._jacobian.reshape(6, -1)[:, np.array(self.qvel)[self.joints]]
        weights = np.repeat([1.0, self.TURN_WEIGHT], 3)
        units = np.repeat([self.METRES_PER_UNIT, self.RADIANS_PER_UNIT], 3)
        wanted = weights * units * np.clip(np.asarray(action, np.float64)[:6], -1.0, 1.0)
        weighted = weights[:, None] * jacobian  # [6, J]
        offset = np.linalg.solve(
            weighted.T @ weighted + self.DAMPING * np.eye(len(self.joints)), weighted.T @ wanted)
        return np.clip(self.positions() + offset, *self._range)

    def _set_goal(self, motion: NDArray[np.float64]) -> None:
        self._goal[self.joints] = np.clip(motion, *self._range)

    def _torques(self) -> NDArray[np.float64]:
        c = self.robot.controller
        wanted = self.KP * (self._goal - c.joint_pos) - 2.0 * np.sqrt(self.KP) * c.joint_vel
        return np.array(c.mass_matrix @ wanted + self.data.qfrc_bias[self.qvel])
