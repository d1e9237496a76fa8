"""What learns in place of a compiled learner where a user's method or a rival is to act on it: the same network in PyTorch.

    network     of the weights that the compiled learner of the seed starts from
    example     forward, loss, backward, optimizer.step(), one at a time; so the numbers are the compiled ones, to rounding

It answers to the names that the experiments ask of `pliant.online.OnlineEnsemble`, for one learner. Of a small network an
example costs PyTorch's own work on each step, whatever it computes: many times a compiled one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pliant.base.saving import all_or_nothing, counts_in, load_part
from pliant.experiments.base import is_own
from pliant.experiments.makers import Attached, Site
from pliant.experiments.methods import Method, replaced
from pliant.lab import RunConfig
from pliant.online import OnlineEnsemble
from pliant.online.ensemble import Progress

SECONDS_PER_EXAMPLE, SECONDS_PER_WEIGHT = 5e-4, 2e-9  # of one core, measured: docs/your-own-method.md
SECONDS_PER_ADVANCE = 5.0

_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "swish": nn.SiLU,
    "selu": nn.SELU,
    "linear": nn.Identity,
}


class Twin:
    """A learner of its own, which begins where the one of `ensemble` does.

    Args:
        ensemble: of one learner that has learned nothing.
        method: what acts on it.
        config: of the run; its `step_size` and, where it has one, `optimizer`.
    """

    def __init__(self, ensemble: OnlineEnsemble, method: Method, config: Any) -> None:
        self.sizes, self.activation, self.loss = ensemble.sizes, ensemble.activation, ensemble.loss
        self.dtype, self.steps, self._diverged_at = ensemble.dtype, 0, -1
        self.network = _network(ensemble)
        kind = torch.optim.Adam if getattr(config, "optimizer", "sgd") == "adam" else torch.optim.SGD
        self.optimizer = method.stepped_by(kind(self.network.parameters(), lr=config.step_size), config)
        one = torch.zeros(2, self.sizes[0], dtype=next(self.network.parameters()).dtype)
        site = Site(
            self.network,
            self.optimizer,
            config,
            seed=lambda purpose: config.seed,
            units=lambda: {"example_inputs": one},
        )
        self.method: Attached | None = method.make(site)

    def partial_fit(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        stream: Any = None,
        rows: NDArray[np.int64] | None = None,
        columns: NDArray[np.int64] | None = None,
        scale: float = 1.0,
    ) -> Progress:
        """Predict and learn from each example, as `OnlineEnsemble.partial_fit` does; X (1, n, inputs), y (1, n)."""
        chosen: NDArray[np.int64] = np.arange(int(X.shape[1])) if rows is None else rows[0]
        places: NDArray[np.int64] = np.arange(int(X.shape[2])) if columns is None else columns[0]
        inputs = torch.from_numpy(
            np.multiply(X[0][chosen[:, None], places], np.array(scale, self.dtype), dtype=self.dtype)
        )
        answers = torch.from_numpy(y[0][chosen])
        losses, correct = np.full((1, len(chosen)), np.nan, self.dtype), np.zeros((1, len(chosen)), np.bool_)
        for number in range(len(chosen)):
            if self._diverged_at >= 0:
                break
            out = self.network(inputs[number : number + 1])
            loss = self._loss(out, answers[number : number + 1])
            value = float(loss.detach())
            if not np.isfinite(value):
                self._diverged_at = self.steps
                break
            losses[0, number], correct[0, number] = value, int(out.detach().argmax()) == int(answers[number])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.steps += 1
        return Progress(losses, correct if self.loss == "cross_entropy" else None, None)

    def _loss(self, out: Tensor, answer: Tensor) -> Tensor:
        if self.loss == "cross_entropy":
            return nn.functional.cross_entropy(out, answer.long())
        return (out - answer.to(out.dtype)).square().mean()

    @torch.no_grad()
    def activations(self, X: NDArray[Any], stream: Any = None) -> list[NDArray[Any]]:
        """What every layer answers to a probe (1, n, inputs), each (1, n, units); the last is the outputs."""
        x, found = torch.from_numpy(X[0].astype(self.dtype)), list[NDArray[Any]]()
        for layer in self.network:
            x = layer(x)
            if not isinstance(layer, nn.Linear) or layer is self.network[-1]:
                found.append(x.numpy()[None])
        return found

    def weights(self, layer: int) -> NDArray[Any]:
        """Of a layer, (1, in, out)."""
        return self._linear()[layer].weight.detach().numpy().T[None].copy()

    def weight_magnitude(self) -> NDArray[Any]:
        """Mean |w| of every weight matrix, biases left out, (1, layers)."""
        return np.array([[float(layer.weight.detach().abs().mean()) for layer in self._linear()]])

    @property
    def replacements(self) -> NDArray[np.int64]:
        """Units replaced so far, all layers together, (1, 1)."""
        return np.array([replaced(self.method)], np.int64)

    @property
    def diverged_at(self) -> NDArray[np.int64]:
        """First step whose loss was not finite, or -1, (1,)."""
        return np.array([self._diverged_at])

    def state_dict(self) -> dict[str, Any]:
        state = {
            "at": [self.steps, self._diverged_at],
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict() if self.method else None,
        }
        return deepcopy(state)

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps, diverged_at = counts_in({"at": [state["at"][0], state["at"][1] + 1]}, "at", 2)
        self._diverged_at = diverged_at - 1  # which is -1 where it has not
        for part, name in ((self.network, "network"), (self.optimizer, "optimizer"), (self.method, "method")):
            load_part(part, state, name)

    def _linear(self) -> list[nn.Linear]:
        return [layer for layer in self.network if isinstance(layer, nn.Linear)]


@torch.no_grad()
def _network(ensemble: OnlineEnsemble) -> nn.Sequential:
    """The network of an ensemble's one learner."""
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(ensemble.sizes)):
        dtype = torch.from_numpy(np.zeros(1, ensemble.dtype)).dtype
        linear = nn.Linear(inputs, outputs, dtype=dtype, device="meta").to_empty(device="cpu")  # nothing is drawn
        linear.weight.copy_(torch.from_numpy(ensemble.weights(number)[0].T))
        linear.bias.copy_(torch.from_numpy(ensemble.biases(number)[0]))
        layers += [linear, _ACTIVATIONS[ensemble.activation]()]
    return nn.Sequential(*layers[:-1])


def seconds_per_example(sizes: Sequence[int]) -> float:
    """Of one core, with layers of these sizes."""
    return SECONDS_PER_EXAMPLE + SECONDS_PER_WEIGHT * sum(m * n for m, n in pairwise(sizes))


def examples_per_advance(sizes: Sequence[int]) -> int:
    """Those of some seconds."""
    return max(1, int(SECONDS_PER_ADVANCE / seconds_per_example(sizes)))


def cost_in_words(runs: Iterable[tuple[RunConfig, int, Sequence[int]]]) -> list[str]:
    """What to say before users' methods learn; `runs` are all runs, each with its examples and the sizes of its layers."""
    examples, seconds = Counter[str](), Counter[str]()
    for config, count, sizes in runs:
        if is_own(config):
            examples[config.method] += count
            seconds[config.method] += round(count * seconds_per_example(sizes))
    return [
        f"method '{name}' learns by PyTorch, {count:,} examples one at a time: about {seconds[name] / 3600:,.1f} core-hours"
        for name, count in examples.items()
    ]
