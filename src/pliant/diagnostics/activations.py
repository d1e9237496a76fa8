"""Which activation function computed a tensor, found while a model runs.

The activity of a hidden unit is recorded as the input of its consumer. Which measures apply to it depends on the activation
function that computed it (ReLU, tanh, ...), which need not be a module (`torch.tanh(x)`). So every operation of the forward
passes a dispatch mode that notes, for each storage, the function whose results it holds:

    direct      the results themselves, moved or copied at most
    not direct  pooled, padded with zeros or dropped out: 0 still means inactive, but other values are not the function's own

After any other operation, no function is noted: the output of a norm or a gate has no known bounds.

What enters a function, the pre-activation z, is noted by its moments alone: count, sum and sum of squares over all axes but the
first two, which may be runs, examples or tokens.
"""

# pyright: reportPrivateUsage=false
# An operation's schema has no public name in PyTorch.

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pliant.base.dispatch import DispatchMode
from pliant.diagnostics.features import wide
from pliant.units.models import operation_name


class Activation(NamedTuple):
    name: str
    direct: bool = True


RECTIFIERS = frozenset({"relu", "relu6", "gelu", "silu", "mish", "hardswish"})  # at or near 0 on the whole left
MASK = Activation("mask")  # zeros and ones, drawn by a dropout


BOUNDS: dict[tuple[Any, Any], str] = {(0, None): "relu", (0, 6): "relu6", (-1, 1): "hardtanh"}  # of hardtanh and clamp
FUNCTIONS = {
    **{name: name for name in ("relu", "tanh", "sigmoid", "gelu", "silu", "mish", "elu", "leaky_relu", "softplus")},
    **{name: name for name in ("hardswish", "hardsigmoid", "sin", "cos")},
    "_prelu_kernel": "prelu",
    "_softmax": "softmax",
}
ENTERED = frozenset({*FUNCTIONS, "hardtanh", "clamp", "clamp_min"} - {"_softmax"})  # whose first argument is z
MOVES = frozenset(
    {"clone", "_to_copy", "cat", "stack", "_unsafe_view", "copy", "index_select", "index", "roll", "flip"}
)
POOLS = frozenset(
    {
        *("max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices", "amax", "adaptive_max_pool2d"),
        *(
            "avg_pool1d",
            "avg_pool2d",
            "avg_pool3d",
            "adaptive_avg_pool1d",
            "_adaptive_avg_pool2d",
            "_adaptive_avg_pool3d",
        ),
        *("mean", "sum", "constant_pad_nd", "native_dropout", "adaptive_max_pool3d"),
    }
)


class Activations(DispatchMode):
    """While this mode is active, `of(tensor)` is the activation function whose results the tensor holds, or None, and
    `before(tensor)` are the moments of what entered it, (..., 3), one tensor for each call of it."""

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self._wrote: dict[int, Activation] = {}  # by address: a tensor that reuses a freed address is noted anew
        self._entered: dict[int, tuple[Tensor, ...]] = {}

    def of(self, tensor: Tensor) -> Activation | None:
        return self._wrote.get(_address(tensor))

    def before(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return self._entered.get(_address(tensor), ())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = operation_name(func)
        plain = name if name.startswith("_") else name.rstrip("_")
        entered = _moments(args[0]) if plain in ENTERED else None  # before it runs: it may write in place
        result = func(*args, **(kwargs or {}))
        inputs, outputs = _dense((args, kwargs or {})), _dense(result)
        in_place = bool(func._schema.is_mutable)
        sources = {_address(tensor) for tensor in inputs}
        if outputs and (in_place or not all(_address(tensor) in sources for tensor in outputs)):  # else a view
            found = self._made(plain, args, kwargs or {}, inputs, in_place)
            read = inputs[1:] if in_place and plain == "copy" else inputs
            earlier = dict.fromkeys(each for tensor in read for each in self._entered.get(_address(tensor), ()))
            for tensor in outputs:
                self._note(tensor, found, in_place, tuple(earlier) if entered is None else (entered,))
        return result

    def _made(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor], in_place: bool
    ) -> Activation | None:
        """The activation function of the operation's results."""
        if name in ("hardtanh", "clamp", "clamp_min"):
            named = (kwargs.get("min_val", kwargs.get("min")), kwargs.get("max_val", kwargs.get("max")))
            bounds = BOUNDS.get(cast(tuple[Any, Any], (*args[1:3], *named[len(args[1:3]) :])))
            return None if bounds is None else Activation(bounds)
        if name in FUNCTIONS:
            return Activation(FUNCTIONS[name])
        if name == "bernoulli":
            return MASK
        read = inputs[1:] if in_place and name == "copy" else inputs
        if name.startswith("index"):
            read = inputs[:1]  # the rest says which
        made = {self.of(tensor) for tensor in read}
        if name in ("mul", "div") and MASK in made:
            rest = made - {MASK}
            return self._pooled(rest) if rest and len(read) > 1 else MASK
        if name in MOVES and len(made) == 1:
            return made.pop()
        return self._pooled(made) if name in POOLS else None

    def _pooled(self, made: set[Activation | None]) -> Activation | None:
        only = made.pop() if len(made) == 1 else None
        return None if only is None or only == MASK else only._replace(direct=False)

    def _note(self, tensor: Tensor, found: Activation | None, in_place: bool, entered: tuple[Tensor, ...]) -> None:
        place = _address(tensor)
        in_part = in_place and tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes()
        if found is None or (in_part and self._wrote.get(place) != found):
            self._wrote.pop(place, None)
            self._entered.pop(place, None)
        else:
            self._wrote[place] = found
            self._entered[place] = entered


def _moments(z: Any) -> Tensor | None:
    """Count, sum and sum of squares, (..., 3), over all axes but the first two, or but the first of a matrix."""
    if not isinstance(z, Tensor) or z.layout is not torch.strided or not z.is_floating_point() or not z.numel():
        return None
    rows = z.detach().flatten(min(2, z.dim() - 1)) if z.dim() else z.detach().view(1)
    total = rows.sum(-1, dtype=wide(z))
    squares = cast(Tensor, torch.linalg.vector_norm(rows, dim=-1, dtype=wide(z))).square()
    return torch.stack([torch.full_like(total, rows.shape[-1]), total, squares], dim=-1)


def _dense(value: Any) -> list[Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, Tensor) and each.layout is torch.strided]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
