"""What SDF and URDF have in common."""

from __future__ import annotations

import warnings
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from .model import Array, Link


def add(parent: ET.Element, tag: str, text: object = None, **attributes: object) -> ET.Element:
    """Append an element; arrays become numbers with spaces between."""
    element = ET.SubElement(parent, tag, {k: str(v) for k, v in attributes.items()})
    if text is not None:
        element.text = text if isinstance(text, str) else numbers(text)
    return element


def numbers(values: object) -> str:
    """Return a bool, a number or an array as text."""
    if isinstance(values, bool):
        return 'true' if values else 'false'
    flat = np.atleast_1d(np.asarray(values, np.float64)).ravel()
    return ' '.join(f'{x:.10g}' for x in flat)


def xyz(pose: Array) -> str:
    """Return the position of [4, 4] as text."""
    return numbers(pose[:3, 3])


def rpy(pose: Array) -> str:
    """Return the rotation of [4, 4] as roll, pitch and yaw [rad]."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Gimbal lock')  # any of the right triples will do
        return numbers(Rotation.from_matrix(pose[:3, :3]).as_euler('xyz'))


def moments(link: Link) -> dict[str, str]:
    """Return the six moments of inertia [kg m^2] in the frame of ``inertial_pose``."""
    xx, yy, zz = link.inertia
    return {k: numbers(v) for k, v in {
        'ixx': xx, 'iyy': yy, 'izz': zz, 'ixy': 0.0, 'ixz': 0.0, 'iyz': 0.0}.items()}


def write(root: ET.Element, path: Path) -> None:
    """Write a document, indented."""
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding='utf-8', xml_declaration=True)


def grey(value: ArrayLike) -> str:
    """Return one brightness as opaque rgba."""
    return numbers([*np.repeat(np.asarray(value, np.float64), 3), 1.0])
