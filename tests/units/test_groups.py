"""Records of units given by hand: checked when they are made, with what is wrong in one sentence."""

import inspect

import pytest
import torch
from torch import nn

from pliant import trace
from pliant.units import BN, AffineEntry, RunningStatistic, Slice, Tap, UnitGroup, UnitMap, chain_groups

ODD = [
    *(
        None,
        True,
        1,
        -1,
        0,
        1.5,
        float("nan"),
        10**30,
        "",
        "x",
        "1e-4",
        b"x",
        [],
        (),
        {},
        [1, 2],
        ["x"],
        [[-1]],
        [[0], []],
    ),
    *(torch.tensor(1.0), torch.zeros(2), nn.Linear, object(), lambda: None, ((0.5,),)),
]
WHOLE = {
    Slice: {"parameter": "0.weight", "axis": 0},
    Tap: {"module": "2"},
    BN: {"module": "1"},
    AffineEntry: {"part": Slice("1.weight", 0)},
    RunningStatistic: {"part": Slice("1.mean", 0), "value": 0.0},
    UnitGroup: {"name": "a", "incoming": [Slice("0.weight", 0)], "outgoing": [Slice("2.weight", 1)], "tap": Tap("2")},
}


@pytest.mark.parametrize(
    ("record", "field"), [(record, field) for record in WHOLE for field in inspect.signature(record).parameters]
)
def test_an_odd_value_is_taken_or_refused_in_one_sentence_that_names_the_field(record, field):
    refused = 0
    for value in ODD:
        try:
            record(**{**WHOLE[record], field: value})
        except (TypeError, ValueError) as error:
            refused += 1
            text = str(error)
            assert text.startswith((record.__name__, "unknown kind of")), text
            assert field in text, text
            assert "\n" not in text
            assert len(text) < 250
    assert refused >= 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Slice("0.weight", "0"), r"Slice\('0.weight'\): axis takes an integer or several, got '0'"),
        (lambda: Slice("0.weight", 0, repeat=0), r"repeat must be 1 or more whole positions, got 0"),
        (lambda: Slice("0.weight", 0, index=[]), "index is empty; give the positions of each unit"),
        (lambda: Slice("0.weight", 0, index=[(0, 1), (2,)]), r"every row of index must have 1 positions, got \[1, 2\]"),
        (lambda: Tap("2", at="inputs"), "at must be 'input', 'output' or 'operand', got 'inputs'"),
        (lambda: Tap("2", argument=1.0), "argument is a position or a name, got 1.0"),
        (lambda: UnitGroup("a", [], [], ()), "incoming is empty; name the weights that compute the units"),
        (lambda: UnitGroup("a", "0.weight", [], ()), "incoming takes Slices, got '0.weight'"),
        (lambda: UnitGroup("a", [Slice("w", 0)], [], (), kind="exactly"), r"\(did you mean 'exact'\?\)"),
        (
            lambda: UnitGroup("a", [Slice("w", 0)], [], (), hand_over=["b"]),
            "hand_over maps outgoing parameters to .* got a list",
        ),
        (lambda: AffineEntry("1.weight"), "part must be a Slice, got '1.weight'"),
    ],
)
def test_what_is_refused_is_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_lists_are_taken_for_tuples():
    """So that records given by hand equal those that are traced, and can be compared and hashed."""
    given = Slice("w", [0, 1], 2.0, index=[[0, 1], [2, 3]], shape=[2, 2, 3])
    assert given == Slice("w", (0, 1), 2, index=((0, 1), (2, 3)), shape=(2, 2, 3))
    assert hash(given) == hash(Slice("w", (0, 1), 2, index=((0, 1), (2, 3)), shape=(2, 2, 3)))


@pytest.mark.parametrize("option", ["residual", "heads", "strict", "activity", "trial"])
@pytest.mark.parametrize("value", ["no", None, 1, torch.ones(2)])
def test_a_switch_of_trace_is_true_or_false(option, value):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(TypeError, match=f"^{option} must be True or False, got "):
        trace(model, torch.zeros(2, 3), **{option: value})


LOOK = {
    "trace": lambda model: trace(model, torch.zeros(2, 3)),
    "chain_groups": chain_groups,
    "verify": lambda model: trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 3)).verify(
        model, torch.zeros(2, 3)
    ),
    "add": lambda model: UnitMap([]).add(model, UnitGroup(**WHOLE[UnitGroup])),
}


@pytest.mark.parametrize("name", LOOK)
def test_what_is_no_model_is_named(name):
    for value in [None, 1, "model", [], nn.Linear, torch.zeros(2), lambda x: x]:
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got "):
            LOOK[name](value)
    with pytest.raises(ValueError, match=r"model has no shapes yet, as '0.weight' is lazy: run one forward first"):
        LOOK[name](nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"rounds": 0}, "verify: rounds must be 1 or more whole numbers, got 0"),
        ({"rounds": "2"}, "verify: rounds must be 1 or more whole numbers, got '2'"),
        ({"seed": 0.5}, "verify: seed must be an integer, got 0.5"),
        ({"groups": 3}, "verify: groups takes a pattern or a list of patterns, got 3"),
        ({"groups": ["1"]}, "verify: no group is named '1'; groups: 0"),
        ({"example_inputs": torch.zeros(0, 3)}, r"verify: example_inputs holds no example, its shape is \(0, 3\)"),
    ],
)
def test_an_odd_argument_of_verify_is_named(odd, message):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = trace(model, torch.zeros(2, 3))
    with pytest.raises((TypeError, ValueError), match=message):
        plan.verify(**{"model": model, "example_inputs": torch.randn(2, 3), **odd})


@pytest.mark.parametrize("edit", ["include", "exclude"])
def test_a_pattern_is_text(edit):
    plan = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 3))
    with pytest.raises(TypeError, match=f"{edit} takes a pattern or a list of patterns, got a tuple"):
        getattr(plan, edit)(0)
