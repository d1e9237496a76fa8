"""The optimizers of timm. In the environment of `make integrations`."""

import copy

import pytest
import torch
from torch import nn

from tests.integrations import avalanche_of_today  # noqa: F401  (timm imports torchvision)

pytest.importorskip("timm", reason="timm is not installed: make integrations")

import timm.optim
from timm.optim import create_optimizer_v2

import pliant
from pliant.engine.optimizer_state.rules import rule_of

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

OURS = [
    "adabelief", "adamc", "adamp", "adamwlegacy", "adan", "adanw", "adopt", "cadamw", "clion", "kron", "lamb",
    "lambc", "laprop", "larc", "lars", "lion", "madgrad", "mars", "muon", "adamuon", "nadamlegacy", "nadamw",
    "novograd", "radabelief", "radamlegacy", "rmsproptf", "sgdp", "sgdw", "nesterovw",
]  # fmt: skip
OF_TORCH = [
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "momentum",
    "nadam",
    "nesterov",
    "radam",
    "radamw",
    "rmsprop",
    "sgd",
]
REFUSED = ["adafactor", "adafactorbv", "adahessian"]  # and those made of them; those for CUDA cannot be built here
X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


def made(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    optimizer = create_optimizer_v2(model, opt=name, lr=1e-3, weight_decay=0.01)
    often = {"replacement_rate": 0.05, "maturity_threshold": 3, "seed": 1}
    return model, optimizer, pliant.ContinualBackprop(model, optimizer, example_inputs=X, **often)


def step(model, optimizer):
    optimizer.zero_grad()
    (model(X) - X[:, :3]).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OURS + OF_TORCH)
def test_a_fresh_unit_has_no_average_of_gradients(name):
    model, optimizer, cbp = made(name)
    rule, fresh = rule_of(optimizer, ""), 0
    for _ in range(60):
        step(model, optimizer)
        for group, ages in cbp.ages().items():
            new = (ages[0] == 0).nonzero().flatten()
            weight = model[int(group)].weight
            held = optimizer.state[weight]
            assert all(not held[key][new].any() for key in rule.average if key in held)
            assert all(torch.equal(held[key][new], weight[new]) for key in rule.value if key in held)
            fresh += len(new)
    assert fresh >= 40
    assert min(sum(group["replaced"]) for group in cbp.stats().values()) >= 20
    assert all(torch.isfinite(each).all() for each in model.parameters())


@pytest.mark.parametrize("name", [name for name in OURS if name != "kron"])  # which does not go on exactly by itself
def test_going_on_from_saved_states_changes_nothing(name):
    model, optimizer, cbp = made(name)
    for _ in range(30):
        step(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), cbp.state_dict()))
    replaced = [sum(group["replaced"]) for group in cbp.stats().values()]
    again = made(name)
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    for _ in range(40):
        step(model, optimizer)
        step(*again[:2])
    now = [sum(group["replaced"]) for group in again[2].stats().values()]
    assert min(after - before for after, before in zip(now, replaced, strict=True)) >= 20
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again[0].parameters(), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_without_a_rule_is_refused_at_construction(name):
    with pytest.raises(ValueError, match="no rule to forget the state of Ada"):
        made(name)


def test_lookahead_is_refused_at_construction():
    with pytest.raises(ValueError, match="Lookahead"):
        made("lookahead_adam")


def test_every_optimizer_of_timm_is_known_or_refused():
    kinds = {timm.optim.get_optimizer_class(name, bind_defaults=False) for name in OURS + OF_TORCH + REFUSED}
    names = timm.optim.list_optimizers(exclude_filters=["fused*", "bnb*"])
    missing = [n for n in names if timm.optim.get_optimizer_class(n, bind_defaults=False) not in kinds]
    assert missing == []
