"""Gazebo's own engine, without Gazebo, moves the generated world as MuJoCo moves the scene."""

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml

import dtvla_sim
from dtvla_ros.conventions import ARM_JOINTS, FINGER_JOINTS
from dtvla_sim.experts import make_expert
from dtvla_sim.gazebo.__main__ import main
from dtvla_sim.gazebo.model import topic_name

pytestmark = pytest.mark.slow
ENGINE = 'ignition-physics5'
MODULES = (f'{ENGINE}-sdf', f'{ENGINE}-mesh', 'ignition-plugin1-loader',
           'ignition-common4-graphics', 'sdformat12')
PACKAGES = ('g++ pkg-config libignition-physics-sdf-dev libignition-physics-mesh-dev '
            'libignition-physics5-dartsim-plugin5 libignition-plugin-dev libignition-common-dev '
            'libsdformat-dev')
TASK, SEED = 'push_the_green_cube_onto_the_yellow_mark', 1_000_007
JOINTS = (*ARM_JOINTS, *FINGER_JOINTS)
PERIOD = 0.01  # of the controllers [s]
STEP = 5  # of these in a control step
OPEN, CLOSED = (0.04, -0.04), (0.0, 0.0)


def configured(*words):
    """Return what pkg-config says, split; skip where it, a package or a compiler is missing."""
    if missing := [tool for tool in ('pkg-config', 'g++') if shutil.which(tool) is None]:
        pytest.skip(f'{missing[0]} is not installed: on Debian 12, apt-get install {PACKAGES}')
    said = subprocess.run(['pkg-config', *words], capture_output=True, text=True)
    if said.returncode:
        pytest.skip(f'{said.stderr.splitlines()[0]}: on Debian 12, apt-get install {PACKAGES}')
    return said.stdout.split()


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    """Return the compiled program and the engine's plugin."""
    flags = configured('--cflags', '--libs', *MODULES)
    library, = configured('--variable=libdir', ENGINE)
    plugin = Path(library, 'ign-physics-5/engine-plugins/libignition-physics5-dartsim-plugin.so')
    if not plugin.exists():
        pytest.skip(f'{plugin} is missing: on Debian 12, apt-get install {PACKAGES}')
    made = tmp_path_factory.mktemp('program') / 'gazebo_physics'
    subprocess.run(['g++', '-std=c++17', Path(__file__).with_name('gazebo_physics.cc'),
                    '-o', made, *flags], check=True, timeout=600)
    return made, plugin


@pytest.fixture(scope='module')
def env(program):
    made = dtvla_sim.make('tabletop', image_size=64)
    made.reset(seed=SEED, options={'task': TASK})
    yield made
    made.close()


@pytest.fixture(scope='module')
def folder(program, tmp_path_factory):
    made = tmp_path_factory.mktemp('world')
    assert main(f'--out {made} --task {TASK} --seed {SEED}'.split()) == 0
    return made


class Ended(AssertionError):
    """The program ended with an exit code other than 0."""


def played(program, world, commands):
    """Return of every 'say': the joints' positions and where the free models are, by name."""
    plugin = ET.parse(world).getroot().find(".//model[@name='panda']/plugin")
    gain = plugin.findtext('position_proportional_gain', '0.1')  # gz_ros2_control's own
    rate = yaml.safe_load(Path(plugin.findtext('parameters')).read_text())[
        'controller_manager']['ros__parameters']['update_rate']
    assert rate == 1 / PERIOD
    made, engine = program
    ran = subprocess.run([made, engine, world, 'panda', gain, str(rate), *JOINTS],
                         input='\n'.join(commands), capture_output=True, text=True, timeout=900)
    if ran.returncode:
        raise Ended(f'exit code {ran.returncode}: {ran.stderr}')
    assert not ran.stderr, ran.stderr  # an ignored mesh, a missing material
    said = []
    for name, *values in map(str.split, ran.stdout.splitlines()):
        if name == 'joints':
            said.append({})
        said[-1][name] = np.array(values, float)
    return said


def line(command, arm, fingers):
    return ' '.join([command, *(f'{q:.6f}' for q in (*arm, *fingers))])


