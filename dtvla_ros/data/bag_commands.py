"""Recorded commands of any kind as actions of a contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions import osc
from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.conventions import CHANNELS
from dtvla_ros.data.track import Row, Track
from dtvla_ros.errors import UserError
from dtvla_ros.ros import conversions
from dtvla_ros.ros.conversions import MERGED

NEVER = 2**62  # later than anything [ns]
BEYOND = 1.02  # of a channel: a command that OSC_POSE cannot say
STROKE = 0.01  # change of the opening from which on the gripper moved [m]
DELAY = 500_000_000  # after which fingers have followed their command [ns]
LEAD = 250_000_000  # by which a command goes before the fingers [ns]
METRES = 0.2  # largest command of a gripper that is told its opening in metres
AWAY, TURNED = 0.25, 0.5  # median distance of poses from the gripper: of another point [m, rad]
MEASURED = 'measured'
Pose = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Position [3] m and quaternion [4] xyzw."""


def actions(tracks: Mapping[str, Track], name: str, contract: ActionContract,
            fingers: Sequence[str], told: tuple[float, float] | str | None, path: Path,
            sources: Mapping[str, str], left_out: Counter[str], gripper_remedy: str,
            ) -> tuple[Track, int]:
    """Return an action [D] per stamp, the last one sent, and how many were clipped to ±1.

    ``tracks[name]``: the commands, of joints {name: rad or m}; a target that is to become a pose
    is (position [3] m, quaternion [4] xyzw). ``told``: the gripper's command when closed and when
    open, or `MEASURED`. Raises ``UserError`` for commands of another shape, for poses far from
    the arm, and for a gripper that does not do what it is told.
    """
    sent, topic = tracks[name], sources[name]
    motions = _of_joints(contract, sent, tracks['joint_states'], name == MEASURED) if (
        contract.is_joints) else _of_end_effector(
            name, sent, tracks['ee_pose'], contract.is_pose, f'{path}: {topic}')
    own = name == 'action' and bool(contract.gripper)  # its last channel is the gripper's
    moving = len(contract.motion)
    ends = told if isinstance(told, tuple) else None
    opening = Track(tracks['joint_states'].received, tracks['joint_states'].stamps, [
        sum(abs(joints[finger]) for finger in fingers)
        for joints in tracks['joint_states'].values])
    if not contract.gripper:
        gripper = np.zeros(len(motions))
    elif told == MEASURED:
        gripper = _from_fingers(opening, sent.received)
    elif own:
        values = np.array([np.nan if motion is None else motion[-1] for motion in motions])
        gripper = _channel(values, ends or (1.0, -1.0), f'{path}: {topic}')
    else:
        gripper = _from_topic(tracks['gripper_cmd'], sent, ends, opening, path, sources,
                              gripper_remedy)
    rows: list[Row] = []
    clipped = 0
    for received, stamp, motion, closing in zip(
            sent.received, sent.stamps, motions, gripper, strict=True):
        if motion is None:
            continue
        closing = np.clip(closing, -1.0, 1.0)
        action = np.append(motion[:moving], contract.from_switch(closing) if contract.gripper
                           else [])
        if not np.isfinite(action).all():
            left_out[f'{topic}: not finite'] += 1
            continue
        if contract.is_normalised:
            clipped += bool(np.abs(action[:moving]).max() > BEYOND)
            action = np.clip(action, -1.0, 1.0)
        row = received, stamp, action.astype(np.float32)
        if rows and rows[-1][1] == stamp:
            rows[-1] = (*rows[-1][:2], row[2])
        else:
            rows.append(row)
    found = Track.of(rows)
    if contract.gripper and told != MEASURED and (own or tracks['gripper_cmd'].values):
        where = f'{path}: {topic if own else sources["gripper_cmd"]}'
        channel = contract.switch([action[-1] for action in found.values])
        _require_direction(found.received, channel, opening,
                           ends or ((1.0, -1.0) if own else (0.0, 1.0)), where)
    return found, clipped


