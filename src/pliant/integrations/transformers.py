"""Transformers: callbacks that attach methods while a `Trainer` trains.

    from pliant.integrations.transformers import ContinualBackpropCallback
    Trainer(model, args, train_dataset=dataset, callbacks=[ContinualBackpropCallback(replacement_rate=1e-4)]).train()

A method is attached when `train()` begins, before the model is run or compiled. Units are found by a run on the first two rows of
the training set, collated, with no random number drawn. Its clock is the optimizer step: accumulation, warmup, clipping, bf16 and
steps that a GradScaler skips need nothing. The state goes into each checkpoint folder, as `pliant-NAME.pt`, and
`resume_from_checkpoint` goes on from it. See docs/integrations.md.
"""

from __future__ import annotations

import json
import logging
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Unpack, cast

import torch.distributed as dist
from torch import nn
from torch.utils.data import IterableDataset

from pliant.base.arguments import is_a, shown
from pliant.base.install import check_tested, how_to_install
from pliant.base.process import other_random_states, random_state
from pliant.base.saving import StrPath, load_state, save_state
from pliant.diagnostics.monitor import Monitor
from pliant.integrations.attaching import Attachment, Method, Settings, names_in
from pliant.integrations.examples import Example, check_example, example_for, of_first_batch
from pliant.methods import ContinualBackprop

_Transformers: Any
try:
    _Transformers = import_module("transformers")
    import_module("accelerate")
except ImportError as error:
    raise ImportError(
        f"pliant.integrations.transformers needs Transformers: {how_to_install('transformers')}"
    ) from error

log = logging.getLogger("pliant")


class MethodCallback(_Transformers.TrainerCallback):
    """Any method while a Trainer trains, such as `MethodCallback(pliant.L2, strength=1e-4)`.

    Args:
        method: `method(model, optimizer, example_inputs=..., **settings)` builds it.
        example_inputs: what the model is run on to find its units, or a function of a batch of two rows that returns it. By
            default what its forward takes of such a batch. Needed for a dataset without rows (`IterableDataset`).
        resume: the checkpoint folder to go on from, where it is not `checkpoint-STEP` in `output_dir`; False begins anew at a
            checkpoint that was saved without the method.
        name: part of the name of its file; two callbacks of one method need two names.
        settings: of the method.

    Raises at construction what the method raises for these settings, and `RuntimeError` for a version of Transformers that this
    is not tested with; when `train()` begins, what the method raises for this model and its optimizer, and `ValueError` for a
    checkpoint without the method's state, or of another run.
    """

    def __init__(
        self,
        method: Method,
        *,
        example_inputs: Example = None,
        resume: StrPath | Literal[False] | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        check_tested("transformers", "5", "6")
        self._example, self._resume = check_example(example_inputs), _checked(resume)
        self._attachment = Attachment(method, settings, owner=type(self).__name__, name=name)

    @property
    def method(self) -> Any:
        """The method; after training, as it was when it was detached; None before."""
        return self._attachment.method

    # -- what Transformers calls -------------------------------------------------------------------------------------

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        model: nn.Module,
        optimizer: Any,
        train_dataloader: Any,
        **others: Any,
    ) -> None:
        if self._attachment.name in names_in(state):
            raise ValueError(
                f"two callbacks of this Trainer are named '{self._attachment.name}', so that their files could not be told "
                f"apart: give one of them another name, {type(self).__name__}(..., name=...)"
            )
        if args.deepspeed:
            raise ValueError(
                "DeepSpeed shards parameters or their optimizer's state: methods need both whole. Train without it"
            )
        self._attachment.detach()  # a train() that raised left it attached
        if state.global_step and self._resume is not False:
            self._attachment.stash(load_state(self._file_to_resume(args, state)))
        elif state.global_step or not self._attachment.trains(model):
            self._attachment.start_over()  # also `model_init`, a search over hyperparameters
        settings: dict[str, Any] = {}
        if self._attachment.takes_example:
            found = example_for(self._example, lambda: _batch(train_dataloader), model, args.device)
            settings["example_inputs"] = found
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            settings["process_group"] = dist.group.WORLD
        with of_first_batch(self._example):
            self._attachment.attach(model, optimizer, run=state, **settings)

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if not args.should_save:
            return
        folder = _folder(args, state)
        if folder.is_dir():
            save_state(self._attachment.state_dict() or {}, self._file(folder))
        else:  # the Trainer itself has removed it, by `save_total_limit`
            log.warning("%s is gone already: nothing is saved in it", folder)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._attachment.detach()

    # -- files -------------------------------------------------------------------------------------------------------

    def _file(self, folder: Path) -> Path:
        return folder / f"pliant-{self._attachment.name}.pt"

    def _file_to_resume(self, args: Any, state: Any) -> Path:
        """Ours, in the folder that the Trainer goes on from, of which callbacks are not told."""
        folder = Path(self._resume or _folder(args, state))
        if not self._file(folder).is_file():
            raise ValueError(
                f"{self._file(folder)} is not there, and training goes on at step {state.global_step}. Say where the checkpoint "
                f"is with {type(self).__name__}(..., resume=folder), go on from an earlier one if this was being written when "
                f"training ended, or begin anew here with resume=False if the method was not there then"
            )
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        if history != state.log_history:
            raise ValueError(
                f"{folder} is of another run than the checkpoint that training goes on from: say which folder that is with "
                f"{type(self).__name__}(..., resume=folder)"
            )
        return self._file(folder)

    # -- the example -------------------------------------------------------------------------------------------------


