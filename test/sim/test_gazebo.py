"""The Gazebo world is the MuJoCo scene: same masses, joints, places, cameras and topics."""

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

ROOT = Path(__file__).resolve().parents[2]
TASK, SEED, SIZE = 'put_the_lemon_in_the_blue_bin', 1_000_007, 96
CONTROLLERS, SETTINGS, BRIDGE = (yaml.safe_load((ROOT / f'config/{name}.yaml').read_text())
                                 for name in ('gazebo_controllers', 'gazebo', 'gz_bridge'))
MOTION = CONTROLLERS['cartesian_motion_controller']['ros__parameters']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp('world')
    assert main(f'--out {made} --task {TASK} --seed {SEED} --image-size {SIZE}'.split()) == 0
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


def vector(text):
    return np.array(text.split(), float)


def pose(text):
    """Return [4, 4] of position and roll, pitch, yaw as text."""
    made, numbers = np.eye(4), vector(text)
    made[:3, :3] = Rotation.from_euler('xyz', numbers[3:]).as_matrix()
    made[:3, 3] = numbers[:3]
    return made


def sdf_rows(world):
    """Return of every link of the arm: its name, its parent's, its pose, its joint and axis."""
    arm = world.find("model[@name='panda']")
    joints = {j.findtext('child'): j for j in arm.findall('joint')}
    for link in arm.findall('link'):
        at, joint = link.find('pose'), joints[link.get('name')]
        parent = at.get('relative_to')
        assert joint.findtext('parent') == (parent or 'world')
        yield link.get('name'), parent, pose(at.text), joint, joint.findtext('axis/xyz')


def urdf_rows(urdf):
    """Return the same of the URDF."""
    for joint in urdf.findall('joint'):
        child, parent, at, axis = map(joint.find, ('child', 'parent', 'origin', 'axis'))
        yield (child.get('link'), parent.get('link'), pose(f'{at.get("xyz")} {at.get("rpy")}'),
               joint, None if axis is None else axis.get('xyz'))


def places(rows, base, q):
    """Return the world pose of every link at joint positions ``q`` by name, from ``base`` on."""
    found = dict(base)
    for name, parent, at, joint, axis in rows:
        moved = np.eye(4)
        if joint.get('type') == 'revolute':
            moved[:3, :3] = Rotation.from_rotvec(q[joint.get('name')] * vector(axis)).as_matrix()
        elif joint.get('type') == 'prismatic':
            moved[:3, 3] = q[joint.get('name')] * vector(axis)
        found[name] = found[parent] @ at @ moved
    return found


@pytest.fixture
def bent(env, world, urdf):
    """Bend the arm somewhere else; return where SDF and URDF have its links by name."""
    m, d, q, rng = env.model, env.data, {}, np.random.default_rng(3)
    for j in np.flatnonzero(m.jnt_type != mujoco.mjtJoint.mjJNT_FREE):
        q[topic_name(m.joint(j).name)] = d.qpos[m.jnt_qposadr[j]] = rng.uniform(*m.jnt_range[j])
    mujoco.mj_forward(m, d)
    base = pose(world.findtext("model[@name='panda']/pose"))
    sdf = places(sdf_rows(world), {None: base}, q)
    return sdf, places(urdf_rows(urdf), {'panda_link0': sdf['panda_link0']}, q)


def test_gazebos_own_parser_finds_it_valid(folder):
    tool = shutil.which('gz') or shutil.which('ign')
    if tool is None:
        pytest.skip('neither gz nor ign is installed: on Debian, apt-get install ignition-tools '
                    'libsdformat-dev sdformat-sdf')
    said = subprocess.run([tool, 'sdf', '-k', folder / 'world.sdf'], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=60).stdout
    assert 'Valid.' in said and 'Error' not in said and 'Warning' not in said, said


def test_masses_add_up_to_mujocos(world, env):
    m = env.model
    masses = {link.get('name'): float(link.findtext('inertial/mass'))
              for link in world.iter('link') if link.find('inertial') is not None}
    assert masses == pytest.approx({topic_name(m.body(body).name): m.body_mass[body]
                                    for body in np.flatnonzero(m.body_mass)})


def test_joints_have_the_names_that_the_nodes_look_for(world, urdf):
    wanted = [*ARM_JOINTS, *FINGER_JOINTS]
    for joints in (world.iter('joint'), urdf.findall('joint')):
        assert [j.get('name') for j in joints if j.get('type') != 'fixed'] == wanted
    control = urdf.findall('ros2_control/joint')
    assert [j.get('name') for j in control] == wanted and MOTION['joints'] == list(ARM_JOINTS)
    gripper = CONTROLLERS['gripper_controller']['ros__parameters']['joint']
    assert [j.get('name') for j in control if j.find('command_interface') is not None] == [
        *ARM_JOINTS, gripper]
    follower = urdf.find(f"joint[@name='{FINGER_JOINTS[1]}']/mimic")
    assert follower.get('joint') == gripper


