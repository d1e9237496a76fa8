"""What is to be learned in a probe: examples with targets, and the loss of an output.

    random   trainability: the user's own targets, each at another example, so that their shares, their scale and the loss
             stay; without targets, random classes, or random numbers where the output has one
    own      the user's next task as it is: trainability, and what was learned before that helps or hinders. A fifth of the
             examples is held out, and tells whether what is learned is more than these examples by heart
    smooth   a random smooth function of the inputs, f(x) = √(2/m) Σ cos(ω·x + b), ω ~ N(0, 1/ℓ²), with ℓ the median
             distance between inputs: a draw of a Gaussian process. Classes are the largest of as many functions

Sources: random labels, Zhang et al., ICLR 2017, arXiv 1611.03530, and as a probe Lyle et al. 2023, arXiv 2303.01486; random
features, Rahimi and Recht, NeurIPS 2007.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import pi, sqrt
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from pliant.base.choices import shown
from pliant.diagnostics.probe.data import Examples
from pliant.units.models import tensors_in

Loss = Callable[[Any, Any], Tensor]

HELD_OUT = 0.2  # of the next task's examples: do they get better too?
FEW = 20  # examples of which none is held out
FEATURES = 256  # cosines of a smooth function
KINDS = {
    "random": "random targets (trainability)",
    "own": "the next task (with transfer)",
    "smooth": "smooth random targets",
}


@dataclass(frozen=True)
class Task:
    """What is learned under one seed."""

    examples: Examples
    loss: Loss
    held_out: Examples | None = None  # of the same targets, never learned


class Tasks:
    """The tasks that can be made from examples.

    Args:
        data: inputs, with targets or without.
        output: of the model for some of them, which says of what kind it is.
        loss: of an output and targets; None: the output's own `.loss`, cross-entropy of whole numbers, squared error of others.
    """

    def __init__(self, data: Examples, output: Any, loss: Loss | None) -> None:
        self.data = data
        self._given = loss
        self._output = _tensor(output)
        self._classes = self._whole_targets() is not None if data.has_targets else self._output.shape[-1] > 1
        if data.has_targets and data.inner is None and loss is None:
            self._fits(data.targets)

    def available(self) -> dict[str, str | None]:
        """Kind -> why it cannot be made, None where it can."""
        no_targets = None if self.data.has_targets else "there are no targets: give y, (model, x, y)"
        plain = self._whole_targets() is not None or not self.data.has_targets or self._float_targets() is not None
        return {"random": None, "own": no_targets, "smooth": None if plain else "the targets are no single tensor"}

    def of(self, kind: str, seed: int) -> Task:
        generator = torch.Generator().manual_seed(seed)
        if kind == "own":
            order = torch.randperm(self.data.count, generator=torch.Generator().manual_seed(0))
            kept = int(self.data.count * HELD_OUT) if self.data.count >= FEW else 0
            held_out = self.data.at(order[:kept]) if kept else None
            return Task(self.data.at(order[kept:]), self.loss, held_out)
        if kind == "random" and self.data.has_targets:
            order = torch.randperm(self.data.count, generator=generator)
            return Task(self.data.with_shuffled_targets(order), self.loss)
        if kind == "random":
            return Task(Examples(self.data.inputs, self._random(generator)), self.loss)
        return Task(self._with_targets(self._smooth(generator)), self.loss)

    def loss(self, output: Any, targets: Any) -> Tensor:
        return self.loss_of(self._given)(output, targets)

    @staticmethod
    def loss_of(given: Loss | None) -> Loss:
        """What is minimized: the loss that is given, or the one that output and targets suggest."""
        return _suggested if given is None else lambda output, targets: _one(given(output, targets))

    def _fits(self, targets: Any) -> None:
        """Raise unless a default loss can be computed of such targets."""
        if not isinstance(targets, Tensor):
            raise ValueError(f"targets are {shown(targets)}: give loss=, a function of the model's output and these")
        if not targets.is_floating_point():
            _classes_second(self._output, targets[: len(self._output)])
        elif targets[: len(self._output)].numel() != self._output.numel():
            raise ValueError(
                f"the targets {tuple(targets.shape)} are real numbers, but no squared error to an output {_row(self._output)} "
                f"is computed of them: give loss="
            )

    def _whole_targets(self) -> Tensor | None:
        targets = self.data.inputs[self.data.inner] if self.data.inner is not None else self.data.targets
        return targets if isinstance(targets, Tensor) and not targets.is_floating_point() else None

    def _float_targets(self) -> Tensor | None:
        targets = self.data.targets
        return targets if isinstance(targets, Tensor) and targets.is_floating_point() else None

    def _random(self, generator: torch.Generator) -> Tensor:
        """Without targets: classes or numbers, one for each place of the output."""
        shape = (self.data.count, *self._output.shape[1:])
        if self._classes:
            return torch.randint(shape[-1], shape[:-1], generator=generator).to(self._output.device)
        return torch.randn(shape, generator=generator).to(self._output)

    def _with_targets(self, targets: Tensor) -> Examples:
        if self.data.inner is None:
            return Examples(self.data.inputs, targets)
        return Examples({**self.data.inputs, self.data.inner: targets}, None, self.data.inner)

    def _smooth(self, generator: torch.Generator) -> Tensor:
        """Classes or numbers that are a smooth function of the inputs, one for each place of the targets."""
        whole, real = self._whole_targets(), self._float_targets()
        places = tuple(whole.shape) if whole is not None else (self.data.count, *self._output.shape[1:-1])
        x = _described(self.data.inputs if self.data.inner is None else _without(self.data), places, generator)
        if whole is not None:
            known = whole >= 0  # -100 marks what is not to be learned
            classes = int(whole[known].max()) + 1
            found = _functions(x, classes, generator).argmax(dim=-1).reshape(places).to(whole)
            return torch.where(known, found, whole)
        if real is None and self._classes:
            return (
                _functions(x, self._output.shape[-1], generator).argmax(dim=-1).reshape(places).to(self._output.device)
            )
        like = self._output if real is None else real
        columns = like[0].numel() // max(1, x.shape[0] // self.data.count)
        found = _functions(x, columns, generator).reshape(self.data.count, *like.shape[1:]).to(like)
        return found if real is None else real.mean() + real.std() * found


def _suggested(output: Any, targets: Any) -> Tensor:
    if targets is None:
        own = _own_loss(output)
        if own is None:
            raise ValueError(
                "the model returns no loss (an output's .loss, an entry 'loss', or a first part that is one number), and there "
                "are no targets: give loss=, or targets, (model, x, y)"
            )
        return _one(own)
    found = _tensor(output)
    if not targets.is_floating_point():
        return functional.cross_entropy(_classes_second(found, targets), targets.long())
    return functional.mse_loss(found, targets.to(found.dtype).reshape(found.shape))


def _own_loss(output: Any) -> Tensor | None:
    """The loss that a model returns with its output, in one of the ways that Hugging Face's Trainer takes."""
    if isinstance(output, Mapping):
        found: Any = cast(Mapping[str, Any], output).get("loss")
    elif isinstance(output, tuple):
        first = next(iter(cast(tuple[Any, ...], output)), None)
        found = first if isinstance(first, Tensor) and first.numel() == 1 else None
    else:
        found = getattr(output, "loss", None)
    return found if isinstance(found, Tensor) else None


