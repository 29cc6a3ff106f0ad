"""The tabletop suite, made from robosuite's own packaged assets."""

from ..gl import choose_gl

choose_gl()  # before robosuite imports MuJoCo, which reads MUJOCO_GL once
