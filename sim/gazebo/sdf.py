"""The world as SDF for Gazebo Harmonic and later."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree as ET

import mujoco
import numpy as np

from . import surfaces
from .model import (
    Geom,
    Link,
    Model,
    add,
    add_all,
    grey,
    matrix,
    moments,
    numbers,
    rpy,
    topic_name,
    xyz,
)

SYSTEMS = {
    'gz-sim-physics-system': 'gz::sim::systems::Physics',
    'gz-sim-user-commands-system': 'gz::sim::systems::UserCommands',
    'gz-sim-scene-broadcaster-system': 'gz::sim::systems::SceneBroadcaster',
}
CAMERAS = {'agentview': 'camera_primary', 'robot0_eye_in_hand': 'camera_wrist'}
CAMERA_RATE = 20.0  # [Hz]
# MuJoCo looks along -z with y up, Gazebo along x with z up.
CAMERA_AXES = np.eye(4)
CAMERA_AXES[:3, :3] = [[0, -1, 0], [0, 0, 1], [-1, 0, 0]]


def world(
    m: mujoco.MjModel, parts: Iterable[Model], folder: Path, controllers: Path, image_size: int,
) -> ET.Element:
    """Return the document; meshes and textures it names are written into ``folder``."""
    root = ET.Element('sdf', version='1.9')
    scene = add(root, 'world', name='tabletop')
    add_all(add(scene, 'physics', name='default', type='ignored'),
            max_step_size=m.opt.timestep, real_time_factor=1.0)
    for filename, name in SYSTEMS.items():
        add(scene, 'plugin', filename=filename, name=name)
    sensors = add(scene, 'plugin', filename='gz-sim-sensors-system',
                  name='gz::sim::systems::Sensors')
    add(sensors, 'render_engine', 'ogre2')
    add(scene, 'gravity', m.opt.gravity)
    add_all(add(scene, 'scene'), ambient=grey(0.6), background=grey(0.7), shadows=False)
    for k in range(m.nlight):
        light = add(scene, 'light', name=f'light{k}', type='directional')
        add_all(
            light, pose=[*m.light_pos[k], 0, 0, 0], direction=m.light_dir[k],
            diffuse=[*m.light_diffuse[k], 1], specular=grey(0.1), cast_shadows=False)
    for part in parts:
        _model(scene, m, part, folder, controllers, image_size)
    _standing_cameras(scene, m, image_size)
    return root


def _model(
    scene: ET.Element, m: mujoco.MjModel, part: Model, folder: Path, controllers: Path, size: int,
) -> None:
    model = add(scene, 'model', name=part.name)
    if part.kind == 'fixed':
        add(model, 'static', True)
    add(model, 'pose', f'{xyz(part.pose)} {rpy(part.pose)}')
    for link in part.links:
        element = _link(model, m, link, folder)
        for k in range(m.ncam):
            if topic_name(m.body(m.cam_bodyid[k]).name) == link.name:
                _camera(element, m, k, size)
        if part.kind == 'arm':
            _joint(model, link)
    if part.kind == 'arm':
        plugin = add(model, 'plugin', filename='gz_ros2_control-system',
                     name='gz_ros2_control::GazeboSimROS2ControlPlugin')
        add(plugin, 'parameters', str(controllers))


def _link(model: ET.Element, m: mujoco.MjModel, link: Link, folder: Path) -> ET.Element:
    element = add(model, 'link', name=link.name)
    where = {'relative_to': link.parent} if link.parent else {}
    add(element, 'pose', f'{xyz(link.pose)} {rpy(link.pose)}', **where)
    if link.mass:
        inertial = add(element, 'inertial')
        add_all(
            inertial, mass=link.mass, pose=f'{xyz(link.inertial_pose)} {rpy(link.inertial_pose)}')
        inertia = add(inertial, 'inertia')
        for name, value in moments(link).items():
            add(inertia, name, value)
    for geom in link.geoms:
        name = geom.name or f'geom{geom.index}'
        if geom.visual:
            visual = add(element, 'visual', name=f'{name}_visual')
            add(visual, 'pose', f'{xyz(geom.pose)} {rpy(geom.pose)}')
            _shape(visual, m, geom, folder, seen=True)
            _material(visual, m, geom, folder)
        if geom.collides:
            collision = add(element, 'collision', name=f'{name}_collision')
            add(collision, 'pose', f'{xyz(geom.pose)} {rpy(geom.pose)}')
            _shape(collision, m, geom, folder, seen=False)
            add_all(add(add(add(collision, 'surface'), 'friction'), 'ode'),
                    mu=geom.friction, mu2=geom.friction)
    return element


def _shape(
    parent: ET.Element, m: mujoco.MjModel, geom: Geom, folder: Path, seen: bool,
) -> None:
    shape = add(add(parent, 'geometry'), geom.shape)
    size = geom.size
    if geom.shape == 'mesh':
        add(shape, 'uri', surfaces.mesh_files(m, geom.index, folder)[0 if seen else 1])
    elif geom.shape == 'box':
        add(shape, 'size', 2 * size)
    elif geom.shape == 'plane':
        add_all(shape, normal=[0, 0, 1], size=2 * size[:2])
    elif geom.shape == 'ellipsoid':
        add(shape, 'radii', size)
    else:
        add(shape, 'radius', float(size[0]))
        if geom.shape != 'sphere':
            add(shape, 'length', float(2 * size[1]))


def _material(visual: ET.Element, m: mujoco.MjModel, geom: Geom, folder: Path) -> None:
    material = add(visual, 'material')
    texture = surfaces.texture_file(m, geom.index, folder)
    rgba = numbers(surfaces.colour(m, geom.index)) if texture is None else grey(1.0)
    add_all(material, ambient=rgba, diffuse=rgba, specular=grey(0.1))
    if texture is not None:
        metal = add(add(material, 'pbr'), 'metal')
        add_all(metal, albedo_map=texture, metalness=0.0, roughness=0.9)


def _joint(model: ET.Element, link: Link) -> None:
    joint = link.joint
    element = add(model, 'joint', name=joint.name if joint else f'{link.name}_fixed',
                  type=joint.kind if joint else 'fixed')
    add_all(element, parent=link.parent or 'world', child=link.name)
    if joint:
        axis = add(element, 'axis')
        add(axis, 'xyz', joint.axis)
        add_all(add(axis, 'limit'), lower=joint.low, upper=joint.high, effort=joint.effort)
        add_all(add(axis, 'dynamics'), damping=joint.damping, friction=joint.friction)


def _standing_cameras(scene: ET.Element, m: mujoco.MjModel, size: int) -> None:
    for k in range(m.ncam):
        name = CAMERAS.get(m.cam(k).name)
        if name and m.cam_bodyid[k] == 0:
            model = add(scene, 'model', name=name)
            add(model, 'static', True)
            _camera(add(model, 'link', name='link'), m, k, size)


def _camera(link: ET.Element, m: mujoco.MjModel, k: int, size: int) -> None:
    name = CAMERAS.get(m.cam(k).name)
    if name is None:
        return
    pose = matrix(m.cam_pos[k], m.cam_quat[k]) @ CAMERA_AXES
    sensor = add(link, 'sensor', name=name, type='camera')
    add(sensor, 'pose', f'{xyz(pose)} {rpy(pose)}')
    add(sensor, 'topic', f'{name}/image')  # camera_info appears beside it
    add_all(sensor, update_rate=CAMERA_RATE, always_on=True)
    camera = add(sensor, 'camera')
    # Square images: the vertical field of view is the horizontal one.
    add(camera, 'horizontal_fov', float(np.radians(m.cam_fovy[k])))
    add_all(add(camera, 'image'), width=str(size), height=str(size), format='R8G8B8')
    add_all(add(camera, 'clip'), near=0.01, far=10.0)
