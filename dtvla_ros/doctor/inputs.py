"""What cameras, joints and pose must be: one function per requirement, each yields its rows.

A row is judged only where what it stands on is there, so that a fault is one row.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping

import numpy as np

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.doctor.row import Row, listed
from dtvla_ros.doctor.seen import NodeView, Seen, Stream
from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.policy.shapes import REMEDY, Size, another_shape, shown, size_of
from dtvla_ros.ros import conversions, images
from dtvla_ros.ros.settings import OpeningSettings

AHEAD = 0.05  # how far a stamp may lie ahead of this machine's clock [s]


def published(seen: Seen) -> Iterator[Row]:
    """Require publishers of the right type, from whom something comes."""
    for topic, stream in inputs(seen):
        kind = wanted_type(seen, topic)
        near = seen.nearby.get(stream.name, [])
        option = f'--{topic.replace("_", "-")}'
        remedy = (f'dtvla run ... {option} {near[0]}, or ros2 launch ... {topic}:={near[0]}'
                  if near else f'start its driver, or name its topic by {option}')
        if not stream.publishers:
            yield Row(stream.name, False, 'nobody publishes it'
                      + (f'; there is {listed(near)}' if near else ''), kind, remedy)
        elif wrong := sorted({end.kind for end in stream.publishers} - {kind}):
            yield Row(stream.name, False, listed(wrong), kind,
                      f'transport: {"compressed" if "Compressed" in wrong[0] else "raw"}'
                      if 'Image' in wrong[0] else remedy)
        elif not stream.arrivals and not seen.policy.parameters.get('lockstep'):
            yield Row(stream.name, False, f'published by {names(stream)}, but nothing came in '
                      f'{seen.seconds:g} s', kind, 'start or unpause what publishes it')
        else:
            yield Row(stream.name, True, f'published by {names(stream)}', kind)


def rates(seen: Seen) -> Iterator[Row]:
    """Require each input more often than its time-out."""
    for topic, stream in judged(seen):
        if seen.policy.parameters.get('lockstep'):
            continue
        limits = {f'input_timeout_s {seen.policy.parameters["input_timeout_s"]:g}':
                  seen.policy.parameters['input_timeout_s']}
        name = {'joint_states': 'joints_timeout_s', 'ee_pose': 'pose_timeout_s'}.get(topic, '')
        if limit := seen.gate.parameters.get(name):
            limits[f'{name} {limit:g}'] = limit
        what, least = min(limits.items(), key=lambda entry: entry[1])
        yield Row(f'{stream.name}: rate', stream.rate > 1 / least, f'{stream.rate:.1f} Hz',
                  f'more than {1 / least:.1f} Hz ({what})',
                  f'publish it more often, or raise {what.split()[0]}')


def stamps(seen: Seen) -> Iterator[Row]:
    """Require headers stamped by the clock of the nodes, anew each time."""
    for _, stream in judged(seen):
        away = abs(stream.latency)
        domain = seen.policy.parameters['clock_domain_s']
        row = f'{stream.name}: stamps'
        if not any(stream.stamps):
            yield Row(row, False, 'all 0', 'the time of the measurement',
                      'let the driver stamp its messages')
        elif len(stream.stamps) > 2 and len(set(stream.stamps)) == 1:
            yield Row(row, False, f'{len(stream.stamps)} messages with one stamp',
                      'a new one each', 'restart the driver: it repeats its last measurement')
        elif domain and away > domain and not seen.policy.parameters.get('lockstep'):
            yield Row(row, False, f'{away:.1f} s away from this clock', f'less than {domain:g} s',
                      'use_sim_time the same everywhere; between machines synchronise the clocks '
                      '(chrony)')
        else:
            yield Row(row, True, 'set, of this clock', 'the time of the measurement')


def latencies(seen: Seen) -> Iterator[Row]:
    """Require what is young enough to be acted on, and not from the future."""
    if seen.policy.parameters.get('lockstep'):
        return
    oldest = seen.policy.parameters['max_age_s']
    for _, stream in trusted(seen):
        yield Row(f'{stream.name}: latency', -AHEAD <= stream.latency <= oldest,
                  f'{1e3 * stream.latency:.0f} ms', f'0 to {1e3 * oldest:.0f} ms (max_age_s)',
                  'synchronise the clocks (chrony)' if stream.latency < 0 else
                  'smaller images, transport: compressed, a driver without a queue')


def skew(seen: Seen) -> Iterator[Row]:
    """Require like stamps of what belongs to one observation."""
    streams = dict(trusted(seen))
    cameras = camera_topics(seen.policy)
    first = streams.get(cameras[0])
    limit = seen.policy.parameters['max_skew_s']
    for topic, stream in streams.items():
        if first is None or stream is first or len(first.stamps) < 2 or len(stream.stamps) < 2:
            continue
        ours = np.array(stream.stamps)
        low, high = ours.min() - limit, ours.max() + limit
        away = [float(np.abs(ours - stamp).min()) for stamp in first.stamps if low < stamp < high]
        median = statistics.median(away) if away else math.inf
        yield Row(f'{stream.name}: skew', median <= limit,
                  f'{1e3 * median:.0f} ms from {first.name}' if away else
                  f'never at the time of {first.name}',
                  f'at most {1e3 * limit:.0f} ms (max_skew_s)',
                  'trigger the cameras together' if topic in cameras else
                  'publish it more often, or stamp it when it is measured')


def pixels(seen: Seen) -> Iterator[Row]:
    """Require images that can be read, of the policy's shape, and that show something."""
    sizes = trained_sizes(seen.policy)
    for topic, stream in judged(seen):
        if topic not in camera_topics(seen.policy) or stream.last is None:
            continue
        _, parse, decode = images.TRANSPORTS[seen.policy.parameters['transport']]
        row, remedy = f'{stream.name}: image', "set the driver's pixel format to rgb8 or bgr8"
        try:
            message = parse(stream.last)
            image = decode(message)
        except images.ImageError as error:
            yield Row(row, False, str(error), 'a colour image', remedy)
            continue
        encoding = getattr(message, 'encoding', None) or getattr(message, 'format', '')
        size = f'{shown(size_of(image))} {encoding}'
        due = sizes.get(topic.removeprefix('image_'))
        if due and another_shape(size_of(image), due):
            yield Row(row, False, size, f'the shape of {shown(due)}, on which the policy was '
                      'trained', REMEDY)
            continue
        yield Row(row, bool(image.any()), size if image.any() else f'{size}, all black',
                  'a colour image', 'take the cap off, raise the exposure')


