"""PPO's loss, for each agent of a stack.

    ratio = π(a|s) / π_old(a|s)
    L = mean max(-ratio A, -clip(ratio, 1 - ε, 1 + ε) A)  +  c mean (target - v)²  -  e mean entropy

    ε  `clip`     c  `value_weight`     e  `entropy_weight`     A advantage, target: constants

Source: Schulman et al., arXiv 1707.06347 (2017), eq. 7 and 9. Values are not clipped, and c multiplies the square, not its half.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pliant.rl.ppo.networks import ActorCritic
from pliant.rl.ppo.settings import Settings


class Minibatch(NamedTuple):
    """States of every agent, (agents, n, ...), with their actions, and advantages and targets computed before the update."""

    observations: Tensor
    actions: Tensor
    log_probability: Tensor
    advantages: Tensor
    targets: Tensor


class Losses(NamedTuple):
    """Of each agent, (agents,)."""

    total: Tensor
    policy: Tensor
    value: Tensor


def policy_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """The clipped surrogate, negated: (..., n) -> (...).

    >>> policy_loss(torch.tensor([2.0]), torch.tensor([1.0]), clip=0.2)
    tensor(-1.2000)
    """
    return torch.maximum(-ratio * advantages, -ratio.clamp(1.0 - clip, 1.0 + clip) * advantages).mean(-1)


def losses(networks: ActorCritic, batch: Minibatch, settings: Settings) -> Losses:
    """The loss and its parts, each (agents,)."""
    outputs = networks.actor(batch.observations)
    ratio = (networks.policy.log_probability(outputs, batch.actions) - batch.log_probability).exp()
    of_policy = policy_loss(ratio, _advantages(batch, settings), settings.clip)
    of_value = (batch.targets - networks.values(batch.observations)).square().mean(-1)
    total = of_policy + settings.value_weight * of_value
    if settings.entropy_weight:
        total = total - settings.entropy_weight * networks.policy.entropy(outputs).mean(-1)
    return Losses(total, of_policy, of_value)


def _advantages(batch: Minibatch, settings: Settings) -> Tensor:
    """Normalized within the minibatch where the settings say so."""
    if settings.normalize_advantages != "minibatch":
        return batch.advantages
    centered = batch.advantages - batch.advantages.mean(-1, keepdim=True)
    deviation = centered.square().sum(-1, keepdim=True).div(max(centered.shape[-1] - 1, 1)).sqrt()
    return torch.where(deviation > 0, centered / (deviation + settings.advantage_epsilon), centered)


@torch.no_grad()
def clip_gradients(networks: ActorCritic, largest: float) -> None:
    """Scale each agent's gradient to a norm of at most `largest`."""
    gradients = [parameter.grad for parameter in networks.parameters() if parameter.grad is not None]
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    scale = (largest / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
