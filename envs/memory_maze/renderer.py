"""Renders one maze with upstream's pixels, but faster.

Surfaces outside of the camera's view are not passed to OpenGL. The images on walls, floor and ball are decoded and uploaded to the
graphics device once per process, in the `TextureCache`, and shared by all mazes. Upstream spends most of a reset on this, and on
compiling the model with the images.

Depth is rendered without anti-aliasing: of a pixel's four samples OpenGL keeps one that is not at its centre, which is an error of a
percent on the floor.
"""

from __future__ import annotations

import math
import re
import weakref
from functools import cache
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from wmgym.envs.memory_maze import gl
from wmgym.envs.memory_maze.upstream import attribute

Frame = NDArray[np.uint8]
Depth = NDArray[np.float32]
Materials = NDArray[np.int64]
HIDDEN = 5  # a group of geoms that is not rendered
MARGIN = 0.01  # metres; a surface this far outside of the view is still rendered
SMALL_FONT = mujoco.mjtFontScale.mjFONTSCALE_50  # no text is rendered


class MazeRenderer:
    """One camera in one maze. `largest` is the greatest height and width of its frames."""

    def __init__(
        self, model: Any, data: Any, camera: str, textures: tuple[str, ...], pictures: dict[str, bytes], largest: tuple[int, int]
    ) -> None:
        self._model, self._textures, self._pictures = model, textures, pictures
        model.vis.global_.offheight, model.vis.global_.offwidth = largest
        model.vis.quality.shadowsize = 0  # there are no shadows, and a shadow map would have 4096 x 4096 pixels
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(camera).id
        self._slope = math.tan(math.radians(float(model.cam_fovy[self._camera.fixedcamid])) / 2)
        self._scene = mujoco.MjvScene(model, maxgeom=2 * model.ngeom + 100)
        self._option, self._perturb = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = 0
        self._groups = np.array(model.geom_group)
        self._flat = np.flatnonzero((model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE) & (self._groups < 3))
        self._corners = _corners(model, data, self._flat)  # [surfaces, 4, 3]
        self._context: Any = None
        self._depth_context: Any = None
        extent = model.stat.extent
        self._near, self._far = float(model.vis.map.znear * extent), float(model.vis.map.zfar * extent)  # metres

    def draw(self, data: Any, height: int, width: int, present: Materials, absent: Materials) -> Frame:
        """The camera's view as a new array [height, width, 3], top row first. Geoms of `absent` materials are not rendered."""
        pixels = np.empty((height, width, 3), np.uint8)
        area = mujoco.MjrRect(0, 0, width, height)
        with gl.current():  # its lock also keeps other threads from changing the model
            self._arrange(data, height, width, present, absent)
            if self._context is None:
                self._context = self._make_context()
            self._render(area, self._context)
            mujoco.mjr_readPixels(pixels, None, area, self._context)
        return pixels[::-1].copy()

    def depth(self, data: Any, height: int, width: int, present: Materials, absent: Materials) -> Depth:
        """Depth of `draw` in metres along the camera's axis, at the pixels' centres: [height, width], infinite in the sky."""
        values = np.empty((height, width), np.float32)
        area = mujoco.MjrRect(0, 0, width, height)
        flags = self._scene.flags
        with gl.current():
            self._arrange(data, height, width, present, absent)
            if self._depth_context is None:
                self._depth_context = self._make_depth_context()
            before = flags.copy()
            flags[mujoco.mjtRndFlag.mjRND_SKYBOX], flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 0, 1  # the sky is a box; no light, no textures
            self._render(area, self._depth_context)
            flags[:] = before
            mujoco.mjr_readPixels(None, values, area, self._depth_context)
        return self._metres(values[::-1])

    def _arrange(self, data: Any, height: int, width: int, present: Materials, absent: Materials) -> None:
        """Update the scene with the geoms that are visible."""
        self._model.mat_rgba[absent, 3], self._model.mat_rgba[present, 3] = 0, 1
        self._hide_out_of_view(data, height, width)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, self._perturb, self._camera, everything, self._scene)

    def _render(self, area: Any, context: Any) -> None:
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)  # another maze may have been rendered in between
        mujoco.mjr_render(area, self._scene, context)

    def _metres(self, values: Depth) -> Depth:
        """Depth buffer -> metres. The buffer is linear in 1 / z: 1 at the near plane, 0 at the far plane and without a surface."""
        near, far = self._near, self._far
        z = near * far / (near + values.astype(np.float64) * (far - near))
        return np.where(values > 0, z, np.inf).astype(np.float32)

    def _hide_out_of_view(self, data: Any, height: int, width: int) -> None:
        """Hide surfaces whose corners are all beyond the same side of the view."""
        camera = self._camera.fixedcamid
        seen = (self._corners - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)  # right, up, towards the viewer
        depth = -self._slope * seen[..., 2]
        right, up = seen[..., 0], seen[..., 1]
        wide, high = depth * (width / height) + MARGIN, depth + MARGIN
        beyond = (right > wide).all(1) | (-right > wide).all(1) | (up > high).all(1) | (-up > high).all(1)
        self._model.geom_group[self._flat] = np.where(beyond, HIDDEN, self._groups[self._flat])

    def _make_context(self) -> Any:
        shared = texture_cache().get(self._textures, self._pictures)
        context = mujoco.MjrContext(self._model, SMALL_FONT)
        own = context.texture.copy()
        for name, texture in shared.items():
            context.texture[self._model.texture(name).id] = texture
        weakref.finalize(self, _free, context, own)
        return context

    def _make_depth_context(self) -> Any:
        quality = self._model.vis.quality
        samples, quality.offsamples = quality.offsamples, 0
        context = mujoco.MjrContext(self._model, SMALL_FONT)
        quality.offsamples = samples
        context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # the buffer's own format; another one would add rounding
        weakref.finalize(self, _free, context, context.texture.copy())
        return context


