"""Meshes, textures and colours of a MuJoCo model as files beside the world."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.spatial import ConvexHull

Array = NDArray[np.float64]
HULL_VERTICES = 52  # at most; closed and of triangles, such a hull has 100
STL_FACE = np.dtype([('normal', '<f4', 3), ('corners', '<f4', (3, 3)), ('attribute', '<u2')])
PLANE_CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
PLANE_FACES = np.array([[0, 1, 2], [0, 2, 3]])


def linear(colour: ArrayLike) -> Array:
    """Return rgb or rgba as light, as Gazebo reads it, of what a screen is told (sRGB)."""
    made = np.array(colour, np.float64)
    rgb = made[..., :3]
    made[..., :3] = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return made


class Surfaces:
    """Writes what geoms look and feel like below ``folder``, each file once."""

    def __init__(self, m: mujoco.MjModel, folder: Path):
        self._m, self._folder = m, folder
        self._written: set[str] = set()

    def seen(self, geom: int) -> str:
        """Return where a geom's mesh lies below the folder, '' for a shape that Gazebo has.

        A plane with a texture is a mesh, too: Gazebo would stretch the texture over all of it.
        """
        m = self._m
        if m.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            name = m.mesh(m.geom_dataid[geom]).name
        elif m.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE and self.texture(geom):
            name = m.geom(geom).name
        else:
            return ''
        place = f'meshes/{name}.obj'
        if (path := self._new(place)) is not None:
            path.write_text(f'mtllib {name}.mtl\nusemtl {name}\n{self._obj(geom)}')
            path.with_suffix('.mtl').write_text(
                f'newmtl {name}\n{_lines("Kd", self.colour(geom)[None, :3])}')
        return place

    def felt(self, geom: int) -> str:
        """Return where the convex hull of a geom's mesh lies below the folder, '' without one.

        MuJoCo collides hulls, so the other simulator gets the hull too.
        """
        m, mesh = self._m, int(self._m.geom_dataid[geom])
        if m.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
            return ''
        place = f'meshes/{m.mesh(mesh).name}_hull.stl'
        if (path := self._new(place)) is not None:
            path.write_bytes(_hull(_rows(m, 'vert', mesh).astype(np.float64)))
        return place

    def texture(self, geom: int) -> str | None:
        """Return where the texture wrapped around a geom's mesh lies, None if there is none."""
        m, texture = self._m, self._texture(geom)
        if texture is None or self._places(geom) is None:
            return None
        name = f'textures/{m.texture(texture).name}.png'
        if (path := self._new(name)) is not None:
            Image.fromarray((self._image(texture) * 255.0).round().astype(np.uint8)).save(path)
        return name

    def colour(self, geom: int) -> Array:
        """Return the rgba [4] that MuJoCo draws a geom with; a texture counts by its mean."""
        material = int(self._m.geom_matid[geom])
        if material < 0:
            return np.array(self._m.geom_rgba[geom], np.float64)
        rgba = np.array(self._m.mat_rgba[material], np.float64)
        if (texture := self._texture(geom)) is not None:
            rgba[:3] *= self._image(texture).reshape(-1, 3).mean(0)
        return rgba

    def _new(self, name: str) -> Path | None:
        """Return where to write a file, its folder made; None if this object wrote it before.

        One that lies there may be of an earlier version, or half of one.
        """
        if name in self._written:
            return None
        self._written.add(name)
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        return path

    def _texture(self, geom: int) -> int | None:
        rgb = np.append(self._m.mat_texid[:, mujoco.mjtTextureRole.mjTEXROLE_RGB], -1)
        texture = int(rgb[self._m.geom_matid[geom]])  # -1: no material
        return texture if texture >= 0 else None

    def _image(self, texture: int) -> Array:
        """Return a texture [height, width, 3] as it appears on the screen, 0..1."""
        m = self._m
        shape = (m.tex_height[texture], m.tex_width[texture], m.tex_nchannel[texture])
        first = m.tex_adr[texture]
        image = m.tex_data[first:first + int(np.prod(shape))].reshape(shape)[..., :3] / 255.0
        # OpenGL makes such a texture linear where it reads it; nothing undoes that.
        srgb = m.tex_colorspace[texture] == mujoco.mjtColorSpace.mjCOLORSPACE_SRGB
        return linear(image) if srgb else image

    def _places(self, geom: int) -> Array | None:
        """Return u, v [n, 2] of the texture around a mesh or on a plane, None if there is none."""
        m, mesh, texture = self._m, int(self._m.geom_dataid[geom]), self._texture(geom)
        if texture is None or m.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D:
            return None
        if mesh >= 0 and m.mesh_texcoordnum[mesh]:
            places = _rows(m, 'texcoord', mesh)
        elif m.mat_texuniform[m.geom_matid[geom]] and (
                mesh >= 0 or m.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE):
            # MuJoCo projects it along z, so many times every two metres.
            corners = _rows(m, 'vert', mesh)[:, :2] if mesh >= 0 else self._corners(geom)
            times = m.mat_texrepeat[m.geom_matid[geom]] * [1.0, -1.0]
            places = 0.5 * times * corners + 0.5
        else:
            return None
        # MuJoCo counts an image's rows from the top, Wavefront from the bottom.
        return np.stack([places[:, 0], 1.0 - places[:, 1]], axis=1)

    def _corners(self, geom: int) -> Array:
        """Return the corners of a plane [4, 2] m."""
        return PLANE_CORNERS * self._m.geom_size[geom, :2]

    def _obj(self, geom: int) -> str:
        """Return what a geom looks like as Wavefront text."""
        m, mesh, places = self._m, int(self._m.geom_dataid[geom]), self._places(geom)
        if mesh < 0:
            vertices = np.pad(self._corners(geom), ((0, 0), (0, 1)))
            normals, bent = np.array([[0.0, 0.0, 1.0]]), np.zeros_like(PLANE_FACES)
            faces = pictured = PLANE_FACES
        else:
            rows = slice(m.mesh_faceadr[mesh], m.mesh_faceadr[mesh] + m.mesh_facenum[mesh])
            vertices, normals = _rows(m, 'vert', mesh), _rows(m, 'normal', mesh)
            faces, bent = m.mesh_face[rows], m.mesh_facenormal[rows]
            pictured = m.mesh_facetexcoord[rows] if m.mesh_texcoordnum[mesh] else faces
        text = _lines('v', vertices) + _lines('vn', normals)
        if places is None:
            return text + _faces(faces + 1, np.full(faces.shape, ''), bent + 1)
        return text + _lines('vt', places) + _faces(faces + 1, pictured + 1, bent + 1)


