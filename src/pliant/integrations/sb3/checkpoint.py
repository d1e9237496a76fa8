"""Checkpoints of an algorithm and of what its callbacks attached, exact to go on from.

    callback = ContinualBackpropCallback()
    model.learn(100_000, callback=[callback, MethodCheckpointCallback(callback, 10_000, "checkpoints")])
    ...
    model = load_checkpoint(PPO, "checkpoints", callback, env=env)  # the newest; `callback` may be a new one
    model.learn(100_000 - model.num_timesteps, callback=[callback, ...], reset_num_timesteps=False)

Beside the model lie the states of the callbacks, and what Stable-Baselines3 leaves out: the random state of PyTorch, NumPy,
Python and the action space, and the states of recurrent policies. Its environments save no state: they start a new episode,
unless they are put back where they were and `force_reset=False` is given. `learn()` itself draws the exploration of
`use_sde=True` anew, and sets back noise that remembers, such as `OrnsteinUhlenbeckActionNoise`.

A checkpoint is written between two rollouts, after the gradient steps: at `on_step`, where `CheckpointCallback` of
Stable-Baselines3 saves, the transitions of a rollout that has begun would be lost.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from pliant.base.arguments import flag, is_a, listed, shown, text, whole
from pliant.base.saving import StrPath, entry, load_state, save_state
from pliant.integrations.sb3.callback import UnitResetCallback

FORMAT = 1
Callbacks = UnitResetCallback | Sequence[UnitResetCallback]
Model = TypeVar("Model", bound=BaseAlgorithm)


class MethodCheckpointCallback(CheckpointCallback):
    """Saves the model and the state of callbacks once every `save_freq` steps, between two rollouts or when `learn()` ends.

    With `name_prefix` and the number of timesteps, `rl_model_10000_steps.zip` is the model, `rl_model_method_10000_steps.pt` is
    ours, and `rl_model_replay_buffer_10000_steps.pkl` and `rl_model_vecnormalize_10000_steps.pkl` are there if asked for. Ours is
    written last and at once, so that a checkpoint that has it is complete.

    Args:
        callbacks: a callback of `pliant.integrations.sb3`, or several, whose state is saved. `learn()` needs them as well.
        save_freq, save_path, name_prefix, save_replay_buffer, save_vecnormalize, verbose: see `CheckpointCallback`; `save_freq`
            counts calls of `env.step`, each of which is one timestep per environment.
    """

    def __init__(
        self,
        callbacks: Callbacks,
        save_freq: int,
        save_path: StrPath,
        name_prefix: str = "rl_model",
        save_replay_buffer: bool = False,
        save_vecnormalize: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            whole("save_freq", save_freq, 1, of="steps of the environments"),
            str(save_path),
            text("name_prefix", name_prefix),
            flag("save_replay_buffer", save_replay_buffer),
            flag("save_vecnormalize", save_vecnormalize),
            verbose,
        )
        self.callbacks = _each(callbacks)
        self._saved_at = 0  # call

    def _on_step(self) -> bool:
        if not all(each.is_attached for each in self.callbacks):
            raise RuntimeError(
                f"a callback that {type(self).__name__} saves does not take part in this learn(): give it both, "
                f"learn(..., callback=[callback, checkpoint])"
            )
        return True

    def _on_rollout_start(self) -> None:
        self._save_if_due()

    def _on_training_end(self) -> None:
        self._save_if_due()

    def _save_if_due(self) -> None:
        if self.n_calls - self._saved_at < self.save_freq:
            return
        self._saved_at = self.n_calls
        self.model.save(self._checkpoint_path(extension="zip"))
        if self.save_replay_buffer and isinstance(self.model, OffPolicyAlgorithm):
            self.model.save_replay_buffer(self._checkpoint_path("replay_buffer_", extension="pkl"))
        normalize = self.model.get_vec_normalize_env()
        if self.save_vecnormalize and normalize is not None:
            normalize.save(self._checkpoint_path("vecnormalize_", extension="pkl"))
        state = {
            "format": FORMAT,
            "callbacks": [{"name": each.name, "state": each.state_dict()} for each in self.callbacks],
            "random": _random_state(self.model),
            "memory": _memory(self.model),
        }
        save_state(state, self._checkpoint_path("method_", extension="pt"))


def load_checkpoint(
    algorithm: type[Model], path: StrPath, callbacks: Callbacks, *, name_prefix: str = "rl_model", **settings: Any
) -> Model:
    """The model of a checkpoint, with its replay buffer if that was saved; `callbacks` go on from their states at `learn()`.

    Sets the global random state of PyTorch, NumPy and Python to that of the checkpoint.

    Args:
        algorithm: its class, such as `PPO`.
        path: a folder, of which the complete checkpoint of most steps is loaded, or the `.zip` of one.
        callbacks: new ones, of the methods that were saved and in the same order.
        name_prefix: as it was saved with.
        settings: of `algorithm.load`: `env`, `device`, `custom_objects`, `force_reset`.

    Raises `FileNotFoundError` where there is no complete checkpoint, and `ValueError` for callbacks of other methods.
    """
    given = _each(callbacks)
    model_path, prefix, steps = _newest(Path(path), name_prefix) if Path(path).is_dir() else _found(Path(path))
    ours = model_path.with_name(f"{prefix}_method_{steps}_steps.pt")
    if not ours.exists():
        raise FileNotFoundError(
            f"'{ours}' is missing: MethodCheckpointCallback did not save '{model_path}', or not to its end"
        )
    state = load_state(ours)
    if state.get("format") != FORMAT:
        raise ValueError(f"this checkpoint has format {state.get('format')}, this version reads {FORMAT}")
    saved: list[dict[str, Any]] = entry(state, "callbacks", [])
    if [each["name"] for each in saved] != [each.name for each in given]:
        there, here = (", ".join(names) for names in ([each["name"] for each in saved], [each.name for each in given]))
        raise ValueError(f"this checkpoint was saved with callbacks of {there}, and is loaded with those of {here}")
    model = algorithm.load(model_path, **settings)
    replays = model_path.with_name(f"{prefix}_replay_buffer_{steps}_steps.pkl")
    if isinstance(model, OffPolicyAlgorithm) and replays.exists():
        model.load_replay_buffer(replays)
    for callback, held in zip(given, saved, strict=True):
        callback.load_state_dict(held["state"])
    _put_back_memory(model, state["memory"])
    _put_back_random_state(model, state["random"])
    return model


def _each(callbacks: Any) -> list[UnitResetCallback]:
    given = listed(callbacks)
    given = [callbacks] if given is None else given
    if not given or not all(is_a(each, UnitResetCallback) for each in given):
        raise TypeError(
            f"callbacks must be a callback of pliant.integrations.sb3, or several, such as ContinualBackpropCallback(), got "
            f"{shown(callbacks)}"
        )
    return given


def _found(path: Path) -> tuple[Path, str, str]:
    """The file of the model, and the prefix and the number of steps in its name."""
    found = re.fullmatch(r"(.+)_(\d+)_steps(\.zip)?", path.name)
    if found is None:
        raise FileNotFoundError(f"'{path}' is neither a folder of checkpoints nor one, PREFIX_STEPS_steps.zip")
    return path.with_name(f"{found[1]}_{found[2]}_steps.zip"), found[1], found[2]


def _newest(folder: Path, prefix: str) -> tuple[Path, str, str]:
    """That of the complete checkpoint of most steps."""
    ours = re.compile(rf"{re.escape(prefix)}_method_(\d+)_steps\.pt")
    steps = [int(found[1]) for file in folder.iterdir() if (found := ours.fullmatch(file.name))]
    if not steps:
        raise FileNotFoundError(
            f"'{folder}' holds no complete checkpoint of MethodCheckpointCallback with name_prefix='{prefix}'"
        )
    return folder / f"{prefix}_{max(steps)}_steps.zip", prefix, str(max(steps))


# -- what Stable-Baselines3 leaves out ----------------------------------------------------------------------------------


def _random_state(model: BaseAlgorithm) -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
        "actions": model.action_space.np_random.bit_generator.state,
    }


def _put_back_random_state(model: BaseAlgorithm, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
    model.action_space.np_random.bit_generator.state = state["actions"]


def _memory(model: Any) -> list[Any] | None:
    """What a recurrent policy remembers of the running episodes."""
    states = getattr(model, "_last_lstm_states", None)
    return None if states is None else [list(each) for each in states]


def _put_back_memory(model: Any, memory: list[Any] | None) -> None:
    if memory is not None:
        states = (tuple(each.to(model.device) for each in part) for part in memory)
        model._last_lstm_states = type(model._last_lstm_states)(*states)
