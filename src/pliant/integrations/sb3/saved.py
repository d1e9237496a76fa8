"""A model that Stable-Baselines3 saved, to act and not to learn; nothing in its file is executed.

Its zip holds weights, read as tensors alone, and settings: as JSON, or pickled where JSON cannot hold them. Two of these are
needed: the class of the policy, and its arguments. Their pickles may name classes of policies, feature extractors, modules and
optimizers, and may call nothing. A model with other pickles (a policy of one's own, functions among the arguments) is loaded only
with `trust=True`: whoever made the file decides what that runs.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import (
    is_image_space,  # pyright: ignore[reportUnknownVariableType]
    is_image_space_channels_first,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import nn

from pliant.base.choices import shortened
from pliant.base.saving import StrPath

PACKAGES = ("stable_baselines3", "sb3_contrib", "torch")
KINDS = (BasePolicy, BaseFeaturesExtractor, nn.Module, torch.optim.Optimizer)
CALLS = {"REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}


def saved_policy(path: StrPath, environment: Any, name: str, *, trust: bool = False) -> Callable[[Any], Any]:
    """A function from an observation of `environment` to the policy's likeliest action.

    It remembers what a recurrent policy does from one observation to the next. Raises ValueError where the file is damaged, holds
    pickles that would run code, unless `trust` is given, or is of a policy for another environment.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data: Mapping[str, Any] = json.loads(archive.read("data"))
            weights = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise nearly anything
        raise ValueError(
            f"{path} is damaged, or no model of Stable-Baselines3: {type(error).__name__} on reading it"
        ) from error
    kind: Any = _of_settings(data, "policy_class", path, trust)
    arguments: Any = _of_settings(data, "policy_kwargs", path, trust)
    if not (isinstance(kind, type) and issubclass(kind, BasePolicy) and isinstance(arguments, dict)):
        raise ValueError(f"{path} is damaged, or no model of Stable-Baselines3: its policy is none")
    if issubclass(kind, ActorCriticPolicy):
        arguments = {"use_sde": bool(data.get("use_sde")), **cast(dict[str, Any], arguments)}
    try:
        space = _channels_first(environment.observation_space)
        policy: Any = cast(Any, kind)(space, environment.action_space, _constant, **arguments)
        policy.load_state_dict(weights)
    except Exception as error:  # whatever a policy raises for spaces of another kind, and torch for other shapes
        raise ValueError(
            f"{path} ({kind.__name__}) is not of {name}, with observations {environment.observation_space} and actions "
            f"{environment.action_space}: {shortened(error, 200)}"
        ) from error
    return _acting(policy)


def _channels_first(space: Any) -> Any:
    """As Stable-Baselines3 has images before it trains."""
    if isinstance(space, spaces.Dict):
        held = cast(Mapping[str, Any], space.spaces)
        return spaces.Dict({name: _channels_first(each) for name, each in held.items()})
    is_last = is_image_space(space) and not is_image_space_channels_first(space)
    return VecTransposeImage.transpose_space(space) if is_last else space


def _constant(progress: float) -> float:
    """The step size of a policy that does not learn."""
    return 0.0


def _acting(policy: Any) -> Callable[[Any], Any]:
    state: Any = None

    def act(observation: Any) -> Any:
        nonlocal state
        action, state = policy.predict(observation, state=state, deterministic=True)
        return action

    return act


def _of_settings(data: Mapping[str, Any], name: str, path: StrPath, trust: bool) -> Any:
    """A setting, of which what is pickled may name known classes alone, unless the file is trusted."""
    held = data.get(name)
    if not isinstance(held, Mapping) or ":serialized:" not in held:
        if held is None:
            raise ValueError(f"{path} has no {name}: it is no model of Stable-Baselines3")
        return cast(Any, held)
    pickled = base64.b64decode(cast(Mapping[str, str], held)[":serialized:"])
    try:
        if trust:
            return pickle.loads(pickled)
        if any(code.name in CALLS for code, _, _ in pickletools.genops(pickled)):
            raise pickle.UnpicklingError("it makes objects by calling what it names")
        return _Named(io.BytesIO(pickled)).load()
    except Exception as error:  # a damaged pickle may raise nearly anything
        if trust:
            raise ValueError(
                f"{name} of {path} cannot be read: {type(error).__name__} {shortened(error, 200)}"
            ) from error
        raise ValueError(
            f"{name} of {path} is a pickle that could run code ({shortened(error, 200)}): if the file is yours, or of someone "
            f"whom you trust with this computer, say --trust (trust=True)"
        ) from error


class _Named(pickle.Unpickler):
    """Finds classes that policies are made of, and nothing else."""

    def find_class(self, module: str, name: str, /) -> Any:
        if module.partition(".")[0] in PACKAGES and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and issubclass(found, KINDS):
                return found
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, which is no policy, module or optimizer of {', '.join(PACKAGES)}"
        )