def addresses(m):
    """Return where positions and velocities of the arm's joints lie, in the order of JOINTS."""
    joints = {topic_name(m.joint(j).name): j for j in range(m.njnt)}
    numbers = [joints[name] for name in JOINTS]
    return m.jnt_qposadr[numbers], m.jnt_dofadr[numbers]


def start(env):
    at, _ = addresses(env.model)
    return env.data.qpos[at[:len(ARM_JOINTS)]].copy()


def test_everything_stays_where_it_is_and_the_fingers_close_again(program, folder, env):
    arm = start(env)
    opened, closed = played(program, folder / 'world.sdf', [
        line('at', arm, OPEN), line('to 300', arm, OPEN), 'say',
        line('to 150', arm, CLOSED), 'say'])
    assert np.allclose(opened['joints'], [*arm, *OPEN], atol=1e-3)
    assert np.allclose(closed['joints'], [*arm, *CLOSED], atol=1e-3)
    for name in ('red_cube', 'green_cube', 'can', 'bread', 'lemon'):
        *aside, up = np.abs(opened[name] - env.place(name))
        assert np.hypot(*aside) < (4e-3 if name == 'lemon' else 5e-4), name  # it finds its side
        assert up < 1.5e-3, name  # MuJoCo's contacts give way by a millimetre


def test_a_finger_at_its_very_limit_would_stay_there(program, folder, env):
    """This is why the limits are wider, and that this engine shows it."""
    text, arm = (folder / 'world.sdf').read_text(), start(env)
    former = folder / 'former.sdf'
    for end, wider, exact in (('upper', '0.041', '0.04'), ('lower', '-0.041', '-0.04')):
        assert text.count(f'<{end}>{wider}<') == 1
        text = text.replace(f'<{end}>{wider}<', f'<{end}>{exact}<')
    former.write_text(text)
    closed, = played(program, former, [
        line('at', arm, OPEN), line('to 50', arm, OPEN), line('to 50', arm, CLOSED), 'say'])
    assert np.abs(closed['joints'][-2:]).max() > 0.03


def test_a_hull_without_normals_is_noticed(program, folder, env, tmp_path):
    """Such worlds end Gazebo's server at its first step."""
    text, arm = (folder / 'world.sdf').read_text(), start(env)
    shutil.copytree(folder, tmp_path / 'bare')
    hull = tmp_path / 'bare/meshes/can_mesh_hull.obj'
    hull.write_text('v 0 0 0\nv 0 0 0.08\nv 0 0.05 0\nv 0.05 0 0\n'
                    'f 1 2 3\nf 1 3 4\nf 1 4 2\nf 2 4 3\n')
    former = tmp_path / 'bare/world.sdf'
    former.write_text(text.replace('can_mesh_hull.stl', hull.name))
    with pytest.raises(AssertionError, match='exit code -11|ignored'):
        played(program, former, [line('at', arm, CLOSED), line('to 1', arm, CLOSED), 'say'])


def test_a_pushed_cube_ends_where_mujoco_has_it(program, folder, env):
    """The expert pushes it there; the same joints, without looking, push it here."""
    at, _ = addresses(env.model)
    env.reset(seed=SEED, options={'task': TASK})
    expert, rows = make_expert(env), [env.data.qpos[at].copy()]
    before, rest = env.place('green_cube').copy(), 10
    while rest:
        assert len(rows) < env.max_steps
        act = expert.act()
        rest -= act.phase == 'wait'
        pushed = env.step(act.action)[2]
        rows.append(env.data.qpos[at].copy())
    assert pushed
    said, = played(program, folder / 'world.sdf', [
        line('at', rows[0][:-2], rows[0][-2:]),
        *(line(f'to {STEP}', row[:-2], row[-2:]) for row in rows), 'say'])
    assert env.place('green_cube')[1] - before[1] < -0.1
    aside, along, up = np.abs(said['green_cube'] - env.place('green_cube'))
    assert along < 4e-3 and up < 1.5e-3
    assert aside < 0.02  # it slides across the finger, in MuJoCo by 14 mm, here by 3
    assert np.linalg.norm(said['red_cube'] - env.place('red_cube')) < 2e-3