def _of_joints(contract: ActionContract, sent: Track, states: Track, measured: bool,
               ) -> list[NDArray[np.float64] | None]:
    """Return positions or offsets of the joints, and what a command says of the gripper's channel.

    Offsets are from the joint state received last before the command, None where there is none;
    of targets that were ``measured`` themselves from the nearest one.
    """
    found: list[NDArray[np.float64] | None] = [
        np.array([targets[name] for name in contract.channels if name in targets])
        for targets in sent.values]
    if contract.is_offset:
        late = round(np.nan_to_num(states.spacing()) / 2) if measured else 0
        places = np.searchsorted(states.received, sent.received + late, side='right') - 1
        for k, (motion, place) in enumerate(zip(found, places.tolist(), strict=True)):
            if place < 0 or motion is None:
                found[k] = None
            else:
                motion[:len(contract.joints)] -= [
                    states.values[place][name] for name in contract.joints]
    return found


def _of_end_effector(name: str, sent: Track, poses: Track, absolute: bool, where: str,
                     ) -> list[NDArray[np.float64] | None]:
    """Return what commands say, offsets or ``absolute`` poses [6], and the gripper's if theirs.

    Where that takes the pose measured last before a command, None of one that has none.
    """
    found: list[NDArray[np.float64] | None] = []
    for message, place in zip(sent.values, poses.before(sent).tolist(), strict=True):
        measured = poses.values[place] if place >= 0 else None
        if name == 'action':
            action = _action(message, where)
            found.append(_goal(action, measured) if absolute else action)
        elif name == 'twist_cmd':
            found.append(osc.from_velocity(conversions.twist_array(message.twist)))
        else:
            found.append(osc.pose_row(*message) if absolute else _offset(message, measured))
    if absolute and name == 'target_pose':
        _require_near(sent, poses, where)
    return found


def _action(message: Any, where: str) -> NDArray[np.float64]:
    """Return the normalised action [7] in a message."""
    points = message.points
    action = np.concatenate([point.positions for point in points] or [[]])
    if action.shape != (len(CHANNELS),):
        raise UserError(
            f'{where}: {len(points)} points of {len(action)} values where one of '
            f'{len(CHANNELS)} is due; choose another topic with --topic action=/...')
    if (channels := tuple(message.joint_names)) not in ((), CHANNELS):
        raise UserError(f'{where}: commands of {", ".join(channels)}; of an arm that is '
                        'commanded by its joints give --action-space JOINT_POSITION, or '
                        '--robot NAME')
    return action


def _goal(action: NDArray[np.float64], measured: Pose | None) -> NDArray[np.float64] | None:
    """Return the pose to which an action [7] leads from the measured one, and its gripper [7]."""
    if measured is None:
        return None
    if not np.isfinite(action).all():
        return np.full(len(action), np.nan)
    return np.append(osc.pose_row(*osc.target_pose(action, *measured)), action[6:])


def _offset(message: Any, measured: Pose | None) -> NDArray[np.float64] | None:
    """Return the action [6] that leads from the measured pose to a target."""
    if measured is None:
        return None
    goal, turn = conversions.pose_arrays(message.pose)
    if not (np.isfinite(goal).all() and 0.5 < np.linalg.norm(turn) < 2.0):
        return np.full(6, np.nan)
    return osc.action_towards(*measured, goal, turn)


def _require_near(targets: Track, poses: Track, where: str) -> None:
    """Refuse poses that are far from the gripper: of another frame, or point of the arm."""
    heard = Track(poses.received, poses.received, poses.values)
    places = heard.nearest(targets.received, MERGED * 1e9)
    away = np.array([osc.action_towards(*poses.values[k], *target)
                     for target, k in zip(targets.values, places) if k >= 0]).reshape(-1, 6)
    if not len(away):
        return
    metres = float(np.median(np.linalg.norm(away[:, :3], axis=1))) * osc.METRES_PER_UNIT
    radians = float(np.median(np.linalg.norm(away[:, 3:], axis=1))) * osc.RADIANS_PER_UNIT
    if metres > AWAY or radians > TURNED:
        raise UserError(
            f'{where}: its poses are {metres:.2f} m and {radians:.2f} rad from where the gripper '
            'is measured (median): in another frame or unit, of another point of the arm as its '
            'flange, or an arm that did not follow; record both of the same point in one frame')


