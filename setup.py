from setuptools import find_packages, setup

sim = ['dtvla_sim'] + [f'dtvla_sim.{p}' for p in find_packages('sim')]
setup(packages=find_packages(include=['dtvla_ros', 'dtvla_ros.*']) + sim,
      package_dir={'dtvla_ros': 'dtvla_ros', 'dtvla_sim': 'sim'})
