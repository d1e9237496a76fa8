"""Images of a body, rendered without a display.

The body's state is copied into a second simulation and rendered from there, so that rendering never moves it. Shadows and
reflections are off: they take five sixths of the time. MuJoCo draws with OpenGL, which it chooses when it is loaded: set
MUJOCO_GL to `egl` (Mesa or a GPU's driver) or `osmesa` before Python starts where there is no screen.
"""

from __future__ import annotations

import atexit
import copy
import os
import warnings
import weakref
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pliant.rl.environments.mujoco_batch import MujocoBatch
from pliant.rl.environments.physics import WITHOUT_A_SCREEN, GraphicsUnavailable, mujoco

Picture: TypeAlias = NDArray[np.uint8]


class Camera:
    """Follows one body. Raises GraphicsUnavailable, saying what to set or install, where MuJoCo finds nothing to draw with.

    `Camera(ants, agent=3).picture()` is (height, width, 3), 0 to 255.
    """

    def __init__(self, bodies: MujocoBatch, agent: int = 0, copy: int = 0, width: int = 320, height: int = 240) -> None:
        self._mj = mj = mujoco()
        self._bodies, self._which = bodies, (agent, copy)
        self._model = _model_for_drawing(bodies.simulation(agent, copy)[0], width, height)
        self._data = mj.MjData(self._model)
        self._renderer = _renderer(mj, self._model, width, height)
        atexit.register(_close, weakref.ref(self))  # before OpenGL itself is unloaded

    def picture(self) -> Picture:
        """The body as it is now, (height, width, 3), 0 to 255."""
        _, data = self._bodies.simulation(*self._which)
        self._data.qpos[:] = data.qpos
        self._mj.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, camera="track")
        flags = self._renderer.scene.flags
        flags[self._mj.mjtRndFlag.mjRND_SHADOW] = flags[self._mj.mjtRndFlag.mjRND_REFLECTION] = 0
        return np.asarray(self._renderer.render()).copy()

    def close(self) -> None:
        """Give the graphics memory back."""
        self._renderer.close()


def _close(camera: weakref.ref[Camera]) -> None:
    alive = camera()
    if alive is not None:
        alive.close()


def _model_for_drawing(model: Any, width: int, height: int) -> Any:
    drawn = copy.copy(model)
    drawn.vis.global_.offwidth = max(drawn.vis.global_.offwidth, width)
    drawn.vis.global_.offheight = max(drawn.vis.global_.offheight, height)
    return drawn


def _renderer(mj: Any, model: Any, width: int, height: int) -> Any:
    with warnings.catch_warnings(record=True) as said:  # GLFW only warns that it has no display
        warnings.simplefilter("always")
        try:
            return mj.Renderer(model, height, width)
        except Exception as error:
            reason = said[0].message if said else error
            raise GraphicsUnavailable(
                f"MuJoCo cannot draw here (MUJOCO_GL is {os.environ.get('MUJOCO_GL') or 'not set'}): {reason}. "
                f"{WITHOUT_A_SCREEN}"
            ) from error
