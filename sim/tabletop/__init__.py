"""The tabletop suite, made from robosuite's own packaged assets."""

from ..prepare import prepare

prepare()  # before MuJoCo and robosuite are imported, which read the environment once
