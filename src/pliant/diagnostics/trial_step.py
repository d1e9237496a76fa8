"""One step of the optimizer, tried on a copy of network and optimizer: what it moves, and what it gains.

    plasticity   mean over examples of clip(1 - L'[i] / L[i], 0, 1)      L, L' the loss of an example before and after the step
    churn        mean over other examples of ‖f'(x) - f(x)‖²             f, f' the output before and after

The copy steps as the optimizer would next, its state included; a fresh network steps with the state of a new optimizer. Random
numbers of the forwards (dropout) are the same before and after.

Source: plasticity of a sample, Elsayed & Mahmood, ICLR 2024 (UPGD), where the step is on that sample alone: here it is on all of
the batch at once. Without targets to split, the loss of the batch takes the place of L[i]. Churn: arXiv 2506.00592.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import sqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from pliant.diagnostics.batches import Batches, part, size_of
from pliant.diagnostics.watch import one_number
from pliant.engine.attached import Optimizers, each_of, home_of_parameters
from pliant.engine.optimizer_state.whole import WholeState
from pliant.units.models import arguments, copied, unwrapped
from pliant.units.undisturbed import undisturbed

SAMPLES = 64  # of a batch, whose losses are taken one by one
_SEED = 0


@dataclass(frozen=True)
class TrialStep:
    """Parameters before and after the step, by name, those that did not move left out, and what the step did."""

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    examples: int
    loss: float
    loss_after: float
    plasticity: float
    of_samples: bool  # plasticity is a mean over samples, not of the batch
    churn: float | None  # None without other examples, or where the output is no tensor and has no logits

    @property
    def update_ratio(self) -> float:
        """‖Δ‖ / ‖θ‖ over all parameters that moved."""
        moved = sum(
            float((self.after[name].double() - old.double()).square().sum()) for name, old in self.before.items()
        )
        size = sum(float(old.double().square().sum()) for old in self.before.values())
        return sqrt(moved / size) if size else 0.0


def optimizers_of(model: nn.Module, optimizer: Optimizers) -> tuple[Optimizer, ...]:
    """Those given. Raises `TypeError` or `ValueError` where they are none, or step nothing of the model."""
    optimizers = each_of(optimizer)
    if any(isinstance(each, LBFGS) for each in optimizers):
        raise ValueError("optimizer is LBFGS, whose step is a search with many forwards: leave it out")
    if home_of_parameters(optimizers).keys().isdisjoint(model.parameters()):
        raise ValueError("optimizer steps no parameter of this model: give the one that was built from its parameters")
    return optimizers


def trial_step(
    model: nn.Module,
    network: nn.Module,
    optimizers: Sequence[Optimizer],
    batches: Batches,
    loss: Callable[..., Tensor],
    prefix: str = "",
) -> TrialStep:
    """The next step of `model`'s optimizers, on a copy of `network`: the model itself, or one of the same parameters, for which
    the optimizers' state starts afresh. `prefix` stands before names."""
    memo: dict[int, Any] = {}
    twin = copied(unwrapped(network), memo)
    others = unwrapped(model) is not unwrapped(network)
    if others:
        mine, theirs = dict(unwrapped(model).named_parameters()), dict(twin.named_parameters())
        memo = {id(parameter): theirs[name] for name, parameter in mine.items() if name in theirs}
    steppers = deepcopy(list(optimizers), memo)
    if others:
        WholeState(steppers, list(twin.parameters()), "fresh").forget()
    here, elsewhere = _split(batches)
    losses = here.losses(loss)
    assert losses is not None
    with undisturbed(twin), torch.enable_grad():
        for parameter in twin.parameters():
            parameter.grad = None
        before = {name: each.detach().clone() for name, each in twin.named_parameters()}
        away = [_output(twin, each) for each in elsewhere]
        output = _forward(twin, here.examples[0])
        value = one_number(losses[0](output))
        value.backward()
        samples = _of_samples(here, output, loss)
        with torch.no_grad():
            for each in steppers:
                each.step()
        again = _output(twin, here.examples[0])
        with torch.no_grad():
            value_after = one_number(losses[0](again))
        after = {name: each.detach().clone() for name, each in twin.named_parameters()}
        samples_after = _of_samples(here, again, loss)
        churn = _churn(away, [_output(twin, each) for each in elsewhere])
    of_samples = samples is not None and samples_after is not None
    first, second = (samples, samples_after) if of_samples else (value.detach(), value_after)
    gained = (1.0 - cast(Tensor, second).double() / cast(Tensor, first).double()).clamp(0.0, 1.0)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    return TrialStep(
        {prefix + name: before[name] for name in moved},
        {prefix + name: after[name] for name in moved},
        size_of(here.examples[0]),
        float(value.detach()),
        float(value_after),
        float(gained.nan_to_num(0.0).mean()) if bool(torch.isfinite(value.detach())) else float("nan"),
        of_samples,
        churn,
    )


def _split(batches: Batches) -> tuple[Batches, list[Any]]:
    """The batch that the step is on, and the examples beside it: other batches, or half of the only one, if it has targets."""
    first, *rest = batches.examples
    if rest:
        return Batches([first], None if batches.targets is None else batches.targets[:1], False), rest
    size = size_of(first)
    half = part(first, 0, size // 2)
    if batches.targets is None or size < 2 or size_of(half) == size:
        return batches, []
    return Batches([half], [part(batches.targets[0], 0, size // 2)], False), [part(first, size // 2, size)]


def _forward(network: nn.Module, example: Any) -> Any:
    torch.manual_seed(_SEED)  # inside of `undisturbed`, which puts the random state back
    args, kwargs = arguments(example)
    return network(*args, **kwargs)


@torch.no_grad()
def _output(network: nn.Module, example: Any) -> Any:
    return _forward(network, example)


@torch.no_grad()
def _of_samples(batch: Batches, output: Any, loss: Callable[..., Tensor]) -> Tensor | None:
    """The loss of each example, up to `SAMPLES`; None where output and target cannot be split."""
    size = size_of(batch.examples[0])
    target = None if batch.targets is None else batch.targets[0]
    if not all(isinstance(each, Tensor) and each.dim() and len(each) == size for each in (output, target)):
        return None
    found = [loss(output[i : i + 1], cast(Tensor, target)[i : i + 1]) for i in range(min(size, SAMPLES))]
    return torch.stack([one_number(each).detach() for each in found])


def _main(output: Any) -> Any:
    """Of several outputs the `logits`, as Hugging Face's models name them."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    return output if found is None else found


def _churn(before: Sequence[Any], after: Sequence[Any]) -> float | None:
    before, after = list(map(_main, before)), list(map(_main, after))
    if not before or not all(isinstance(each, Tensor) and each.is_floating_point() for each in before):
        return None
    changes = [(new.double() - old.double()).flatten(1).square().sum(1) for old, new in zip(before, after, strict=True)]
    return float(torch.cat(changes).mean())
