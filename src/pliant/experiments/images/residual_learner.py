"""A residual network that learns from images, with or without a method against loss of plasticity.

    loss        cross-entropy over the first `seen` outputs; the others get no gradient (but their weights decay)
    optimizer   SGD with momentum, weight decay on every parameter
    cbp         units inside the blocks, found by tracing; a fresh unit is drawn as the network was

What class-incremental learning and warm starting share.

Source: Dohare et al., Nature 632 (2024), class-incremental CIFAR-100. Departures: those of `pliant.ContinualBackprop`;
`units="article"` with `eligible="all"`, `optimizer_state="keep"` and `hand_over_mean=false` comes closest to what was
released (which also never decays a unit's activity, nor forgets it at a replacement).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from pliant.base.saving import all_or_nothing, load_part
from pliant.experiments.images.residual import ResidualNet, article_groups, he_normal, initialize
from pliant.experiments.makers import Attached, Site
from pliant.experiments.methods import Method, ReplacementConfig, replaced
from pliant.methods import HareAndTortoise, reset_network
from pliant.streams import stream_key
from pliant.units import UnitMap, trace
from pliant.units.groups import UnitGroup


class LearnerConfig(ReplacementConfig, frozen=True):
    """The settings of one learner."""

    width: int = Field(64, gt=0, description="channels of the first stage; each of the next three has twice as many")
    batch: int = Field(90, gt=0, description="images in a mini-batch")
    step_size: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, description="coupled, on every parameter")
    maturity_threshold: int = Field(1000, ge=0, description="steps; method cbp")
    units: Literal["traced", "traced-residual", "article"] = Field(
        "traced",
        description="those inside blocks; these and the channels of the stages; or paired by order, as released",
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of forward and backward (autocast)")


class Learner:
    """A network, its optimizer, and what is attached to them."""

    def __init__(
        self, config: LearnerConfig, method: Method, classes: int, channels: int, device: str, event: bool = False
    ) -> None:
        """`event`: whether a method that changes whole parameters waits until it is told to, or acts after every step."""
        self.config, self.device = config, torch.device(device)
        self.network = ResidualNet(classes, config.width, channels).to(self.device)
        self.start_over()
        plain = torch.optim.SGD(
            self.network.parameters(), lr=config.step_size, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.optimizer = method.stepped_by(plain, config)
        site = Site(
            self.network,
            self.optimizer,
            config,
            seed=lambda purpose: stream_key(config.seed, purpose) >> 1,
            units=lambda: {"groups": unit_groups(self.network, config.units, channels), "init": he_normal},
            event=event,
        )
        self.method: Attached | None = method.make(site)

    def start_over(self, *, task: int = 0) -> None:
        """Parameters and statistics as drawn for `task`."""
        reset_network(self.network, seed=stream_key(self.config.seed, "network", task) >> 1, init=initialize)

    def learn(self, x: Tensor, labels: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """One step; the loss before it, and how many of the batch were told right, both ()."""
        self.network.train()
        self.optimizer.zero_grad()
        logits = self._logits(x, seen)
        loss = cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    @torch.no_grad()
    def right(self, x: Tensor, labels: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """In evaluation mode: how many images are told right among the first `seen` classes, and how many get outputs
        that are not finite numbers, both ()."""
        self.network.eval()
        logits = self._logits(x, seen)
        return (logits.argmax(1) == labels).sum(), (~logits.isfinite().all(1)).sum()

    def _logits(self, x: Tensor, seen: int) -> Tensor:
        """Of the network; in evaluation of its slow average, where it has one."""
        network: Callable[[Tensor], Tensor] = self.network
        if isinstance(self.method, HareAndTortoise) and not self.network.training:
            network = partial(functional_call, self.network, self.method.tortoise())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return network(x)[:, :seen].float()

    def replaced(self) -> int:
        """Hidden units replaced so far."""
        return replaced(self.method)[0]

    def set_step_size(self, step_size: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = step_size

    @torch.no_grad()
    def weight_magnitude(self) -> float:
        """Mean |p| over all parameters: weights, biases, norms."""
        sizes = torch.stack([p.abs().sum() for p in self.network.parameters()]).sum()
        return float(sizes) / sum(p.numel() for p in self.network.parameters())

    def state_dict(self) -> dict[str, Any]:
        """A copy: learning on changes nothing in it."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict() if self.method else None,
        }
        return deepcopy(state)

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a copy of `state`."""
        load_part(self.network, state, "network")
        load_part(self.optimizer, state, "optimizer")
        older = {"cbp", "snp"} <= state.keys()  # states of the version before: each of these had a name of its own
        load_part(self.method, {"method": state.get(self.config.method)} if older else state, "method")


def unit_groups(network: ResidualNet, units: str, channels: int) -> UnitMap | list[UnitGroup]:
    """The units that continual backprop competes among, by the name of the config's `units`."""
    if units == "article":
        return article_groups(network)
    device = network.head.weight.device
    x = torch.zeros(2, channels, 32, 32, device=device)
    return trace(
        network, x, residual=units == "traced-residual", trial=False
    )  # the network is ours, verified by a test
