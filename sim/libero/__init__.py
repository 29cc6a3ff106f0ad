"""The LIBERO benchmark's tasks behind the same contract as the tabletop suite."""

from ..prepare import prepare

prepare()  # before MuJoCo and robosuite are imported, which read the environment once
