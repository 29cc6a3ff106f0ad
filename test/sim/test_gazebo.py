"""The Gazebo world is the MuJoCo scene: same masses, joints, places, cameras and topics."""

import copy
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import mujoco
import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation
from support.motion_control import Chain, settled_speed

import dtvla_sim
from dtvla_ros.actions.osc import METRES_PER_UNIT, RADIANS_PER_UNIT
from dtvla_ros.conventions import ARM_JOINTS, FINGER_JOINTS, IMAGES
from dtvla_sim.gazebo.__main__ import main
from dtvla_sim.gazebo.model import topic_name
from dtvla_sim.gazebo.surfaces import Surfaces

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


STL_FACE = np.dtype([('normal', '<f4', 3), ('corners', '<f4', (3, 3)), ('attribute', '<u2')])


def test_what_collides_is_nearly_the_convex_hull_of_what_is_seen(folder, world, env):
    named = [e.text for e in world.iter('uri')]
    assert len(set(named)) > 50
    assert all(not Path(n).is_absolute() and (folder / n).is_file() for n in named)
    collided = {e.text for e in world.findall('.//collision//uri')}
    assert len(collided) == 12  # both fingers have one
    for name in collided:
        mesh = env.model.mesh(Path(name).stem.removesuffix('_hull')).id
        first, count = env.model.mesh_vertadr[mesh], env.model.mesh_vertnum[mesh]
        whole = ConvexHull(env.model.mesh_vert[first:first + count].astype(float))
        count, faces = (np.fromfile(folder / name, kind, offset=at)
                        for kind, at in (('<u4', 80), (STL_FACE, 84)))
        assert count[0] == len(faces) and len(faces) <= 100, name
        a, b, c = faces['corners'].astype(float).transpose(1, 0, 2)
        across = np.cross(b - a, c - a)
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        # DART ignores a mesh that has not one for each face.
        assert np.allclose(faces['normal'], across, atol=1e-3), name
        assert np.einsum('fi,fi->f', across, a - faces['corners'].mean((0, 1))).min() > 0, name
        volume = np.einsum('fi,fi->f', np.cross(a, b), c).sum() / 6
        assert volume == pytest.approx(whole.volume, rel=1e-3), name
        beyond = whole.points @ across.T - np.einsum('fi,fi->f', across, a)
        assert beyond.max() < (2e-3 if '_mesh_' in name else 4e-3), name  # an object's, the arm's


