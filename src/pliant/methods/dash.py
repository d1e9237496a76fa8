"""DASH, direction-aware shrinking: when data are added, weights shrink by how little the loss on these data wants to grow them.

    G <- (1 - α) G - α ∂L/∂W        over the losses of the data, one after another, at the weights as they are;  G = 0 at first
    w <- max(λ, cos(w, g)) w        w: a row of a matrix, a kernel of a filter, a bias; g: the same entries of G

λ is `least`, 1 - α is `decay_rate`. What points where the loss on the new data leads has learned what holds for them too, and
stays; what does not, noise that was learned by heart, shrinks to the share λ, and with it a unit whose gradient is 0.

Source: Shin et al., NeurIPS 2024 (arXiv 2410.23495), and the released code: λ and α 0.3; linear and convolution layers, with
their biases, the head too; in a filter each pair of an output and an input channel has a cosine of its own (`filters="unit"`: one
for all that goes into an output, as in a matrix). One loss there is that of a whole portion of data, the oldest first, so that
what has just come counts α. Another code (lucidrains) averages the gradients of the steps of training instead, with
`decay_rate` 0.98, and needs no pass. The optimizer's state stays there, and here: `pliant.reset_optimizer`. Departures: attention
layers too; a parameter that no loss depends on is left alone.

Cost of an event: a forward and a backward over the data given, and until its end one copy of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]

from pliant.base.arguments import is_a, number, shown
from pliant.base.choices import one_of
from pliant.engine.attached import Optimizers, uncompiled
from pliant.engine.averaging import running_average
from pliant.engine.data_parallel import Ranks
from pliant.engine.feedback import written
from pliant.engine.given_losses import checked_loss
from pliant.engine.whole_parameters import Place, Which, WholeParameters, in_weight_layers
from pliant.units.models import checked, unwrapped
from pliant.units.undisturbed import undisturbed

Filters = Literal["channel", "unit"]

FORMAT = 1


class DASH(WholeParameters):
    """Shrink weights by the direction of the gradient on given data, when `apply(losses)` says so. It remembers nothing.

    Args:
        model, optimizer: the network and what steps it, or several; None takes all parameters, stepped or not.
        least: λ, in [0, 1]; 1 does nothing.
        decay_rate: 1 - α, in [0, 1): of the average over the losses.
        filters: "channel" or "unit", what has a cosine of its own in a filter.
        parameters: which, see `WholeParameters`; None takes weights and biases of linear, convolution and attention layers.
        process_group: whose ranks average their gradients, as in `pliant.UnitReset`.

    Raises `ValueError` for what does not fit.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
    >>> x = torch.tensor([[1.0, 0.0]])
    >>> DASH(model).apply([(model(x) * torch.tensor([-1.0, 1.0])).sum()])  # -gradients (1, 0) and (-1, 0): cosines 0.6 and -0.6
    >>> model.weight.data
    tensor([[1.8000, 2.4000],
            [0.9000, 1.2000]])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers | None = None,
        *,
        least: float = 0.3,
        decay_rate: float = 0.7,
        filters: Filters = "channel",
        parameters: Which = None,
        process_group: dist.ProcessGroup | Literal["auto"] | None = "auto",
    ) -> None:
        self.least, self.decay_rate = (
            number("least", least, 0.0, 1.0),
            number("decay_rate", decay_rate, 0.0, 1.0, below=True),
        )
        self.filters: Filters = one_of("filters", filters, get_args(Filters))
        network = unwrapped(checked(model))
        super().__init__(model, optimizer, in_weight_layers(network) if parameters is None else parameters)
        self._network, self._ranks = network, Ranks(model, process_group)

    @uncompiled
    def apply(self, losses: Iterable[Tensor]) -> None:
        """Act now.

        `losses`: scalars, each computed by `model` as it is now, of one portion of data, the oldest first. Given as a generator,
        as in `apply(loss(model(x), y) for x, y in portions)`, one graph is held at a time. Forwards in it are no examples to
        other methods, and leave no trace in buffers or in global generators.

        Raises `TypeError` or `ValueError`, with nothing changed, for what is no scalar, is not finite, or depends on none of the
        parameters.
        """
        if is_a(losses, Tensor) or not is_a(losses, Iterable):
            raise TypeError(
                f"losses takes a list or a generator of scalars, one for each portion of data, got {shown(losses)}"
            )
        self.check_places(self.places)
        places = [place for place in self.places if place.parameter.requires_grad]
        parameters = [place.parameter for place in places]
        with undisturbed(self._network), torch.enable_grad():
            averages, reached = average_descent(losses, parameters, self.decay_rate)
        averages, reached = self._ranks.mean(averages), list(map(any, zip(*self._ranks.gather(reached), strict=True)))
        if not any(reached):
            raise ValueError(
                "losses are none, or depend on none of the parameters to shrink: compute them by the model given"
            )
        with torch.no_grad():
            for place, g, known in zip(places, averages, reached, strict=True):
                if known:
                    w, g = (_outputs_first(each, place) for each in (place.parameter, g))
                    w.mul_(factor(w, g, self.least, self.filters).to(w.dtype))
        written(parameters)

    def _settings(self) -> dict[str, Any]:
        return {"format": FORMAT, "method": "dash", "names": self.names}

    def state_dict(self) -> dict[str, Any]:
        return self._settings()

    def _load(self, state: dict[str, Any]) -> None:
        self._check_saved(state, self._settings())


def average_descent(
    losses: Iterable[Tensor], parameters: Sequence[Tensor], decay_rate: float
) -> tuple[list[Tensor], list[bool]]:
    """G of each parameter, in single precision at least, and whether a loss depends on it.

    >>> w = torch.tensor([2.0], requires_grad=True)
    >>> average_descent([w.sum(), 3.0 * w.sum()], [w], decay_rate=0.75)  # 0.75 · (-0.25) - 0.25 · 3
    ([tensor([-0.9375])], [True])
    """
    averages = [torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in parameters]
    reached = [False] * len(parameters)
    for portion, loss in enumerate(losses):
        loss = checked_loss(loss, f"losses[{portion}]")
        gradients = cast(Sequence[Tensor | None], torch.autograd.grad(loss, parameters, allow_unused=True))
        for place, gradient in enumerate(gradients):
            averages[place] = running_average(averages[place], -gradient if gradient is not None else 0.0, decay_rate)
            reached[place] = reached[place] or gradient is not None
    return averages, reached


def factor(w: Tensor, g: Tensor, least: float, filters: Filters) -> Tensor:
    """max(λ, cos(w, g)), to be broadcast over w: (outputs, 1) of a matrix, (outputs, inputs or 1, 1, ...) of a filter, (1,) of a
    vector. The cosine with a vector of length 0 is 0.

    >>> factor(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), least=0.3, filters="unit")
    tensor([0.8000])
    """
    kept = 2 if w.dim() > 2 and filters == "channel" else 1 if w.dim() > 1 else 0
    axes = tuple(range(kept, max(w.dim(), 1)))
    rows, ways = (each.to(g.dtype).flatten(kept) if each.dim() else each.to(g.dtype)[None] for each in (w, g))
    cosine = nn.functional.cosine_similarity(rows, ways, dim=-1, eps=torch.finfo(g.dtype).tiny)
    return cosine.clamp(least, 1.0)[(..., *(None for _ in axes))]


def _outputs_first(tensor: Tensor, place: Place) -> Tensor:
    """A view of a parameter, or of what has its shape."""
    return tensor.transpose(0, 1) if isinstance(place.home, _ConvTransposeNd) and tensor.dim() > 1 else tensor
