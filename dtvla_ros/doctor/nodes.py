"""What nodes, clock, controller and policy must be: one function per requirement."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from rclpy.qos import QoSCompatibility, qos_check_compatible

from dtvla_ros.actions.contract import differences
from dtvla_ros.conventions import CAMERAS
from dtvla_ros.doctor.row import Row, listed
from dtvla_ros.doctor.seen import End, Seen, Stream
from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared
from dtvla_ros.policy.manifest import GRAPHS, MANIFEST, PolicyManifest
from dtvla_ros.ros import conversions
from dtvla_ros.ros.bringup import SIMULATED
from dtvla_ros.ros.interfaces import NOT_INSTALLED, action_type
from dtvla_ros.ros.settings import GRIPPER_ACTIONS, ActionSettings

READY = ('IDLE', 'THINKING', 'ACTING', 'DONE')


def discovery(seen: Seen) -> Iterator[Row]:
    """Require somebody where we look."""
    others = [name for name in seen.nodes if name not in itertools.chain(*seen.ours.values())]
    own = sum(map(len, seen.ours.values()))
    yield Row('discovery', bool(others or own),
              f'{len(others)} nodes of others, {own} of ours; {seen.scope}',
              'nodes of a robot', 'give all machines the same ROS_DOMAIN_ID; across machines '
              'ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET (docs/middleware.md)')


def nodes(seen: Seen) -> Iterator[Row]:
    """Require one policy and one gate, unless they are to be started yet."""
    for kind in ('vla_node', 'command_gate'):
        running = seen.ours.get(kind, [])
        if any(seen.ours.values()):
            yield Row(kind, len(running) == 1, listed(running) or 'not running', 'one of them',
                      'stop the other, or give it another ROS_DOMAIN_ID' if running else
                      'dtvla run starts both')
        else:
            yield Row(kind, None, f'not running: judged by {seen.source}')


def states(seen: Seen) -> Iterator[Row]:
    """Require that policy and gate are ready."""
    for who, node in (('policy', seen.policy), ('gate', seen.gate)):
        if not node.running:
            continue
        if who not in seen.status:
            yield Row(f"{who}'s state", False, f'nothing on {node.topics["state"]}',
                      'a sign of life', f'is {node.name} suspended? start it again')
            continue
        state, values = seen.status[who]
        reason = values.get('reason', '')
        remedies = {
            'UNCONFIGURED': f'ros2 lifecycle set {node.name} configure, or autostart: true',
            'INACTIVE': 'see the rows below; it is activated once they are right, with '
                        'autostart: true by itself',
            'LOADING': 'wait for it', 'HOLDING': 'see the rows below; it goes on by itself',
            'STOPPED': 'give it the task again: dtvla tell', 'FAULT': 'dtvla stop --clear'}
        ok = state in READY if who == 'policy' else state != 'FAULT'
        if told := values.get('on_silence'):
            yield Row('the arm when commands stop', None, told)
        yield Row(f"{who}'s state", ok, f'{state} {reason}'.rstrip(),
                  ', '.join(READY) if who == 'policy' else 'no FAULT',
                  remedies.get(state, ''))


def connected(seen: Seen) -> Iterator[Row]:
    """Require that policy and gate hear each other."""
    for node, topics in ((seen.gate, ('vla/state', 'vla/action_chunk')),
                         (seen.policy, ('gate_state',))):
        for topic in topics:
            stream = seen.stream(node, topic)
            if seen.policy.running and seen.gate.running and not stream.publishers:
                yield Row(f'{node.name} hears {stream.name}', False, 'nobody publishes it',
                          'a publisher', 'the same namespace in the arguments of both')


def clock(seen: Seen) -> Iterator[Row]:
    """Require one clock for all nodes, which runs."""
    simulated = {name: on for name, on in seen.sim_time.items() if on}
    told = ', '.join(f'{name}: {"true" if on else "false"}' for name, on in seen.sim_time.items())
    if 0 < len(simulated) < len(seen.sim_time):
        yield Row('use_sim_time', False, told, 'the same everywhere', 'set it in every section of '
                  'the parameter file')
        return
    publishers = seen.streams['/clock'].publishers if '/clock' in seen.streams else []
    if not simulated:
        yield Row('clock', True, 'wall clock', 'one clock')
        return
    moved = len({time for _, time in seen.clocks})
    lockstep = seen.policy.parameters.get('lockstep')
    yield Row('/clock', len(publishers) == 1 and bool(moved > 1 or (lockstep and moved)), (
        'nobody publishes it' if not publishers else
        f'{len(publishers)} publishers: {listed([end.node for end in publishers])}'
        if len(publishers) > 1 else f'{moved} times in {seen.seconds:.0f} s'),
        'one that runs (use_sim_time)', 'start or unpause the simulator, one of them; on an arm '
        'use_sim_time: false')


def command(seen: Seen) -> Iterator[Row]:
    """Require that nobody but the gate commands the arm, and that it is heard."""
    stream = seen.stream(seen.gate, 'command')
    gates = seen.ours.get('command_gate', ())
    others = [end.node for end in stream.publishers if end.node not in gates]
    yield Row(f'{stream.name}: publishers', not others,
              listed([end.node for end in stream.publishers]) or 'none',
              'the command gate alone', f'stop {listed(others)}, then dtvla stop --clear')
    near = seen.nearby.get(stream.name, [])
    listeners = [end.node for end in stream.subscribers]
    yield Row(f'{stream.name}: listeners', bool(listeners), listed(listeners)
              or 'none' + (f'; there is {listed(near)}' if near else ''), "the arm's controller",
              f'--command-topic {near[0]}' if near else
              'start the controller, or name its input by --command-topic')


def gripper(seen: Seen) -> Iterator[Row]:
    """Require somebody who moves the fingers."""
    given = seen.gate.parameters
    kind, needless = str(given.get('gripper', 'topic')), not given.get('gripper_timeout_s')
    if given.get('preset') in SIMULATED:
        return
    remedy = ('start it, name its input by --gripper-topic, choose another gripper: interface, or '
              'gripper_timeout_s: 0.0 for an arm without one')
    if wanted := GRIPPER_ACTIONS.get(kind):
        name = seen.gate.topics['gripper_action']
        found = seen.grippers.get(name)
        others = [f'{other} ({of})' for other, of in seen.grippers.items() if other != name]
        yield Row(f'{name}: action', found == wanted or needless, found or 'nobody offers it' + (
            f'; there is {listed(others)}' if others else ''), wanted, remedy)
        return
    stream = seen.stream(seen.gate, 'gripper')
    listeners = [end.node for end in stream.subscribers]
    yield Row(f'{stream.name}: listeners', bool(listeners) or needless,
              listed(listeners) or 'none', "the gripper's driver", remedy)


def controllers(seen: Seen) -> Iterator[Row]:
    """Require that the controller which the gate commands is active."""
    if isinstance(seen.controllers, str):
        if seen.controllers:
            yield Row('controllers', None, seen.controllers)
        return
    owner = seen.gate.topics['command'].split('/')[1]
    state = seen.controllers.get(owner)
    active = [name for name, state in seen.controllers.items() if state == 'active']
    yield Row('controllers', state == 'active' if state else bool(active),
              f'{owner}: {state}' if state else f'active: {listed(active) or "none"}',
              f'{owner} active' if state else 'an active controller',
              f'ros2 control switch_controllers --activate {owner if state else "NAME"}')


def actions(seen: Seen) -> Iterator[Row]:
    """Require that a node which is to offer actions does; tell how to get them elsewhere."""
    if seen.actions:
        yield Row('actions', True, listed(seen.actions))
    elif seen.ours.get('task_server'):
        yield Row('actions', False, 'task_server offers none', 'run_task', NOT_INSTALLED)
    else:
        yield Row('actions', None, 'not offered: ' + (
            'task_server:=true, dtvla run --task-server' if action_type('RunTask') else
            NOT_INSTALLED))


def compatible(seen: Seen) -> Iterator[Row]:
    """Require qualities of service by which messages reach who subscribes."""
    fine = True
    for stream in seen.streams.values():
        unheard = [told for source in stream.publishers
                   for target in dict.fromkeys(end.node for end in stream.subscribers)
                   if (told := _unheard(stream, source, target))]
        fine = fine and not unheard
        if unheard:
            yield Row(f'{stream.name}: QoS', False, '; '.join(unheard),
                      'a publisher that offers what is requested', 'let the publisher offer more '
                      '(reliable, transient local), or who subscribes request less')
    if fine:
        yield Row('QoS', True, 'compatible')


def _unheard(stream: Stream, source: End, target: str) -> str:
    """Return why none of a node's subscriptions hears a publisher; '' where one does."""
    reasons = []
    for end in stream.subscribers:
        if end.node != target or end.kind != source.kind or None in (source.qos, end.qos):
            continue
        verdict, reason = qos_check_compatible(source.qos, end.qos)
        if verdict != QoSCompatibility.ERROR:
            return ''
        reasons.append(reason)
    return f'{source.node} to {target}: {reasons[0].removeprefix("ERROR: ")}' if reasons else ''


