"""OpenGL without a window: choice of the renderer, and the context of this process.

EGL is used if it works, else OSMesa; MUJOCO_GL=egl or =osmesa overrides this. One OpenGL context serves the whole process. Each call that
renders makes it current and releases it afterwards, so any thread can be next. EGL's previous context is restored for its other users.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import ctypes.util
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

HOW_TO_GET = "apt-get install libegl1 libgl1-mesa-dri (EGL), or apt-get install libosmesa6 (OSMesa)"
EGL_PLATFORM_DEVICE = 0x313F

_lock = threading.RLock()
_context: Any = None
_depth = 0


def renderer() -> str:
    """ "egl" or "osmesa". If neither works, ImportError names what to install."""
    asked = os.environ.get("MUJOCO_GL", "").lower()
    platform = os.environ.get("PYOPENGL_PLATFORM", "").lower()
    if asked and asked not in ("egl", "osmesa"):
        raise ImportError(f"Memory Maze renders with EGL or OSMesa, but MUJOCO_GL is {asked!r}: unset it, or set it to egl or osmesa")
    asked = asked or (platform if platform in ("egl", "osmesa") else "")
    if asked:
        if not _WORKS[asked]():
            raise ImportError(f"MUJOCO_GL or PYOPENGL_PLATFORM is {asked!r}, which does not work on this machine: {HOW_TO_GET}")
        return asked
    for name, works in _WORKS.items():
        if works():
            return name
    raise ImportError(f"Memory Maze needs an OpenGL renderer without a window, and none works on this machine: {HOW_TO_GET}")


def choose() -> None:
    """Choose a renderer, also for dm_control."""
    os.environ.setdefault("MUJOCO_GL", renderer())


def _egl_works() -> bool:
    """Whether an EGL device opens. Uses ctypes, since PyOpenGL is bound to the first platform that it is loaded with."""
    try:
        egl = ctypes.CDLL(ctypes.util.find_library("EGL") or "libEGL.so.1")
        find = egl.eglGetProcAddress
    except (OSError, AttributeError):
        return False
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    query, open_display = find(b"eglQueryDevicesEXT"), find(b"eglGetPlatformDisplayEXT")
    if not query or not open_display:
        return False
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    devices, count = (pointer * 16)(), integer()
    ctypes.CFUNCTYPE(ctypes.c_uint, integer, pointer, pointer)(query)(16, ctypes.cast(devices, pointer), ctypes.addressof(count))
    get = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(open_display)
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    displays = (get(EGL_PLATFORM_DEVICE, device, None) for device in devices[: count.value])
    return any(display and egl.eglInitialize(display, None, None) for display in displays)


def _osmesa_works() -> bool:
    try:
        ctypes.CDLL(ctypes.util.find_library("OSMesa") or "libOSMesa.so.8")
    except OSError:
        return False
    return True


_WORKS: dict[str, Callable[[], bool]] = {"egl": _egl_works, "osmesa": _osmesa_works}


@contextlib.contextmanager
def current() -> Iterator[None]:
    """Make this process's OpenGL context current within the block. Blocks can be nested."""
    global _depth
    with _lock:
        if _depth == 0:
            restore = _enter()
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1
            if _depth == 0:
                restore()


def _enter() -> Callable[[], None]:
    global _context
    if _context is None:
        choose()
    name = _context[0] if _context is not None else renderer()
    if name == "egl":
        import mujoco.egl as platform
        from mujoco.egl import EGL

        context = _made(name, platform)
        before = EGL.eglGetCurrentContext()
        context.make_current()
        display = platform.EGL_DISPLAY
        return lambda: EGL.eglMakeCurrent(display, EGL.EGL_NO_SURFACE, EGL.EGL_NO_SURFACE, before or EGL.EGL_NO_CONTEXT)
    import mujoco.osmesa as platform
    from OpenGL import GL, osmesa

    _made(name, platform).make_current()
    return lambda: osmesa.OSMesaMakeCurrent(None, None, GL.GL_FLOAT, 0, 0)


def _made(name: str, platform: Any) -> Any:
    global _context
    if _context is None:
        _context = name, platform.GLContext(64, 64)
        atexit.register(_free)
    return _context[1]


def _free() -> None:
    """Free the context before OpenGL is unloaded. Otherwise it prints an error at exit."""
    global _context
    with _lock:
        if _context is not None:
            context, _context = _context[1], None
            context.free()
            context.__class__.__del__ = lambda self: None  # the context is freed; the platform's __del__ would free it again


if __name__ == "__main__":
    print(renderer())  # noqa: T201  for the Makefile: it fails if no renderer works
