"""An episode in an environment of gymnasium, image by image, with actions from anywhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened, shown
from pliant.rl.environments.physics import WITHOUT_A_SCREEN, GraphicsUnavailable

Act = Callable[[Any], Any]  # an observation -> an action, both of the environment's spaces


class Drawn(NamedTuple):
    """An image of an episode, what is to be said of it, and how long it lasts."""

    image: NDArray[np.uint8]  # (height, width, 3)
    words: str
    seconds: float


def episode(environment: Any, act: Act, seed: int) -> Iterator[Drawn]:
    """An episode from `reset(seed=seed)` on. Raises ValueError, or GraphicsUnavailable, where no images are drawn."""
    observation, _ = environment.reset(seed=seed)
    rewards, step, over = 0.0, 0, False
    seconds = 1 / float(environment.metadata.get("render_fps") or 30)
    while True:
        yield Drawn(_image(environment), f"step {step}   return {rewards:.4g}", seconds)
        if over:
            break
        observation, reward, terminated, truncated, _ = environment.step(act(observation))
        rewards, step, over = rewards + float(reward), step + 1, bool(terminated or truncated)


def _image(environment: Any) -> NDArray[np.uint8]:
    name = type(environment.unwrapped).__name__ if environment.spec is None else environment.spec.id
    if environment.render_mode != "rgb_array":
        raise ValueError(
            f"{name} draws no images: its render_mode is {environment.render_mode!r}, and has to be 'rgb_array', one of its "
            f"metadata['render_modes'], {environment.metadata.get('render_modes', [])}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GLFW only warns that it has no display
            image = environment.render()
    except GraphicsUnavailable:  # it says what to do
        raise
    except Exception as error:  # each environment draws in its own way, with packages and screens that may not be there
        advice = f". {WITHOUT_A_SCREEN}" if "OpenGL" in str(error) else ""
        raise ValueError(
            f"{name} cannot be drawn here: {type(error).__name__}: {shortened(error, 200)}{advice}"
        ) from error
    found = np.asarray(image)
    if found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint8:
        what = f"an array of {found.dtype}, {found.shape}" if isinstance(image, np.ndarray) else shown(image)
        raise ValueError(f"{name}: render() gives images (height, width, 3) of uint8; this one gave {what}")
    return found
