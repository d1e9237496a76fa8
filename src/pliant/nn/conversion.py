"""A network with other activations, with layer norms before them, or with normalized inputs.

    activation     h = φ(z) becomes h = ψ(z). For CReLU and deep Fourier features, which are twice as wide as z, the layer that
                   computes z is replaced by one of half as many units (`pliant.nn.halving`), so that the width of h stays
    layer_norm     h = φ(z) becomes h = φ(LN z), a mean and a variance of all units of an example (of images: and positions)
    input_norm     f(x) becomes f(norm x)

Which units an activation is applied to, and which layer computes them, is found by following one forward (`pliant.units.trace`),
through batch norms, pooling, flattening, functions and concatenations. Converted are the activations of hidden units: an output
behind the last layer keeps its function, and so do gates (sigmoids) and the cells of recurrent layers. Everything else that a
conversion does not fit is an error that names the module, and the network given is never changed.
"""

# pyright: reportPrivateUsage=false
# The children of a module under each of their names have no public name in PyTorch.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.base.arguments import flag, integer, is_a, shown
from pliant.base.choices import one_of
from pliant.base.process import random_state
from pliant.base.tables import Cells, Table
from pliant.nn.aid import AID
from pliant.nn.crelu import CReLU
from pliant.nn.deep_fourier import DeepFourier
from pliant.nn.halving import NORMING, NORMS, Halving, normalizes
from pliant.nn.input_norm import InputNorm
from pliant.nn.smooth_leaky_relu import SmoothLeakyReLU
from pliant.units.models import arguments, check_examples, checked, copied, tensors_in, unwrapped
from pliant.units.trace.functions import Function, functions

DOUBLING = (CReLU, DeepFourier)
BY_NAME: Mapping[str, Callable[[], nn.Module]] = {
    "crelu": CReLU,
    "deep_fourier": DeepFourier,
    "aid": AID,
    "smooth_leaky_relu": SmoothLeakyReLU,
}
POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Hardtanh, nn.Hardswish, nn.Threshold, AID, SmoothLeakyReLU),
)
GATES = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid)
GATING = ("sigmoid", "hardsigmoid", "log_sigmoid_forward")  # as operations
CELLS = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Change:
    """A module of the network, before and after."""

    name: str
    before: str
    after: str
    weights: str  # "drawn" where they are new, else ""


@dataclass(frozen=True)
class Conversion(Table):
    """The converted network, what was changed in it, and which activations were left as they are. Prints as a table."""

    model: nn.Module
    changes: Sequence[Change] = field(default=())
    left: Sequence[tuple[str, str]] = field(default=())  # module, reason

    def to_dict(self) -> dict[str, Any]:
        return {"changes": self.records(), "left": [{"module": name, "reason": why} for name, why in self.left]}

    def records(self) -> list[dict[str, Any]]:
        return [dict(vars(change)) for change in self.changes]

    def table(self) -> tuple[Cells, Sequence[str]]:
        head = ("module", "was", "is", "weights")
        rows = [(each.name, each.before, each.after, each.weights) for each in self.changes]
        return [head, *rows], ["left as it is", *(f"  {name}  {why}" for name, why in self.left)] if self.left else []


