"""Networks as a model was before it trained: built where that is sure, else refused."""

import pytest
import torch
from torch import nn

from pliant.diagnostics.fresh import FreshNetworks


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.body(x))


class DrawsByItself(Plain):
    def __init__(self):
        super().__init__()
        nn.init.orthogonal_(self.head.weight)


class ScalesByItself(Plain):
    def __init__(self):
        super().__init__()
        self.head.weight.data *= 0.1


class ResetsItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, 3))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.orthogonal_(self.weight)

    def forward(self, x):
        return x @ self.weight.T


class NamesThatOnlyLookLikeIt(Plain):
    def __init__(self):
        super().__init__()
        self.initial_lr, self._hparams_initial, self.init_step = 0.01, {}, 3
        for parameter in self.head.parameters():
            parameter.requires_grad_(True)


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
        for buffer in model.buffers():
            buffer += 1
    return model


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "make", [Plain, ResetsItself, NamesThatOnlyLookLikeIt, lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())]
)
def test_a_fresh_network_is_the_one_that_is_built_under_the_seed(make):
    model = moved(make())
    torch.manual_seed(7)
    built = make()
    assert equal(FreshNetworks(model).draw(7), built)


def test_seeds_differ_and_repeat():
    networks = FreshNetworks(moved(Plain()))
    assert equal(networks.draw(1), networks.draw(1))
    assert not equal(networks.draw(1), networks.draw(2))


@pytest.mark.parametrize(("kind", "why"), [(DrawsByItself, "orthogonal_"), (ScalesByItself, "data")])
def test_a_class_that_draws_weights_itself_is_refused_without_fresh(kind, why):
    model = moved(kind())
    with pytest.raises(ValueError, match=f"{kind.__name__} initializes weights itself .*{why}.* Give fresh="):
        FreshNetworks(model)
    torch.manual_seed(3)
    assert equal(FreshNetworks(model, kind).draw(3), (torch.manual_seed(3), kind())[1])


def test_a_parameter_without_a_reset_is_refused_without_fresh():
    model = nn.Sequential(nn.Linear(2, 2))
    model.gain = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"'gain'.*Give fresh="):
        FreshNetworks(model)


def test_frozen_parameters_and_the_buffers_beside_them_are_those_of_the_model():
    model = moved(Plain())
    model.body.requires_grad_(False)
    fresh = FreshNetworks(model).draw(0)
    assert torch.equal(fresh.body[0].weight, model.body[0].weight)
    assert torch.equal(fresh.body[1].running_mean, model.body[1].running_mean)
    assert not fresh.body[0].weight.requires_grad
    assert not torch.equal(fresh.head.weight, model.head.weight)


def test_parameters_that_no_optimizer_steps_are_those_of_the_model():
    model = moved(Plain())
    fresh = FreshNetworks(model, trained=list(model.head.parameters())).draw(0)
    assert torch.equal(fresh.body[0].weight, model.body[0].weight)
    assert not torch.equal(fresh.head.weight, model.head.weight)


def test_modes_type_and_random_state_are_those_of_the_model():
    model = moved(Plain()).double()
    model.body[1].eval()
    before = torch.get_rng_state()
    fresh = FreshNetworks(model, Plain).draw(0)
    assert fresh.head.weight.dtype == torch.float64
    assert fresh.training
    assert not fresh.body[1].training
    assert torch.equal(torch.get_rng_state(), before)


def test_an_untrained_network_that_was_kept_serves_for_every_seed():
    model, kept = moved(Plain()), Plain()
    networks = FreshNetworks(model, kept)
    assert equal(networks.draw(0), kept)
    assert networks.draw(0) is not kept


def test_what_is_no_fresh_network_is_refused():
    model = Plain()
    for fresh, message in [
        (3, "fresh is a function that builds an untrained network, got 3"),
        (lambda: 3, "fresh\\(\\) gave 3, not a torch.nn.Module"),
        (lambda: nn.Linear(3, 2), "fresh\\(\\) gives another network"),
        (lambda: model, "shares 'body.0.weight' with the model"),
        (model, "fresh is the model itself"),
        (lambda a: Plain(), "fresh is called without arguments, which <lambda> does not take"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            FreshNetworks(model, fresh)


def test_copies_of_the_trained_weights_are_refused():
    model = moved(Plain())

    def copied():
        found = Plain()
        found.load_state_dict(model.state_dict())
        return found

    with pytest.raises(ValueError, match="the very weights that the model has now"):
        FreshNetworks(model, copied)


def test_the_config_of_a_transformer_builds_it():
    transformers = pytest.importorskip("transformers", reason="transformers has an environment of its own")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    model = moved(transformers.BertForSequenceClassification(config))
    torch.manual_seed(5)
    assert equal(FreshNetworks(model).draw(5), transformers.BertForSequenceClassification(config))
