"""Meshes, textures and colours of a MuJoCo model as files beside the world."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import ConvexHull


def mesh_files(m: mujoco.MjModel, geom: int, folder: Path) -> tuple[str, str]:
    """Write a geom's mesh and its convex hull once; return their paths below ``folder``.

    MuJoCo collides hulls, so the other simulator gets the hull too.
    """
    mesh = int(m.geom_dataid[geom])
    name = m.mesh(mesh).name
    seen, felt = f'meshes/{name}.obj', f'meshes/{name}_hull.obj'
    (folder / 'meshes').mkdir(parents=True, exist_ok=True)
    if not (folder / seen).exists():
        (folder / seen).write_text(_obj(m, mesh))
        (folder / felt).write_text(_hull(_vertices(m, mesh)))
    return seen, felt


def texture_file(m: mujoco.MjModel, geom: int, folder: Path) -> str | None:
    """Write the image that is wrapped around a geom's mesh; return its path, None: no such."""
    texture = _texture(m, geom)
    mesh = int(m.geom_dataid[geom])
    if (texture is None or m.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D or mesh < 0
            or not m.mesh_texcoordnum[mesh]):
        return None
    path = f'textures/{m.texture(texture).name}.png'
    (folder / 'textures').mkdir(parents=True, exist_ok=True)
    if not (folder / path).exists():
        Image.fromarray(_image(m, texture)).save(folder / path)
    return path


def colour(m: mujoco.MjModel, geom: int) -> NDArray[np.float64]:
    """Return rgba [4] of a geom; a texture counts by its mean."""
    material = int(m.geom_matid[geom])
    if material < 0:
        return np.array(m.geom_rgba[geom], np.float64)
    rgba = np.array(m.mat_rgba[material], np.float64)
    texture = _texture(m, geom)
    if texture is not None:
        rgba[:3] *= _image(m, texture).reshape(-1, 3).mean(0) / 255.0
    return rgba


def _texture(m: mujoco.MjModel, geom: int) -> int | None:
    material = int(m.geom_matid[geom])
    if material < 0:
        return None
    texture = int(m.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB])
    return texture if texture >= 0 else None


def _image(m: mujoco.MjModel, texture: int) -> NDArray[np.uint8]:
    shape = (m.tex_height[texture], m.tex_width[texture], m.tex_nchannel[texture])
    first = m.tex_adr[texture]
    image: NDArray[np.uint8] = m.tex_data[first:first + int(np.prod(shape))].reshape(shape)
    return np.ascontiguousarray(image[..., :3])


def _vertices(m: mujoco.MjModel, mesh: int) -> NDArray[np.float64]:
    first = m.mesh_vertadr[mesh]
    return np.asarray(m.mesh_vert[first:first + m.mesh_vertnum[mesh]], np.float64)


def _lines(word: str, rows: NDArray[np.float64]) -> str:
    return ''.join(f'{word} {" ".join(f"{x:.6g}" for x in row)}\n' for row in rows.tolist())


def _obj(m: mujoco.MjModel, mesh: int) -> str:
    """Return Wavefront text; faces index vertex/texture/normal from 1."""
    rows = slice(m.mesh_faceadr[mesh], m.mesh_faceadr[mesh] + m.mesh_facenum[mesh])
    normals = m.mesh_normal[
        m.mesh_normaladr[mesh]:m.mesh_normaladr[mesh] + m.mesh_normalnum[mesh]]
    text = _lines('v', _vertices(m, mesh)) + _lines('vn', normals)
    corners, bent = m.mesh_face[rows] + 1, m.mesh_facenormal[rows] + 1
    if not m.mesh_texcoordnum[mesh]:
        return text + ''.join(
            'f ' + ' '.join(f'{v}//{n}' for v, n in zip(*face)) + '\n'
            for face in zip(corners.tolist(), bent.tolist()))
    first = m.mesh_texcoordadr[mesh]
    places = m.mesh_texcoord[first:first + m.mesh_texcoordnum[mesh]]
    # MuJoCo counts a image's rows from the top, Wavefront from the bottom.
    text += _lines('vt', np.stack([places[:, 0], 1.0 - places[:, 1]], axis=1))
    wrapped = m.mesh_facetexcoord[rows] + 1
    return text + ''.join(
        'f ' + ' '.join(f'{v}/{t}/{n}' for v, t, n in zip(*face)) + '\n'
        for face in zip(corners.tolist(), wrapped.tolist(), bent.tolist()))


def _hull(vertices: NDArray[np.float64]) -> str:
    hull = ConvexHull(vertices)
    faces = hull.simplices.copy()  # [F, 3], of either winding
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    inward = np.einsum('fi,fi->f', np.cross(b - a, c - a), hull.equations[:, :3]) < 0
    faces[inward] = faces[inward][:, ::-1]
    used, index = np.unique(faces, return_inverse=True)
    rows = index.reshape(-1, 3) + 1
    return _lines('v', vertices[used]) + ''.join(f'f {i} {j} {k}\n' for i, j, k in rows.tolist())
