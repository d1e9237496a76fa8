"""A state that is not as it was saved is refused in one sentence, and leaves what was to go on from it as it was."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from pliant.experiments import TABLE
from pliant.lab import Context
from pliant.lab.stored.checkpoint import from_bytes, to_bytes
from pliant.lab.study.own_method import method_target
from pliant.lab.study.target import load, target
from tests.experiments.cut import CUT
from tests.experiments.test_profiles import cut_short

MAY_BE_NOTHING = {"diverged_at"}  # None as long as nothing has diverged
OTHERS = {"network", "optimizer", "method", "ensemble", "ppo", "parameters", "momentum"}  # what they hold, these check

OWN = """
import pydantic
class Decay:
    name, color, Fields = "decay", "#117733", pydantic.BaseModel
    def make(self, model, optimizer, config, seed):
        return self
    def state_dict(self):
        return {"calls": 3}
    def load_state_dict(self, state):
        if not isinstance(state["calls"], int):
            raise TypeError("calls are counted")
"""


def subjects(name, method, data):
    """Makes as many runs of a study as asked for, that have learned as long as asked for."""
    where = target(TABLE[name].target)
    if method == "decay":
        (data / "own.py").write_text(OWN)
        where = where.model_copy(update={"methods": (method_target(f"{data / 'own.py'}:Decay"),)})
    experiment = load(where)
    config = next(each for each in experiment.runs("quick") if each.method == method)
    config = type(config)(**{**config.model_dump(), **cut_short(name)})

    def made(advances):
        state = experiment.start([config], Context(data=data))
        for _ in range(advances):
            experiment.advance(state)
        return state

    return made


def wrong(value: Any) -> Iterator[tuple[str, Any]]:
    """Other values in the place of one that a state holds."""
    yield from (("a text", "x"), ("a list", [["x"]]), ("an object", object()))
    if isinstance(value, bool):
        yield from (("2", 2), ("nan", np.nan))
    elif isinstance(value, int):
        yield from (("negative", -5), ("nan", np.nan), ("1.5", 1.5), ("true", True), ("an array", np.zeros(2)))
    elif isinstance(value, float):
        yield from (("an array", np.zeros(2)), ("true", True))
    elif isinstance(value, np.ndarray | torch.Tensor):
        yield "another type", value.astype("U3") if isinstance(value, np.ndarray) else value.to(torch.complex64)
        yield "another shape", value[..., None]
        yield "longer", (np if isinstance(value, np.ndarray) else torch).concatenate([value, value])
    elif isinstance(value, list):
        yield from (("shorter", value[:-1]), ("longer", [*value, 0]), ("negative", [-5, *value[1:]]))


def damaged(state: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in state.items():
        where = f"{path}{key}"
        yield f"without {where}", {other: each for other, each in state.items() if other != key}
        if key not in MAY_BE_NOTHING:
            yield f"{where} is None", {**state, key: None if value is not None else "x"}
        for what, other in wrong(value):
            if (key, what) != ("errors", "longer"):  # of so many periods as there were
                yield f"{where} is {what}", {**state, key: other}
        if isinstance(value, Mapping) and not path:
            inner = {str(name): name for name in value}
            few = {name: value[inner[name]] for name in list(inner)[:3]} if key in OTHERS else value
            for what, other in damaged(few, f"{where}."):
                gone = what.startswith("without")
                if gone or key not in OTHERS:
                    yield (
                        what,
                        {**state, key: other if key not in OTHERS else {**value, **other} if not gone else other},
                    )


def flat(value: Any) -> Any:
    return to_bytes({"state": value})


def refusal(own, state) -> str | None:
    try:
        own.load_state_dict(state)
    except ValueError as error:
        return str(error)
    return None


SUBJECTS = [*((name, "cbp") for name in CUT), ("slowly-changing-regression", "bp"), ("warm-starting", "bp")]
SUBJECTS += [("switching-markov-chain", "bp"), ("slowly-changing-regression", "decay"), ("rewired-cart-pole", "ppo")]
COSTLY = [("class-incremental-cifar-100", "cbp"), ("warm-starting", "cbp"), ("slowly-changing-regression", "decay")]


@pytest.mark.parametrize(
    ("name", "method"),
    [pytest.param(*each, marks=[pytest.mark.slow] if each in COSTLY else []) for each in SUBJECTS],
)
def test_a_damaged_state_is_refused_in_a_sentence_and_changes_nothing(name, method, data):
    made = subjects(name, method, data)
    later, own = from_bytes(to_bytes(made(2).state_dict())), made(1)
    before = flat(own.state_dict())
    accepted = []
    for what, state in damaged(later):
        said = refusal(own, deepcopy(state))
        if said is None:
            accepted.append(what)
            continue
        assert said.count("\n") == 0, what
        assert 10 < len(said) < 400, what
        assert flat(own.state_dict()) == before, f"{what}: refused, and changed"
    assert accepted == []
    own.load_state_dict(later)
    assert flat(own.state_dict()) == flat(later) != before


@pytest.mark.parametrize("state", [None, 3, "x", [], {}])
def test_what_is_no_state_is_refused(state, data):
    own = subjects("switching-markov-chain", "bp", data)(0)
    with pytest.raises(ValueError, match=r"state"):
        own.load_state_dict(state)


@pytest.mark.parametrize(("name", "method"), [("switching-markov-chain", "bp"), ("warm-starting", "bp")])
def test_the_state_of_a_run_with_a_method_is_not_that_of_one_without(name, method, data):
    state = subjects(name, "cbp", data)(1).state_dict()
    with pytest.raises(ValueError, match="'method' of this state: it was saved with one, here there is none"):
        subjects(name, method, data)(0).load_state_dict(state)


def test_an_optimizers_moments_of_another_shape_are_refused_before_its_next_step(data):
    made = subjects("switching-markov-chain", "bp", data)
    state = made(1).state_dict()
    moments = state["optimizer"]["state"][0]
    moments[next(key for key, value in moments.items() if value.dim())] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"'optimizer' of this state: exp_avg of parameter 0 has shape \(3,\), here it is"
    ):
        made(0).load_state_dict(state)
