"""Parameters that never ran with the example inputs and train after all: the head of a later task, an expert that no example
reached, a layer that is skipped at random. The plan does not know which units they read or write.

Training goes on. At the first step at which one has a gradient all groups wait until a forward that it takes part in, as a rule
the next, shows by its graph which units it meets (`met`). Those groups are held back from then on, with one warning that names
them: none of their units is replaced, as a newcomer would go on reading it. All others are replaced as before.

    units of a group are alive    from the operation of an incoming weight on, up to the operations of its outgoing weights
    a newcomer meets them         where an operation combines live units with anything computed from it
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pliant.base.saving import entry
from pliant.engine.data_parallel import Ranks
from pliant.units.bound import BoundGroup
from pliant.units.models import tensors_in

log = logging.getLogger("pliant")

EARLY = 8  # steps of any optimizer, in which to stop is better than to go on without replacing anything


class Newcomers:
    """Those of one method.

    Args:
        root: the model, inside of its wrappers.
        parameters: that never ran, by name.
        groups: all that the method resets.
        ranks: that share the model, and must hold back the same.
    """

    def __init__(
        self, root: nn.Module, parameters: Mapping[str, Tensor], groups: Sequence[BoundGroup], ranks: Ranks
    ) -> None:
        self._root, self._groups, self._parameters, self._ranks = root, groups, parameters, ranks
        self._unseen = dict(parameters)
        self._waiting: dict[str, Tensor] = {}
        self._steps_waited = self._looks = self._forwards = 0
        self._found: dict[str, list[str]] = {}  # whom they met in forwards of this rank since the last step
        self.held: dict[str, str] = {}  # group -> the parameter that meets its units
        self._hook: RemovableHandle | None = None

    def look(self) -> None:
        """After a step: who has a gradient now, and whom did those that wait meet?

        Raises `RuntimeError` in the first steps, where nothing is lost, if the model itself is never run, which would show that.
        """
        if not self._unseen and not self._waiting:
            return
        self._looks += 1
        if self._waiting:
            self._settle()
        for name, parameter in list(self._unseen.items()):
            if parameter.grad is not None:
                self._waiting[name] = self._unseen.pop(name)
                self._steps_waited = 0
        if not self._waiting:
            self.detach()
        elif self._hook is None:
            self._hook = self._root.register_forward_hook(_Look(self))

    def _settle(self) -> None:
        """Hold back whom they met, on any rank: a gradient that one has, all have."""
        for of_rank in self._ranks.gather(self._found):
            for name, groups in of_rank.items():
                self._waiting.pop(name, None)
                new = [group for group in groups if group not in self.held]
                self.held.update(dict.fromkeys(new, name))
                if new:
                    units = ", ".join(f"'{each}'" for each in new)
                    log.warning("%s, with units of %s: no unit of these is replaced. %s", _said([name]), units, _ADVICE)
        self._found = {}
        self._steps_waited += 1
        if self._waiting and self._steps_waited == 2:
            hidden = f"{_said(self._waiting)}, and no forward of {type(self._root).__name__} shows with which units"
            if self._looks <= EARLY and not self._forwards:
                raise RuntimeError(f"{hidden}. {_ADVICE}")
            log.warning("%s: no unit of any is replaced until one does. %s", hidden, _ADVICE)

    def apart(self, groups: Sequence[BoundGroup]) -> Sequence[BoundGroup]:
        """The groups whose units no newcomer meets; none as long as that is not known of one."""
        if self._waiting:
            return []
        return [group for group in groups if group.name not in self.held] if self.held else groups

    def saw(self, output: Any) -> None:
        """A forward of the model has ended."""
        if torch.is_grad_enabled() and self._waiting:
            self._forwards += 1
            found = met(tensors_in(output), self._waiting, self._groups)
            for name, groups in found.items():
                names = self._found.setdefault(name, [])
                names += [group.name for group in groups if group.name not in names]

    def detach(self) -> None:
        """Take the hook off the model."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def state_dict(self) -> dict[str, Any]:
        return {"held": dict(self.held), "unseen": [*self._unseen, *self._waiting]}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """None is of a version that knew no newcomers."""
        self.detach()
        unseen = list(self._parameters) if state is None else entry(state, "unseen", [])
        if not set(unseen) <= set(self._parameters):
            raise ValueError(f"'unseen' of this state names {unseen}, here they are among {list(self._parameters)}")
        self.held = {} if state is None else {str(group): str(name) for group, name in state["held"].items()}
        self._found, self._waiting, self._looks = {}, {}, EARLY
        self._unseen = {name: each for name, each in self._parameters.items() if name in unseen}