def _functions(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` smooth functions of rows of x, (n, features) -> (n, count), of mean 0 and variance 1 over the rows."""
    some = x[torch.randperm(len(x), generator=generator)[:256]]
    distance = torch.pdist(some).median() if len(some) > 1 else torch.tensor(1.0)
    scale = float(distance) if float(distance) > 0 else 1.0
    omega = torch.randn(x.shape[1], FEATURES, generator=generator, dtype=x.dtype) / scale
    phase = torch.rand(FEATURES, generator=generator, dtype=x.dtype) * (2 * pi)
    features = torch.cos(x @ omega + phase) * sqrt(2.0 / FEATURES)
    found = features @ torch.randn(FEATURES, count, generator=generator, dtype=x.dtype)
    found = found - found.mean(dim=0)
    return found / found.std(dim=0, unbiased=False).clamp_min(1e-12)


def _described(inputs: Any, places: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Inputs as rows of numbers, one for each place: of an example, or of a position where inputs have the same positions.

    Whole numbers (tokens) become random vectors. A position is described by itself and the mean of those before it, which is
    all that a causal model can know.
    """
    rows: list[Tensor] = []
    for tensor in (each.detach().cpu() for each in tree_leaves(inputs) if isinstance(each, Tensor)):
        if tensor.is_floating_point():
            values = tensor.double()
        else:
            known, number = cast(tuple[Tensor, Tensor], torch.unique(tensor.long(), return_inverse=True))
            values = torch.randn(len(known), 16, generator=generator, dtype=torch.float64)[number]
        if len(places) == 2 and values.dim() == 3 and values.shape[1] == places[1]:
            so_far = values.cumsum(dim=1) / torch.arange(1, places[1] + 1)[None, :, None]
            rows.append(torch.cat([values, so_far], dim=-1).flatten(0, 1))
        elif len(places) == 1:
            rows.append(values.flatten(1))
    if not rows:
        raise ValueError(
            "smooth targets need inputs whose positions are those of the targets: leave 'smooth' out of tasks="
        )
    return torch.cat(rows, dim=1)


def _without(data: Examples) -> dict[str, Any]:
    return {name: value for name, value in data.inputs.items() if name != data.inner}


def _tensor(output: Any) -> Tensor:
    """The tensor of an output that targets are compared with: its logits, or the first one of real numbers with an axis."""
    logits = (
        cast(Mapping[str, Any], output).get("logits")
        if isinstance(output, Mapping)
        else getattr(output, "logits", None)
    )
    if isinstance(logits, Tensor):
        return logits
    for tensor in tensors_in(output):
        if tensor.is_floating_point() and tensor.dim():
            return tensor
    raise ValueError("the model's output holds no tensor of real numbers: give loss= and targets, (model, x, y)")


def _classes_second(output: Tensor, targets: Tensor) -> Tensor:
    """Logits with classes along axis 1, as the cross-entropy takes them. Raises `ValueError` where they do not fit."""
    if output.dim() == targets.dim() + 1:
        if output.shape[:-1] == targets.shape:
            return output.movedim(-1, 1)
        if output.shape[:1] + output.shape[2:] == targets.shape:
            return output
    raise ValueError(
        f"the targets are whole numbers {_row(targets)}, which are no classes of an output {_row(output)}: give loss="
    )


def _row(tensor: Tensor) -> str:
    return f"(examples{''.join(f', {size}' for size in tensor.shape[1:])})"


def _one(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else shown(loss)
        raise ValueError(f"loss(output, targets) must be one number, got {shape}")
    return loss.reshape(())