@torch.inference_mode(False)
def convert(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    activation: str | nn.Module | None = None,
    layer_norm: bool = False,
    input_norm: bool | InputNorm = False,
    seed: int = 0,
) -> Conversion:
    """A converted copy of a network; build the optimizer from `conversion.model`.

    Args:
        model: a network in which activations are modules (`nn.ReLU()`, not `F.relu`). Wrappers (DistributedDataParallel,
            `torch.compile`) are taken off.
        example_inputs: as for `pliant.trace`; may be left out for an `nn.Sequential` that begins with a linear layer.
        activation: of hidden units: "crelu", "deep_fourier", "aid", "smooth_leaky_relu", or a module to copy, elementwise or one
            of `pliant.nn`; None keeps what is there. The first two need an even number of units, and layers that are linear
            or convolutions.
        layer_norm: put one before each activation of hidden units: `nn.LayerNorm` where units lie along the last axis,
            `nn.GroupNorm(1, channels)` for the channels of convolutions. With weight decay: `pliant.nn.decay_groups`.
        input_norm: put `InputNorm` before the network, with each number of an example as a feature; or one of yours (for
            sequences, `InputNorm(features)`). The network is then `conversion.model.network`.
        seed: of the layers that are drawn anew, by their own `reset_parameters()`, on the CPU.

    Raises `ValueError`, naming the module, for what cannot be converted: a function that is no module, units that cannot be
    followed; for doubling activations also an odd number of units, residual sums, gated, tied and recurrent units.

    >>> convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), activation="crelu").model
    Sequential(
      (0): Linear(in_features=6, out_features=4, bias=True)
      (1): CReLU(dim=-1)
      (2): Linear(in_features=8, out_features=2, bias=True)
    )
    """
    make = None if activation is None else _maker(activation)
    layer_norm, seed = flag("layer_norm", layer_norm), integer("seed", seed)
    if not is_a(input_norm, InputNorm):
        input_norm = flag("input_norm", input_norm)
    if make is None and not layer_norm and input_norm is False:
        raise ValueError("nothing to convert: give activation=, layer_norm=True or input_norm=True")
    network = copied(unwrapped(checked(model)))
    examples = _examples(network, example_inputs)
    changes, left = list[Change](), list[tuple[str, str]]()
    if make is not None or layer_norm:
        changes, left = _exchange(network, examples, make, layer_norm=layer_norm, seed=seed)
    if input_norm is not False:
        norm = _input_norm(network, examples, input_norm)
        changes = [Change("", type(network).__name__, f"{norm}, {type(network).__name__}", ""), *changes]
        behind, network = network, nn.Sequential()
        network.add_module("input_norm", norm)
        network.add_module("network", behind)
        network.train(behind.training)
    return Conversion(network, changes, left)


Make = Callable[[int], nn.Module]  # from the axis along which units lie


def _maker(activation: str | nn.Module) -> Make:
    if isinstance(activation, nn.Module):
        if type(activation) not in (*POINTWISE, *DOUBLING):
            raise ValueError(
                f"activation must be a name or an elementwise module, such as nn.Tanh() or AID(p=0.9), got {shown(activation)}"
            )
        given = activation
        return (lambda axis: deepcopy(given)) if type(given) not in DOUBLING else type(given)
    kind = BY_NAME[one_of("activation", activation, BY_NAME)]
    return kind if kind in DOUBLING else lambda axis: kind()


def _examples(network: nn.Module, given: Any) -> list[Any]:
    if given is not None:
        examples = cast(list[Any], given) if isinstance(given, list) else [given]
        check_examples("convert: example_inputs", examples)
        if not examples:
            raise ValueError("convert: example_inputs is an empty list; give at least one example")
        return examples
    first = network
    while isinstance(first, nn.Sequential) and len(first):
        first = next((each for each in first if not isinstance(each, nn.Flatten | nn.Identity)), nn.Identity())
    if first is network or not isinstance(first, nn.Linear):
        raise ValueError(
            f"give example_inputs: what this {type(network).__name__} takes is not known, as it is of an nn.Sequential that "
            f"begins with a linear layer"
        )
    numbers = torch.randn(2, first.in_features, generator=torch.Generator().manual_seed(0))
    return [numbers.to(first.weight)]


# -- activations and layer norms -----------------------------------------------------------------------------------


