"""The units of a plain chain of layers, without tracing.

In an `nn.Sequential` (nested or not) each Linear or Conv2d but the last computes hidden units, and the next
one consumes them. Between two of them only modules that do not mix units are allowed: activations, dropout,
pooling, batch norm, flatten. Anything else is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from pliant.base.initial import GAINS, leaky_relu_gain
from pliant.units.groups import BN, Slice, Tap, UnitGroup
from pliant.units.models import checked

_GAINS: dict[type[nn.Module], float] = {
    nn.Identity: GAINS["linear"],
    nn.Sigmoid: GAINS["sigmoid"],
    nn.Tanh: GAINS["tanh"],
    nn.SELU: GAINS["selu"],
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SiLU, nn.GELU, nn.Mish, nn.Softplus), GAINS["relu"]),
    **dict.fromkeys((nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid), 1.0),
}
_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.Mish: "mish",
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_TRANSPARENT = (
    *(nn.Dropout, nn.Dropout2d, nn.AlphaDropout),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)


def chain_groups(model: nn.Module) -> list[UnitGroup]:
    """The hidden units of a (nested) `nn.Sequential`, one group per weight layer but the last.

    Raises `ValueError`, naming the module, where the chain holds a module whose units cannot be found
    without tracing (residual sums, layer norm, grouped convolutions, attention, a layer used twice).

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 26 * 26, 10))
    >>> [(group.name, group.outgoing[0].repeat) for group in chain_groups(net)]
    [('0', 676)]
    """
    layers = list(_weight_layers(checked(model)))
    if len(layers) < 2:
        raise ValueError(
            f"chain_groups: {type(model).__name__} has no hidden units: it needs two Linear or Conv2d layers"
        )
    return [_group(producer, consumer) for producer, consumer in pairwise(layers)]


@dataclass
class _WeightLayer:
    name: str
    module: nn.Linear | nn.Conv2d
    gain: float = 1.0
    activations: list[str | None] = field(default_factory=list[str | None])  # that follow
    norms: list[tuple[str, int]] = field(
        default_factory=list[tuple[str, int]]
    )  # batch norms that follow: name, channels
    feeds_norm: bool = False  # a batch norm is the very next module
    flattened: bool = False
    followers: int = 0
    obstacle: str | None = None  # a follower that may mix units

    @property
    def units(self) -> int:
        return self.module.out_features if isinstance(self.module, nn.Linear) else self.module.out_channels

    @property
    def inputs(self) -> int:
        return self.module.in_features if isinstance(self.module, nn.Linear) else self.module.in_channels


def _weight_layers(model: nn.Module) -> Iterator[_WeightLayer]:
    """Each Linear and Conv2d of the chain, with the modules between it and the next."""
    current: _WeightLayer | None = None
    seen: set[int] = set()
    for name, module in _leaves(model, ""):
        parameters = {id(parameter) for parameter in module.parameters(recurse=False)}
        if parameters & seen:
            raise ValueError(f"chain_groups: '{name}' is used twice; its units have two meanings. Give groups by hand")
        seen |= parameters
        if isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                raise ValueError(f"chain_groups: '{name}' is a grouped convolution; give its UnitGroup by hand")
            if current is not None:
                yield current
            current = _WeightLayer(name, module)
        elif current is not None:
            _pass_through(current, name, module)
    if current is not None:
        yield current


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(module, nn.Sequential) or "forward" in _overrides(module):
        if not name:
            raise ValueError(
                f"chain_groups reads nn.Sequential, not {type(module).__name__}; give groups=[UnitGroup(...)] by hand"
            )
        yield name, module
        return
    for key, child in module._modules.items():  # pyright: ignore[reportPrivateUsage]  (named_children hides a layer used twice)
        yield from _leaves(child, f"{name}.{key}" if name else key)


def _overrides(module: nn.Sequential) -> set[str]:
    """What subclasses of `nn.Sequential` define anew: one with a forward of its own is no chain."""
    return {name for kind in type(module).__mro__ if kind not in nn.Sequential.__mro__ for name in vars(kind)}


def _pass_through(layer: _WeightLayer, name: str, module: nn.Module) -> None:
    """Note what a module between two weight layers does to the units of the first."""
    kind = type(module)
    if kind in _GAINS:
        layer.gain = _GAINS[kind]
        layer.activations += [] if kind is nn.Identity else [_name(module)]
    elif isinstance(module, nn.LeakyReLU):
        layer.gain = leaky_relu_gain(module.negative_slope)
        layer.activations.append(None)
    elif isinstance(module, _NORMS):
        layer.feeds_norm |= layer.followers == 0 and module.running_mean is not None  # without one it centers by itself
        layer.norms.append((name, module.num_features))
    elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        layer.flattened = True
    elif not isinstance(module, _TRANSPARENT):
        layer.obstacle = layer.obstacle or f"'{name}' ({kind.__name__})"
    layer.followers += 1


def _group(producer: _WeightLayer, consumer: _WeightLayer) -> UnitGroup:
    if producer.obstacle:
        known = sorted({each.__name__ for each in (*_GAINS, nn.LeakyReLU, *_NORMS, nn.Flatten, *_TRANSPARENT)})
        raise ValueError(
            f"chain_groups: {producer.obstacle} stands between weight layers and may mix units. "
            f"Known: {', '.join(known)}. Give groups=[UnitGroup(...)] by hand"
        )
    from_image, to_image = (isinstance(layer.module, nn.Conv2d) for layer in (producer, consumer))
    blocks = from_image and not to_image and producer.flattened  # channels are blocks of columns
    repeat, rest = divmod(consumer.inputs, producer.units)
    if rest or not (blocks or (repeat == 1 and from_image == to_image)):
        raise ValueError(
            f"chain_groups: '{producer.name}' ({type(producer.module).__name__}, {producer.units} units) feeds '{consumer.name}' "
            f"({type(consumer.module).__name__}, {consumer.inputs} inputs): sizes must be equal within a kind, "
            f"and a multiple from Conv2d through Flatten to Linear. Give groups=[UnitGroup(...)] by hand"
        )
    names = ["weight"] if producer.module.bias is None else ["weight", "bias"]
    return UnitGroup(
        name=producer.name,
        incoming=[Slice(f"{producer.name}.{name}", axis=0) for name in names],
        outgoing=[Slice(f"{consumer.name}.weight", axis=1, repeat=repeat)],
        tap=Tap(consumer.name, axis=-1 if isinstance(consumer.module, nn.Linear) else 1),
        affine=[BN(name, channels // producer.units) for name, channels in producer.norms],
        hand_over=_absorber(consumer),
        gain=producer.gain,
        activation=producer.activations[0] if len(producer.activations) == 1 else None,
    )


def _name(activation: nn.Module) -> str | None:
    """That of a function which has nothing to be set, or is set as by default."""
    if isinstance(activation, nn.GELU):
        return "gelu" if activation.approximate == "none" else None
    return _NAMES.get(type(activation))


def _absorber(consumer: _WeightLayer) -> dict[str, str | BN]:
    """The vector that takes over the mean input of a consumer: its bias, or the running mean of the batch norm that it feeds."""
    if consumer.module.bias is not None:
        return {f"{consumer.name}.weight": f"{consumer.name}.bias"}
    return {f"{consumer.name}.weight": BN(consumer.norms[0][0])} if consumer.feeds_norm else {}
