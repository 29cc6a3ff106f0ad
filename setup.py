"""Metadata is in setup.cfg; what needs a glob is here. colcon runs this with the system Python."""

import os
from glob import glob
from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SHARE = 'share/dtvla_ros'


def shared_files(folder):
    """Return data_files rows that keep the tree of ``folder`` under the package's share."""
    files = [f for f in sorted(glob(f'{folder}/**', recursive=True)) if os.path.isfile(f)]
    return [(f'{SHARE}/{os.path.dirname(f)}', [f]) for f in files if '__pycache__' not in f]


class BuildPy(build_py):
    """Writes beside the modules which revision they are of; not into a checkout itself."""

    def run(self):
        super().run()
        revision = run_path('dtvla_ros/revision.py')
        folder = Path(self.build_lib, 'dtvla_ros')
        if folder.is_dir():  # an editable installation copies nothing
            (folder / revision['BUILT'].name).write_text(revision['describe'](Path.cwd()) + '\n')


setup(
    version='0.1.0',  # catkin_prepare_release looks for it here and in package.xml
    cmdclass={'build_py': BuildPy},
    # In setup.cfg it would become an object that colcon cannot read back.
    python_requires='>=3.10',
    packages=find_packages(include=['dtvla_ros', 'dtvla_ros.*'])
    + ['dtvla_sim']
    + [f'dtvla_sim.{p}' for p in find_packages('sim')],
    package_dir={'dtvla_sim': 'sim'},
    package_data={'dtvla_ros': ['templates/*.html', 'operator/page/*'],
                  'dtvla_sim': ['gazebo/*.sdf', 'gazebo/*.urdf']},
    data_files=[
        ('share/ament_index/resource_index/packages', ['resource/dtvla_ros']),
        (SHARE, ['package.xml']),
        *shared_files('launch'),
        *shared_files('config'),
        *shared_files('models'),
    ],
    entry_points={
        'console_scripts': [
            'dtvla = dtvla_ros.cli:main',
            'vla_node = dtvla_ros.nodes.vla_node:main',
            'command_gate = dtvla_ros.nodes.command_gate:main',
            'sim_bridge = dtvla_ros.nodes.sim_bridge:main',
            'overlay = dtvla_ros.nodes.overlay:main',
            'operator = dtvla_ros.nodes.operator:main',
            'task_server = dtvla_ros.nodes.task_server:main',
            'record_server = dtvla_ros.nodes.record_server:main',
        ],
    },
)
