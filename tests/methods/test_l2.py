import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import L2, ContinualBackprop, chain_groups
from tests.networks import batch, convnet, enough, mlp, train

COUPLED = {
    "sgd": lambda parameters, **also: torch.optim.SGD(parameters, lr=0.03, **also),
    "momentum": lambda parameters, **also: torch.optim.SGD(parameters, lr=0.03, momentum=0.9, nesterov=True, **also),
    "adam": lambda parameters, **also: torch.optim.Adam(parameters, lr=0.003, **also),
    "adam, one tensor at a time": lambda parameters, **also: torch.optim.Adam(
        parameters, lr=0.003, foreach=False, **also
    ),
    "fused adam": lambda parameters, **also: torch.optim.Adam(parameters, lr=0.003, fused=True, **also),
    "uphill": lambda parameters, **also: torch.optim.SGD(parameters, lr=1e-5, maximize=True, **also),
    "rmsprop": lambda parameters, **also: torch.optim.RMSprop(parameters, lr=0.001, **also),
}


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", COUPLED)
def test_toward_zero_on_all_parameters_it_is_the_optimizer_s_weight_decay(optimizer):
    decayed, pulled, neither = convnet(), convnet(), convnet()
    train(decayed, COUPLED[optimizer](decayed.parameters(), weight_decay=0.05), range(40), (2, 8, 8))
    stepper = COUPLED[optimizer](pulled.parameters())
    L2(pulled, stepper, strength=0.05)
    train(pulled, stepper, range(40), (2, 8, 8))
    train(neither, COUPLED[optimizer](neither.parameters()), range(40), (2, 8, 8))
    for a, b in zip(decayed.parameters(), pulled.parameters(), strict=True):
        exact = {} if optimizer == "fused adam" else {"rtol": 0.0, "atol": 0.0}  # which decays inside one kernel
        assert_close(a, b, **exact)
    assert not same(neither, pulled)


