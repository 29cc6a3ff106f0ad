"""The LIBERO benchmark's tasks behind the same contract as the tabletop suite."""

from ..gl import choose_gl

choose_gl()  # before MuJoCo is imported, which reads MUJOCO_GL once