def test_files_of_an_earlier_world_are_written_anew(env, tmp_path):
    surfaces, geom = Surfaces(env.model, tmp_path), env.model.geom('bread_g0_visual').id
    names = [surfaces.seen(geom), surfaces.felt(geom), surfaces.texture(geom)]
    made = [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        (tmp_path / name).write_bytes(b'half')
    surfaces = Surfaces(env.model, tmp_path)
    assert [surfaces.seen(geom), surfaces.felt(geom), surfaces.texture(geom)] == names
    assert [(tmp_path / name).read_bytes() for name in names] == made


def test_every_mesh_that_is_seen_has_its_material_beside_it(folder, world, urdf):
    seen = {folder / e.text for e in world.findall('.//visual//uri')} | {
        Path(e.get('filename').removeprefix('file://')) for e in urdf.iter('mesh')}
    assert len(seen) > 50
    for path in seen:
        library, used = (line.split() for line in path.read_text().splitlines()[:2])
        assert (library[0], used[0]) == ('mtllib', 'usemtl'), path
        assert f'newmtl {used[1]}' in (path.parent / library[1]).read_text().splitlines()


def screen(colour):
    """Return what a screen is told of light [3]: sRGB."""
    colour = np.asarray(colour)
    return np.where(colour < 0.0031308, 12.92 * colour, 1.055 * colour ** (1 / 2.4) - 0.055)


def test_colours_are_the_light_that_mujoco_draws(folder, world, env):
    env.reset(seed=SEED, options={'task': TASK})
    m, flat = copy.copy(env.model), mujoco.MjvOption()
    for light in (m.light_ambient, m.light_diffuse, m.light_specular,
                  m.vis.headlight.diffuse, m.vis.headlight.specular):
        light[:] = 0
    m.vis.headlight.ambient[:] = 1  # now a surface appears as it is
    m.vis.quality.offsamples = 0  # and ends where its pixels end
    flat.geomgroup[:] = np.arange(len(flat.geomgroup)) == 1
    flat.sitegroup[:] = 0
    told = {}
    for visual in world.iter('visual'):
        material = visual.find('material')
        assert material.findtext('ambient') == material.findtext('diffuse')
        picture = material.findtext('pbr/metal/albedo_map')
        told[visual.get('name').removesuffix('_visual')] = (
            (screen(vector(material.findtext('diffuse'))[:3]), 0.05) if picture is None
            # which is seen in part
            else (np.asarray(Image.open(folder / picture)).reshape(-1, 3).mean(0) / 255, 0.1))
    compared = set()
    with mujoco.Renderer(m, 256, 256) as renderer:
        for camera in ('agentview', 'robot0_eye_in_hand'):
            renderer.update_scene(env.data, camera, flat)
            image = renderer.render() / 255.0
            renderer.enable_segmentation_rendering()
            shown = renderer.render()[..., 0]
            renderer.disable_segmentation_rendering()
            for geom in np.unique(shown[shown >= 0]):
                inside, name = shown == geom, topic_name(m.geom(geom).name)
                if inside.sum() > 200:
                    colour, near = told[name]
                    assert np.allclose(image[inside].mean(0), colour, atol=near), name
                    compared.add(name)
    assert {'floor', 'bread_g0_visual', 'red_cube_g0_vis', 'blue_bin_g0_vis'} <= compared


def test_a_picture_without_places_repeats_as_mujoco_repeats_it(folder, env):
    for name, geom in (('floor', 'floor'), ('bread_mesh', 'bread_g0_visual')):
        words = [line.split() for line in (folder / f'meshes/{name}.obj').read_text().splitlines()]
        at, uv = (np.array([w[1:] for w in words if w[0] == kind], float)
                  for kind in ('v', 'vt'))
        times = env.model.mat_texrepeat[env.model.geom(geom).matid[0]] / 2  # every two metres
        assert len(uv) == len(at) and np.ptp(at[:, :2], 0).min() > 0.03
        assert np.allclose(uv, at[:, :2] * times + 0.5, atol=1e-4)


def test_an_object_slides_and_holds_with_mujocos_friction(world, env):
    """Of a pair MuJoCo takes the larger friction, DART the smaller."""
    m = env.model
    found = {c.get('name').removesuffix('_collision'): float(c.findtext('.//mu'))
             for c in world.iter('collision')}
    theirs = {name: m.geom_friction[g, 0] for g in range(m.ngeom)
              if (name := topic_name(m.geom(g).name)) in found}
    free = {c.get('name').removesuffix('_collision') for model in world.findall('model')
            if model.find('static') is None and model.get('name') != 'panda'
            for c in model.iter('collision')}
    assert len(free) == 5 and found.keys() == theirs.keys()
    for thing in free:
        for other in found.keys() - free:
            assert min(found[thing], found[other]) == pytest.approx(
                max(theirs[thing], theirs[other])), (thing, other)


def test_no_finger_reaches_the_end_of_its_way(world, urdf):
    """DART before 6.16 keeps a driven joint that has reached its limit there for good."""
    commanded = SETTINGS['/command_gate']['ros__parameters']['gripper_open_position']
    for name, sign in zip(FINGER_JOINTS, (1, -1)):
        limit = world.find(f".//joint[@name='{name}']/axis/limit")
        low, high = (float(limit.findtext(end)) for end in ('lower', 'upper'))
        assert low == pytest.approx(min(0, sign * commanded) - 1e-3)
        assert high == pytest.approx(max(0, sign * commanded) + 1e-3)
        limit = urdf.find(f"joint[@name='{name}']/limit")  # what the controllers know
        assert sorted((float(limit.get('lower')), float(limit.get('upper')))) == sorted(
            (0, sign * commanded))


@pytest.fixture
def control(world, urdf):
    """Return the law's arguments, from the world and the controllers' file that it names."""
    plugin = world.find("model[@name='panda']/plugin")
    settings = yaml.safe_load(Path(plugin.findtext('parameters')).read_text())
    motion = settings['cartesian_motion_controller']['ros__parameters']
    rows = {name: (parent, at, None if axis is None else vector(axis))
            for name, parent, at, _, axis in urdf_rows(urdf)}
    names = [motion['end_effector_link']]
    while rows[names[0]][0] != motion['robot_base_link']:
        names.insert(0, rows[names[0]][0])
    rate = settings['controller_manager']['ros__parameters']['update_rate']
    starts = {j.get('name'): float(j.findtext('state_interface/param'))
              for j in urdf.findall('ros2_control/joint')}
    return {
        'chain': Chain([rows[n][1] for n in names], [rows[n][2] for n in names]),
        'q': [starts[name] for name in ARM_JOINTS], 'pose_age': 1 / rate, 'rate': rate,
        'gains': [motion['pd_gains'][f'{kind}_{axis}']['p']
                  for kind in ('trans', 'rot') for axis in 'xyz'],
        'iterations': motion['solver']['iterations'],
        'error_scale': motion['solver']['error_scale'],
        'position_gain': float(plugin.findtext('position_proportional_gain'))}


@pytest.mark.parametrize('channel', range(6))
def test_the_arm_moves_as_fast_as_an_action_says(control, channel):
    offset = np.zeros(6)
    offset[channel] = METRES_PER_UNIT if channel < 3 else RADIANS_PER_UNIT
    speed = settled_speed(offset=offset, **control)[channel]
    low, high = (0.2, 0.3) if channel < 3 else (2.0, 3.0)  # MuJoCo: 0.267 m/s, 2.67 rad/s
    assert low < speed < high


def test_the_numbers_say_what_a_whole_gazebo_showed(control):
    """With the plugin's own gain and FZI's example values it moved by 0.013 m/s per unit."""
    former = {**control, 'position_gain': 0.1, 'gains': [1.0] * 3 + [0.5] * 3}
    speed = settled_speed(offset=np.array([METRES_PER_UNIT, 0, 0, 0, 0, 0]), **former)
    assert speed[0] == pytest.approx(0.013, abs=1e-3)


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
