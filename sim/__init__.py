"""MuJoCo scenes of an arm with cameras: the tabletop suite, and LIBERO's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dtvla_ros.actions.contract import JOINT_POSITION, OSC_POSE, OSC_POSE_ABSOLUTE
from dtvla_ros.errors import UserError

from .seeds import CALIBRATION_SEED_START as CALIBRATION_SEED_START
from .seeds import EVAL_SEED_START as EVAL_SEED_START

if TYPE_CHECKING:
    from .env import ArmEnv
    from .forced_release import ForcedReleaseEnv
    from .perturbation import PerturbedEnv

LIBERO_SUITES = ('libero_spatial', 'libero_object', 'libero_goal', 'libero_10', 'libero_90')
TABLETOPS = ('tabletop', 'tabletop_joints', 'tabletop_poses')
SUITES = (*TABLETOPS, *LIBERO_SUITES)
_CONTROLLERS = {'tabletop_joints': JOINT_POSITION, 'tabletop_poses': OSC_POSE_ABSOLUTE}


def controller(suite: str) -> str:
    """Return the action space of a suite's arm."""
    return _CONTROLLERS.get(suite, OSC_POSE)


def require_offsets(suite: str, command: str) -> None:
    """Raise UserError where a command cannot drive a suite's arm, which takes no offsets."""
    if (space := controller(suite)) != OSC_POSE:
        raise UserError(f'the arm of {suite} takes {space}, {command} is for {OSC_POSE}; choose '
                        'another suite, or dtvla eval')


def make(suite: str, perturb: Sequence[str] = (), **options: Any) -> ArmEnv | PerturbedEnv:
    """Build a suite's environment, disturbed by ``perturb`` if any. One environment per process.

    Raises UserError if the suite or a perturbation is unknown, the suite is not installed, or no
    software renderer is.
    """
    if suite not in SUITES:
        raise UserError(f'unknown suite "{suite}"; there is: {", ".join(SUITES)}')
    if perturb:
        from .perturbation import PerturbedEnv

        return PerturbedEnv(make(suite, **options), perturb)
    if suite in LIBERO_SUITES:
        from .libero.env import LiberoEnv

        return LiberoEnv(suite, **options)
    from .tabletop.env import JointTabletopEnv, PoseTabletopEnv, TabletopEnv

    kinds: dict[str, type[TabletopEnv]] = {
        kind.name: kind for kind in (TabletopEnv, JointTabletopEnv, PoseTabletopEnv)}
    return kinds[suite](**options)


def with_release(env: ArmEnv | PerturbedEnv) -> ForcedReleaseEnv:
    """Return an environment whose ``release`` knocks what the gripper holds out of it."""
    from .forced_release import ForcedReleaseEnv

    return ForcedReleaseEnv(env, by_itself=False)
