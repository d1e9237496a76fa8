"""All access to MuJoCo: models as this package needs them, and errors that say what to install where MuJoCo is missing.

The contact margin. Until MuJoCo 3.4 two geoms are in contact from the larger of their margins on; from 3.5 on, from their sum.
With the XML of the ant (0.01 each) it then lands 1 cm earlier, and no published curve of it applies.
`contact_margin="before-3.5"` halves the margins where the installed MuJoCo adds them, which gives back the older physics exactly,
as all geoms of a body have the same margin. Whether the installed MuJoCo adds them is measured on a ball and a plane, not
concluded from its version number.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from pliant.base.install import how_to_install
from pliant.rl.environments.bodies import Body, Version

ContactMargin: TypeAlias = Literal["installed", "before-3.5"]
Integrator: TypeAlias = Literal["Euler", "RK4", "implicit", "implicitfast"]

CONTACT_MARGINS = ("installed", "before-3.5")
INTEGRATORS = ("Euler", "RK4", "implicit", "implicitfast")
INSTALL = how_to_install("rl")
WITHOUT_A_SCREEN = (
    "Without a screen, set MUJOCO_GL=egl before Python starts (Debian: apt install libegl1 libgl1-mesa-dri), or "
    "MUJOCO_GL=osmesa (apt install libosmesa6)"
)

_TOUCHING = """
<mujoco><worldbody>
  <geom type="plane" size="1 1 1" margin="0.01"/>
  <body pos="0 0 0.1"><freejoint/><geom type="sphere" size="0.1" margin="0.01"/></body>
</worldbody></mujoco>"""

_log = logging.getLogger("pliant")


class GraphicsUnavailable(RuntimeError):
    """MuJoCo found no OpenGL to draw with."""


def mujoco() -> Any:
    """The package `mujoco`. Raises ModuleNotFoundError with the install line where it is missing."""
    try:
        return import_module("mujoco")
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise
        raise ModuleNotFoundError(
            f"this body moves in MuJoCo, which is not installed: {INSTALL}", name="mujoco"
        ) from None
    except (ImportError, RuntimeError, AttributeError) as error:
        raise GraphicsUnavailable(
            f"MuJoCo could not be loaded (MUJOCO_GL is {os.environ.get('MUJOCO_GL') or 'not set'}): "
            f"{error}. {WITHOUT_A_SCREEN}. With a screen, or to draw nothing, unset it"
        ) from error


def xml_path(body: Body, version: Version) -> Path:
    """The body's XML: its own file, or one of gymnasium's. Raises ModuleNotFoundError where gymnasium is missing."""
    if Path(body.files[version]).is_absolute():
        return Path(body.files[version])
    found = find_spec("gymnasium")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the XML of '{body.name}' is part of gymnasium, which is not installed: {INSTALL}", name="gymnasium"
        )
    return Path(found.submodule_search_locations[0], "envs", "mujoco", "assets", body.files[version])


def build_model(body: Body, version: Version, contact_margin: ContactMargin, integrator: Integrator | None) -> Any:
    """The body as an MjModel of its own. Autoreset is off, so that numbers which are not finite stay visible."""
    mj = mujoco()
    path = xml_path(body, version)
    model = copy.copy(_compiled(str(path), path.read_bytes()))
    model.opt.disableflags |= int(mj.mjtDisableBit.mjDSBL_AUTORESET)
    if integrator is not None:
        model.opt.integrator = getattr(mj.mjtIntegrator, f"mjINT_{integrator.upper()}")
    if contact_margin == "before-3.5" and margins_add():
        if np.unique(model.geom_margin).size > 1:
            raise ValueError(
                f"'{body.name}' has geoms of unequal margins: the contacts before MuJoCo 3.5 cannot be had back"
            )
        model.geom_margin *= 0.5
    return model


@cache
def _compiled(path: str, contents: bytes) -> Any:
    """Anew where the file has changed."""
    with warnings_logged():
        return mujoco().MjModel.from_xml_path(path)


@cache
def margins_add() -> bool:
    """Whether two touching geoms of margin 0.01 are in contact from 0.02 on (their sum), not from 0.01 on.

    >>> margins_add() == (tuple(map(int, mujoco().__version__.split(".")[:2])) >= (3, 5))
    True
    """
    mj = mujoco()
    model = mj.MjModel.from_xml_string(_TOUCHING)
    data = mj.MjData(model)
    mj.mj_forward(model, data)
    return bool(data.contact[0].includemargin > 0.015)


def _log_warning(message: str) -> None:
    _log.info("MuJoCo: %s", message.strip())


_handling = threading.Lock()
_within = 0  # contexts of any thread
_before: Any = None  # whose the handler was


@contextmanager
def warnings_logged() -> Generator[None]:
    """MuJoCo's warnings go to the log of this package, not to the screen and a file in the working directory."""
    global _within, _before
    mj = mujoco()
    with _handling:
        if not _within:
            _before = mj.get_mju_user_warning()
            mj.set_mju_user_warning(_log_warning)
        _within += 1
    try:
        yield
    finally:
        with _handling:
            _within -= 1
            if not _within:
                mj.set_mju_user_warning(_before)
