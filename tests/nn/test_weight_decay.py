import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant.nn import StackedLinear, decay_groups
from tests.networks import transformer


def names(model, group):
    mine = {id(parameter) for parameter in group["params"]}
    return [name for name, parameter in model.named_parameters() if id(parameter) in mine]


def test_matrices_are_decayed_and_vectors_are_not():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LayerNorm((4, 3, 3)), nn.PReLU(4), nn.Flatten(), nn.Linear(36, 2))
    decayed, others = decay_groups(model, 0.1)
    assert names(model, decayed) == ["0.weight", "4.weight"]
    assert names(model, others) == ["0.bias", "1.weight", "1.bias", "2.weight", "4.bias"]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


def test_a_bias_of_stacked_layers_is_none():
    model = StackedLinear(3, 4, 2)
    assert [names(model, group) for group in decay_groups(model, 0.1)] == [["weight"], ["bias"]]


def test_every_parameter_is_in_one_group_once():
    model = transformer()
    model.head.weight = model.embed.weight  # tied
    groups = decay_groups(model, 0.1)
    assert sorted(map(id, [*groups[0]["params"], *groups[1]["params"]])) == sorted(map(id, model.parameters()))
    assert "layer.self_attn.in_proj_weight" in names(model, groups[0])
    assert "layer.norm1.weight" in names(model, groups[1])


def test_a_step_shrinks_matrices_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(decay_groups(model, 0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert_close(parameter, before[name] * (0.95 if name in ("0.weight", "3.weight") else 1.0))


def test_a_model_without_matrices_is_refused():
    with pytest.raises(ValueError, match=r"^decay_groups: model \(LayerNorm\) has no parameter of two axes or more"):
        decay_groups(nn.LayerNorm(3), 0.1)