def test_every_link_of_the_arm_goes_where_mujoco_puts_it(bent, env):
    m, d = env.model, env.data
    assert len(bent[0]) > len(ARM_JOINTS) + len(FINGER_JOINTS)
    for body in range(m.nbody):
        for found in bent:
            if (link := found.get(topic_name(m.body(body).name))) is not None:
                assert np.allclose(link[:3, 3], d.xpos[body], atol=1e-6), body
                assert np.allclose(link[:3, :3], d.xmat[body].reshape(3, 3), atol=1e-6), body


def test_the_end_effector_is_the_one_the_policy_knows(bent, env):
    seen, base = env.observe(), bent[0]['panda_link0']
    frame = bent[1][MOTION['end_effector_link']]
    assert np.allclose(frame[:3, 3], seen['robot0_eef_pos'], atol=1e-6)
    turn = Rotation.from_matrix(frame[:3, :3]).inv() * Rotation.from_quat(seen['robot0_eef_quat'])
    assert turn.magnitude() < 1e-6
    assert np.allclose(base[:3, 3], env.base_position) and np.allclose(base[:3, :3], np.eye(3))
    for node in ('/vla/vla_node', '/command_gate'):
        settings = SETTINGS[node]['ros__parameters']
        assert settings['base_frame'] == MOTION['robot_base_link'] == 'panda_link0'
        assert settings['ee_frame'] == MOTION['end_effector_link']


def test_cameras_see_what_mujocos_see(world, bent, env):
    m, d = env.model, env.data
    sensors = {s.get('name'): (s, link.get('name'))
               for link in world.iter('link') for s in link.findall('sensor')}
    views = {'camera_primary': 'agentview', 'camera_wrist': 'robot0_eye_in_hand'}
    assert sensors.keys() == views.keys()
    for name, (sensor, link) in sensors.items():
        frame = bent[0].get(link, np.eye(4)) @ pose(sensor.findtext('pose'))
        index = m.camera(views[name]).id
        # Gazebo looks along x with z up, MuJoCo along -z with y up.
        right, up, back = d.cam_xmat[index].reshape(3, 3).T
        assert np.allclose(frame[:3, 3], d.cam_xpos[index], atol=1e-6)
        assert np.allclose(frame[:3, :3], np.stack([-back, -right, up], axis=1), atol=1e-6)
        image = sensor.find('camera/image')
        assert image.findtext('width') == image.findtext('height') == str(SIZE)
        assert np.degrees(float(sensor.findtext('camera/horizontal_fov'))) == pytest.approx(
            m.cam_fovy[index])


def test_things_stand_where_the_seed_puts_them(world, env):
    env.reset(seed=SEED, options={'task': TASK})
    for name in env.object_names:
        model = world.find(f"model[@name='{name}']")
        assert np.allclose(pose(model.findtext('pose'))[:3, 3], env.place(name))
        assert (model.findtext('static') == 'true') == (name in env.scene.fixtures), name


def corners(path):
    """Return the vertices [n, 3] and faces [m, 3] of a Wavefront file."""
    words = [line.split() for line in path.read_text().splitlines()]
    faces = [[int(c.split('/')[0]) - 1 for c in w[1:]] for w in words if w[0] == 'f']
    return np.array([w[1:4] for w in words if w[0] == 'v'], float), np.array(faces)


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

    mine, theirs = ({tuple(vector(line[3:]).round(3)[:2]) for line in path.read_text().splitlines()
                     if line.startswith('vt ')}
                    for path in (folder / 'meshes/can_mesh.obj', source))
    assert len(mine & theirs) > 0.95 * len(mine)
    assert list((folder / 'textures').glob('*can*.png'))


def test_the_bridge_carries_what_gazebo_sends_and_the_policy_takes(world):
    sent = {'/clock': 'gz.msgs.Clock'}
    for sensor in world.iter('sensor'):
        topic = f'/{sensor.findtext("topic")}'
        sent |= {topic: 'gz.msgs.Image',
                 topic.replace('/image', '/camera_info'): 'gz.msgs.CameraInfo'}
    assert {b['gz_topic_name']: b['gz_type_name'] for b in BRIDGE} == sent
    for bridged in BRIDGE:  # the same message on both sides
        assert bridged['direction'] == 'GZ_TO_ROS'
        assert bridged['ros_type_name'].split('/')[-1] == bridged['gz_type_name'].split('.')[-1]
    images = {b['ros_topic_name'] for b in BRIDGE if b['ros_type_name'] == 'sensor_msgs/msg/Image'}
    assert images == set(IMAGES.values())  # what the policy node subscribes to


def test_an_unknown_task_is_named(tmp_path, capsys):
    assert main(['--out', str(tmp_path / 'w'), '--task', 'fly']) == 2
    assert 'unknown task "fly"' in capsys.readouterr().err