def policy(seen: Seen) -> Iterator[Row]:
    """Require a policy that can be read, for these cameras, this engine and this rate."""
    given = seen.policy.parameters
    folder = find_shared(str(given['policy']))
    if not (folder / MANIFEST).exists() and seen.policy.running:
        yield Row('policy', None, f'{given["policy"]}: not readable from here')
        return
    try:
        manifest = PolicyManifest.read(folder)
    except UserError as error:
        yield Row('policy', False, str(error), 'a policy', 'policy: its folder')
        return
    cameras = manifest.config.vision.cameras
    lacks = [graph for graph in GRAPHS if graph not in manifest.files]
    mine = given.get('cameras', CAMERAS)
    yield Row('policy: cameras', set(cameras) == set(mine), listed(cameras), listed(mine),
              'a policy of these cameras, or cameras: those of the policy')
    for kind, view in (('policy', seen.policy), ('gate', seen.gate)):
        arm = view.settings(ActionSettings).contract(
            view.parameters['arm_joints'], manifest.action.rate_hz)
        if others := differences(arm, manifest.action):
            yield Row(f'policy: actions for the {kind}', False, others[0], arm.controller,
                      'action_space, arm_joints and gripper_channel as the manifest has them')
    if given['engine'] == 'onnx' and lacks:
        yield Row('policy: engine', False, f'no {lacks[0]}', 'onnx needs its graphs',
                  'dtvla export, or engine: torch')
    rates = {view.parameters['chunk_rate'] for view in (seen.policy, seen.gate)}
    yield Row('policy: rate', all(math.isclose(manifest.action.rate_hz, rate) for rate in rates),
              f'{manifest.action.rate_hz:g} actions a second',
              f'{" and ".join(f"{rate:g}" for rate in sorted(rates))} (chunk_rate)',
              f'chunk_rate: {manifest.action.rate_hz:g} for policy and gate')
    state, values = seen.status.get('policy', ('', {}))
    if values.get('rejected') and values.get('rejected_instruction') == seen.told:
        yield Row('task', False, values['rejected'], 'one of its tasks', 'dtvla tasks lists them')
    elif state:
        told, meaning = values.get('instruction'), conversions.meaning(values)
        yield Row('task', None, ', '.join(filter(None, (told, meaning))) or
                  'none yet: dtvla tell')