def _channel(values: NDArray[np.float64], ends: tuple[float, float], where: str,
             ) -> NDArray[np.float64]:
    """Return gripper commands as the action's channel; ``ends``: closed and open."""
    shut, wide = ends
    share = (values - shut) / (wide - shut)
    outside = values[np.isfinite(values) & ((share < -0.05) | (share > 1.05))]
    if len(outside):
        raise UserError(f'{where}: a gripper command of {outside[0]:g} is not between {shut:g}, '
                        f'closed, and {wide:g}, open; say what it is at both ends with --gripper '
                        f'CLOSED,OPEN, or take --gripper {MEASURED}')
    return np.asarray(1.0 - 2.0 * share)


def _from_topic(gripper: Track, sent: Track, told: tuple[float, float] | None,
                opening: Track, path: Path, sources: Mapping[str, str], remedy: str,
                ) -> NDArray[np.float64]:
    """Return the gripper's channel at every command, from a topic of its own."""
    if not gripper.values:
        stroke = float(np.ptp(opening.values)) if opening.values else 0.0
        if stroke > STROKE:
            raise UserError(f'{path}: the fingers move by {stroke:.3f} m and no gripper command '
                            f'was recorded; {remedy}, or take --gripper {MEASURED}')
        return np.full(len(sent.stamps), osc.GRIPPER_OPEN)
    values = np.array(gripper.values, float)
    where = f'{path}: {sources["gripper_cmd"]}'
    if told is None and 0.0 < values.max() < METRES and not (values < 0).any():
        raise UserError(f'{where}: the largest gripper command is {values.max():g}, where 1 is '
                        'open: in metres? say what it is at both ends with --gripper CLOSED,OPEN, '
                        f'as in --gripper 0,{values.max():g}')
    channel = _channel(values, told or (0.0, 1.0), where)
    # The gripper is told before the next command: a tick's comes second.
    last = np.searchsorted(gripper.received, [*sent.received[1:], NEVER]) - 1
    return np.where(last < 0, osc.GRIPPER_OPEN, channel[np.maximum(last, 0)])


def _from_fingers(opening: Track, received: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a gripper's channel at times [ns]: closing where the fingers soon are closed."""
    values = np.array(opening.values or [0.0])
    soon = np.searchsorted(opening.received, received + LEAD).clip(0, len(values) - 1)
    still = np.ptp(values) < STROKE
    return np.where(still | (values[soon] > (values.min() + values.max()) / 2), -1.0, 1.0)


def _require_direction(received: NDArray[np.int64], closing: NDArray[np.float64],
                       opening: Track, ends: tuple[float, float], where: str) -> None:
    """Refuse a gripper that stands open when it is told to close, and closed when to open.

    ``closing`` [N]: the commands ``received`` [N] ns, -1 open to +1 closed.
    """
    if not len(closing) or not opening.values:
        return
    last = np.searchsorted(received, opening.received - DELAY) - 1
    told_to = closing[np.maximum(last, 0)]
    now = closing[np.maximum(np.searchsorted(received, opening.received) - 1, 0)]
    values, settled = np.array(opening.values), (last >= 0) & (told_to == now)
    shut, wide = values[settled & (told_to > 0.5)], values[settled & (told_to < -0.5)]
    if min(len(shut), len(wide)) and shut.mean() > wide.mean() + STROKE:
        raise UserError(
            f'{where}: the fingers are {shut.mean():.3f} m apart when told to close and '
            f'{wide.mean():.3f} m when told to open: the other way round; give --gripper '
            f'{ends[1]:g},{ends[0]:g}')
