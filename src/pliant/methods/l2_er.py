"""L2-ER: L2 regularization, and at times a step up the effective rank of the features.

    g <- g + λ θ                            before each step;  λ is `strength`
    θ <- θ + η (∂R/∂θ - λ θ)                at events: of all θ on which R depends;  η is `rank_step_size`

    R = mean over the layers of exp(- Σ p[j] log(p[j] + ε)),  p[j] = σ[j] / Σ σ        ε = 1e-8

σ are the singular values of a layer's features on one batch, (examples, units), not centered. Each R is the effective rank of
`pliant.diagnostics`: it grows where features point in more directions, in equal shares.

Source: He et al. (arXiv 2509.22335), and the released code: the last two hidden layers; λ 1e-3 to 1e-5; η 1e-2 to 1e-5, one
step of plain gradient ascent for 12 batches of Continual ImageNet and for 100 examples of permuted MNIST; for PPO without λ in
it, ten steps for each batch of 256. Departures: tokens count as examples; a layer whose features are all 0 has no slope, and is
left out of R.

Cost of an event: a forward and a backward of the batch, and a decomposition of each layer's features, of the order of
examples · units · min(examples, units) operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pliant.base.arguments import is_a, number, patterns, shown
from pliant.base.choices import did_you_mean
from pliant.engine.attached import Optimizers, uncompiled
from pliant.engine.data_parallel import Ranks
from pliant.engine.feedback import written
from pliant.engine.pull import Pull
from pliant.engine.whole_parameters import Which
from pliant.units.models import arguments, checked, unwrapped
from pliant.units.undisturbed import undisturbed

FORMAT = 1
EPS = 1e-8


class L2ER(Pull):
    """Pull parameters toward zero before each step, and climb the effective rank of features when `apply(x)` says so.

    Args:
        model: the network.
        optimizer: what steps it, or several.
        strength: λ; 0 does nothing.
        rank_step_size: η; 0 does nothing.
        features: the names of the modules whose outputs are features, as in `model.named_modules()`: in the source the
            activations of the last two hidden layers.
        parameters: which, see `WholeParameters`; None takes all.
        process_group: whose ranks average the slope of R, as in `pliant.UnitReset`.

    Raises `ValueError` for what does not fit.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    >>> _ = model[0].weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> er = L2ER(model, optimizer, strength=0.0, rank_step_size=0.5, features="0")
    >>> er.apply(torch.eye(2))  # p = (0.75, 0.25): the smaller singular value grows, the larger shrinks
    >>> model[0].weight.data
    tensor([[2.9398, 0.0000],
            [0.0000, 1.1807]])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        strength: float,
        rank_step_size: float,
        features: str | Sequence[str],
        parameters: Which = None,
        process_group: dist.ProcessGroup | Literal["auto"] | None = "auto",
    ) -> None:
        self.rank_step_size, self.features = number("rank_step_size", rank_step_size), patterns("features", features)
        self._network = unwrapped(checked(model))
        modules = dict(cast(Iterator[tuple[str, nn.Module]], self._network.named_modules()))
        for name in self.features:
            if name not in modules:
                raise ValueError(f"features: {shown(name)} is no module of the model{did_you_mean(name, modules)}")
        if not self.features:
            raise ValueError("features is empty: name the modules whose outputs are to keep their rank")
        super().__init__(model, optimizer, strength=strength, parameters=parameters)
        self._ranks = Ranks(model, process_group)
        self._follow_steps()

    def direction(self, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
        return parameters

    @uncompiled
    def apply(self, x: Any) -> None:
        """Climb one step.

        `x`: a batch that the model takes: a tensor, a tuple of arguments or a dictionary of them. The forward is no example to
        other methods, and leaves no trace in buffers or in global generators.

        Raises `ValueError` or `RuntimeError`, with nothing changed, where a module gives no features, (examples, units) or
        (examples, tokens, units), or R has no finite slope.
        """
        self.check_places(self.places)
        parameters = [place.parameter for place in self.places if place.parameter.requires_grad]
        with undisturbed(self._network), torch.enable_grad():
            rank = mean_effective_rank([_matrix(*each) for each in self._features_of(x)])
            if not rank.requires_grad:
                raise ValueError("features are all 0, or depend on no parameter: their rank has no slope")
            slopes = cast(Sequence[Tensor | None], torch.autograd.grad(rank, parameters, allow_unused=True))
        reached = [(θ, slope) for θ, slope in zip(parameters, slopes, strict=True) if slope is not None]
        means = self._ranks.mean([slope for _, slope in reached])
        if not all(bool(slope.isfinite().all()) for slope in means):
            raise ValueError("features: the slope of their rank is not finite: nothing was changed")
        with torch.no_grad():
            for (θ, _), slope in zip(reached, means, strict=True):
                θ.add_(slope.sub(θ, alpha=self.strength), alpha=self.rank_step_size)
        written(θ for θ, _ in reached)

    def _features_of(self, x: Any) -> list[tuple[str, Any]]:
        """The outputs of the modules named, in the order in which they come."""
        found: list[tuple[str, Any]] = []
        handles = [
            self._network.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: found.append((name, output))
            )
            for name in self.features
        ]
        try:
            args, kwargs = arguments(x)
            self._network(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        missing = set(self.features) - {name for name, _ in found}
        if missing:
            raise ValueError(f"features: '{min(missing)}' did not run on this batch")
        return found

    def _settings(self) -> dict[str, Any]:
        return {"format": FORMAT, "method": "l2-er", "features": list(self.features), "names": self.names}

    def state_dict(self) -> dict[str, Any]:
        return self._settings()

    def _load(self, state: dict[str, Any]) -> None:
        self._check_saved(state, self._settings())


def mean_effective_rank(features: Sequence[Tensor]) -> Tensor:
    """R of features, (examples, units) each, with its graph; 0 if all of them are 0.

    >>> mean_effective_rank([torch.eye(3), torch.ones(2, 4)])  # of 3 and 1
    tensor(2.0000)
    """
    singular = [cast(Tensor, torch.linalg.svdvals(h)) for h in features if bool(h.any())]
    shares = [s / s.sum() for s in singular]
    ranks = [(-(p * (p + EPS).log()).sum()).exp() for p in shares]
    return torch.stack(ranks).mean() if ranks else torch.zeros(())


def _matrix(name: str, output: Any) -> Tensor:
    """Features as (examples, units), in single precision at least."""
    if not is_a(output, Tensor) or not output.is_floating_point() or output.dim() not in (2, 3) or not output.numel():
        shape = tuple(output.shape) if is_a(output, Tensor) else shown(output)
        raise ValueError(
            f"features: '{name}' gives {shape}, not (examples, units) or (examples, tokens, units): name another module"
        )
    if not bool(output.isfinite().all()):
        raise ValueError(f"features: what '{name}' gives is not finite: nothing was changed")
    rows = output.flatten(0, -2)
    return rows if rows.dtype.itemsize >= 4 else rows.float()