def trained_sizes(policy: NodeView) -> Mapping[str, Size]:
    """Return how large the policy's images were, by camera; none where nobody knows."""
    try:
        return PolicyManifest.read(find_shared(str(policy.parameters['policy']))).images.sizes
    except UserError:  # of which `nodes.policy` has a row
        return {}


def joints(seen: Seen) -> Iterator[Row]:
    """Require a finite position of every joint, and metres of the gripper's."""
    stream = seen.stream(seen.policy, 'joint_states')
    wanted = [*seen.policy.parameters['arm_joints'], *seen.policy.parameters['finger_joints']]
    if not stream.arrivals:
        return
    absent = [name for name in wanted if name not in seen.joints]
    bad = [name for name in wanted if not math.isfinite(seen.joints.get(name, 0.0))]
    other = [name for name in seen.joints if name not in wanted]
    told = '; '.join(filter(None, (
        f'{len(wanted) - len(absent) - len(bad)} of {len(wanted)}',
        f'missing: {listed(absent)}' if absent else '',
        f'not finite: {listed(bad)}' if bad else '',
        f'also there: {listed(other)}' if other else '',
        seen.joints_lack if not (absent or bad) else '')))
    fine = not (absent or bad or seen.joints_lack)
    yield Row('joints', fine, told, listed(wanted),
              'arm_joints and finger_joints (policy and gate) as the robot names them'
              if absent and other else 'publish them all, finite, together or within 0.15 s')
    if fine:
        fingers = [seen.joints[name] for name in seen.policy.parameters['finger_joints']]
        opening = seen.policy.settings(OpeningSettings).metres(fingers)
        refused = conversions.refuse_opening(opening)
        yield Row('gripper', refused is None, refused or f'{1e3 * opening:.0f} mm open', 'metres',
                  'publish metres, 0 for closed, or say by gripper_width, finger_open_position '
                  'and finger_closed_position what the joints are')
    theirs = seen.gate.parameters['arm_joints']
    if list(theirs) != list(seen.policy.parameters['arm_joints']):
        yield Row("gate's joints", False, listed(theirs), listed(wanted[:len(theirs)]),
                  'the same arm_joints for policy and gate')


