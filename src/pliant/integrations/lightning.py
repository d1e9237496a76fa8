"""Lightning: callbacks that attach methods while a `Trainer` fits.

    from pliant.integrations.lightning import ContinualBackpropCallback
    Trainer(callbacks=[ContinualBackpropCallback(replacement_rate=1e-4)]).fit(model, loader)

A method is attached at the first training batch of `fit`, when the optimizers are there and have their state back, and that batch
is the example that units are found with. Its clock is the optimizer step, whoever takes it: automatic and manual optimization,
accumulated gradients, precision plugins. Validation runs without gradients and is not recorded. Checkpoints hold the state of the
method, and `ckpt_path=` goes on from it. See docs/integrations.md.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Unpack, cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pliant.base.arguments import called_with, is_a, shown
from pliant.base.install import check_tested, how_to_install
from pliant.diagnostics.monitor import Monitor
from pliant.engine.unit_reset import UnitReset
from pliant.integrations.attaching import Attachment, Method, Settings
from pliant.integrations.examples import Example, check_example, example_for, of_first_batch
from pliant.methods import ContinualBackprop

log = logging.getLogger("pliant")

_SEVERAL = "Several: network=lambda module: nn.Sequential(module.encoder, module.decoder)"

_NAMES = ("lightning.pytorch", "pytorch_lightning")  # of one library: that which is imported already, or the first
_Lightning: Any
try:
    _Lightning = import_module(next((name for name in _NAMES if name in sys.modules), _NAMES[0]))
except ImportError:
    try:
        _Lightning = import_module(_NAMES[1])
    except ImportError as error:
        raise ImportError(f"pliant.integrations.lightning needs Lightning: {how_to_install('lightning')}") from error


class MethodCallback(_Lightning.Callback):
    """Any method while Lightning fits, such as `MethodCallback(pliant.L2, strength=1e-4)`.

    Logs `pliant/ReDo/replaced`, units so far under the method's name, every `log_every_n_steps`, where it resets units.

    Args:
        method: `method(model, optimizers, example_inputs=..., **settings)` builds it, with all optimizers of the Trainer.
        example_inputs: what the network is run on to find its units, or a function of the first batch that returns it. By default
            what its forward takes of the batch: `x` of `(x, y)`, or entries by name.
        network: function of the LightningModule that returns the network; by default the module itself, by its `forward`.
        name: part of the key of its state; two callbacks of one method need two names.
        settings: of the method.

    Raises at construction what the method raises for these settings, and `RuntimeError` for a version of Lightning that this is
    not tested with; at the first batch, what the method raises for this model and these optimizers.
    """

    def __init__(
        self,
        method: Method,
        *,
        example_inputs: Example = None,
        network: Callable[[Any], nn.Module] | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        check_tested(_Lightning.__name__.partition(".")[0], "2.5", "3")
        self._example = check_example(example_inputs)
        self._network_of = None if network is None else called_with("network", network, "module")
        self._attachment = Attachment(method, settings, owner=type(self).__name__, name=name)

    @property
    def method(self) -> Any:
        """The method; after training, as it was when it was detached; None before the first batch."""
        return self._attachment.method

    # -- what Lightning calls ----------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._attachment.is_attached:
            return
        network = self._network(pl_module)
        settings: dict[str, Any] = {"to": [*trainer.loggers]}
        if self._attachment.takes_example:
            settings["example_inputs"] = example_for(self._example, lambda: batch, network, pl_module.device)
        wrapped, strategy = trainer.strategy.model, type(trainer.strategy).__name__
        if isinstance(wrapped, DistributedDataParallel):
            settings["process_group"] = wrapped.process_group
        elif wrapped is not None and getattr(wrapped, "_orig_mod", wrapped) is not pl_module:
            raise ValueError(
                f"{strategy} holds the module in a {type(wrapped).__name__}: methods need whole parameters on every "
                f"rank. Use strategy='ddp'"
            )
        if trainer.ckpt_path and self._attachment.state_dict() is None:
            log.warning("%s holds no state of %s, which begins anew", trainer.ckpt_path, self.state_key)
        with of_first_batch(self._example):
            method = self._attachment.attach(network, trainer.optimizers, of=pl_module, run=trainer, **settings)
        if isinstance(method, UnitReset) and method.plan.unreached and self._network_of is None:
            names, kind = ", ".join(map(repr, method.plan.unreached)), type(pl_module).__name__
            log.warning(
                "forward of %s does not run %s. If training_step does, say so with network=. %s", kind, names, _SEVERAL
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if isinstance(self.method, UnitReset) and trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
            replaced = sum(sum(group["replaced"]) for group in self.method.stats().values())
            pl_module.log(f"pliant/{self._attachment.name}/replaced", float(replaced))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._attachment.detach()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._attachment.detach()

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}[{self._attachment.name}]"

    def state_dict(self) -> dict[str, Any]:
        """That of the method, or, before the first batch of all, an empty one."""
        return self._attachment.state_dict() or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()` at the next first batch, which raises `ValueError` if the model has other units."""
        self._attachment.stash(state_dict)

    # -- what is trained ---------------------------------------------------------------------------------------------

    def _network(self, module: Any) -> nn.Module:
        if self._network_of is not None:
            network = self._network_of(module)
            if not is_a(network, nn.Module):
                raise TypeError(
                    f"network= returned {shown(network)}: it is a function of the module that returns a network. {_SEVERAL}"
                )
            return network
        if type(module).forward is _Lightning.LightningModule.forward and self._attachment.takes_example:
            raise ValueError(
                f"{type(module).__name__} defines no forward, so it is not known what to run to find its units: say which "
                f"network trains, {type(self).__name__}(network=lambda module: module.net). {_SEVERAL}"
            )
        return module


UnitResetCallback = MethodCallback  # as it is called for Stable-Baselines3


class ContinualBackpropCallback(MethodCallback):
    """Continual backpropagation while Lightning fits.

    Args:
        example_inputs, network, name: see `MethodCallback`, and what is raised.
        settings: of `pliant.ContinualBackprop` (`replacement_rate`, `maturity_threshold`, ...), with its defaults.
    """

    def __init__(
        self,
        *,
        example_inputs: Example = None,
        network: Callable[[Any], nn.Module] | None = None,
        name: str | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        given = cast(dict[str, Any], settings)
        super().__init__(ContinualBackprop, example_inputs=example_inputs, network=network, name=name, **given)


class PlasticityMonitorCallback(MethodCallback):
    """`pliant.Monitor` while Lightning fits: measures of the training batch at every so many optimizer steps.

    Args:
        example_inputs, network, name: see `MethodCallback`, and what is raised.
        settings: of `pliant.Monitor` (`every`, `to`, `warn`, ...), with its defaults, but that `to` is the Trainer's loggers.

    `callback.method.rows` holds what was measured.
    """

    def __init__(
        self,
        *,
        example_inputs: Example = None,
        network: Callable[[Any], nn.Module] | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(Monitor, example_inputs=example_inputs, network=network, name=name, **settings)
