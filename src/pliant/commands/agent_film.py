"""A film of an agent in a file, in an environment of gymnasium: saved by Stable-Baselines3, or by `pliant.rl.ppo.PPO.save`.

Of the agent's file nothing is executed, unless it is trusted. The environment is an id of gymnasium, or made by a function or a
class in a user's own file, which is run.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pliant.base.choices import shortened, shown
from pliant.lab.errors import LabError
from pliant.lab.film import Scene
from pliant.lab.study.modules import function_of

QUIET = {  # pygame greets, and looks for a screen that images do not need
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    "SDL_VIDEODRIVER": "dummy",
    "SDL_AUDIODRIVER": "dummy",
}


def agent_scenes(file: Path, environment: str, agent: int | None, seed: int, trust: bool) -> Iterator[Scene]:
    """An episode from `reset(seed=seed)` on. Raises LabError where the agent, the environment or its images are not there."""
    from pliant.rl.environments.episode import episode

    made = _made(environment)
    try:
        act = _loaded(file, made, environment, agent, trust)
        for image, words, seconds in episode(made, act, seed):
            yield Scene(image, words, seconds)
    except ValueError as error:
        raise LabError(str(error)) from error
    finally:
        made.close()


def _loaded(file: Path, environment: Any, name: str, agent: int | None, trust: bool) -> Any:
    from zipfile import is_zipfile

    from pliant.rl.ppo.player import saved_agent

    if not is_zipfile(file):
        raise LabError(f"{file} is no study's folder, no model of Stable-Baselines3 and no agents of PPO.save")
    if not _of_stable_baselines(file):
        return saved_agent(file, environment, name, agent)
    try:
        from pliant.integrations.sb3.saved import saved_policy
    except ImportError as error:
        raise LabError(str(error)) from error
    if agent is not None:
        raise LabError(f"--agent {agent}: {file} is a model of Stable-Baselines3, which is one agent: leave it out")
    return saved_policy(file, environment, name, trust=trust)


def _of_stable_baselines(file: Path) -> bool:
    from zipfile import ZipFile

    with ZipFile(file) as archive:
        return "policy.pth" in archive.namelist()


def _made(name: str) -> Any:
    """The environment, which draws its images."""
    import gymnasium

    from pliant.rl.environments.registration import register

    register()
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    if name.endswith(".py") or name.rpartition(":")[0].endswith(".py"):
        return _of_file(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # what gymnasium says of versions and render modes; `episode` says what is wrong
            return cast(Any, gymnasium.make(name, render_mode="rgb_array"))
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
        raise LabError(
            f"gymnasium makes no environment {shown(name)} that draws images ({shortened(error, 300).rstrip('.')}); one of your "
            f"own: --env path/to/file.py:function"
        ) from error


def _of_file(address: str) -> Any:
    import gymnasium

    make: Any = function_of(address, "environment")
    takes = inspect.signature(make).parameters
    any_argument = any(each.kind is each.VAR_KEYWORD for each in takes.values())
    made = make(render_mode="rgb_array") if "render_mode" in takes or any_argument else make()
    if not isinstance(made, gymnasium.Env):
        raise LabError(f"{address} made {shown(made)}, and no gymnasium.Env")
    return cast(Any, made)
