"""One Adam for all agents of a stack, some of which may restart.

    m <- β1 m + (1 - β1) g,   v <- β2 v + (1 - β2) g²,   w <- w - α (m / (1 - β1^t)) / (sqrt(v / (1 - β2^t)) + ε)

g includes `weight_decay` times w. PyTorch's Adam counts t per parameter, which here belongs to all agents. Where an agent has
restarted later than the others, its step is computed again with its own t: m and v do not depend on t, so the result is that of
an Adam of its own, to rounding.

Source: Kingma and Ba, ICLR 2015, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pliant.base.saving import count_in, entry
from pliant.rl.environments.counts import counts
from pliant.rl.ppo.networks import ActorCritic
from pliant.rl.ppo.settings import Settings


class StackedAdam:
    """Steps the parameters of all agents; methods attach to its `optimizer`."""

    def __init__(self, networks: ActorCritic, agents: int, settings: Settings) -> None:
        self._parameters = dict(networks.named_parameters())
        self.optimizer = torch.optim.Adam(
            self._parameters.values(),
            lr=settings.step_size,
            betas=settings.betas,
            eps=settings.adam_epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._settings = settings
        self.count = 0  # steps of the optimizer
        self.own = np.zeros(agents, np.int64)  # steps of each agent since it began

    def step(self) -> None:
        late = np.flatnonzero(self.own != self.count)
        before = [parameter.detach()[late] for parameter in self._parameters.values()] if len(late) else []
        self.optimizer.step()
        self.count += 1
        self.own += 1
        for parameter, old in zip(self._parameters.values(), before, strict=False):
            self._step_again(parameter, old, late)

    @torch.no_grad()
    def _step_again(self, parameter: Tensor, old: Tensor, late: Any) -> None:
        """The step of the agents that restarted later, computed from their own counts."""
        moments = self.optimizer.state[parameter]
        counts = torch.from_numpy(self.own[late]).double().view(-1, *[1] * (parameter.dim() - 1))
        first, second = ((1.0 - beta**counts).to(parameter.dtype) for beta in self._settings.betas)
        size = (moments["exp_avg_sq"][late] / second).sqrt() + self._settings.adam_epsilon
        parameter[late] = old - self._settings.step_size * (moments["exp_avg"][late] / first) / size

    def restart(self, agent: int) -> None:
        """Clear the moments and the count of an agent."""
        self.own[agent] = 0
        if not self.own.any():
            self.count = 0
            self.optimizer.state.clear()
        for moments in self.optimizer.state.values():
            moments["exp_avg"][agent] = 0.0
            moments["exp_avg_sq"][agent] = 0.0

    def state_dict(self) -> dict[str, Any]:
        moments = {
            name: {key: self.optimizer.state[parameter][key].clone() for key in ("exp_avg", "exp_avg_sq")}
            for name, parameter in self._parameters.items()
            if parameter in self.optimizer.state
        }
        return {"count": self.count, "own": self.own.copy(), "moments": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.own = count_in(state, "count"), counts(state, "own", self.own)
        self.optimizer.state.clear()
        for name, moments in state["moments"].items():
            self.optimizer.state[self._parameters[name]] = {
                "step": torch.tensor(float(self.count), dtype=torch.float32),
                **{key: entry(moments, key, self._parameters[name]) for key in ("exp_avg", "exp_avg_sq")},
            }
