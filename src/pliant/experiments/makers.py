"""How each method is hung on a run's network and its optimizer, with the settings that it has of its own.

site        where: the network, what steps it, the config, seeds
make        hangs a method there, and returns it
stepped_by  for a method that is the optimizer: it, in the place of the plain one
fields      a method's own settings, published values by default, for methods that join an experiment with a config of their own
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from pydantic import BaseModel, Field
from torch import nn
from torch.optim import Optimizer

from pliant import methods
from pliant.engine.after_step import AfterStep
from pliant.methods.continual_backprop import parameters_of
from pliant.optimizers import TRAC, UPGD


class Attached(Protocol):
    """A method that acts on a network as its optimizer steps."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


def _no_units() -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Site:
    """Where a run's method is attached.

    Args:
        network: what learns, a stack of runs where `runs` says so.
        optimizer: what steps it.
        config: of the run; of any of them, in a stack.
        seed: purpose ("fresh units", "noise") -> the seed of its random numbers, or those of the runs of a stack.
        units: gives the arguments of a reset of units (`groups` or `example_inputs`, `init`); asked only by such a method.
        runs: in the stack; None where the network is of one run.
        hooks: whether the method hangs on the optimizer; otherwise the experiment calls its `step()`.
        event: whether the experiment itself says when a method acts that changes whole parameters.
    """

    network: nn.Module
    optimizer: Optimizer
    config: Any
    seed: Callable[[str], int | Sequence[int]]
    units: Callable[[], Mapping[str, Any]] = _no_units
    runs: int | None = None
    hooks: bool = True
    event: bool = False


Maker: TypeAlias = Callable[[Site], Attached | None]


def nothing(site: Site) -> None:
    """What has no `make`."""
    return


def act_at_event(method: object) -> None:
    """Data have changed: a method that waits to be told acts."""
    if isinstance(method, AfterStep) and method.period is None:
        method.apply()


def continual_backprop(site: Site) -> methods.ContinualBackprop:
    settings: dict[str, Any] = {**parameters_of(site.config), **site.units()}
    seed = site.seed("fresh units")
    return methods.ContinualBackprop(site.network, site.optimizer, seed=seed, attach=site.hooks, **settings)


def shrink_and_perturb(site: Site) -> methods.ShrinkAndPerturb:
    return methods.ShrinkAndPerturb(
        site.network,
        site.optimizer,
        noise_std=site.config.noise_std,
        shrink=getattr(site.config, "shrink", 1.0),  # elsewhere it is left to weight decay, as in Dohare et al. (2024)
        period=None if site.event else 1,
        seed=site.seed("noise"),
        runs=site.runs,
        attach=site.hooks,
    )


# -- resets of units ------------------------------------------------------------------------------------------------


class Random(BaseModel):
    replacement_rate: float = Field(1e-4, gt=0, le=1, description="share of mature units per step")
    maturity_threshold: int = Field(100, ge=0, description="steps")


def random_replacement(site: Site) -> methods.RandomReplacement:
    own = {name: getattr(site.config, name) for name in Random.model_fields}
    return methods.RandomReplacement(site.network, site.optimizer, **own, **_of_units(site))


class GraMa(BaseModel):
    tau: float = Field(0.01, ge=0, description="share of the layer's mean gradient up to which a unit is reset")
    reset_period: int = Field(1000, gt=0, description="steps between resets")
    gradient_of: Literal["weights", "activity"] = Field("weights", description="as released, or as in the article")


def grama(site: Site) -> methods.GraMa:
    config = site.config
    own: dict[str, Any] = {"tau": config.tau, "period": config.reset_period, "of": config.gradient_of}
    return methods.GraMa(site.network, site.optimizer, **own, **_of_units(site))


class SelfNormalized(BaseModel):
    rejection: float = Field(0.01, ge=0, le=1, description="share of a unit's gaps that its silence may be as rare as")
    shortest: int = Field(5, ge=0, description="steps of silence before any unit is reset")
    longest: int = Field(1000, gt=0, description="steps of silence after which every unit is reset")


def self_normalized_resets(site: Site) -> methods.SelfNormalizedResets:
    own = {name: getattr(site.config, name) for name in SelfNormalized.model_fields}
    return methods.SelfNormalizedResets(site.network, site.optimizer, **own, **_of_units(site))


class Exponential(BaseModel):
    replacement_rate: float = Field(0.012, gt=0, lt=1, description="largest share of a fresh unit mixed in at a reset")
    sharpness: float = Field(16.0, ge=0, description="of the fall of that share above the threshold")
    threshold: float = Field(0.95, ge=0, description="share of the layer's mean gradient up to which it is largest")
    reset_period: int = Field(1000, gt=0, description="steps between resets")


