"""Everything in float64: a copy of a model, and the constants and dtypes of its forward.

    parameters, buffers, plain tensors anywhere in the model    float64 in the copy
    constants outside of the copy (closures, globals)           replaced by a float64 twin where an operation uses them
    explicit casts and dtypes in the forward                    replaced by float64
    tensors that it creates (`torch.zeros`)                     created, then cast: the default dtype is the whole process's

Integers stay as they are, complex numbers become complex128. Rounding to a shorter type would end every comparison "to the last
bit", and two lengths in one product are an error of the model's that is not there outside of the copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pliant.units.models import held_by


def _grouped_mm(a: Tensor, b: Tensor, *, offs: Tensor | None = None, **_: Any) -> Tensor:
    """Tokens in the order of their experts, times the matrix of each: torch has no kernel for float64."""
    if offs is None:
        return a @ b
    return torch.cat([tokens @ weight for tokens, weight in zip(a.tensor_split(offs[:-1].long()), b, strict=True)])


_TENSOR: Any = Tensor  # its stubs lack some
_CASTS: dict[Any, Any] = {
    **dict.fromkeys((getattr(torch, "_grouped_mm", None), getattr(nn.functional, "grouped_mm", None)), _grouped_mm),
    **dict.fromkeys((_TENSOR.float, _TENSOR.half, _TENSOR.bfloat16), _TENSOR.double),
    **dict.fromkeys((_TENSOR.cfloat, _TENSOR.chalf), _TENSOR.cdouble),
}
_NAMES = ("Float", "Half", "BFloat16")  # of legacy types: "torch.FloatTensor"


def long_type(dtype: torch.dtype) -> torch.dtype:
    """The longest type of the same kind.

    >>> [long_type(each) for each in (torch.bfloat16, torch.complex64, torch.int32)]
    [torch.float64, torch.complex128, torch.int32]
    """
    return torch.complex128 if dtype.is_complex else torch.float64 if dtype.is_floating_point else dtype


def long(tensor: Tensor) -> Tensor:
    """On the CPU in the longest type of its kind, without history, and no tensor of inference mode; itself if it is all that."""
    found = tensor.detach().to("cpu", long_type(tensor.dtype))
    return found.clone() if found.is_inference() else found


def double_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a model on the CPU, in evaluation mode. Raises `RuntimeError` where there can be none."""
    name = held_by(model)
    if name is not None:
        inside = cast(nn.Module, getattr(model, name))
        return _Wrapper(name, double_copy(inside)).eval()
    memo: dict[int, Any] = {id(each): _parameter(each) for each in model.parameters() if type(each) is nn.Parameter}
    try:
        with _LongCopies(), torch.no_grad():  # parameters of a scripted module would be copied with a history
            copy = deepcopy(model, memo)
    except Exception as error:
        raise RuntimeError(f"verify: {type(model).__name__} cannot be copied: {error}") from error
    with torch.no_grad():
        copy = copy.cpu().double().eval()  # scripted modules, and parameters of a type of their own
    for new, old in zip(copy.parameters(), model.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return copy


class DoubleOnly(TorchFunctionMode):
    """Inside, nothing is shorter than float64; a twin takes what is written into its constant, until the end."""

    def __enter__(self) -> Any:
        self.twins: dict[int, tuple[Tensor, Tensor]] = {}  # with the constants themselves, or others took their numbers
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # pyright: ignore[reportUnknownMemberType]
        self.twins.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = _CASTS.get(func, func)
        meant = [self._meant(each) for each in args]
        if func is Tensor.type and len(meant) > 1:
            meant[1] = _meant_type(meant[1])
        named = {key: self._meant(value) for key, value in cast(dict[str, Any], kwargs or {}).items()}
        return self._made(func(*meant, **named))

    def _made(self, result: Any) -> Any:
        """What an operation returned; all operands were long."""
        if isinstance(result, Tensor) and result.layout is torch.strided and not result.is_quantized:
            return result if result.dtype is long_type(result.dtype) else result.to(long_type(result.dtype))
        return type(result)(map(self._made, result)) if type(result) in (list, tuple) else result

    def _meant(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if value.dtype is long_type(value.dtype) and not value.is_inference() else self._twin(value)
        if isinstance(value, torch.dtype):
            return long_type(value)
        if type(value) in (list, tuple):
            return type(value)(self._meant(each) for each in value)
        return value

    def _twin(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.twins:
            self.twins[id(tensor)] = tensor, long(tensor) if tensor.is_leaf else tensor.to(long_type(tensor.dtype))
        return self.twins[id(tensor)][1]


class _LongCopies(TorchFunctionMode):
    """Has `deepcopy` make long tensors; views of one memory stay views of one, and what has a history is copied without it."""

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.memories: dict[tuple[int, torch.dtype], Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and type(args[0]) in (Tensor, nn.Buffer):
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._copied(tensor)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))

    def _copied(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            return tensor.detach().clone()
        storage = tensor.untyped_storage()
        key = storage.data_ptr(), tensor.dtype
        if key not in self.memories:
            size = storage.nbytes() // tensor.element_size()
            self.memories[key] = long(tensor.detach().as_strided((size,), (1,), 0).clone())
        copy = self.memories[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        return copy.requires_grad_(tensor.requires_grad and tensor.is_leaf)


class _Wrapper(nn.Module):
    """Stands for a wrapper that parallelises or compiles: it keeps the names of what is inside and does nothing else."""

    def __init__(self, name: str, inside: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inside)
        self.inside = (inside,)  # in a tuple, so as not to give it another name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside[0](*args, **kwargs)


def _parameter(parameter: nn.Parameter) -> nn.Parameter:
    data = long(parameter)
    shared = data.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
    copy = nn.Parameter(data.clone() if shared else data, parameter.requires_grad)
    vars(copy).update(cast(Mapping[str, Any], vars(parameter)))
    return copy


def _meant_type(kind: Any) -> Any:
    """`torch.FloatTensor`, by itself or by name, is meant to be `torch.DoubleTensor`."""
    named = f"{kind.__module__}.{kind.__name__}" if isinstance(kind, type) else kind
    if isinstance(named, str) and named.rpartition(".")[2].removesuffix("Tensor") in _NAMES:
        return torch.float64
    return kind
