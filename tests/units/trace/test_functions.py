"""Where activation functions and norms are applied: by whom, to which units, and whether weights read what comes of it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pliant.nn import CReLU
from pliant.units.trace.functions import functions
from tests.networks import mlp, recurrent, transformer
from tests.units.cases.table import Net

KINDS = (nn.ReLU, nn.Tanh, nn.PReLU, CReLU, nn.BatchNorm2d, nn.LayerNorm, nn.RNNBase)
X = torch.randn(3, 6)


def seen(model, x, *fields):
    return [tuple(getattr(each, field) for field in fields) for each in functions(model, x, KINDS)]


def test_modules_are_seen_as_a_whole_and_functions_by_the_module_that_calls_them():
    model = Net(
        lambda net, x: net.head(net.twice(torch.tanh(net.act(net.a(x))))),
        a=nn.Linear(6, 4), act=nn.PReLU(4), twice=CReLU(), head=nn.Linear(8, 2),
    )  # fmt: skip
    assert seen(model, X, "module", "operation") == [("act", None), ("", "tanh"), ("twice", None)]


def test_the_axis_counts_from_the_end_and_is_that_of_the_units():
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(5 * 4, 2)
    )
    found = seen(model, torch.randn(3, 2, 4, 4), "module", "layers", "axis", "dims", "units")
    weight = ("0.weight",)
    assert found == [("1", weight, -3, 4, 5), ("2", weight, -3, 4, 5), ("4", weight, -1, 2, 20)]


def test_units_that_were_added_up_count_for_each_other():
    found = dict(seen(transformer(), torch.randn(2, 4, 6), "module", "layers"))
    assert found["layer.norm2"] == ("embed.weight", "layer.self_attn.out_proj.weight", "layer.linear2.weight")
    assert found["layer"] == ("layer.linear1.weight",)


def test_between_weights_is_hidden_and_before_the_first_or_behind_the_last_is_not():
    model = nn.Sequential(nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2), nn.Tanh())
    assert seen(model, X, "module", "hidden") == [("0", False), ("2", True), ("4", False)]


@pytest.mark.parametrize("which", ["0", "2"])
def test_a_computed_weight_on_either_side_hides_none(which):
    model = nn.Sequential(nn.Linear(6, 4), nn.PReLU(), nn.Linear(4, 2))
    nn.utils.parametrizations.spectral_norm(model.get_submodule(which))
    assert seen(model, X, "module", "hidden") == [("1", True)]


def test_behind_an_operation_that_units_cannot_be_followed_through_none_are_named():
    model = Net(
        lambda net, x: net.head(net.act(torch.linalg.pinv(net.a(x)).T)),
        a=nn.Linear(6, 4), act=nn.ReLU(), head=nn.Linear(4, 2),
    )  # fmt: skip
    assert seen(model, X, "module", "layers", "axis", "hidden") == [("act", (), None, True)]


def test_what_holds_more_than_the_units_along_an_axis_has_no_axis():
    model = Net(
        lambda net, x: net.head(net.act(torch.cat([net.a(x), x], 1))),
        a=nn.Linear(6, 4), act=nn.ReLU(), head=nn.Linear(10, 2),
    )  # fmt: skip
    assert seen(model, X, "module", "layers", "axis") == [("act", ("a.weight",), None)]


def test_norms_that_are_functions_are_named_as_operations():
    model = Net(lambda net, x: net.head(F.relu(F.layer_norm(net.a(x), (4,)))), a=nn.Linear(6, 4), head=nn.Linear(4, 2))
    assert seen(model, X, "operation") == [("native_layer_norm",), ("relu",)]


def test_recurrent_layers_are_whole_and_every_example_counts_once():
    x = torch.randn(2, 3, 6)
    assert seen(recurrent(), x, "module", "operation") == [("", "relu"), ("core", None), ("", "relu")]
    assert seen(mlp(), [X, X], "module") == [("1",), ("3",)]
