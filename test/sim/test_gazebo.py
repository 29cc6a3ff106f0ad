"""The Gazebo world is the MuJoCo scene: same masses, joints, places, cameras and topics."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import mujoco
import numpy as np
import pytest
import yaml
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

import dtvla_sim
from dtvla_ros.conventions import ARM_JOINTS, FINGER_JOINTS, IMAGES
from dtvla_sim.gazebo.__main__ import main
from dtvla_sim.gazebo.model import topic_name
from dtvla_sim.tabletop.scene import CAMERA_EYE, CAMERA_TARGET

ROOT = Path(__file__).resolve().parents[2]
TASK, SEED, SIZE = 'put_the_lemon_in_the_blue_bin', 1_000_007, 96
CONTROLLERS = yaml.safe_load((ROOT / 'config/gazebo_controllers.yaml').read_text())
SETTINGS = yaml.safe_load((ROOT / 'config/gazebo.yaml').read_text())
BRIDGE = yaml.safe_load((ROOT / 'config/gz_bridge.yaml').read_text())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp('world')
    assert main(['--out', str(made), '--task', TASK, '--seed', str(SEED),
                 '--image-size', str(SIZE)]) == 0
    return made


@pytest.fixture(scope='module')
def world(folder):
    return ET.parse(folder / 'world.sdf').getroot().find('world')


@pytest.fixture(scope='module')
def urdf(folder):
    return ET.parse(folder / 'panda.urdf').getroot()


@pytest.fixture(scope='module')
def env():
    made = dtvla_sim.make('tabletop', image_size=SIZE)
    made.reset(seed=SEED, options={'task': TASK})
    yield made
    made.close()


def pose(text):
    """Return [4, 4] of position and roll, pitch, yaw as text."""
    numbers = [float(x) for x in text.split()]
    made = np.eye(4)
    made[:3, :3] = Rotation.from_euler('xyz', numbers[3:]).as_matrix()
    made[:3, 3] = numbers[:3]
    return made


def origin(element):
    """Return [4, 4] of a URDF element's origin."""
    made = element.find('origin')
    return pose(f'{made.get("xyz")} {made.get("rpy")}')


def motion(kind, axis, q):
    """Return [4, 4] of a joint of a kind at position ``q``."""
    made = np.eye(4)
    if kind == 'revolute':
        made[:3, :3] = Rotation.from_rotvec(q * axis).as_matrix()
    elif kind == 'prismatic':
        made[:3, 3] = q * axis
    return made


def sdf_places(world, q):
    """Return the world pose of every link of the arm at joint positions ``q`` by name."""
    arm = world.find("model[@name='panda']")
    joints = {j.findtext('child'): j for j in arm.findall('joint')}
    places = {}
    for link in arm.findall('link'):
        at, joint = link.find('pose'), joints[link.get('name')]
        parent = at.get('relative_to')
        assert joint.findtext('parent') == (parent or 'world')
        moved = np.eye(4)
        if joint.get('type') != 'fixed':
            axis = np.array(joint.findtext('axis/xyz').split(), float)
            moved = motion(joint.get('type'), axis, q[joint.get('name')])
        base = places[parent] if parent else pose(arm.findtext('pose'))
        places[link.get('name')] = base @ pose(at.text) @ moved
    return places


def urdf_places(urdf, base, q):
    """Return the same of the URDF, from the base's pose on."""
    places = {'panda_link0': base}
    for joint in urdf.findall('joint'):
        moved = np.eye(4)
        if joint.get('type') != 'fixed':
            axis = np.array(joint.find('axis').get('xyz').split(), float)
            moved = motion(joint.get('type'), axis, q[joint.get('name')])
        places[joint.find('child').get('link')] = (
            places[joint.find('parent').get('link')] @ origin(joint) @ moved)
    return places


def bent(env):
    """Bend the arm somewhere else; return the joint positions by their names on the topics."""
    m, d = env.model, env.data
    q = {}
    rng = np.random.default_rng(3)
    for j in range(m.njnt):
        if m.jnt_type[j] != mujoco.mjtJoint.mjJNT_FREE:
            value = rng.uniform(*m.jnt_range[j])
            d.qpos[m.jnt_qposadr[j]] = value
            q[topic_name(m.joint(j).name)] = value
    mujoco.mj_forward(m, d)
    return q