class _Look:
    def __init__(self, newcomers: Newcomers) -> None:
        self.newcomers = newcomers

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.newcomers.saw(output)

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _Blind, ()


class _Blind:
    """In a copy of the model."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None: ...


def _said(names: Iterable[str]) -> str:
    return f"{', '.join(map(repr, names))} never ran with the example inputs and trains now"


_ADVICE = "Give example inputs that reach it, or a list of several, for it to be part of the plan"


# -- the graph of a forward ----------------------------------------------------------------------------------------------


def met(
    outputs: Iterable[Tensor], parameters: Mapping[str, Tensor], groups: Sequence[BoundGroup]
) -> dict[str, list[BoundGroup]]:
    """For each of the parameters that took part in a forward with these outputs, the groups whose units it met."""
    order = _children_first([each.grad_fn for each in outputs if each.grad_fn is not None])
    near = _near(order)
    taking_part = {id(node.variable) for node in order if hasattr(node, "variable")}
    found = {name: _dependent(order, each) for name, each in parameters.items() if id(each) in taking_part}
    meets: dict[str, list[BoundGroup]] = {name: [] for name in found}
    for group in groups:
        entering = {id(part.parameter) for part in group.incoming_weights()}
        leaving = {id(part.parameter) for part in group.outgoing}
        alive = _alive(order, near, entering, leaving)
        for name, dependent in found.items():
            if any(_joins(node, near, entering, alive, dependent, id(parameters[name])) for node in order):
                meets[name].append(group)
    return meets


def _inputs(node: Any) -> list[Any]:
    return [each for each, _ in node.next_functions if each is not None]


def _children_first(ends: Sequence[Any]) -> list[Any]:
    """All nodes of a graph, each behind its inputs."""
    order, seen = list[Any](), set[Any]()
    stack: list[tuple[Any, bool]] = [(end, False) for end in ends]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((each, False) for each in _inputs(node) if each not in seen)
    return order


def _near(order: Sequence[Any]) -> dict[Any, set[int]]:
    """Parameters that are operands of each node, as they are or viewed, cast, transposed on the way."""
    own: dict[Any, set[int]] = {}
    near: dict[Any, set[int]] = {}
    for node in order:
        if hasattr(node, "variable"):
            own[node], near[node] = {id(node.variable)}, set()
            continue
        inputs = _inputs(node)
        operands = set[int]().union(*(own[each] for each in inputs))
        thin = len(node.next_functions) == 1
        own[node], near[node] = (operands, set()) if thin else (set(), operands)
    return near


def _dependent(order: Sequence[Any], parameter: Tensor) -> set[Any]:
    """Nodes that anything of the parameter goes into."""
    found = set[Any]()
    for node in order:
        if getattr(node, "variable", None) is parameter or not found.isdisjoint(_inputs(node)):
            found.add(node)
    return found


def _alive(order: Sequence[Any], near: Mapping[Any, set[int]], entering: set[int], leaving: set[int]) -> set[Any]:
    """Nodes whose results hold units of a group."""
    alive = set[Any]()
    for node in order:
        formed = not near[node].isdisjoint(entering)
        carried = near[node].isdisjoint(leaving) and not alive.isdisjoint(_inputs(node))
        if formed or carried:
            alive.add(node)
    return alive


def _joins(
    node: Any, near: Mapping[Any, set[int]], entering: set[int], alive: set[Any], dependent: set[Any], parameter: int
) -> bool:
    """Whether live units and what comes of the parameter go into the node apart from one another."""
    if node not in alive:
        return False
    if not near[node].isdisjoint(entering):  # units are formed here: what goes in beside the weight are their inputs
        return parameter in near[node]
    inputs = _inputs(node)
    return any(each in dependent and each not in alive for each in inputs)
