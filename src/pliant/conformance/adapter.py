"""What an author writes so that the checks can run an implementation: how it is attached, stepped and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

Selection = Literal["least useful", "random", "threshold"]


@dataclass(frozen=True)
class Settings:
    """What a check asks of an implementation. One that resets by a threshold looks every `maturity_threshold + 1` steps."""

    replacement_rate: float  # share of mature units per optimizer step
    maturity_threshold: int  # optimizer steps; a unit may be replaced when its age is greater
    decay_rate: float  # of the running averages
    seed: int
    example_inputs: Tensor  # a batch, as the network will be shown


class UnitResetAdapter(ABC):
    """One implementation of a unit reset, on one network and its optimizer.

    `attach` is all that must be written. It may put another `model` or `optimizer` in the place of those given, as long as the
    layers given are the ones that learn. A setting or a network that the implementation does not take is refused there, by a
    `ValueError`, `TypeError` or `NotImplementedError`: checks of unusual networks then do not apply.

    Class attributes:
        selection: how units are chosen: "least useful" (continual backpropagation), "random", or "threshold" (no rate).
        hands_over: whether the mean contribution of a replaced unit goes into the bias of what it fed.
        draws_count: whether how many units go is drawn; else fractions of a unit are accumulated.

    >>> from pliant import ContinualBackprop
    >>> class Adapter(UnitResetAdapter):
    ...     def attach(self, settings):
    ...         self.method = ContinualBackprop(
    ...             self.model,
    ...             self.optimizer,
    ...             example_inputs=settings.example_inputs,
    ...             replacement_rate=settings.replacement_rate,
    ...             maturity_threshold=settings.maturity_threshold,
    ...             decay_rate=settings.decay_rate,
    ...             seed=settings.seed,
    ...         )
    """

    selection: ClassVar[Selection] = "least useful"
    hands_over: ClassVar[bool] = True
    draws_count: ClassVar[bool] = False

    def __init__(self, model: nn.Module, optimizer: Optimizer, settings: Settings) -> None:
        self.model, self.optimizer = model, optimizer
        self.attach(settings)

    @abstractmethod
    def attach(self, settings: Settings) -> None:
        """Begin to reset units of `self.model`, which `self.optimizer` steps."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The network's output in training."""
        return self.model(inputs)

    def step(self) -> None:
        """What follows `loss.backward()`: the optimizer's step, and the resets where they do not come by themselves."""
        self.optimizer.step()

    def replaced(self) -> Mapping[str, Iterable[int]] | None:
        """The units that the last step replaced, by the name of their layer; None: they are found by comparing weights."""
        return None

    def utilities(self) -> Mapping[str, Tensor] | None:
        """The utility of each unit as it is compared, (units,), by the name of the layer; None: not known."""
        return None

    def ages(self) -> Mapping[str, Tensor] | None:
        """The age of each unit in optimizer steps, (units,), by the name of the layer; None: not known."""
        return None

    def state_dict(self) -> Any:
        """What is saved beside the states of model and optimizer; None: nothing can be."""
        return None

    def load_state_dict(self, state: Any) -> None:
        """Go on from what `state_dict` gave."""
        raise NotImplementedError(f"{type(self).__name__} has a state_dict() and no load_state_dict()")
