import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from pliant import HareAndTortoise
from tests.networks import batch, convnet, mlp, train


def moved_by(steps, **settings):
    """A weight of 1 that a step of size 1 moves by 2, and its method."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    method = HareAndTortoise(model, optimizer, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        (-2.0 * model.weight.sum()).backward()
        optimizer.step()
    return model.weight.item(), method.tortoise()["weight"].item()


def test_the_tortoise_follows_and_the_hare_starts_over_from_it():
    """μ 3/4. Hare 3, tortoise 3/4 + 3/4 = 1.5; 5 and 1.125 + 1.25 = 2.375, the hare too; 4.375 and 1.78125 + 1.09375."""
    settings = {"decay_rate": 0.75, "period": 2}
    assert moved_by(1, **settings) == (3.0, 1.5)
    assert moved_by(2, **settings) == (2.375, 2.375)
    assert moved_by(3, **settings) == (4.375, 2.875)


def test_without_a_period_the_tortoise_follows_all_the_same():
    assert moved_by(2, decay_rate=0.75, period=None) == (5.0, 2.375)


def test_by_hand_the_hare_becomes_the_tortoise():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = HareAndTortoise(model, optimizer, decay_rate=0.9, period=None)
    train(model, optimizer, range(5))
    slow = method.tortoise()
    assert not torch.equal(slow["0.weight"], model[0].weight)
    method.apply()
    assert all(torch.equal(slow[name], each) for name, each in model.named_parameters())


def test_statistics_of_batch_norms_are_averaged_and_put_back():
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    means = [model[0][1].running_mean.clone()]
    optimizer.register_step_post_hook(lambda *_: means.append(model[0][1].running_mean.clone()))
    method = HareAndTortoise(model, optimizer, decay_rate=0.5, period=3)
    train(model, optimizer, range(2), (2, 8, 8))
    assert_close(method.tortoise()["0.1.running_mean"], means[0] / 4 + means[1] / 4 + means[2] / 2)
    train(model, optimizer, range(2, 3), (2, 8, 8))
    expected = means[0] / 8 + means[1] / 8 + means[2] / 4 + means[3] / 2
    assert_close(model[0][1].running_mean, expected)
    assert model[0][1].num_batches_tracked == 3


def test_the_tortoise_is_evaluated_beside_the_hare():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = HareAndTortoise(model, optimizer, decay_rate=0.5, period=None)
    train(model, optimizer, range(3))
    x = batch(9, (6,))[0]
    there = functional_call(model, method.tortoise(), (x,))
    twin = mlp()
    twin.load_state_dict(method.tortoise())
    assert_close(there, twin(x))
    assert not torch.equal(there, model(x))


def test_a_tortoise_in_half_precision_moves_by_less_than_a_rounding():
    """1e-3 of a step that a bfloat16 of 256 does not know."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.constant_(model.weight, 256.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = HareAndTortoise(model, optimizer, decay_rate=0.999, period=None)
    nn.init.constant_(model.weight, 260.0)
    for _ in range(1000):
        optimizer.step()
    assert method.tortoise()["weight"].item() == 258.0  # 256 + 4 (1 - 0.999^1000) = 258.53, as near as bfloat16 has it


def test_restarted_the_tortoise_is_where_the_hare_is():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = HareAndTortoise(model, optimizer)
    train(model, optimizer, range(3))
    method.restart()
    assert torch.equal(method.tortoise()["0.weight"], model[0].weight)


def test_bad_settings_are_named():
    model = mlp()
    with pytest.raises(ValueError, match=r"decay_rate must lie in \[0, 1\)"):
        HareAndTortoise(model, torch.optim.SGD(model.parameters(), lr=0.1), decay_rate=1.0)
    with pytest.raises(TypeError, match="it needs the optimizer"):
        HareAndTortoise(model, None, period=None)