def test_gazebos_own_parser_finds_it_valid(folder):
    tool = shutil.which('gz') or shutil.which('ign')
    if tool is None:
        pytest.skip('neither gz nor ign is installed: on Debian, apt-get install ignition-tools '
                    'libsdformat-dev sdformat-sdf')
    done = subprocess.run([tool, 'sdf', '-k', folder / 'world.sdf'], capture_output=True,
                          text=True, timeout=60)
    said = done.stdout + done.stderr
    assert 'Valid.' in said and 'Error' not in said and 'Warning' not in said, said


def test_masses_add_up_to_mujocos(world, env):
    m = env.model
    masses = {link.get('name'): float(link.findtext('inertial/mass'))
              for link in world.iter('link') if link.find('inertial') is not None}
    assert sum(masses.values()) == pytest.approx(m.body_mass.sum(), rel=1e-9)
    for body in range(m.nbody):
        if m.body_mass[body]:
            assert masses[topic_name(m.body(body).name)] == pytest.approx(m.body_mass[body])


def test_joints_have_the_names_that_the_nodes_look_for(world, urdf):
    wanted = [*ARM_JOINTS, *FINGER_JOINTS]
    moving = [j.get('name') for j in world.iter('joint') if j.get('type') != 'fixed']
    assert moving == wanted
    assert [j.get('name') for j in urdf.findall('joint')
            if j.get('type') != 'fixed'] == wanted
    control = urdf.findall('ros2_control/joint')
    assert [j.get('name') for j in control] == wanted
    motion_controller = CONTROLLERS['cartesian_motion_controller']['ros__parameters']
    assert motion_controller['joints'] == list(ARM_JOINTS)
    commanded = [j.get('name') for j in control if j.find('command_interface') is not None]
    gripper = CONTROLLERS['gripper_controller']['ros__parameters']['joint']
    assert commanded == [*motion_controller['joints'], gripper]
    follower = urdf.find(f"joint[@name='{FINGER_JOINTS[1]}']/mimic")
    assert follower.get('joint') == gripper


def test_every_link_of_the_arm_goes_where_mujoco_puts_it(world, urdf, env):
    m, d = env.model, env.data
    q = bent(env)
    places = sdf_places(world, q)
    reached = urdf_places(urdf, places['panda_link0'], q)
    assert len(places) > len(ARM_JOINTS) + len(FINGER_JOINTS)
    for body in range(m.nbody):
        name = topic_name(m.body(body).name)
        for found in (places, reached):
            if name in found:
                assert np.allclose(found[name][:3, 3], d.xpos[body], atol=1e-6), name
                assert np.allclose(found[name][:3, :3], d.xmat[body].reshape(3, 3), atol=1e-6)


def test_the_end_effector_is_the_one_the_policy_knows(world, urdf, env):
    q = bent(env)
    seen = env.observe()
    reached = urdf_places(urdf, sdf_places(world, q)['panda_link0'], q)
    frame = reached[CONTROLLERS['cartesian_motion_controller']['ros__parameters'][
        'end_effector_link']]
    assert np.allclose(frame[:3, 3], seen['robot0_eef_pos'], atol=1e-6)
    turn = Rotation.from_matrix(frame[:3, :3]).inv() * Rotation.from_quat(seen['robot0_eef_quat'])
    assert turn.magnitude() < 1e-6
    base = sdf_places(world, q)['panda_link0']
    assert np.allclose(base[:3, 3], env.base_position) and np.allclose(base[:3, :3], np.eye(3))
    controller = CONTROLLERS['cartesian_motion_controller']['ros__parameters']
    for node in ('/vla/vla_node', '/command_gate'):
        settings = SETTINGS[node]['ros__parameters']
        assert settings['base_frame'] == controller['robot_base_link'] == 'panda_link0'
        assert settings['ee_frame'] == controller['end_effector_link']


