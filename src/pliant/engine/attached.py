"""What hangs on one or several optimizers: hooks around their steps, which of these were taken, and living with the model.

Every method of this library is `Attached`. Its subclasses say what to do before and after a step; here stands, once, what is
the same for all: a step is counted when it was taken (`pliant.engine.taken_steps`), a closure runs forward and backward inside
of it, a CUDA graph replays it without hooks, `torch.compile` leaves methods out of the graph of a step, copies and pickles are
refused, and nothing is left behind when construction fails.
"""

# pyright: reportPrivateUsage=false
# What torch's optimizers exempt their own methods from compilation with has no public name that does not load the compiler.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Lock
from typing import Any, Self, TypeVar, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pliant.base.arguments import flag, integer
from pliant.base.saving import all_or_nothing
from pliant.engine.taken_steps import Clock

Optimizers = Optimizer | Sequence[Optimizer]

_ALL: WeakSet[Attached] = WeakSet()  # those that act by themselves
_LOCK = Lock()  # threads attach to models of their own


class Attached(ABC):
    """A method that acts around the steps of optimizers.

    Args:
        optimizers: those it is attached to.
        attach: True steps by itself after `optimizer.step()`; False waits for `step()`.
    """

    def __init__(self, optimizers: Sequence[Optimizer], *, attach: bool = True) -> None:
        self.optimizers = tuple(optimizers)
        self._steps_by_itself = flag("attach", attach)
        self._clocks = {each: Clock() for each in self.optimizers}
        self._begun = set[Optimizer]()  # whose step has begun
        self._lent: dict[Optimizer, list[tuple[str, Tensor, Optimizer]]] = {}  # name, parameter, whose it is
        self._handles: list[RemovableHandle] = []

    # -- around a step ------------------------------------------------------------------------------------------------

    def _begins(self, optimizer: Optimizer) -> None:  # noqa: B027  (nothing to do, as a rule)
        """A step begins."""

    def _ended(self, optimizer: Optimizer) -> None:  # noqa: B027
        """A step has ended; with `attach=False` nothing is to happen by itself."""

    @abstractmethod
    def _acted_on(self) -> Iterable[tuple[str, Tensor]]:
        """The parameters acted on, with their names."""

    def _follow_steps(self) -> None:
        """Hooks on all optimizers that have any. From here on construction must not fail, but within `_or_nothing_left`."""
        self._on_cuda = any(parameter.device.type == "cuda" for _, parameter in self._acted_on())
        self._look_for_lent()
        for each in self.optimizers:
            if not self._steps_by_itself and not _takes_hooks(each):
                continue  # who steps by hand says when
            self._handles.append(before_step(each, self._before_step))
            self._handles.append(after_step(each, self._after_step))
        if self._steps_by_itself:
            with _LOCK:
                _ALL.add(self)

    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> Any:
        self._begun.add(optimizer)
        if not self._is_captured():
            self._begins(optimizer)
            if optimizer in self._lent:
                return when_gradients_are_there(args, kwargs, partial(self._check_lent, optimizer))
        return None

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if optimizer not in self._begun:
            return  # a step that calls the step of its base class: both run hooks, and it was that one's
        self._begun.discard(optimizer)
        if self._is_captured():
            self._clocks[optimizer].recorded()
            if self._steps_by_itself:
                raise RuntimeError(
                    f"{type(optimizer).__name__}.step() is being captured in a CUDA graph, whose replay calls no hook. Build "
                    f"{type(self).__name__} with attach=False, and call its step() after every replay"
                )
            return
        self._clocks[optimizer].after(optimizer)
        self._ended(optimizer)

    def _look_for_lent(self) -> None:
        """Which parameters an optimizer lists that are another's, the first that lists them."""
        home, names = home_of_parameters(self.optimizers), {parameter: name for name, parameter in self._acted_on()}
        for each in self.optimizers:
            listed = (parameter for settings in each.param_groups for parameter in settings["params"])
            lent = [p for p in listed if p in names and home[p] is not each]
            for parameter in (p for p in lent if each.state.get(p)):
                raise ValueError(self._said(names[parameter], each, home[parameter], "has stepped it already"))
            if lent:
                self._lent[each] = [(names[p], p, home[p]) for p in lent]

    def _check_lent(self, optimizer: Optimizer) -> None:
        """Raise `RuntimeError` if the optimizer is about to step a parameter that is another's."""
        for name, parameter, home in self._lent[optimizer]:
            if parameter.grad is not None:
                raise RuntimeError(self._said(name, optimizer, home, "is about to step it, since it has a gradient"))

    def _said(self, name: str, optimizer: Optimizer, home: Optimizer, does: str) -> str:
        mine, theirs = (f"optimizer[{self.optimizers.index(each)}]" for each in (optimizer, home))
        return (
            f"'{name}' is listed by {theirs} and {mine}, and the first is taken for the one that steps it, but {mine} {does}: "
            f"give the one that steps it first, or take it out of the other's parameters"
        )

    def _is_captured(self) -> bool:
        """Whether what happens now is recorded in a CUDA graph."""
        return self._on_cuda and torch.cuda.is_current_stream_capturing()

    # -- attaching and detaching --------------------------------------------------------------------------------------

    def _beside(self) -> list[Self]:
        """Other methods of this very kind that act by themselves after steps of an optimizer of ours."""
        with _LOCK:
            others = [each for each in _ALL if type(each) is type(self) and each is not self]
        return [each for each in others if not {*each.optimizers}.isdisjoint(self.optimizers)]

    @contextmanager
    def _or_nothing_left(self) -> Generator[None]:
        """If construction fails inside, every hook is taken off again."""
        try:
            yield
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        with _LOCK:
            _ALL.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    # -- saving -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors, numbers, strings, lists and dictionaries."""

    @all_or_nothing
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`. Raises `ValueError`, with nothing changed, if it is of something else or damaged."""
        self._load(state)

    @abstractmethod
    def _load(self, state: dict[str, Any]) -> None:
        """Go on from a state; what raises may have changed anything."""

    def successor(self, make: Callable[[], Self]) -> Self:
        """Detach, and have the method that `make` builds take over, for a model whose parameters are others now (a head grew).

        What is known of units and parameters that are still there goes on, the rest begins. Should anything raise, neither is
        attached.

        >>> from pliant import ContinualBackprop
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> def attach():
        ...     return ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=torch.ones(2, 4))
        >>> cbp = attach()
        >>> model[2] = nn.Linear(8, 3)
        >>> cbp = cbp.successor(attach)
        """
        state = self.state_dict()
        self.detach()
        with self._taking_over():
            new = make()
        if type(new) is not type(self):
            new.detach()
            raise TypeError(f"a {type(self).__name__} is succeeded by its like, not by a {type(new).__name__}")
        with new._or_nothing_left():
            new.load_state_dict(new._state_after(self, state))
        return new

    def _taking_over(self) -> AbstractContextManager[None]:
        """In which a successor is built."""
        return nullcontext()

    def _state_after(self, other: Attached, state: dict[str, Any]) -> dict[str, Any]:
        """What to go on from after `other`, whose last state it was."""
        return state

    def _check_saved(self, state: dict[str, Any], here: dict[str, Any]) -> None:
        """Raise `ValueError` unless `state` was saved with the entries of `here`."""
        for name, mine in here.items():
            if name not in state:
                raise ValueError(f"this state of {type(self).__name__} lacks '{name}': load what state_dict() gave")
            if state[name] != mine:
                raise ValueError(
                    f"this state of {type(self).__name__} was saved with {name} = {state[name]}, here it is {mine}"
                )

    def __deepcopy__(self, memo: object) -> Self:
        name = type(self).__name__
        raise TypeError(
            f"{name} holds hooks on one model and its optimizer and cannot be copied. Copy the model and its optimizer, build a "
            f"new {name} on the copies, and load this one's state_dict()"
        )

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            f"{type(self).__name__} holds hooks on one model and its optimizer and cannot be pickled; save its state_dict()"
        )


def each_of(optimizer: Optimizers) -> tuple[Optimizer, ...]:
    """The optimizers given, one or several, each inside the wrappers that only pass its steps on.

    Raises `TypeError` or `ValueError` where something else is given, or one of them twice.
    """
    if _steps_parameters(optimizer):
        return (inner(cast(Optimizer, optimizer)),)
    given = cast(object, optimizer)
    if not isinstance(given, Iterable) or isinstance(given, str | Mapping | nn.Module | Tensor):
        raise TypeError(_no_optimizer("optimizer", cast(object, given)))
    several = list(cast(Iterable[Optimizer], given))
    if not several:
        raise ValueError("optimizer is empty: give the optimizer that steps the model, or several")
    for number, one in enumerate(several):
        if not _steps_parameters(one):
            raise TypeError(_no_optimizer(f"optimizer[{number}]", one))
    found = tuple(map(inner, several))
    if len({*map(id, found)}) < len(found):
        raise ValueError("optimizer names the same optimizer more than once: give each once")
    return found


def _steps_parameters(given: object) -> bool:
    """Whether it is an optimizer, or one that is none of PyTorch's."""
    alike = isinstance(getattr(given, "param_groups", None), list) and wrapped(given) is None
    return isinstance(given, Optimizer) or (alike and not isinstance(given, type))


_HOOKS = "_optimizer_step_post_hooks"  # where torch keeps them


def _takes_hooks(optimizer: Optimizer) -> bool:
    return hasattr(optimizer, _HOOKS)


def _no_optimizer(name: str, given: object) -> str:
    """What is wrong with something that is given for an optimizer, and what to give."""
    if isinstance(given, type) and issubclass(given, Optimizer):
        return f"{name} is the class {given.__name__}: give an optimizer, {given.__name__}(model.parameters(), ...)"
    given = cast(object, given)
    kind, found = "None" if given is None else f"a {type(given).__name__}", wrapped(given)
    if found is not None:
        return f"{name} is {kind}, which holds another one, {type(found[1]).__name__}: give its .{found[0]}"
    return f"{name} is {kind}: give the torch.optim.Optimizer that steps the model, or a list of several"


def wrapped(optimizer: object) -> tuple[str, Optimizer] | None:
    """The optimizer that something given for one holds (a wrapper, a scheduler), and under which name."""
    for name in ("optimizer", "optim", "base_optimizer", "inner_optimizer"):
        held = getattr(optimizer, name, None)
        if isinstance(held, Optimizer) and held is not optimizer:
            return name, held
    return None


def inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside wrappers that are called an `Optimizer` and have no hooks of their own: Accelerate's, Lightning's."""
    while _HOOKS not in getattr(optimizer, "__dict__", ()) and (found := wrapped(optimizer)) is not None:
        optimizer = found[1]
    return optimizer


_F = TypeVar("_F", bound=Callable[..., Any])
uncompiled = _disable_dynamo  # a decorator: the function runs as it is where `torch.compile` meets a call of it


def _eager(function: _F) -> _F:
    """The same for bound methods, and for functions made at a step."""
    return cast(_F, torch.compiler.disable(cast(Any, function)))


def before_step(optimizer: Optimizer, hook: Callable[[Optimizer, Any, Any], Any]) -> RemovableHandle:
    """Call `hook` before each step of `optimizer`, uncompiled where the step is compiled. Raises `TypeError` if it takes none."""
    if not _takes_hooks(optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, which takes no hooks (its Optimizer.__init__ never ran, or it is none "
            f"of PyTorch's): give the optimizer that it passes its steps on to"
        )
    return optimizer.register_step_pre_hook(_eager(hook))


def after_step(optimizer: Optimizer, hook: Callable[[Optimizer, Any, Any], None]) -> RemovableHandle:
    """Call `hook` after each step of `optimizer`, uncompiled where the step is compiled."""
    return optimizer.register_step_post_hook(_eager(hook))


def home_of_parameters(optimizers: Iterable[Optimizer]) -> dict[Tensor, Optimizer]:
    """The optimizer that steps each parameter: the first that lists it. Codes with a shared encoder list it with the actor and
    the critic, and train it by one of them; the others are held to that (`Attached`)."""
    home: dict[Tensor, Optimizer] = {}
    for optimizer in optimizers:
        for parameter in (p for settings in optimizer.param_groups for p in settings["params"]):
            home.setdefault(parameter, optimizer)
    return home


def when_gradients_are_there(
    args: Any, kwargs: Any, then: Callable[[], None], again: Callable[[], None] = lambda: None
) -> Any:
    """For a pre-hook to return: `then` runs now or, where the step is given a closure that finds the gradients, after each call
    of it, before which comes `again`."""
    closure: Callable[[], Any] | None = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        then()
        return None

    before, after = _eager(again), _eager(then)  # only the closure itself may be compiled

    def closure_and_then() -> Any:
        before()
        loss = closure()
        after()
        return loss

    return (args[0], closure_and_then, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}


def seeds_of_runs(seed: int | Sequence[int] | None, runs: int) -> list[int]:
    """One seed per run; from a number, that and the following ones. None takes `torch.initial_seed()`, which is not drawn from.

    >>> seeds_of_runs(7, runs=3)
    [7, 8, 9]
    """
    if seed is None or not isinstance(seed, Sequence) or isinstance(seed, str | bytes):
        first = torch.initial_seed() if seed is None else integer("seed", seed)
        return [first + run for run in range(runs)]
    if len(seed) != runs:
        raise ValueError(f"seed has {len(seed)} seeds for {runs} runs; give one each, or one number")
    return [integer("seed", each) for each in seed]