def _exchange(
    network: nn.Module, examples: list[Any], make: Make | None, *, layer_norm: bool, seed: int
) -> tuple[list[Change], list[tuple[str, str]]]:
    """Exchange modules of `network`, and make sure that it still runs."""
    before = _shapes(network, examples, "")
    found = functions(network, examples, (*POINTWISE, *DOUBLING, *GATES, *CELLS, *NORMS))
    _refuse_functions(network, found)
    applied, left = _hidden(network, found)
    if make is not None:
        _refuse_doubled(network, applied)
    every = [each for calls in applied.values() for each in calls]
    halving = Halving(network, examples, found, every) if make in DOUBLING else None
    norms = {name: _norm(network, name, found, halved=make in DOUBLING) for name in applied if layer_norm}
    with random_state(seed), torch.device("cpu"):
        halved = {} if halving is None else dict(halving.modules())
    new = {name: _activation(network, name, calls, make, norms.get(name)) for name, calls in applied.items()}
    changes = _put(network, halved, new)
    if _shapes(network, examples, " as converted") != before:
        raise ValueError(f"convert: {type(network).__name__} as converted returns tensors of other shapes")
    if halving is not None:
        halving.check(network)
    return changes, left


def _activation(
    network: nn.Module, name: str, calls: Sequence[Function], make: Make | None, norm: nn.Module | None
) -> nn.Module:
    """What takes the place of the activation of this name."""
    old = network.get_submodule(name)
    act = old if make is None else make(_axis(name, calls) if make in DOUBLING else -1)
    return (act if norm is None else nn.Sequential(norm, act)).train(old.training)


def _refuse_functions(network: nn.Module, found: Iterable[Function]) -> None:
    """Raise `ValueError` for an activation of hidden units that is no module."""
    for each in found:
        if each.operation in (None, *GATING, *NORMING) or not each.hidden:
            continue
        kind = type(network.get_submodule(each.module)).__name__
        where = f"'{each.module}' ({kind})" if each.module else kind
        raise ValueError(
            f"convert: {where} calls {each.operation} as a function, which cannot be exchanged: make it a module of its own, "
            f"such as nn.ReLU()"
        )


def _refuse_doubled(network: nn.Module, applied: Iterable[str]) -> None:
    """Raise `ValueError` for an activation that is twice as wide as what it is applied to: no other fits in its place."""
    for name in applied:
        if isinstance(module := network.get_submodule(name), DOUBLING):
            raise ValueError(
                f"convert: '{name}' is a {type(module).__name__} already, to which the layer before it is fitted: leave "
                f"activation out"
            )


def _hidden(network: nn.Module, found: Sequence[Function]) -> tuple[dict[str, list[Function]], list[tuple[str, str]]]:
    """The activations to exchange, by module, with all that each is applied to; and those to leave, with the reason."""
    applied, left = dict[str, list[Function]](), list[tuple[str, str]]()
    for name, module in cast(Iterator[tuple[str, nn.Module]], network.named_modules()):
        calls = [each for each in found if each.module == name and each.operation is None]
        if isinstance(module, CELLS):
            left.append((name, "the functions of a recurrent layer are its own"))
        elif isinstance(module, GATES):
            left.append((name, "a gate, or an output between 0 and 1"))
        elif isinstance(module, (*POINTWISE, *DOUBLING)):
            if not calls:
                raise ValueError(f"convert: '{name}' ({type(module).__name__}) never ran with the example inputs")
            if len({each.hidden for each in calls}) > 1:
                raise ValueError(
                    f"convert: '{name}' ({type(module).__name__}) is applied to hidden units and to outputs: give each one of "
                    f"its own"
                )
            if calls[0].hidden:
                applied[name] = calls
            else:
                left.append((name, "it does not lie between weights"))
    if not applied:
        raise ValueError(f"convert: {type(network).__name__} has no activation of hidden units that is a module")
    return applied, left


def _axis(name: str, calls: Sequence[Function]) -> int:
    """Where units lie, the same in all calls. Raises `ValueError` where it is not."""
    axes = {each.axis for each in calls}
    axis = axes.pop()
    if axis is None or axes:
        raise ValueError(f"convert: '{name}' is applied to units that do not lie along one axis, always the same")
    return axis