def _rows(m: mujoco.MjModel, what: str, mesh: int) -> NDArray:
    """Return a mesh's rows of a kind: 'vert', 'normal' or 'texcoord'."""
    first = getattr(m, f'mesh_{what}adr')[mesh]
    return getattr(m, f'mesh_{what}')[first:first + getattr(m, f'mesh_{what}num')[mesh]]


def _lines(word: str, rows: NDArray) -> str:
    return ''.join(f'{word} {" ".join(f"{x:.6g}" for x in row)}\n' for row in rows.tolist())


def _faces(*corners: NDArray) -> str:
    """Return faces whose corners are vertices / textures / normals, from 1."""
    return ''.join(f'f {" ".join("/".join(map(str, corner)) for corner in zip(*face))}\n'
                   for face in zip(*(rows.tolist() for rows in corners)))


def _hull(vertices: Array) -> bytes:
    """Return the convex hull as binary STL: DART ignores a mesh without a normal per face."""
    hull = _thinned(vertices)
    corners = hull.points[hull.simplices]  # [F, 3, 3], of either winding
    normals = hull.equations[:, :3]
    a, b, c = corners.transpose(1, 0, 2)
    inward = np.einsum('fi,fi->f', np.cross(b - a, c - a), normals) < 0
    corners[inward] = corners[inward][:, ::-1]
    made = np.zeros(len(corners), STL_FACE)
    made['normal'], made['corners'] = normals, corners
    return bytes(80) + np.uint32(len(made)).astype('<u4').tobytes() + made.tobytes()


def _thinned(vertices: Array) -> ConvexHull:
    """Return the convex hull, or one of fewer vertices and the same volume: a cheaper contact."""
    hull = ConvexHull(vertices)
    if len(hull.vertices) <= HULL_VERTICES:
        return hull
    chosen = ConvexHull(vertices, qhull_options='Qt TA1').vertices  # five that span it
    small = ConvexHull(vertices[chosen], incremental=True)
    while len(small.vertices) < HULL_VERTICES:
        beyond = (vertices @ small.equations[:, :3].T + small.equations[:, 3]).max(1)
        small.add_points(vertices[[beyond.argmax()]])
    centre, scale = small.points.mean(0), (hull.volume / small.volume) ** (1 / 3)
    return ConvexHull(centre + (small.points - centre) * scale)
