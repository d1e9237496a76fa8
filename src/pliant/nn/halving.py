"""Layers with half as many units, for activations that are twice as wide as what they are applied to.

    z = W x + b,  n units          becomes     n / 2 units, drawn anew by the layer's own `reset_parameters()`
    norms of z                     become      those of n / 2 units
    what reads ψ(z)                stays       as it is: n numbers, in another order

A layer can be halved where its units are a group of `pliant.trace` by themselves, whose every use goes through such activations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from pliant.units.groups import UnitGroup
from pliant.units.map import UnitMap
from pliant.units.trace import trace
from pliant.units.trace.functions import Function

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OTHER_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
NORMS = (*OTHER_NORMS, _NormBase)
NORMING = (
    "native_batch_norm",
    "native_layer_norm",
    "native_group_norm",
    "rms_norm",
    "_fused_rms_norm",
)  # as operations


class Halving:
    """The layers whose units activations are applied to, and the norms between, which are to be halved.

    Args:
        found: everything that is applied to units, in order.
        applied: the activations among it that are to be exchanged.

    Raises `ValueError` for a layer that cannot be halved.
    """

    def __init__(
        self, network: nn.Module, examples: Any, found: Sequence[Function], applied: Sequence[Function]
    ) -> None:
        self.network, self.examples = network, examples
        self.plan = trace(network, examples)
        self.groups: dict[str, UnitGroup] = {}  # by the name of a layer
        self.norms: list[str] = []
        for each in applied:
            layer = self._check_layer(each)
            for before in found[: found.index(each)]:
                if before.layers == each.layers and normalizes(network, before):
                    self._check_norm(before, layer, found)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The halved layers and norms by name, in the network's order, drawn from the global generator."""
        for name, module in cast(Iterator[tuple[str, Any]], self.network.named_modules()):
            if name in self.groups or name in self.norms:
                half = _half_norm(module) if name in self.norms else _half_layer(module)
                for new, old in zip(half.parameters(), module.parameters(), strict=True):
                    new.requires_grad_(old.requires_grad)
                like = next((each for each in (*module.parameters(), *module.buffers())), None)
                yield name, half.train(module.training).to(like)

    def check(self, converted: nn.Module) -> None:
        """Raise `ValueError` unless each unit of a halved layer is now read by twice as many columns of the same weights."""
        after = _by_layer(trace(converted, self.examples))
        for layer, group in self.groups.items():
            now = after.get(layer)
            wanted = {name: 2 * columns for name, columns in _columns(group).items()}
            if now is None or _columns(now) != wanted:
                raise ValueError(
                    f"convert: '{layer}' cannot be halved: some of what reads its units does so without the activation"
                )

    def _check_layer(self, applied: Function) -> str:
        where = f"convert: '{applied.module}' cannot be exchanged for an activation that is twice as wide"
        if not applied.layers:
            raise ValueError(f"{where}: the units that it is applied to cannot be followed")
        weight, *more = applied.layers
        if more:
            names = " and ".join(f"'{name}'" for name in applied.layers)
            raise ValueError(f"{where}: it is applied to units of {names} together (a sum, or a concatenation)")
        layer, module = weight.rpartition(".")[0], self._owner(weight)
        if type(module) not in LAYERS:
            raise ValueError(
                f"{where}: '{layer}' is a {type(module).__name__}, and only linear layers and convolutions fit"
            )
        if "weight" not in dict(module.named_parameters(recurse=False)) or _owners(self.network, module.weight) > 1:
            raise ValueError(f"{where}: the weight of '{layer}' is computed, or shared with another layer")
        group = _by_layer(self.plan).get(layer)
        if group is None:
            reasons = [each.reason for each in self.plan.skipped if weight in each.parameters]
            raise ValueError(
                f"{where}: the units of '{layer}' are left alone by trace ({', '.join(reasons) or 'no plan'})"
            )
        others = {part.parameter for part in group.incoming} - {f"{layer}.weight", f"{layer}.bias"}
        others = {name for name in others if not isinstance(self._owner(name), NORMS)}  # its shift, without a bias
        if others or group.kind == "recurrent":
            shared = ", ".join(f"'{name}'" for name in sorted(others)) or "they feed themselves"
            raise ValueError(
                f"{where}: the units of '{layer}' are not its alone ({shared}: a gate, a sum, a recurrence)"
            )
        units, groups = module.weight.shape[0], getattr(module, "groups", 1)
        if units % 2 or units // 2 % groups:
            of = f" in {groups} groups" if groups > 1 else ""
            raise ValueError(f"{where}: '{layer}' has {units} units{of}, which cannot be halved")
        if applied.axis is None:
            raise ValueError(f"{where}: what it is applied to holds more than the units of '{layer}' along one axis")
        self.groups[layer] = group
        return layer

    def _owner(self, parameter: str) -> Any:
        return self.network.get_submodule(parameter.rpartition(".")[0])

    def _check_norm(self, norm: Function, layer: str, found: Sequence[Function]) -> None:
        module = self.network.get_submodule(norm.module)
        name = f"'{norm.module}' ({type(module).__name__})" if norm.module else type(module).__name__
        where = f"convert: {name}, which normalizes the units of '{layer}'"
        if norm.operation is not None:
            raise ValueError(
                f"{where}, does so by the function {norm.operation}: make it a module, such as nn.LayerNorm"
            )
        units = self.network.get_parameter(f"{layer}.weight").shape[0]
        known = type(module) in BATCH_NORMS or (
            type(module) in OTHER_NORMS
            and _size(module) == units
            and units // 2 % getattr(module, "num_groups", 1) == 0
        )
        if not known or any(one.module == norm.module and one.layers != norm.layers for one in found):
            raise ValueError(f"{where}, cannot be halved: it is of another kind or size, or serves other layers too")
        if norm.module not in self.norms:
            self.norms.append(norm.module)


