"""Actors and critics of several agents, side by side: axis 0 of every parameter is the agent.

    actor    observation - hidden - ... - hidden - mean of the action, or a logit for each action
    critic   observation - hidden - ... - hidden - value

An agent has two separate networks. All weights, those of the output layers included, are initialized uniformly in [-bound, bound]
with the bound of `pliant.base.initial` ("lecun": sqrt(3 / fan_in)); biases are 0. Each agent's initial weights are drawn from its
own seed in float64: they depend neither on the stack nor on the dtype.

Source: Dohare et al., Nature 632 (2024), methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pliant.base.initial import GAINS, uniform_bound
from pliant.base.process import random_state
from pliant.nn import StackedLinear
from pliant.rl.environments.base import ActionSpace, Continuous
from pliant.rl.ppo.activations import ACTIVATIONS
from pliant.rl.ppo.in_place import InPlace
from pliant.rl.ppo.policies import Gaussian, Softmax
from pliant.rl.ppo.products import affine
from pliant.rl.ppo.settings import Settings
from pliant.streams import generator
from pliant.units import Slice, Tap, UnitGroup

Array: TypeAlias = NDArray[Any]


class Layer(StackedLinear):
    """`StackedLinear` with a faster forward and backward.

    `rectified`: a ReLU is applied to its outputs. Of its inputs, only the first `used` are ever other than 0.
    """

    def __init__(
        self, agents: int, inputs: int, outputs: int, dtype: torch.dtype, *, rectified: bool, used: int
    ) -> None:
        super().__init__(agents, inputs, outputs, dtype=dtype)
        self.rectified, self.used = rectified, used

    def forward(self, x: Tensor) -> Tensor:
        if self.used == x.shape[-1]:
            return affine(x, self.weight, self.bias, rectified=self.rectified)
        return affine(x[..., : self.used], self.weight[..., : self.used], self.bias, rectified=self.rectified)


class Stack(InPlace):
    """One multilayer perceptron for each agent: (agents, n, inputs) -> (agents, n, outputs).

    The last `padding` inputs are always 0, and are not multiplied; their weights exist, count in fan_in and decay.
    """

    def __init__(
        self, agents: int, sizes: Sequence[int], activation: str, dtype: torch.dtype, padding: int = 0
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        last = len(sizes) - 2
        self.layers = nn.ModuleList(
            Layer(
                *(agents, inputs, outputs, dtype),
                rectified=activation == "relu" and number < last,
                used=inputs - padding if number == 0 else inputs,
            )
            for number, (inputs, outputs) in enumerate(pairwise(sizes))
        )
        self._used = sizes[0] - padding
        self._look()

    def _look(self) -> None:
        """Take views for NumPy: they follow every change of the parameters that is made in place."""
        self._seen_by_numpy = [
            (layer.weight.detach()[..., : layer.used].numpy().transpose(0, 2, 1), layer.bias.detach().numpy()[:, None])
            for layer in self.linears()
        ]
        self._places = [parameter.data_ptr() for parameter in self.parameters()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._look()
        return self

    def moved(self) -> list[str]:
        """Names of the parameters that are no longer where NumPy's views are."""
        now = zip(self.named_parameters(), self._places, strict=True)
        return [name for (name, parameter), place in now if parameter.data_ptr() != place]

    def linears(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def hidden(self, x: Tensor) -> list[Tensor]:
        """Activity of the hidden layers, each (agents, n, units)."""
        found: list[Tensor] = []
        for layer in self.linears()[:-1]:
            x = layer(x) if layer.rectified else self.activation.learning(layer(x))
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.linears()[-1](self.hidden(x)[-1])

    def now(self, x: Array) -> Array:
        """The same without gradients, for few states at a time: (agents, n, inputs) -> (agents, n, outputs)."""
        *hidden, (weight, bias) = self._seen_by_numpy
        x = x[..., : self._used]
        for each, shift in hidden:
            x = x @ each
            x += shift
            self.activation.acting(x)
        return x @ weight + bias

    def of_agent(self, agent: int, x: Array) -> Array:
        """`now` for one of them: (n, inputs) -> (n, outputs)."""
        *hidden, (weight, bias) = self._seen_by_numpy
        x = x[..., : self._used]
        for each, shift in hidden:
            x = x @ each[agent] + shift[agent]
            self.activation.acting(x)
        return x @ weight[agent] + bias[agent]


class ActorCritic(InPlace):
    """Actor, critic and the form of the actions, of all agents."""

    def __init__(
        self,
        agents: int,
        observations: int,
        actions: ActionSpace,
        settings: Settings,
        dtype: torch.dtype,
        padding: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(actions, Continuous):
            self.policy: Gaussian | Softmax = Gaussian(agents, actions.size, settings.log_std, dtype)
        else:
            self.policy = Softmax(actions.count)
        self._settings = settings
        sizes = (observations, *settings.hidden)
        with random_state():  # layers draw when they are made; `redraw` draws what counts
            self.actor = Stack(agents, (*sizes, self.policy.outputs), settings.activation, dtype, padding)
            self.critic = Stack(agents, (*sizes, 1), settings.activation, dtype, padding)

    def stacks(self) -> dict[str, Stack]:
        return {"actor": self.actor, "critic": self.critic}

    def check_places(self) -> None:
        """Raise `RuntimeError` where a parameter was moved in memory, so that the agents would act by old weights."""
        for name, stack in self.stacks().items():
            for parameter in stack.moved():
                raise RuntimeError(
                    f"'{name}.{parameter}' lies elsewhere in memory than when the agents were made (its .data was set, or "
                    f"it was replaced), and acting would go on with the old one. Write into it instead: "
                    f"parameter.copy_(new) under torch.no_grad()"
                )

    def values(self, observations: Tensor) -> Tensor:
        """(agents, n, observation) -> (agents, n)."""
        return self.critic(observations).squeeze(-1)

    @torch.no_grad()
    def redraw(self, agent: int, seed: int, life: int) -> None:
        """Draw the initial weights of an agent: those after `life` restarts."""
        self.policy.restart(agent)
        for name, stack in self.stacks().items():
            layers = stack.linears()
            for number, layer in enumerate(layers):
                _, outputs, inputs = layer.weight.shape
                gain = GAINS["linear" if number == len(layers) - 1 else self._settings.activation]
                bound = uniform_bound(self._settings.init, inputs, outputs, gain)
                draws = generator(seed, "first weights", life, name, number)
                layer.weight[agent] = torch.from_numpy(draws.uniform(-bound, bound, (outputs, inputs)))
                layer.bias[agent] = 0.0

    def groups(self) -> list[UnitGroup]:
        """The hidden units of actor and critic, one group per layer."""
        return [
            UnitGroup(
                name=f"{name}.{number}",
                incoming=[
                    Slice(f"{name}.layers.{number}.weight", axis=0),
                    Slice(f"{name}.layers.{number}.bias", axis=0),
                ],
                outgoing=[Slice(f"{name}.layers.{number + 1}.weight", axis=1)],
                tap=Tap(f"{name}.layers.{number + 1}", nonnegative=stack.activation.nonnegative),
                gain=GAINS[self._settings.activation],
                runs=layer.runs,
            )
            for name, stack in self.stacks().items()
            for number, layer in enumerate(stack.linears()[:-1])
        ]

    @torch.no_grad()
    def finite(self) -> NDArray[np.bool_]:
        """Whether all parameters of an agent are finite, (agents,)."""
        each = [parameter.flatten(1).isfinite().all(1) for parameter in self.parameters()]
        return torch.stack(each).all(0).numpy()
