"""Where a simulated scene's frames are, and how its cameras project."""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo

from dtvla_ros.conventions import camera_info_topic, relative
from dtvla_ros.ros import conversions, qos

BASE, GRIPPER = 'base', 'gripper'
IN_HAND = 'robot0_eye_in_hand'  # MuJoCo's name of the camera that moves with the gripper
# REP 103: an optical frame looks along z with y down; MuJoCo's cameras along -z with y up.
_OPTICAL = Rotation.from_euler('x', 180, degrees=True)

Placed = tuple[NDArray[np.float64], Rotation]  # position [3] m, orientation


def optical_frame(camera: str) -> str:
    """Return the frame in which a camera's images are taken."""
    return f'camera_{camera}_optical_frame'


class SimFrames:
    """Publishes ``/tf``, ``/tf_static`` and a CameraInfo beside each image.

    ``base`` to ``gripper`` moves; those to the cameras are static and sent anew by `begin`, as
    they depend on the task. Without tf2_msgs there are no transforms.
    """

    def __init__(self, node: Node, env: Any) -> None:
        self._env, self._size = env, int(env.image_size)
        self._moving = self._static = None
        try:
            self._type = conversions.message_type('tf2_msgs/msg/TFMessage')
        except KeyError:
            node.get_logger().info('tf2_msgs is not installed: no /tf and /tf_static')
        else:
            self._moving = node.create_publisher(
                self._type, '/tf', qos.profile(100, reliable=True, latched=False))
            self._static = node.create_publisher(self._type, '/tf_static', qos.LATCHED)
        self._infos = {
            name: node.create_publisher(CameraInfo, relative(topic), qos_profile_sensor_data)
            for name, topic in ((name, camera_info_topic(name)) for name in env.views)}

    def begin(self, stamp: float, gripper: Placed) -> None:
        """Send where the cameras are mounted, the gripper being at ``gripper`` in the base."""
        if self._static is None:
            return
        (position, rotation), found = gripper, []
        back = rotation.inv()
        for camera in self._env.views:
            parent, (at, turn) = BASE, self._camera(camera)
            if self._view(camera) == IN_HAND:
                parent, at, turn = GRIPPER, back.apply(at - position), back * turn
            found.append(_transform(stamp, parent, optical_frame(camera), (at, turn)))
        self._static.publish(self._type(transforms=found))

    def show(self, stamp: float, gripper: Placed) -> None:
        """Send where the gripper is."""
        if self._moving is not None and self._moving.get_subscription_count():
            self._moving.publish(self._type(
                transforms=[_transform(stamp, BASE, GRIPPER, gripper)]))

    def show_camera(self, camera: str, stamp: float) -> None:
        """Send how a camera projects, if somebody listens; pixel centres are whole numbers."""
        if self._infos[camera].get_subscription_count() == 0:
            return
        model, _ = _mujoco(self._env)
        fovy = np.radians(float(model.cam_fovy[model.camera(self._view(camera)).id]))  # vertical
        focal, centre = self._size / 2.0 / np.tan(fovy / 2.0), (self._size - 1) / 2.0
        p = np.array([[focal, 0.0, centre, 0.0], [0.0, focal, centre, 0.0], [0.0, 0.0, 1.0, 0.0]])
        self._infos[camera].publish(CameraInfo(
            header=conversions.header(stamp, optical_frame(camera)),
            width=self._size, height=self._size, distortion_model='plumb_bob', d=[0.0] * 5,
            k=conversions.floats(p[:, :3].ravel()), r=conversions.floats(np.eye(3).ravel()),
            p=conversions.floats(p.ravel())))

    def _view(self, camera: str) -> str:
        """Return MuJoCo's name of a camera."""
        return str(self._env.views[camera]).removesuffix('_image')

    def _camera(self, camera: str) -> Placed:
        model, data = _mujoco(self._env)
        number = model.camera(self._view(camera)).id
        turn = Rotation.from_matrix(np.reshape(data.cam_xmat[number], (3, 3)))
        return np.array(data.cam_xpos[number]) - self._env.base_position, turn * _OPTICAL


def _mujoco(env: Any) -> tuple[Any, Any]:
    """Return MuJoCo's model and data of the present scene; another task may have others."""
    scene = env.scene
    sim = getattr(scene, 'sim', None)
    return (scene.model, scene.data) if sim is None else (sim.model._model, sim.data._data)


def _transform(stamp: float, parent: str, child: str, placed: Placed) -> TransformStamped:
    p, q = conversions.floats(placed[0]), conversions.floats(placed[1].as_quat())
    return TransformStamped(
        header=conversions.header(stamp, parent), child_frame_id=child, transform=Transform(
            translation=Vector3(x=p[0], y=p[1], z=p[2]),
            rotation=Quaternion(x=q[0], y=q[1], z=q[2], w=q[3])))