def normalizes(network: nn.Module, function: Function) -> bool:
    """Whether it is a norm, a module or an operation."""
    if function.operation is not None:
        return function.operation in NORMING
    return isinstance(network.get_submodule(function.module), NORMS)


def _by_layer(plan: UnitMap) -> dict[str, UnitGroup]:
    """Groups by each layer that computes their units."""
    return {part.parameter.rpartition(".")[0]: group for group in plan.groups for part in group.incoming}


def _columns(group: UnitGroup) -> Counter[str]:
    """How many columns of each weight read a unit."""
    found: Counter[str] = Counter()
    for part in group.outgoing:
        found[part.parameter] += part.repeat
    return found


def _owners(network: nn.Module, parameter: Any) -> int:
    return sum(each is parameter for _, each in network.named_parameters(remove_duplicate=False))


def _size(norm: Any) -> int:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.normalized_shape[-1]


def _half_layer(layer: Any) -> nn.Module:
    bias, dtype = layer.bias is not None, layer.weight.dtype
    if type(layer) is nn.Linear:
        return nn.Linear(layer.in_features, layer.out_features // 2, bias, dtype=dtype)
    return type(layer)(
        layer.in_channels,
        layer.out_channels // 2,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias,
        layer.padding_mode,
        dtype=dtype,
    )


def _half_norm(norm: Any) -> nn.Module:
    if isinstance(norm, nn.GroupNorm):
        return nn.GroupNorm(norm.num_groups, norm.num_channels // 2, norm.eps, norm.affine)
    if isinstance(norm, nn.RMSNorm):
        return nn.RMSNorm(_size(norm) // 2, norm.eps, norm.elementwise_affine)
    if isinstance(norm, nn.LayerNorm):
        return nn.LayerNorm(
            _size(norm) // 2, norm.eps, norm.elementwise_affine, getattr(norm, "bias", None) is not None
        )
    return type(norm)(norm.num_features // 2, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
