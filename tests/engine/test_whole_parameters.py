"""Which parameters a method on whole parameters acts on, and when. What every method promises: `tests/methods/promises.py`."""

import copy

import pytest
import torch
from torch import nn

from pliant import L2, ShrinkAndPerturb
from tests.networks import batch, mlp, train

METHODS = {
    "l2": lambda model, optimizer, **also: L2(model, optimizer, **{"strength": 0.02, **also}),
    "l2 init": lambda model, optimizer, **also: L2(model, optimizer, **{"strength": 0.02, "toward": "initial", **also}),
    "snp": lambda model, optimizer, **also: ShrinkAndPerturb(
        model, optimizer, **{"noise_std": 1e-3, "shrink": 0.999, "seed": 1, **also}
    ),
    "snp by init": lambda model, optimizer, **also: ShrinkAndPerturb(
        model, optimizer, **{"noise_std": 0.01, "source": "init", "period": 5, "seed": 1, **also}
    ),
}


def start(method, **also):
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return model, stepper, METHODS[method](model, stepper, **also)


@pytest.mark.parametrize("method", METHODS)
def test_two_optimizers_each_act_on_their_own_parameters_when_they_step(method):
    model = mlp()
    first = torch.optim.SGD(model[0].parameters(), lr=0.01)
    second = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], lr=0.01)
    attached = METHODS[method](model, [first, second])
    assert attached.names == [name for name, _ in model.named_parameters()]
    reference = copy.deepcopy(model)
    for step in range(10):
        x, y = batch(step, (6,))
        model.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        second.step()
    assert torch.equal(model[0].weight, reference[0].weight)
    assert not torch.equal(model[2].weight, reference[2].weight)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_chosen_parameters_are_touched(method):
    for chosen in ("*.weight", ["0.weight", "2.weight", "4.weight"], lambda name, parameter: parameter.dim() == 2):
        model, stepper, attached = start(method, parameters=chosen)
        assert attached.names == ["0.weight", "2.weight", "4.weight"]
        (0.0 * sum(p.sum() for p in model.parameters())).backward()
        for _ in range(5):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.1  # away from where it began
            stepper.step()
        untouched = mlp()
        assert torch.allclose(model[0].bias, untouched[0].bias + 0.5, atol=1e-6)
        assert not torch.allclose(model[0].weight, untouched[0].weight + 0.5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_replaced_after_attaching_is_named(method):
    model, stepper, _ = start(method)
    model[2].weight = nn.Parameter(torch.zeros(9, 12))
    with pytest.raises(RuntimeError, match=r"'2\.weight' was replaced by another tensor"):
        train(model, stepper, range(5))


@pytest.mark.parametrize("method", METHODS)
def test_a_choice_that_cannot_be_is_an_error_at_construction(method):
    model = mlp()
    stepper = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"parameters='2\.\*' matches none .* those are: 0\.weight, 0\.bias"):
        METHODS[method](model, stepper, parameters="2.*")
    with pytest.raises(ValueError, match="no parameters are left to act on"):
        METHODS[method](mlp(), stepper)
    assert not stepper._optimizer_step_pre_hooks
    assert not stepper._optimizer_step_post_hooks


@pytest.mark.parametrize("method", METHODS)
def test_a_state_of_something_else_is_refused(method):
    attached = start(method)[2]
    other = start(method, parameters="*.weight")[2]
    with pytest.raises(ValueError, match=r"was saved with names = .*, here it is"):
        attached.load_state_dict(other.state_dict())
