"""The arm as URDF: kinematics for the controllers, and which joints they may command."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import mujoco

from dtvla_ros.conventions import FINGER_JOINTS

from . import surfaces
from .model import Array, Link, Model, add, moments, numbers, rpy, xyz

BASE = 'panda_link0'
FLANGE = 'panda_right_hand'
EE = 'panda_ee'
LEADER, FOLLOWER = FINGER_JOINTS
SPEED = {'revolute': 2.175, 'prismatic': 0.2}  # the Panda's data sheet [rad/s], [m/s]


def robot(m: mujoco.MjModel, arm: Model, ee: Array, folder: Path) -> ET.Element:
    """Return the arm from its base on, the policy's end effector ``ee`` [4, 4] in the flange."""
    root = ET.Element('robot', name=arm.name)
    reached = {BASE}
    for link in arm.links:
        if link.name != BASE and link.parent not in reached:
            continue  # the pedestal
        reached.add(link.name)
        _link(root, m, link, folder)
        if link.name != BASE:
            _joint(root, link)
    add(root, 'link', name=EE)
    fixed = add(root, 'joint', name=f'{EE}_fixed', type='fixed')
    add(fixed, 'parent', link=FLANGE)
    add(fixed, 'child', link=EE)
    add(fixed, 'origin', xyz=xyz(ee), rpy=rpy(ee))
    _ros2_control(root, arm)
    return root


def _link(root: ET.Element, m: mujoco.MjModel, link: Link, folder: Path) -> None:
    element = add(root, 'link', name=link.name)
    inertial = add(element, 'inertial')
    add(inertial, 'origin', xyz=xyz(link.inertial_pose), rpy=rpy(link.inertial_pose))
    add(inertial, 'mass', value=numbers(link.mass))
    add(inertial, 'inertia', **moments(link))
    for geom in link.geoms:
        if not (geom.visual and geom.shape == 'mesh'):
            continue
        visual = add(element, 'visual')
        add(visual, 'origin', xyz=xyz(geom.pose), rpy=rpy(geom.pose))
        path = folder.resolve() / surfaces.mesh_files(m, geom.index, folder)[0]
        add(add(visual, 'geometry'), 'mesh', filename=path.as_uri())
        material = add(visual, 'material', name=f'{geom.name}_material')
        add(material, 'color', rgba=numbers(surfaces.colour(m, geom.index)))


def _joint(root: ET.Element, link: Link) -> None:
    joint = link.joint
    element = add(root, 'joint', name=joint.name if joint else f'{link.name}_fixed',
                  type=joint.kind if joint else 'fixed')
    add(element, 'parent', link=link.parent)
    add(element, 'child', link=link.name)
    add(element, 'origin', xyz=xyz(link.pose), rpy=rpy(link.pose))
    if joint:
        add(element, 'axis', xyz=numbers(joint.axis))
        add(element, 'limit', lower=joint.low, upper=joint.high, effort=joint.effort,
            velocity=SPEED[joint.kind])
        add(element, 'dynamics', damping=joint.damping, friction=joint.friction)
        if joint.name == FOLLOWER:
            add(element, 'mimic', joint=LEADER, multiplier=-1)


def _ros2_control(root: ET.Element, arm: Model) -> None:
    control = add(root, 'ros2_control', name='gazebo', type='system')
    add(add(control, 'hardware'), 'plugin', 'gz_ros2_control/GazeboSimSystem')
    for link in arm.links:
        if link.joint is None:
            continue
        joint = add(control, 'joint', name=link.joint.name)
        if link.joint.name != FOLLOWER:
            add(joint, 'command_interface', name='position')
        position = add(joint, 'state_interface', name='position')
        add(position, 'param', link.joint.position, name='initial_value')
        add(joint, 'state_interface', name='velocity')
