"""Measures of plasticity of the agents' networks, on states of the last rollout: one number per agent.

Source: Dohare et al., Nature 632 (2024), methods, from the measures of `pliant.diagnostics`: dormant units are those of
`dormant_by_firing`, averaged over the hidden layers; ranks are of the actor's last hidden layer; the weight magnitude is of that
layer's incoming matrix. A layer in which no unit fires on any of the states has rank 0 by both, so that a mean over agents can be
below 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pliant.diagnostics import dormant_by_firing, effective_rank, singular_values, srank, weight_magnitude
from pliant.rl.ppo.networks import ActorCritic, Stack

MEASURES = {
    "actor_dormant": "share of the actor's hidden units that are above 0 on less than 1% of the states",
    "critic_dormant": "the same of the critic",
    "effective_rank": "of the actor's last hidden layer; 0 where none of its units fires",
    "srank": "of the actor's last hidden layer: singular values that make 99% of their sum; 0 where none of its units fires",
    "actor_weight_magnitude": "mean |weight| of the matrix that enters the actor's last hidden layer",
    "critic_weight_magnitude": "the same of the critic",
    "entropy": "of the policy, nats, mean over the states",
}


@torch.no_grad()
def measures(networks: ActorCritic, states: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """The numbers of `MEASURES`, each (agents,), on states (agents, n, observation)."""
    seen = torch.from_numpy(np.ascontiguousarray(states))
    hidden = {name: stack.hidden(seen) for name, stack in networks.stacks().items()}
    singular = singular_values(hidden["actor"][-1])
    found = {
        "actor_dormant": _dormant(hidden["actor"]),
        "critic_dormant": _dormant(hidden["critic"]),
        "effective_rank": effective_rank(singular),
        "srank": srank(singular),
        "actor_weight_magnitude": _magnitude(networks.actor),
        "critic_weight_magnitude": _magnitude(networks.critic),
        "entropy": networks.policy.entropy(networks.actor.linears()[-1](hidden["actor"][-1])).mean(-1),
    }
    return {name: values.double().numpy() for name, values in found.items()}


def weight_change(before: list[Tensor], networks: ActorCritic) -> NDArray[np.float64]:
    """Σ |new - old| over the actor's weight matrices, (agents,)."""
    now = [layer.weight.detach() for layer in networks.actor.linears()]
    each = [(new - old).abs().flatten(1).sum(1, dtype=torch.float64) for new, old in zip(now, before, strict=True)]
    return torch.stack(each).sum(0).numpy()


def _dormant(layers: list[Tensor]) -> Tensor:
    return torch.stack([dormant_by_firing(h).double().mean(-1) for h in layers]).mean(0)


def _magnitude(stack: Stack) -> Tensor:
    return weight_magnitude(stack.linears()[-2].weight, leading=1)
