"""Meshes, textures and colours of a MuJoCo model as files beside the world."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import ConvexHull


class Surfaces:
    """Writes what geoms look like below ``folder``, each file once."""

    def __init__(self, m: mujoco.MjModel, folder: Path):
        self._m, self._folder = m, folder

    def mesh(self, geom: int) -> tuple[str, str]:
        """Return where a geom's mesh and its convex hull lie below the folder, '' without one.

        MuJoCo collides hulls, so the other simulator gets the hull too.
        """
        m, mesh = self._m, int(self._m.geom_dataid[geom])
        if m.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
            return '', ''
        seen, felt = (f'meshes/{m.mesh(mesh).name}{end}.obj' for end in ('', '_hull'))
        if (path := self._new(seen)) is not None:
            path.write_text(_obj(m, mesh))
            (self._folder / felt).write_text(_hull(_rows(m, 'vert', mesh).astype(np.float64)))
        return seen, felt

    def texture(self, geom: int) -> str | None:
        """Return where the image wrapped around a geom's mesh lies, None if there is none."""
        m, texture, mesh = self._m, self._texture(geom), int(self._m.geom_dataid[geom])
        if (texture is None or m.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D or mesh < 0
                or not m.mesh_texcoordnum[mesh]):
            return None
        name = f'textures/{m.texture(texture).name}.png'
        if (path := self._new(name)) is not None:
            Image.fromarray(self._image(texture)).save(path)
        return name

    def colour(self, geom: int) -> NDArray[np.float64]:
        """Return rgba [4] of a geom; a texture counts by its mean."""
        material = int(self._m.geom_matid[geom])
        if material < 0:
            return np.array(self._m.geom_rgba[geom], np.float64)
        rgba = np.array(self._m.mat_rgba[material], np.float64)
        if (texture := self._texture(geom)) is not None:
            rgba[:3] *= self._image(texture).reshape(-1, 3).mean(0) / 255.0
        return rgba

    def _new(self, name: str) -> Path | None:
        """Return the path of a file that is not there yet, its folder made."""
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        return None if path.exists() else path

    def _texture(self, geom: int) -> int | None:
        rgb = np.append(self._m.mat_texid[:, mujoco.mjtTextureRole.mjTEXROLE_RGB], -1)
        texture = int(rgb[self._m.geom_matid[geom]])  # -1: no material
        return texture if texture >= 0 else None

    def _image(self, texture: int) -> NDArray[np.uint8]:
        m = self._m
        shape = (m.tex_height[texture], m.tex_width[texture], m.tex_nchannel[texture])
        first = m.tex_adr[texture]
        image: NDArray[np.uint8] = m.tex_data[first:first + int(np.prod(shape))].reshape(shape)
        return np.ascontiguousarray(image[..., :3])


def _rows(m: mujoco.MjModel, what: str, mesh: int) -> NDArray:
    """Return a mesh's rows of a kind: 'vert', 'normal' or 'texcoord'."""
    first = getattr(m, f'mesh_{what}adr')[mesh]
    return getattr(m, f'mesh_{what}')[first:first + getattr(m, f'mesh_{what}num')[mesh]]


def _lines(word: str, rows: NDArray) -> str:
    return ''.join(f'{word} {" ".join(f"{x:.6g}" for x in row)}\n' for row in rows.tolist())


def _faces(*corners: NDArray) -> str:
    """Return faces whose corners are vertices, or those / textures / normals, from 1."""
    return ''.join(f'f {" ".join("/".join(map(str, corner)) for corner in zip(*face))}\n'
                   for face in zip(*(rows.tolist() for rows in corners)))


def _obj(m: mujoco.MjModel, mesh: int) -> str:
    """Return Wavefront text."""
    rows = slice(m.mesh_faceadr[mesh], m.mesh_faceadr[mesh] + m.mesh_facenum[mesh])
    text = _lines('v', _rows(m, 'vert', mesh)) + _lines('vn', _rows(m, 'normal', mesh))
    corners, bent = m.mesh_face[rows] + 1, m.mesh_facenormal[rows] + 1
    if not m.mesh_texcoordnum[mesh]:
        return text + _faces(corners, np.full(corners.shape, ''), bent)
    places = _rows(m, 'texcoord', mesh)
    # MuJoCo counts a image's rows from the top, Wavefront from the bottom.
    text += _lines('vt', np.stack([places[:, 0], 1.0 - places[:, 1]], axis=1))
    return text + _faces(corners, m.mesh_facetexcoord[rows] + 1, bent)


def _hull(vertices: NDArray[np.float64]) -> str:
    hull = ConvexHull(vertices)
    faces = hull.simplices.copy()  # [F, 3], of either winding
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    inward = np.einsum('fi,fi->f', np.cross(b - a, c - a), hull.equations[:, :3]) < 0
    faces[inward] = faces[inward][:, ::-1]
    used, index = np.unique(faces, return_inverse=True)
    return _lines('v', vertices[used]) + _faces(index.reshape(-1, 3) + 1)