class Sigmoid(Exponential):
    replacement_rate: float = Field(0.015, gt=0, lt=1, description="largest share of a fresh unit mixed in at a reset")
    threshold: float = Field(1.0, ge=0, description="share of the layer's mean gradient at which it is half of that")


def partial_resets(transform: Literal["exponential", "sigmoid"]) -> Maker:
    def make(site: Site) -> methods.PartialResets:
        own = {name: getattr(site.config, name) for name in ("replacement_rate", "sharpness", "threshold")}
        period = site.config.reset_period
        return methods.PartialResets(
            site.network, site.optimizer, transform=transform, period=period, **own, **_of_units(site)
        )

    return make


def _of_units(site: Site) -> dict[str, Any]:
    return {**site.units(), "seed": site.seed("fresh units")}


# -- whole parameters -----------------------------------------------------------------------------------------------


class L2Init(BaseModel):
    l2_init: float = Field(1e-2, gt=0, description="strength of the pull to the initial parameters")


def l2_init(site: Site) -> methods.L2:
    return methods.L2(site.network, site.optimizer, strength=site.config.l2_init, toward="initial")


class Spectral(BaseModel):
    strength: float = Field(1e-4, gt=0, description="of the pull of largest singular values toward 1")


def spectral(site: Site) -> methods.Spectral:
    return methods.Spectral(site.network, site.optimizer, strength=site.config.strength)


class Parseval(BaseModel):
    strength: float = Field(1e-6, gt=0, description="of the pull of rows toward orthogonality")
    orthogonal_scale: float = Field(2.0, gt=0, description="their squared length: 2 for ReLU, 1 for tanh")


def parseval(site: Site) -> methods.Parseval:
    """On the weights of all layers but the head."""

    def hidden(name: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() > 1 and parameter is not last

    last = [parameter for parameter in site.network.parameters() if parameter.dim() > 1][-1]
    settings = {"strength": site.config.strength, "scale": site.config.orthogonal_scale}
    return methods.Parseval(site.network, site.optimizer, parameters=hidden, **settings)


class Clipping(BaseModel):
    kappa: float = Field(1.0, gt=0, description="of the bound of a fresh layer's weights, to which they are clipped")


def weight_clipping(site: Site) -> methods.WeightClipping:
    return methods.WeightClipping(site.network, site.optimizer, kappa=site.config.kappa)


class Selective(BaseModel):
    tau: float = Field(1e-5, ge=0, description="share of a parameter's mean utility up to which a weight is drawn anew")
    reset_period: int = Field(2048, gt=0, description="steps between resets")


def selective_reinitialization(site: Site) -> methods.SelectiveReinitialization:
    return methods.SelectiveReinitialization(
        site.network,
        site.optimizer,
        tau=site.config.tau,
        period=site.config.reset_period,
        seed=site.seed("fresh weights"),
    )


class Hare(BaseModel):
    average_decay_rate: float = Field(0.999, ge=0, lt=1, description="of the slow average of the network")
    hare_period: int = Field(10_000, gt=0, description="steps after which the network becomes that average")


def hare_and_tortoise(site: Site) -> methods.HareAndTortoise:
    config = site.config
    return methods.HareAndTortoise(
        site.network, site.optimizer, decay_rate=config.average_decay_rate, period=config.hare_period
    )


def fire(site: Site) -> methods.FIRE:
    """When data change."""
    return methods.FIRE(site.network, site.optimizer)


# -- optimizers -----------------------------------------------------------------------------------------------------

StepMaker: TypeAlias = Callable[[Optimizer, Any], Optimizer]


def plain_steps(plain: Optimizer, config: Any) -> Optimizer:
    """The plain optimizer itself."""
    return plain


class UtilityPerturbed(BaseModel):
    beta_utility: float = Field(0.999, ge=0, lt=1, description="of the running utility of each weight")
    sigma: float = Field(0.001, ge=0, description="of the noise on the gradient of weights of no use")


def upgd(plain: Optimizer, config: Any) -> UPGD:
    """With the step sizes and the weight decay, decoupled, of the plain one; without its momentum."""
    groups = [{name: group[name] for name in ("params", "lr", "weight_decay")} for group in plain.param_groups]
    return UPGD(groups, beta_utility=config.beta_utility, sigma=config.sigma, seed=config.seed)


def trac(plain: Optimizer, config: Any) -> TRAC:
    return TRAC(plain)


class NoFields(BaseModel):
    """A method without settings."""
