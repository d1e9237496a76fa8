"""What an optimizer remembers of single entries is forgotten by the same rules as that of units and of whole parameters."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import TRAC
from pliant.engine.optimizer_state import forget_entries

MASK = torch.tensor([[True, False, False], [False, False, True]])


def stepped(build, steps=3):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(2, 3))
    optimizer = build([weight])
    for _ in range(steps):
        weight.grad = torch.randn(2, 3)
        optimizer.step()
    return weight, optimizer


def test_averages_of_masked_entries_are_zero_and_sizes_the_mean_of_the_others():
    weight, adam = stepped(lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True))
    before = {key: held.clone() for key, held in adam.state[weight].items()}
    forget_entries(adam, weight, MASK)
    after = adam.state[weight]
    assert_close(after["exp_avg"], torch.where(MASK, 0.0, before["exp_avg"]), rtol=0, atol=0)
    for key in ("exp_avg_sq", "max_exp_avg_sq"):
        others = before[key][~MASK].mean()
        assert_close(after[key], torch.where(MASK, others, before[key]))
    assert after["step"] == 3  # the count is shared


def test_zero_leaves_no_size_either_and_keep_leaves_everything():
    weight, adam = stepped(lambda p: torch.optim.Adam(p, lr=0.1))
    before = adam.state[weight]["exp_avg_sq"].clone()
    forget_entries(adam, weight, MASK, policy="keep")
    assert_close(adam.state[weight]["exp_avg_sq"], before, rtol=0, atol=0)
    forget_entries(adam, weight, MASK, policy="zero")
    assert_close(adam.state[weight]["exp_avg_sq"], torch.where(MASK, 0.0, before), rtol=0, atol=0)


def test_what_starts_at_a_setting_starts_there_again():
    weight, rprop = stepped(lambda p: torch.optim.Rprop(p, lr=0.05))
    held = rprop.state[weight]["step_size"].clone()
    assert (held != 0.05).all()
    forget_entries(rprop, weight, MASK)
    assert_close(rprop.state[weight]["step_size"], torch.where(MASK, 0.05, held))


def test_a_copy_of_the_parameter_gets_its_new_value():
    weight, asgd = stepped(lambda p: torch.optim.ASGD(p, lr=0.05, t0=1))
    with torch.no_grad():
        weight[MASK] = 7.0
    forget_entries(asgd, weight, MASK)
    assert (asgd.state[weight]["ax"][MASK] == 7.0).all()


def test_momentum_of_an_entry_that_was_forgotten_no_longer_moves_it():
    weight, sgd = stepped(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    before = weight.detach().clone()
    forget_entries(sgd, weight, MASK)
    weight.grad = torch.zeros(2, 3)
    sgd.step()
    assert torch.equal(weight[MASK], before[MASK])
    assert (weight[~MASK] != before[~MASK]).all()


def test_of_an_optimizer_around_another_both_forget():
    weight, trac = stepped(lambda p: TRAC(torch.optim.Adam(p, lr=0.1), scale=1.0))
    displaced = trac.state[weight]["displacement"].clone()
    with torch.no_grad():
        weight[MASK] = 7.0
    forget_entries(trac, weight, MASK)
    assert (trac.state[weight]["start"][MASK] == 7.0).all()
    assert_close(trac.state[weight]["displacement"], torch.where(MASK, 0.0, displaced), rtol=0, atol=0)
    assert not trac.base_optimizer.state[weight]["exp_avg"][MASK].any()
    assert trac.base_optimizer.state[weight]["exp_avg"][~MASK].all()


def test_an_optimizer_without_a_rule_is_an_error_before_anything_is_written():
    weight = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(ValueError, match="no rule to forget the state of LBFGS"):
        forget_entries(torch.optim.LBFGS([weight]), weight, MASK)
    with pytest.raises(ValueError, match="unknown policy 'fresh'"):
        forget_entries(torch.optim.Adam([weight]), weight, MASK, policy="fresh")