def test_toward_the_start_without_a_gradient_the_way_back_shrinks_geometrically():
    """θ - θ0 is multiplied by 1 - α λ = 0.9 in every step: 2, 1.8, 1.62."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    nn.init.constant_(model.weight, 5.0)
    L2(model, optimizer, strength=0.5, toward="initial")
    nn.init.constant_(model.weight, 7.0)
    (0.0 * model.weight.sum()).backward()
    optimizer.step()
    assert model.weight.item() == pytest.approx(6.8)
    optimizer.step()
    assert model.weight.item() == pytest.approx(6.62)


def test_after_the_step_the_gradient_is_the_loss_s_own():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    L2(model, optimizer, strength=10.0)
    x, y = batch(0, (6,))
    nn.functional.mse_loss(model(x), y).backward()
    own = [parameter.grad for parameter in model.parameters()]
    values = [gradient.clone() for gradient in own]
    optimizer.step()
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), own, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(own, values, strict=True))


def test_a_parameter_without_a_gradient_is_left_alone_as_by_weight_decay():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    L2(model, optimizer, strength=1.0)
    model[0](batch(0, (6,))[0]).sum().backward()
    optimizer.step()
    assert torch.equal(model[4].weight, mlp()[4].weight)
    assert not torch.equal(model[0].weight, mlp()[0].weight)


def test_with_a_closure_it_is_the_same_as_without():
    """Also where the closure is called twice in a step."""

    class Twice(torch.optim.SGD):
        def step(self, closure):
            with torch.enable_grad():
                closure()
            return super().step(closure)

    without, within, twice = mlp(), mlp(), mlp()
    for model, kind in ((without, torch.optim.SGD), (within, torch.optim.SGD), (twice, Twice)):
        optimizer = kind(model.parameters(), lr=0.05)
        L2(model, optimizer, strength=0.1)
        for step in range(20):
            x, y = batch(step, (6,))

            def closure(model=model, optimizer=optimizer, x=x, y=y):
                optimizer.zero_grad(set_to_none=False)
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
                return loss

            if model is without:
                closure()
                optimizer.step()
            else:
                optimizer.step(closure)
    assert same(without, within)
    assert same(without, twice)


@pytest.mark.parametrize("l2_first", [True, False])
def test_beside_continual_backprop_it_equals_weight_decay_whichever_came_first(l2_first, monkeypatch):
    """The fresh units of an Adam are made up for from the gradient that Adam sees."""
    monkeypatch.setenv("PLIANT_NO_NUMBA", "1")  # to the bit; compiled, to rounding
    settings = {"replacement_rate": 0.05, "maturity_threshold": 5, "seed": 1}
    decayed, pulled = mlp(), mlp()
    optimizer = COUPLED["adam"](decayed.parameters(), weight_decay=0.1)
    cbp = ContinualBackprop(decayed, optimizer, groups=chain_groups(decayed), **settings)
    train(decayed, optimizer, range(100))
    enough(cbp)
    optimizer = COUPLED["adam"](pulled.parameters())
    if l2_first:
        L2(pulled, optimizer, strength=0.1)
    ContinualBackprop(pulled, optimizer, groups=chain_groups(pulled), **settings)
    if not l2_first:
        L2(pulled, optimizer, strength=0.1)
    train(pulled, optimizer, range(100))
    assert same(decayed, pulled)


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_grad_scaler_the_pull_is_of_the_unscaled_size(fused):
    def go(scaled, **also):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
        L2(model, optimizer, strength=0.1, **also)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for step in range(20):
            x, y = batch(step, (6,))
            optimizer.zero_grad()
            scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        return model

    for a, b in zip(go(True).parameters(), go(False).parameters(), strict=True):
        assert_close(a, b)


def test_restarted_it_pulls_toward_where_the_parameters_are_now():
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    l2 = L2(model, optimizer, strength=0.5, toward="initial")
    nn.init.constant_(model.weight, 7.0)
    l2.restart()
    (0.0 * model.weight.sum()).backward()
    optimizer.step()
    assert model.weight.item() == 7.0


def test_a_step_that_raised_leaves_no_gradient_behind():
    model, clean = mlp(), mlp()
    for each in (model, clean):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.05)
        L2(each, optimizer, strength=0.1)
        if each is model:
            each[0].weight.grad = torch.ones_like(each[0].weight)
            broken = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                optimizer.step()
            broken.remove()
        train(each, optimizer, range(5))
    assert same(model, clean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -1.0}, "strength must be 0 or more"),
        ({"strength": float("nan")}, "strength must be 0 or more"),
        ({"strength": 0.1, "toward": "start"}, "unknown toward 'start'; known: zero, initial"),
    ],
)
def test_bad_settings_are_named(settings, message):
    model = mlp()
    with pytest.raises(ValueError, match=message):
        L2(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


def test_an_optimizer_that_searches_along_the_loss_is_refused():
    model = mlp()
    with pytest.raises(ValueError, match="LBFGS searches along the loss"):
        L2(model, torch.optim.LBFGS(model.parameters()), strength=0.1)


def test_a_sparse_gradient_is_refused():
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    L2(model, optimizer, strength=0.1)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="needs dense gradients"):
        optimizer.step()


@pytest.mark.parametrize("l2_first", [True, False])
def test_other_methods_find_the_loss_s_own_gradient_after_the_step_whichever_came_first(l2_first):
    """So that of units just replaced none is left, where gradients accumulate; two pulls put it back in turn."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pulls = [L2(model, optimizer, strength=5.0)] if l2_first else []
    cbp = ContinualBackprop(
        model, optimizer, groups=chain_groups(model), replacement_rate=0.5, maturity_threshold=0, seed=0
    )
    pulls += [L2(model, optimizer, strength=5.0) for _ in range(2)]
    x, y = batch(0, (6,))
    nn.functional.mse_loss(model(x), y).backward()
    own = model[0].weight.grad.clone()
    optimizer.step()
    new = cbp.ages()["0"][0] == 0
    assert new.sum() == 6
    assert not model[0].weight.grad[new].any()
    assert torch.equal(model[0].weight.grad[~new], own[~new])