def _norm(network: nn.Module, name: str, found: Sequence[Function], *, halved: bool) -> nn.Module:
    """A layer norm to stand before this activation. Raises `ValueError` where none can."""
    calls = [each for each in found if each.module == name and each.operation is None]
    layers = sorted({each.layers for each in calls})
    if len(layers) > 1:
        served = " and ".join(f"'{', '.join(each)}'" for each in layers)
        raise ValueError(
            f"convert: '{name}' serves {served}, which need a layer norm each: give each an activation of its own"
        )
    for each in found[: found.index(calls[0])]:
        if each.layers == layers[0] and normalizes(network, each):
            module = network.get_submodule(each.module)
            raise ValueError(
                f"convert: '{each.module}' ({type(module).__name__}) normalizes already what '{name}' is applied to: remove it, "
                f"or leave layer_norm out"
            )
    axis, dims, units = _axis(name, calls), calls[0].dims, calls[0].units
    if axis not in (-1, 1 - dims):
        raise ValueError(
            f"convert: no layer norm fits before '{name}': its units lie along axis {axis + dims} of {dims}, neither the last "
            f"nor that of channels"
        )
    units = units // 2 if halved else units
    norm = nn.LayerNorm(units) if axis == -1 else nn.GroupNorm(1, units)
    return norm.to(network.get_parameter(layers[0][0]))


def _put(network: nn.Module, drawn: Mapping[str, nn.Module], others: Mapping[str, nn.Module]) -> list[Change]:
    """Put modules in the place of those of these names, wherever these are held."""
    new = {network.get_submodule(name): module for name, module in {**drawn, **others}.items()}
    changes = [
        Change(name, _said(module), _said(new[module]), "drawn" if name in drawn else "")
        for name, module in cast(Iterator[tuple[str, nn.Module]], network.named_modules())
        if module in new
    ]
    for parent in list(network.modules()):
        for leaf, child in list(parent._modules.items()):  # named_children names a module once
            if child in new:
                setattr(parent, leaf, new[child])
                if isinstance(parent, nn.TransformerEncoderLayer):
                    parent.activation_relu_or_gelu = 0  # else its fast path for evaluation computes the old one
    return changes


def _said(module: nn.Module) -> str:
    return ", ".join(map(repr, module)) if type(module) is nn.Sequential else repr(module)


def _shapes(network: nn.Module, examples: list[Any], which: str) -> list[torch.Size]:
    """Of all tensors that a copy returns. Raises `ValueError` where it cannot run, with the module in which it fails."""
    copy, running = copied(network), list[str]()
    names = {module: name for name, module in cast(Iterator[tuple[str, nn.Module]], copy.named_modules())}

    def enter(module: nn.Module, args: Any) -> None:
        running.append(names[module])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    for module in names:
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    found = list[torch.Size]()
    for example in examples:
        args, kwargs = arguments(example)
        try:
            with random_state(), torch.no_grad():
                found += [each.shape for each in tensors_in(copy(*args, **kwargs))]
        except Exception as error:
            where = f"'{running[-1]}'" if running and running[-1] else type(network).__name__
            said = str(error).partition("\n")[0]
            raise ValueError(f"convert: {where} cannot run{which} with the example inputs: {said}") from error
    return found


# -- inputs ----------------------------------------------------------------------------------------------------------


def _input_norm(network: nn.Module, examples: list[Any], given: bool | InputNorm) -> InputNorm:
    """A norm for what the network takes. Raises `ValueError` where that is not one tensor of real numbers."""
    args, kwargs = arguments(examples[0])
    x = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        raise ValueError(
            f"input_norm: {type(network).__name__} does not take one tensor of real numbers, examples first: put an InputNorm "
            f"into its forward by hand"
        )
    norm = (deepcopy(given) if isinstance(given, InputNorm) else InputNorm(tuple(x.shape[1:]))).to(x)
    norm.eval()(x)  # raises where the shape does not fit
    return norm
