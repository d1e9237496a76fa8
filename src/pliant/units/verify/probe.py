"""A copy of a model that can be asked, to the last bit, what depends on what.

It lies on the CPU in float64, in evaluation mode, and computes attention as matrix products. Batch norms keep statistics that
fit the example inputs: with those of a fresh model a deep network's signals fade, and a difference can round to nothing. For the
same reason nothing in it is zero that could be otherwise: behind a zero-initialised head, or a residual branch whose last scale
starts at 0, every difference is zero. Under `held_norms` layer, group and RMS norms divide by what they divided by in the
untouched model; then units that meet only in a norm's statistics are as separate as any others.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pliant.process import random_state, visible_kernels
from pliant.units.activity import Reader
from pliant.units.hooks import InputHook, OperandHook, OutputHook
from pliant.units.map import Tap
from pliant.units.trace.call import tensors_in
from pliant.units.verify.held_norms import HeldNorms

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Probe:
    """The copy, ready to run on the example inputs; `outputs()` is every tensor it returns, one call after another."""

    def __init__(self, model: nn.Module, example_inputs: Any, *, seed: int = 0) -> None:
        self.seed = seed
        self.kind = type(model).__name__
        self.model = _double_copy(model)
        self.calls: list[Call] = [tree_map(_to_double, call) for call in calls(example_inputs)]
        self.norms: HeldNorms | None = None
        _fill_zeros(self.model, torch.Generator().manual_seed(seed))
        self._calibrate()
        first, again = self.outputs(), self.outputs()
        if not same(first, again):
            raise ValueError(
                f"verify: two forward passes of {self.kind} in evaluation mode differ, so no change can be told from chance. "
                f"Does it count its calls, or draw from a generator of its own? Verify a copy that does not"
            )

    def outputs(self) -> list[Tensor]:
        """What the model returns as it is now; the same random numbers every time."""
        with ExitStack() as settings:
            settings.enter_context(random_state(self.seed))  # for dropout that is always on, and sampling
            settings.enter_context(_plain_attention(self.model))
            settings.enter_context(_DoubleOnly())
            if self.norms is not None:
                settings.enter_context(self.norms.again())
            results = [self._run(args, kwargs) for args, kwargs in self.calls]
        found = [tensor for result in results for tensor in tensors_in(result)]
        if not found:
            raise ValueError(f"verify: the forward of {self.kind} returned no tensor, so no change would show")
        return found

    @contextmanager
    def held_norms(self) -> Generator[None]:
        """Inside, norms over units keep the statistics they had on entry."""
        self.norms = HeldNorms()
        try:
            self.outputs()
            yield
        finally:
            self.norms = None

    @contextmanager
    def watching(self, tap: Tap, module: nn.Module, parameter: Tensor | None) -> Generator[list[Tensor]]:
        """Inside, the list collects what passes the tap, (rows, entries) a call, read by the hooks the methods use."""
        seen = _Seen(tap, module, parameter)
        handles = seen.handles()
        try:
            yield seen.passes
        finally:
            for handle in handles:
                handle.remove()

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            args, kwargs = tree_map(_copy, (args, kwargs))  # a model may write into what it is given
            return self.model(*args, **kwargs)
        except Exception as error:
            raise RuntimeError(
                f"verify: the forward of {self.kind} (a copy in float64 on the CPU) raised with the example inputs given: {error}"
            ) from error

    def _calibrate(self) -> None:
        norms = [
            module for module in self.model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over all passes
            norm.train()
        if norms:
            with torch.no_grad():
                self.outputs()
        self.model.eval()


class _DoubleOnly(TorchFunctionMode):
    """Casts to a shorter floating-point type, which models write out for their norms and masks, are casts to float64."""

    SHORT = (torch.float32, torch.float16, torch.bfloat16)
    CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)

    def __enter__(self) -> Any:
        self.default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # pyright: ignore[reportUnknownMemberType]
        torch.set_default_dtype(self.default)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.double if func in self.CASTS else func
        named = {key: self._long(value) for key, value in cast(dict[str, Any], kwargs or {}).items()}
        return func(*map(self._long, args), **named)

    def _long(self, value: Any) -> Any:
        return torch.float64 if isinstance(value, torch.dtype) and value in self.SHORT else value


class _Seen(Reader):
    """A reader that keeps what it is shown."""

    def __init__(self, tap: Tap, module: nn.Module, parameter: Tensor | None) -> None:
        super().__init__(tap, module, parameter, runs=None)
        self.passes: list[Tensor] = []

    def observe(self, values: Tensor) -> None:
        self.passes.append(values.movedim(self.tap.axis, -1).flatten(0, -2).clone())

    def handles(self) -> list[Any]:
        """The methods read in training mode only: their hooks are told that it is on."""
        training = nn.Identity()
        if self.tap.at == "input":
            read = InputHook(self)

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                read(training, args, kwargs)

            return [self.module.register_forward_pre_hook(before, with_kwargs=True)]
        if self.tap.at == "output":
            given = OutputHook(self)
            return [self.module.register_forward_hook(lambda _, args, output: given(training, args, output))]
        inside = OperandHook(self)
        return [
            self.module.register_forward_pre_hook(lambda _, args: inside(training, args)),
            self.module.register_forward_hook(inside.leave, always_call=True),
        ]


@contextmanager
def _plain_attention(model: nn.Module) -> Generator[None]:
    """Fused kernels turn NaN scores into zeros."""
    with visible_kernels(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def calls(example_inputs: Any) -> list[Call]:
    """A tensor is the one positional argument, a tuple all of them, a mapping the keyword arguments; a list holds several."""
    if isinstance(example_inputs, list):
        return [call for each in cast(list[Any], example_inputs) for call in calls(each)]
    if isinstance(example_inputs, Mapping):
        return [((), {str(key): value for key, value in cast(Mapping[Any, Any], example_inputs).items()})]
    return [(cast(tuple[Any, ...], example_inputs) if isinstance(example_inputs, tuple) else (example_inputs,), {})]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether all entries agree to the last bit; a NaN agrees with a NaN."""
    return len(first) == len(second) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(first, second, strict=True)
    )


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """||first - second|| / ||second||, over all outputs."""
    pairs = [
        (a.detach().double(), b.detach().double()) for a, b in zip(first, second, strict=True) if a.shape == b.shape
    ]
    moved = sum(float((a - b).nan_to_num(0.0, 0.0, 0.0).square().sum()) for a, b in pairs)
    size = sum(float(b.nan_to_num(0.0, 0.0, 0.0).square().sum()) for _, b in pairs)
    return (moved / size) ** 0.5 if size else moved**0.5


class _Wrapper(nn.Module):
    """Stands for a wrapper that parallelises or compiles: it keeps the names of what is inside and does nothing else."""

    def __init__(self, name: str, inside: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inside)
        self.inside = (inside,)  # in a tuple, so as not to give it another name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside[0](*args, **kwargs)


def _double_copy(model: nn.Module) -> nn.Module:
    wrapped = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    if wrapped or hasattr(model, "_orig_mod"):
        name = "module" if wrapped else "_orig_mod"
        inside = cast(nn.Module, getattr(cast(nn.Module, model), name))
        return _Wrapper(name, _double_copy(inside)).eval()
    # tensors that a hook computes from parameters (the older weight norm) are no leaves, which `deepcopy` refuses
    held = [each for module in model.modules() for each in vars(module).values() if isinstance(each, Tensor)]
    memo: dict[int, Any] = {id(each): each.detach().clone() for each in held if not each.is_leaf}
    return deepcopy(model, memo).cpu().double().eval()


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _to_double(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()


@torch.no_grad()
def _fill_zeros(model: nn.Module, generator: torch.Generator) -> None:
    """Small random numbers in place of zeros."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / fan_in**0.5
            parameter.copy_(torch.where(parameter == 0.0, noise, parameter))
