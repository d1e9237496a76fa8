"""A copy of a model with which dependences are tested to the last bit.

It is on the CPU in float64 (`double`), in evaluation mode, computes attention as matrix products, and starts every forward
from the same state (`state`). Batch norms get statistics that fit the example inputs: with those of a fresh model a deep
network's signals fade, and a difference can round to zero. For the same reason its parameters are made nonzero, and the
entries of vectors different: behind a zero-initialized head, or a residual branch whose last scale starts at 0, every
difference is zero, and where all scales are 1 they do not distinguish units. Under `held_norms` layer, group and RMS norms
use the statistics of the unchanged model; then units that interact only through a norm's statistics are independent.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pliant.base.process import other_random_states, random_state, visible_kernels
from pliant.units.forwards import Forwards
from pliant.units.groups import Tap
from pliant.units.hooks import always, attach
from pliant.units.models import tensors_in
from pliant.units.verify.double import DoubleOnly, double_copy, long
from pliant.units.verify.held_norms import HeldNorms
from pliant.units.verify.remembered import Remembered
from pliant.units.verify.state import ModelState

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Probe:
    """The copy, ready to run on the example inputs; `outputs()` is every tensor it returns, one call after another.

    Raises `ValueError` if two passes differ or return no tensor, `RuntimeError` if the model cannot be copied or run.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, *, seed: int = 0) -> None:
        self.seed = seed
        self.kind = type(model).__name__
        self.norms: HeldNorms | None = None
        self.shows = True  # whether taps are read
        with _plain_tensors():
            self.model = double_copy(model)
            self.frozen = {name for name, each in self.model.named_parameters() if not each.requires_grad}
            self.calls: list[Call] = [tree_map(_long, call) for call in calls(example_inputs)]
            _make_distinct(self.model, torch.Generator().manual_seed(seed))
        self.state = ModelState(self.model)
        self.remembered = Remembered([*self.model.parameters()])
        self.watch: TorchDispatchMode | None = None  # sees every operation
        self._calibrate()
        self.outputs()  # shows which parameters a pass writes
        self.start, again = ([each.detach() for each in self.outputs()] for _ in range(2))  # of the copy as it is
        if not same(self.start, again):
            raise ValueError(
                f"verify: two forward passes of {self.kind} in evaluation mode differ, so no change can be told from chance. "
                f"Does it count its calls, or draw random numbers, outside of itself? Verify a copy that does not"
            )

    # -- passes ------------------------------------------------------------------------------------------------

    def outputs(self) -> list[Tensor]:
        """The model's current outputs; with the same random numbers and the same state every time."""
        with self.state.put_back(), self._settings():
            return self._outputs(self.calls)

    def outputs_and_gradients(self, weights: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        """The outputs, and the gradient of a fixed random linear function of them with respect to each of `weights`.

        Only these require a gradient at first. What is computed under reentrant checkpointing has one only if its inputs
        have, and a backward written by hand may ask for those of all parameters: where a weight finds none, or the pass
        raises, it is repeated with all that is trained.
        """
        try:
            found = self._backward(weights, (), self.calls)
        except RuntimeError:
            found = None
        if found is None or any(gradient is None for gradient in found[1]):
            trained = [parameter for parameter in self.model.parameters() if parameter.is_floating_point()]
            with self._unseen():
                return self._backward(weights, trained, tree_map(_as_trained, self.calls))
        return found

    def _backward(
        self, weights: Sequence[Tensor], others: Sequence[Tensor], calls: Sequence[Call]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        every = [*weights, *others]
        try:
            for weight in every:
                weight.requires_grad_(True)
            with self.state.put_back(), self._settings():
                outputs = self._outputs(calls)
                ends = [each for each in outputs if each.requires_grad]
                with self._unseen():  # what checkpoints compute again was seen before
                    torch.autograd.backward(ends, _signals(ends))  # `autograd.grad` is not for reentrant ones
            return [each.detach() for each in outputs], [weight.grad for weight in weights]
        finally:
            for weight in every:
                weight.requires_grad_(False).grad = None

    @contextmanager
    def under(self, watch: TorchDispatchMode, *, forgives: bool = False) -> Generator[None]:
        """Inside, `watch` sees every operation; with `forgives`, what differs from the last pass by rounding is no other."""
        self.watch, self.remembered.forgives = watch, forgives
        try:
            yield
        finally:
            self.watch, self.remembered.forgives = None, False

    @contextmanager
    def _unseen(self) -> Generator[None]:
        before, self.shows = self.shows, False
        try:
            yield
        finally:
            self.shows = before

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
        seen = _CallRecorder(self, tap, module, parameter)
        handle = attach(seen, always)
        try:
            yield seen.passes
        finally:
            handle.remove()

    @contextmanager
    def _settings(self) -> Generator[None]:
        with ExitStack() as settings:
            settings.enter_context(_plain_tensors())
            settings.enter_context(_same_random_numbers(self.seed))
            settings.enter_context(visible_kernels(self.model))
            settings.enter_context(_attention_as_products())
            settings.enter_context(self.remembered.again())
            settings.enter_context(self.watch or nullcontext())
            settings.enter_context(DoubleOnly())
            settings.enter_context(warnings.catch_warnings())  # of checkpoints in a pass without gradients
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            if self.norms is not None:
                settings.enter_context(self.norms.again())
            yield

    def _outputs(self, calls: Sequence[Call]) -> list[Tensor]:
        found = [tensor for args, kwargs in calls for tensor in tensors_in(self._run(args, kwargs))]
        if not found:
            raise ValueError(f"verify: the forward of {self.kind} returned no tensor, so no change would show")
        return found

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            args, kwargs = tree_map(_copy, (args, kwargs))  # a model may write into what it is given
            return self.model(*args, **kwargs)
        except Exception as error:
            raise RuntimeError(
                f"verify: the forward of {self.kind} (a copy in float64 on the CPU) raised with the example inputs given: {error}"
            ) from error

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Batch norms get the plain average of statistics over all calls."""
        norms = [
            module for module in self.model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        if not norms:
            return
        with self.state.put_back(), self._settings(), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for args, kwargs in self.calls:
                self._run(args, kwargs)
            fitted = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
        for buffer, value in fitted:
            buffer.copy_(value)


class _CallRecorder:
    """A recorder that keeps the tensors of every call. Under reentrant checkpointing the recomputation gives the same numbers."""

    def __init__(self, probe: Probe, tap: Tap, module: nn.Module, parameter: Tensor | None) -> None:
        self.probe, self.tap, self.module, self.parameter = probe, tap, module, parameter
        self.forwards: Forwards | None = None
        self.calls = self.read = 0
        self.axis = tap.axis_at(module)
        self.passes: list[Tensor] = []

    def observe(self, values: Tensor, *, packed: bool = False) -> None:
        if not self.probe.shows:
            return
        by_entry = values.movedim(self.axis, -1)
        self.passes.append(by_entry.reshape(-1, by_entry.shape[-1]).clone())  # one row where there is no batch


@contextmanager
def _plain_tensors() -> Generator[None]:
    """Nothing made inside is a tensor of inference mode, which no gradient reaches and no later pass may write."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def _attention_as_products() -> Generator[None]:
    """Fused kernels turn NaN scores into zeros."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _same_random_numbers(seed: int) -> Generator[None]:
    """For dropout that is always on, and sampling; afterwards the caller's continue."""
    with random_state(seed), other_random_states():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  (what models draw from)
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


def close(first: Sequence[Tensor], second: Sequence[Tensor], tolerance: float = 1e-9) -> bool:
    """Whether all entries agree but for rounding, relative to the largest of their tensor; a NaN agrees with a NaN."""
    return len(first) == len(second) and all(_close(a, b, tolerance) for a, b in zip(first, second, strict=True))


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    known = a.isfinite() & b.isfinite()
    rest = (a == b) | (a.isnan() & b.isnan()) | known
    largest = float(torch.where(known, b, 0.0).abs().amax()) if b.numel() else 0.0
    return bool(rest.all()) and bool((torch.where(known, a - b, 0.0).abs() <= tolerance * largest).all())


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """||first - second|| / ||second||, over all outputs."""
    pairs = [
        (a.detach().double(), b.detach().double()) for a, b in zip(first, second, strict=True) if a.shape == b.shape
    ]
    moved = sum(float((a - b).nan_to_num(0.0, 0.0, 0.0).square().sum()) for a, b in pairs)
    size = sum(float(b.nan_to_num(0.0, 0.0, 0.0).square().sum()) for _, b in pairs)
    return (moved / size) ** 0.5 if size else moved**0.5


def _signals(ends: Sequence[Tensor]) -> list[Tensor]:
    """What stands for the loss: the same random numbers every time."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype) for each in ends]


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _as_trained(value: Any) -> Any:
    """As if a layer before had computed it."""
    real = isinstance(value, Tensor) and value.is_floating_point()
    return value.clone().requires_grad_(True) if real else value


def _long(value: Any) -> Any:
    return long(value) if isinstance(value, Tensor) else value


@torch.no_grad()
def _make_distinct(model: nn.Module, generator: torch.Generator) -> None:
    """Small random numbers in place of zeros, and noise on trained vectors and on what is all the same number."""
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        zeros = parameter.numel() - int(parameter.count_nonzero())
        if zeros:
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            noise = torch.randn(zeros, generator=generator, dtype=parameter.dtype) / fan_in**0.5
            parameter.masked_scatter_(parameter == 0.0, noise)
        if parameter.requires_grad and parameter.numel() > 1 and (parameter.dim() == 1 or _is_constant(parameter)):
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.mul_(1.0 + 0.3 * noise)


def _is_constant(tensor: Tensor) -> bool:
    flat = tensor.flatten()
    return bool(flat[0] == flat[-1]) and bool((flat == flat[0]).all())
