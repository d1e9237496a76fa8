"""Continual backpropagation on every network of the hard cases, from its example inputs alone."""

import copy

import pytest
import torch
from torch import Tensor

from pliant import ContinualBackprop
from tests.networks import replaced
from tests.units.hard_cases import CASES

FOUND = [case for case in CASES if case.groups and not case.unread]
EVERY = pytest.mark.parametrize("case", FOUND, ids=lambda case: case.name)


def run(model, case, step):
    """A forward of the case on inputs of step's own, and the mean square of what comes out."""
    torch.manual_seed(step)
    given = case.inputs()
    arguments = given if isinstance(given, tuple) else (given,)
    noisy = [x + 0.1 * torch.randn_like(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]
    out = model(*noisy)
    outs = [each for each in (out if isinstance(out, tuple) else (out,)) if isinstance(each, Tensor)]
    return sum(each.square().mean() for each in outs)


def build(case):
    torch.manual_seed(0)
    return case.build().train()


def attach(model, case, **settings):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    often = {"replacement_rate": 0.5, "maturity_threshold": 2, "seed": 1, **case.options, **settings}
    return optimizer, ContinualBackprop(model, optimizer, example_inputs=case.inputs(), **often)


def train(model, optimizer, case, steps):
    for step in steps:
        optimizer.zero_grad()
        run(model, case, step).backward()
        optimizer.step()


@EVERY
def test_rate_zero_changes_no_bit_of_training(case):
    plain, watched = build(case), build(case)
    stepper = torch.optim.Adam([p for p in plain.parameters() if p.requires_grad], lr=1e-3)
    watcher, cbp = attach(watched, case, replacement_rate=0.0)
    train(plain, stepper, case, range(8))
    train(watched, watcher, case, range(8))
    for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert all((age > 0).all() for age in cbp.ages().values())


@EVERY
def test_replacing_units_of_every_group_keeps_the_network_finite_and_resumes_exactly(case):
    straight = build(case)
    optimizer, cbp = attach(straight, case)
    train(straight, optimizer, case, range(20))
    held = copy.deepcopy((straight.state_dict(), optimizer.state_dict(), cbp.state_dict()))
    before = replaced(cbp)
    train(straight, optimizer, case, range(20, 80))
    assert all(count - before[name] >= 20 for name, count in replaced(cbp).items())
    assert all(parameter.isfinite().all() for parameter in straight.parameters())
    resumed = build(case)
    again, again_cbp = attach(resumed, case)
    for each, state in zip((resumed, again, again_cbp), held, strict=True):
        each.load_state_dict(state)
    train(resumed, again, case, range(20, 80))
    for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert run(straight, case, 0).isfinite()