def pose(seen: Seen) -> Iterator[Row]:
    """Require the gripper's pose in the base frame, the same of policy and gate."""
    frames = {node.name: str(node.parameters['base_frame']) for node in (seen.policy, seen.gate)}
    if len(set(frames.values())) > 1:
        yield Row('base_frame', False, ', '.join(f'{n}: {f}' for n, f in frames.items()),
                  'one frame', "the same base_frame for policy and gate: the arm's root link")
    base, ee_frame = frames[seen.gate.name], str(seen.gate.parameters['ee_frame'])
    if seen.gate.parameters['pose_source'] == 'tf':
        placed = seen.frames and seen.frames.look_up(base.lstrip('/'), ee_frame.lstrip('/'))
        yield Row('/tf', placed is not None, f'{base} to {ee_frame}' if placed else
                  f'no way from {ee_frame} to {base}', f'{base} to {ee_frame}',
                  'robot_state_publisher, and base_frame and ee_frame as it names them')
        return
    message = seen.stream(seen.gate, 'ee_pose').last
    if message is None:
        return
    position, quaternion = conversions.pose_arrays(message.pose)
    row = f'{seen.gate.topics["ee_pose"]}: '
    if refused := conversions.refuse_pose(position, quaternion):
        yield Row(f'{row}pose', False, refused, 'a pose', 'see what its publisher computes')
    frame = message.header.frame_id
    if len(set(frames.values())) == 1:
        yield Row(f'{row}frame', conversions.refuse_frame(frame, base) is None,
                  frame or 'none told', f'{base} (base_frame)', f'base_frame: {frame} (then set '
                  'the workspace box in it), publish it in that frame, or pose_source: tf')


def camera_topics(policy: NodeView) -> tuple[str, ...]:
    """Return our names for the topics of the policy's cameras, in its order."""
    return tuple(f'image_{camera}' for camera in policy.parameters.get('cameras', CAMERAS))


def inputs(seen: Seen) -> Iterator[tuple[str, Stream]]:
    """Yield the policy's inputs that are topics, by our name for them."""
    for topic in (*camera_topics(seen.policy), 'joint_states', 'ee_pose'):
        if topic != 'ee_pose' or seen.policy.parameters['pose_source'] == 'topic':
            yield topic, seen.stream(seen.policy, topic)


def judged(seen: Seen) -> Iterator[tuple[str, Stream]]:
    """Yield those of which something came."""
    return ((topic, stream) for topic, stream in inputs(seen) if stream.arrivals)


def trusted(seen: Seen) -> Iterator[tuple[str, Stream]]:
    """Yield those whose stamps tell something."""
    bad = {row.requirement for row in stamps(seen) if not row.ok}
    return ((topic, stream) for topic, stream in judged(seen)
            if f'{stream.name}: stamps' not in bad)


def wanted_type(seen: Seen, topic: str) -> str:
    """Return the type of an input as the graph has it."""
    if topic in camera_topics(seen.policy):
        compressed = seen.policy.parameters['transport'] == 'compressed'
        return 'sensor_msgs/msg/CompressedImage' if compressed else 'sensor_msgs/msg/Image'
    return 'sensor_msgs/msg/JointState' if topic == 'joint_states' else (
        'geometry_msgs/msg/PoseStamped')


def names(stream: Stream) -> str:
    """Return who publishes."""
    return listed(sorted({end.node for end in stream.publishers}))
