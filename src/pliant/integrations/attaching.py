"""A method inside a training loop that belongs to another library: what all adapters share.

    Attachment(method, settings)   raises what the method raises for these settings, before a model is there
    stash(state)                   a saved state, where a library loads before it has built optimizers
    attach(model, optimizers)      once the loop has them: builds the method, which goes on from the state, if there is one
    retrace(model, optimizers)     the parameters are others now (a head that grew): units that stayed go on
    drop_recorded()                forwards that no step follows (validation in training mode, another loss) count for nothing
    detach()                       takes every hook off; the state stays for the next `attach`

The method is anything that is attached to a model and its optimizers: one that resets units, pulls or maps parameters, or
measures. An adapter says when these things happen, and what an example is.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple, Unpack, cast, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.utils.hooks import RemovableHandle

from pliant.base.arguments import listed, patterns, shown, text
from pliant.base.process import random_state
from pliant.engine.attached import Attached, Optimizers, each_of
from pliant.engine.redraw import state_follows
from pliant.engine.replacement import Replacement
from pliant.methods.continual_backprop import Parameters
from pliant.units.forwards import Mask

Method = Callable[..., Attached]


class Settings(Parameters, total=False):
    """The parameters of `pliant.ContinualBackprop`; which units of the networks, and the seed of all draws, see
    `pliant.engine.planning.Where`.
    """

    include: str | list[str]
    exclude: str | list[str]
    strict: bool
    residual: bool
    heads: bool
    trial: bool
    seed: int | None
    mask: Mask | None
    on_replace: Callable[[Replacement], object] | None


_log = logging.getLogger("pliant")
_NAMES = ("include", "exclude")  # of units or parameters of the loop's model
# settings that a trial on another model knows nothing of, or that would write
_NOT_TRIED = {*_NAMES, "parameters", "groups", "mask", "process_group", "runs", "to"}


class _Owner(NamedTuple):
    """The run of the loop that attached a method, and the attachment, which is not kept alive by it."""

    run: object
    attachment: ref[Attachment]


_attached: WeakKeyDictionary[Attached, _Owner] = WeakKeyDictionary()


class Attachment:
    """One method with its settings, attached whenever a loop runs, and its state in between.

    Args:
        method: `method(model, optimizers, **settings)` builds it, with `example_inputs=` if it takes any.
        settings: of the method.
        owner: what the user calls that which holds this, for errors.
        name: by which it is told from others of one run; that of the method if None.
        ours: settings that the adapter gives itself -> what the user may give instead.

    Raises at construction what the method raises for these settings. The trial leaves nothing behind.
    """

    def __init__(
        self,
        method: Method,
        settings: Mapping[str, Any],
        *,
        owner: str,
        name: str | None = None,
        ours: Mapping[str, str] | None = None,
    ) -> None:
        self.maker, self.settings, self._owner = method, dict(settings), owner
        self.name = name_of(method) if name is None else text("name", name)
        if {*self.name} & {*"/\\:"}:
            raise ValueError(f"name is part of a file's name, which holds no / \\ or :, got {shown(self.name)}")
        _try(method, self.settings, {"attach": "", **(ours or {})})
        self.method: Attached | None = None  # after training, as it was when it was detached
        self.is_attached = False
        self._handles: list[RemovableHandle] = []
        self._state: dict[str, Any] | None = None  # loaded or saved, from which the next `attach` goes on
        self._trained: ref[Any] | None = None  # what `_state` is of; None if it was loaded

    @property
    def takes_example(self) -> bool:
        """Whether the method finds units by running the model on an example, and is not given any."""
        return takes(self.maker, "example_inputs") and not {"groups", "example_inputs"} & self.settings.keys()

    def trains(self, model: object) -> bool:
        """Whether the state is of this model, or of none that is known."""
        return self._trained is None or self._trained() is model

    def start_over(self) -> None:
        """Have the next `attach` begin anew."""
        self._state = self._trained = None

    def attach(
        self,
        model: nn.Module,
        optimizers: Optimizers,
        *,
        example_inputs: Any = None,
        of: object = None,
        run: object = None,
        **settings: Any,
    ) -> Attached:
        """Build the method, and have it go on from the state.

        Args:
            example_inputs: what one forward takes.
            of: what the user trains; `model` if None. Another one than before is refused, unless a state was loaded since.
            run: of the loop, one object for all its attachments. What another run left attached, because it raised, is detached.
            settings: beside those of the user, which win; those that the method does not take are left out.

        Raises `RuntimeError` for another model, what the method raises, and `ValueError` for a state of other units. Then
        nothing is attached, and the state is still there.
        """
        self.detach()
        of = model if of is None else of
        if not self.trains(of):
            raise RuntimeError(
                f"this {self._owner} has trained another model. Give every model its own; to go on with a model that was saved "
                f"and loaded: new_callback.load_state_dict(callback.state_dict())"
            )
        _take_off_left_over(each_of(optimizers), run)
        given = self._given(example_inputs, settings)
        with state_follows() if self._state is not None else nullcontext():
            method = _made(self.maker, model, optimizers, given)
        if self._state is not None:
            try:
                method.load_state_dict(self._state)
            except BaseException:
                method.detach()
                raise
        self.method, self.is_attached, self._trained = method, True, ref(of)
        _attached[method] = _Owner(run, ref(self))
        return method

    def retrace(
        self, model: nn.Module, optimizers: Optimizers, *, example_inputs: Any = None, **settings: Any
    ) -> Attached:
        """Build the method anew on what the model is now. Units that stayed keep their ages and utilities.

        Raises `RuntimeError` unless attached, and what the method raises; then nothing is attached, and the state is still there.
        """
        if self.method is None or not self.is_attached:
            raise RuntimeError(f"this {self._owner} is attached to no model: attach() it first")
        before, owner = self.method, _attached[self.method]
        given, self._state = self._given(example_inputs, settings), before.state_dict()
        try:
            self.method = before.successor(lambda: _made(self.maker, model, optimizers, given))
        except BaseException:
            self._let_go()
            raise
        del _attached[before]
        _attached[self.method] = owner
        return self.method

    def _given(self, example_inputs: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the adapter that the method takes, and those of the user, which win."""
        example = {"example_inputs": example_inputs} if self.takes_example else {}
        ours = {name: each for name, each in {**settings, **example}.items() if takes(self.maker, name)}
        return {**ours, **self.settings}

    def until_detached(self, handle: RemovableHandle) -> None:
        """Have the adapter's own hook taken off with those of the method."""
        self._handles.append(handle)

    def detach(self) -> None:
        """Remove every hook and keep the state."""
        if self.method is not None and self.is_attached:
            self._state = self.method.state_dict()
            self._let_go()

    def _let_go(self) -> None:
        if self.method is not None:
            self.method.detach()
            _attached.pop(self.method, None)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.is_attached = False

    def drop_recorded(self, optimizer: Optimizer | None = None) -> None:
        """What was recorded since the last step, for units that `optimizer` steps or for all, counts for nothing."""
        drop = getattr(self.method, "drop_recorded", None)
        if self.is_attached and drop is not None:  # a pull records nothing
            drop(optimizer)

    def state_dict(self) -> dict[str, Any] | None:
        """That of the method; None if it was never attached and nothing was loaded."""
        return self.method.state_dict() if self.method is not None and self.is_attached else self._state

    def stash(self, state: dict[str, Any]) -> None:
        """Have the next `attach` go on from this state. Raises `RuntimeError` while attached."""
        if self.is_attached:
            raise RuntimeError(f"a loop is running with this {self._owner}: load its state before or after")
        self._state, self._trained = state, None

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle has the settings and the state, but not the model, which is saved separately."""
        left: dict[str, Any] = {"method": None, "is_attached": False, "_handles": [], "_trained": None}
        return {**vars(self), **left, "_state": self.state_dict()}


def takes(method: Method, name: str) -> bool:
    """Whether a method takes a keyword argument of this name.

    >>> from pliant import L2, ContinualBackprop
    >>> takes(ContinualBackprop, "example_inputs"), takes(partial(L2, strength=0.1), "example_inputs")
    (True, False)
    """
    maker = _inside(method)
    called: Any = cast(Any, maker).__init__ if isinstance(maker, type) else maker
    for each in inspect.signature(cast(Callable[..., Any], maker)).parameters.values():
        if each.kind is each.VAR_KEYWORD:  # those that it names in a typed dictionary, or any
            hint = get_type_hints(called).get(each.name)
            if get_origin(hint) is not Unpack or name in get_args(hint)[0].__annotations__:
                return True
        elif each.name == name:
            return True
    return False


def name_of(method: Method) -> str:
    """What to call it, without a name of its own."""
    return str(getattr(_inside(method), "__name__", type(method).__name__)).strip("<>")


def _inside(method: Method) -> Callable[..., Any]:
    maker: Callable[..., Any] = method
    while isinstance(maker, partial):
        maker = cast("partial[Any]", maker).func
    return maker


def names_in(run: object) -> list[str]:
    """Names of what a run of a loop has attached."""
    attachments = [each.attachment() for each in _attached.values() if each.run is run]
    return [each.name for each in attachments if each is not None]


def _try(method: Method, settings: Mapping[str, Any], ours: Mapping[str, str]) -> None:
    """Raise what `method` raises for these settings, before a model is there: build it on a small network."""
    if not callable(method):
        raise TypeError(f"{_WANTED}, without its arguments, got {shown(method)}")
    if isinstance(method, type):
        _check_made(method, f"got {shown(method)}")
    taken = [name for name in ours if name in settings]
    if taken:
        instead = next((f"; {ours[name]}" for name in taken if ours[name]), "")
        raise TypeError(f"{', '.join(taken)}: the callback sets these itself{instead}")
    for name in _NAMES:
        patterns(name, settings.get(name, ()))
    anywhere = {name: value for name, value in settings.items() if name not in _NOT_TRIED}
    if listed(settings.get("seed")) is not None:
        del anywhere["seed"]  # one per run of a stack
    if takes(method, "example_inputs"):
        anywhere["example_inputs"] = torch.zeros(2, 2)
    with random_state():
        network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        made = _made(method, network, SGD(network.parameters(), lr=0.1), anywhere)
    _check_made(made, f"and this made {shown(made)}")
    made.detach()


def _made(method: Method, model: nn.Module, optimizers: Optimizers, settings: Mapping[str, Any]) -> Attached:
    """Build it. The parts of a `UnitReset` are bound to one model, so each has copies of its own."""
    if isinstance(method, partial):
        given = cast("partial[Attached]", method)
        method, settings = partial(given.func, *given.args), {**given.keywords, **settings}
    own = {name: deepcopy(each) if name in _PARTS else each for name, each in settings.items()}
    return method(model, optimizers, **own)


_PARTS = ("score", "select", "redraw", "forget")


def _check_made(made: object, said: str) -> None:
    """Raise `TypeError` where what is to be attached could not be saved or detached."""
    if not all(hasattr(made, name) for name in ("state_dict", "load_state_dict", "detach")):
        raise TypeError(f"{_WANTED}, {said}")


_WANTED = "method must be one that is attached to a model and its optimizer, such as pliant.ReDo"


def _take_off_left_over(optimizers: Sequence[Optimizer], run: object) -> None:
    """Detach methods that another run attached to these optimizers and, as it raised, left. Their owners keep the state."""
    for method, owner in list(_attached.items()):
        if owner.run is not run and not {*optimizers}.isdisjoint(method.optimizers):
            _log.warning(
                "%s of an earlier run, which did not end, is detached from its model",
                type(cast(object, method)).__name__,
            )
            attachment = owner.attachment()
            if attachment is None:
                method.detach()
                _attached.pop(method, None)
            else:
                attachment.detach()