def _batch(loader: Any) -> Any:
    """Two rows of the training set."""
    rows = loader.dataset
    if isinstance(rows, IterableDataset) or not hasattr(rows, "__getitem__"):
        kind = type(cast(object, rows)).__name__
        raise ValueError(
            f"the training set, a {kind}, has no rows to take out without moving it on: say what the model is run on with "
            f"example_inputs=..."
        )
    with random_state(), other_random_states():  # collators may draw
        return loader.collate_fn([rows[number] for number in range(min(2, len(rows)))])


def _checked(resume: object) -> Any:
    if resume is None or resume is False or is_a(resume, (str, PathLike)):
        return resume
    raise TypeError(f"resume is the folder of a checkpoint, False or None, got {shown(resume)}")


def _folder(args: Any, state: Any) -> Path:
    """Where the Trainer keeps its checkpoint of this step; in a search over hyperparameters, in the folder of the run."""
    name, folder = f"checkpoint-{state.global_step}", Path(args.output_dir)
    if state.is_hyper_param_search:
        return max(folder.glob(f"*/{name}"), key=lambda each: each.stat().st_mtime_ns, default=folder / name)
    return folder / name


UnitResetCallback = MethodCallback  # as it is called for Stable-Baselines3


class ContinualBackpropCallback(MethodCallback):
    """Continual backpropagation while a Trainer trains.

    Args:
        example_inputs, resume, name: see `MethodCallback`, and what is raised.
        settings: of `pliant.ContinualBackprop` (`replacement_rate`, `maturity_threshold`, ...), with its defaults.
    """

    def __init__(
        self,
        *,
        example_inputs: Example = None,
        resume: StrPath | Literal[False] | None = None,
        name: str | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        given = cast(dict[str, Any], settings)
        super().__init__(ContinualBackprop, example_inputs=example_inputs, resume=resume, name=name, **given)


class PlasticityMonitorCallback(MethodCallback):
    """`pliant.Monitor` while a Trainer trains: measures of the training batch at every so many optimizer steps.

    Args:
        example_inputs, resume, name: see `MethodCallback`, and what is raised.
        settings: of `pliant.Monitor` (`every`, `to`, `warn`, ...), with its defaults.

    `callback.method.rows` holds what was measured.
    """

    def __init__(
        self,
        *,
        example_inputs: Example = None,
        resume: StrPath | Literal[False] | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(Monitor, example_inputs=example_inputs, resume=resume, name=name, **settings)
