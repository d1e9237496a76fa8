"""A state that was damaged is refused in one sentence, whatever is wrong with it, and leaves the method as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

import pliant

MAKERS: dict[str, Callable[..., Any]] = {
    "ContinualBackprop": lambda model, optimizer, x: pliant.ContinualBackprop(
        model, optimizer, example_inputs=x, replacement_rate=0.05, maturity_threshold=3, seed=0
    ),
    "RandomReplacement": lambda model, optimizer, x: pliant.RandomReplacement(
        model, optimizer, example_inputs=x, replacement_rate=0.05, maturity_threshold=3, seed=0
    ),
    "ReDo": lambda model, optimizer, x: pliant.ReDo(model, optimizer, example_inputs=x, period=5, seed=0),
    "ShrinkAndPerturb": lambda model, optimizer, x: pliant.ShrinkAndPerturb(
        model, optimizer, shrink=0.9, noise_std=0.01, period=3, seed=0
    ),
    "L2": lambda model, optimizer, x: pliant.L2(model, optimizer, strength=0.1),
    "L2 Init": lambda model, optimizer, x: pliant.L2(model, optimizer, strength=0.1, toward="initial"),
    "GraMa": lambda model, optimizer, x: pliant.GraMa(model, optimizer, example_inputs=x, period=5, seed=0),
    "PartialResets": lambda model, optimizer, x: pliant.PartialResets(
        model, optimizer, example_inputs=x, period=5, seed=0
    ),
    "SelfNormalizedResets": lambda model, optimizer, x: pliant.SelfNormalizedResets(
        model, optimizer, example_inputs=x, longest=6, seed=0
    ),
    "Spectral": lambda model, optimizer, x: pliant.Spectral(model, optimizer, strength=0.1),
    "L2ER": lambda model, optimizer, x: pliant.L2ER(model, optimizer, strength=0.1, rank_step_size=0.1, features=["1"]),
    "Wasserstein": lambda model, optimizer, x: pliant.Wasserstein(model, optimizer, strength=0.1),
    "Parseval": lambda model, optimizer, x: pliant.Parseval(model, optimizer, strength=0.1, parameters="0.weight"),
    "WeightClipping": lambda model, optimizer, x: pliant.WeightClipping(model, optimizer),
    "NormalizeAndProject": lambda model, optimizer, x: pliant.NormalizeAndProject(
        model, optimizer, parameters="*.weight"
    ),
    "HareAndTortoise": lambda model, optimizer, x: pliant.HareAndTortoise(model, optimizer, period=3),
    "SelectiveReinitialization": lambda model, optimizer, x: pliant.SelectiveReinitialization(
        model, optimizer, period=3, seed=0
    ),
    "DASH": lambda model, optimizer, x: pliant.DASH(model, optimizer),
    "SoftResets": lambda model, optimizer, x: pliant.SoftResets(
        model, optimizer, gamma_step_size=0.1, spread=0.5, seed=0
    ),
    "FIRE": lambda model, optimizer, x: pliant.FIRE(model, optimizer, period=3),
}
# What a state may hold as well: nothing was replaced yet, another `init`, no average was counted yet.
MAY_BE_NOTHING = ("last", "starts", "betas")


def after(steps: int, name: str) -> tuple[Any, object]:
    """A method that has acted for some steps, and what must be kept alive."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    optimizer = torch.optim.Adam(model.parameters())
    method = MAKERS[name](model, optimizer, torch.randn(5, 3))
    for x in torch.randn(steps, 5, 3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return method, (model, optimizer)


def wrong(value: Any) -> Iterator[tuple[str, Any]]:
    yield "is a text", "x"
    if isinstance(value, bool):
        yield "is 2", 2
    elif isinstance(value, int):
        yield from (("is negative", -5), ("is NaN", float("nan")), ("is 1.5", 1.5), ("is huge", 2**70))
    elif isinstance(value, torch.Tensor):
        yield from (("has another axis", value[..., None]), ("is complex", value.to(torch.complex64)))
        yield "is longer", torch.cat([value, value] if value.dim() else [value[None], value[None]])
        if not value.is_floating_point() and value.dtype is not torch.uint8:  # a generator's bytes
            yield "is negative", torch.full_like(value, -5)
    elif isinstance(value, list):
        yield "is longer", [*value, 0]
        if value:
            yield "is shorter", value[:-1]


def damaged(state: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in state.items():
        yield f"{path}{key} is missing", {name: each for name, each in state.items() if name != key}
        if value is not None and key not in MAY_BE_NOTHING:
            yield f"{path}{key} is None", {**state, key: None}
        if key != "arriving":  # at which step how many units become mature: of any length
            yield from ((f"{path}{key} {how}", {**state, key: other}) for how, other in wrong(value))
        if isinstance(value, dict):
            yield from ((how, {**state, key: other}) for how, other in damaged(value, f"{path}{key}."))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for how, other in damaged(value[0], f"{path}{key}[0]."):
                yield how, {**state, key: [other, *value[1:]]}
        elif isinstance(value, list) and value and isinstance(value[0], int) and key != "seeds":
            for other in (-5, float("nan"), "x"):
                yield f"{path}{key}[0] is {other}", {**state, key: [other, *value[1:]]}


def flat(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.tolist()
    if isinstance(value, dict):
        return {key: flat(each) for key, each in value.items()}
    return [flat(each) for each in value] if isinstance(value, list | tuple) else repr(value)


@pytest.mark.parametrize("name", MAKERS)
def test_a_damaged_state_is_refused_in_a_sentence_and_changes_nothing(name: str) -> None:
    later, _ = after(12, name)
    own, alive = after(5, name)
    state, before = later.state_dict(), flat(own.state_dict())
    accepted, tried = list[str](), 0
    for what, other in damaged(state):
        tried += 1
        try:
            own.load_state_dict(deepcopy(other))
        except ValueError as error:
            text = str(error)
            assert "\n" not in text
            assert 10 < len(text) < 400, what
            assert flat(own.state_dict()) == before, f"{what}: refused, and changed"
        else:
            accepted.append(what)
            own, alive = after(5, name)
    assert accepted == []
    assert tried >= 15
    own.load_state_dict(deepcopy(state))
    assert flat(own.state_dict()) == flat(state)
    del alive


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("state", [None, 3, "x", [], {}])
def test_what_is_no_state_is_refused(name: str, state: Any) -> None:
    own, alive = after(1, name)
    before = flat(own.state_dict())
    with pytest.raises(ValueError, match="state"):
        own.load_state_dict(state)
    assert flat(own.state_dict()) == before
    del alive
