"""What replaces units of actors and critics while they learn: the public methods, on the engine's run axis."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from pliant.methods import ContinualBackprop, ReDo
from pliant.rl.ppo.networks import ActorCritic
from pliant.rl.ppo.settings import Settings

UnitMethod = ContinualBackprop | ReDo


def unit_method(
    networks: ActorCritic, optimizer: Optimizer, settings: Settings, seeds: Sequence[int]
) -> UnitMethod | None:
    """What replaces units, of actors and critics alike; its `step()` is called after each gradient step."""
    if settings.method == "cbp":
        return ContinualBackprop(
            networks,
            optimizer,
            groups=networks.groups(),
            replacement_rate=settings.replacement_rate,
            maturity_threshold=settings.maturity_threshold,
            decay_rate=settings.decay_rate,
            utility=settings.utility,
            count=settings.count,
            hand_over_mean=settings.hand_over_mean,
            optimizer_state=settings.optimizer_state,
            init=settings.init,
            seed=seeds,
            attach=False,
        )
    if settings.method == "redo":
        return ReDo(
            networks,
            optimizer,
            groups=networks.groups(),
            tau=settings.tau,
            period=settings.period,
            optimizer_state=settings.optimizer_state,
            init=settings.init,
            seed=seeds,
            attach=False,
        )
    return None