def _corners(model: Any, data: Any, planes: NDArray[np.int64]) -> NDArray[np.float64]:
    """World coordinates of the corners of finite planes: [n, 4, 3]."""
    centre, axes = data.geom_xpos[planes], data.geom_xmat[planes].reshape(-1, 3, 3)
    half = model.geom_size[planes, :2]
    assert (half > 0).all(), "an infinite plane is always in view"
    signs = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    return centre[:, None] + np.einsum("pij,pcj->pci", axes[..., :2], signs[None] * half[:, None])


def _free(context: Any, own: NDArray[Any]) -> None:
    """Free a maze's context, but not the shared textures."""
    with gl.current():
        context.texture[:] = own
        context.free()


class TextureCache:
    """Textures on the graphics device, for all mazes of this process. The key of a texture is its XML without its name."""

    def __init__(self) -> None:
        self._textures: dict[str, int] = {}
        self._contexts: list[Any] = []  # keep the textures alive

    def get(self, textures: tuple[str, ...], pictures: dict[str, bytes]) -> dict[str, int]:
        """OpenGL's id of each texture with an image file, by the texture's name in the model."""
        keys = {attribute(xml, "name") or "": _nameless(xml) for xml in textures if attribute(xml, "file")}
        new = sorted(set(keys.values()) - self._textures.keys())
        if new:
            xml = "".join(key.replace("<texture", f'<texture name="{i}"') for i, key in enumerate(new))
            model = mujoco.MjModel.from_xml_string(f"<mujoco><asset>{xml}</asset></mujoco>", pictures)
            model.vis.quality.shadowsize = 0
            model.vis.global_.offheight = model.vis.global_.offwidth = 1
            context = mujoco.MjrContext(model, SMALL_FONT)
            self._contexts.append(context)
            self._textures |= {key: int(context.texture[model.texture(str(i)).id]) for i, key in enumerate(new)}
        return {name: self._textures[key] for name, key in keys.items()}


def _nameless(xml: str) -> str:
    return re.sub(r'\s(name|class)="[^"]*"', "", xml)


@cache
def texture_cache() -> TextureCache:
    """The cache of this process."""
    return TextureCache()