def test_cameras_see_what_mujocos_see(world, env):
    m, d = env.model, env.data
    places = sdf_places(world, bent(env))
    sensors = {s.get('name'): (s, link.get('name'))
               for link in world.iter('link') for s in link.findall('sensor')}
    assert set(sensors) == {'camera_primary', 'camera_wrist'}
    for name, view in (('camera_primary', 'agentview'), ('camera_wrist', 'robot0_eye_in_hand')):
        sensor, link = sensors[name]
        frame = places.get(link, np.eye(4)) @ pose(sensor.findtext('pose'))
        index = m.camera(view).id
        # Gazebo looks along x with z up, MuJoCo along -z with y up.
        right, up, back = d.cam_xmat[index].reshape(3, 3).T
        assert np.allclose(frame[:3, 3], d.cam_xpos[index], atol=1e-6)
        assert np.allclose(frame[:3, :3], np.stack([-back, -right, up], axis=1), atol=1e-6)
        image = sensor.find('camera/image')
        assert image.findtext('width') == image.findtext('height') == str(SIZE)
        assert np.degrees(float(sensor.findtext('camera/horizontal_fov'))) == pytest.approx(
            m.cam_fovy[index])
    forward = pose(sensors['camera_primary'][0].findtext('pose'))[:3, 0]
    aim = (CAMERA_TARGET - CAMERA_EYE) / np.linalg.norm(CAMERA_TARGET - CAMERA_EYE)
    assert np.allclose(forward, aim, atol=1e-6)


def test_things_stand_where_the_seed_puts_them(world, env):
    env.reset(seed=SEED, options={'task': TASK})
    for name, body in env.scene.body_ids.items():
        model = world.find(f"model[@name='{name}']")
        assert np.allclose(pose(model.findtext('pose'))[:3, 3], env.scene.position(name))
        assert (model.findtext('static') == 'true') == (name in env.scene.fixtures), body


def corners(path):
    """Return the vertices [n, 3] and faces [m, 3] of a Wavefront file."""
    words = [line.split() for line in path.read_text().splitlines()]
    vertices = np.array([w[1:4] for w in words if w[0] == 'v'], float)
    faces = [[int(c.split('/')[0]) - 1 for c in w[1:]] for w in words if w[0] == 'f']
    return vertices, np.array(faces)


def test_what_collides_is_the_convex_hull_of_what_is_seen(folder, world):
    named = [e.text for e in world.iter('uri')]
    assert len(set(named)) > 50
    assert all(not Path(n).is_absolute() and (folder / n).is_file() for n in named)
    for name in ('can_mesh', 'lemon_mesh', 'gripper0_hand'):
        seen, _ = corners(folder / f'meshes/{name}.obj')
        hull, faces = corners(folder / f'meshes/{name}_hull.obj')
        a, b, c = (hull[faces[:, i]] for i in range(3))
        normals = np.cross(b - a, c - a)
        assert np.einsum('fi,fi->f', normals, a - hull.mean(0)).min() > -1e-12, 'faces look out'
        volume = np.einsum('fi,fi->f', np.cross(a, b), c).sum() / 6
        assert volume == pytest.approx(ConvexHull(seen).volume, rel=1e-3)


def test_pictures_are_wrapped_as_the_artist_did(folder):
    import robosuite

    source = Path(robosuite.__file__).parent / 'models/assets/objects/meshes/can.obj'
    if not source.exists():
        pytest.skip('robosuite keeps its can elsewhere')

    def places(path):
        return {tuple(np.round([float(x) for x in line.split()[1:3]], 3))
                for line in path.read_text().splitlines() if line.startswith('vt ')}
    mine, theirs = places(folder / 'meshes/can_mesh.obj'), places(source)
    assert len(mine & theirs) > 0.95 * len(mine)
    assert (folder / 'textures').is_dir() and list((folder / 'textures').glob('*can*.png'))


def test_the_bridge_carries_what_gazebo_sends_and_the_policy_takes(world):
    sent = {'/clock': 'gz.msgs.Clock'}
    for sensor in world.iter('sensor'):
        topic = f'/{sensor.findtext("topic")}'
        sent[topic] = 'gz.msgs.Image'
        sent[topic.rpartition('/')[0] + '/camera_info'] = 'gz.msgs.CameraInfo'
    assert {b['gz_topic_name']: b['gz_type_name'] for b in BRIDGE} == sent
    assert all(b['direction'] == 'GZ_TO_ROS' for b in BRIDGE)
    for bridged in BRIDGE:  # the same message on both sides
        assert bridged['ros_type_name'].split('/')[-1] == bridged['gz_type_name'].split('.')[-1]

    images = {b['ros_topic_name'] for b in BRIDGE if b['ros_type_name'] == 'sensor_msgs/msg/Image'}
    assert images == set(IMAGES.values())  # what the policy node subscribes to


def test_an_unknown_task_is_named(tmp_path, capsys):
    assert main(['--out', str(tmp_path / 'w'), '--task', 'fly']) == 2
    assert 'unknown task "fly"' in capsys.readouterr().err
