"""One compiled call for small networks, beside the plain code, which is the oracle."""

import logging
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import ContinualBackprop, ReDo, chain_groups
from pliant.engine import compiled
from pliant.engine.optimizer_state.young.compiled import MovesInOneCall

OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1),
    "Adam with weight decay": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, weight_decay=0.1),
    "AMSGrad": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, amsgrad=True),
}


@pytest.fixture
def calls(monkeypatch):
    """How often each compiled call was made."""
    made = {"update": 0, "move": 0, "rows": 0}

    def count(name, owner, method):
        plain = getattr(owner, method)

        def call(*args):
            made[name] += bool(could := plain(*args))
            return could

        monkeypatch.setattr(owner, method, call)

    for name, owner, method in (
        ("update", compiled.InOneCall, "update"),
        ("move", MovesInOneCall, "move"),
        ("rows", compiled.RowSums, "__call__"),
    ):
        count(name, owner, method)
    return made


class Training:
    """A network of 20-40-30-5 and everything that was replaced in it."""

    def __init__(self, monkeypatch, *, numba, optimizer="SGD", activation=nn.ReLU, dtype=torch.float32, **settings):
        monkeypatch.setenv("PLIANT_NO_NUMBA", "" if numba else "1")
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(20, 40), activation(), nn.Linear(40, 30), activation(), nn.Linear(30, 5)
        ).to(dtype)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.replaced = []
        settings = {"replacement_rate": 1e-2, "maturity_threshold": 20, "groups": chain_groups(self.model), **settings}
        self.cbp = ContinualBackprop(
            self.model,
            self.optimizer,
            on_replace=lambda each: self.replaced.append((each.group, each.step, each.units.tolist())),
            seed=0,
            **settings,
        )
        self.stream = torch.Generator().manual_seed(1)
        self.dtype = dtype

    def forward(self, examples):
        x = torch.randn(examples, 20, generator=self.stream).to(self.dtype)
        y = torch.randint(0, 5, (examples,), generator=self.stream)
        nn.functional.cross_entropy(self.model(x), y).backward()

    def train(self, steps=300, forwards=(16,)):
        """`forwards`: the examples of each before a step."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            for examples in forwards:
                self.forward(examples)
            self.optimizer.step()
        return self

    def weights(self):
        return [each.detach().clone() for each in self.model.parameters()]


def assert_alike(one, other):
    assert all(group["replaced"][0] >= 20 for group in one.cbp.stats().values())
    assert one.replaced == other.replaced  # the same units in the same steps
    assert_close(one.weights(), other.weights(), rtol=0, atol=1e-6)
    for name, values in one.cbp.utilities().items():
        assert_close(values, other.cbp.utilities()[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_one_call_a_network_trains_as_by_the_plain_code(monkeypatch, calls, optimizer, activation):
    alike = partial(Training, monkeypatch, optimizer=optimizer, activation=activation)
    fast = alike(numba=True).train()
    assert calls["update"] == 300
    assert calls["rows"] == 600
    # all steps since the first replacement; of the others, what they average is not the gradient alone or its maximum is kept
    assert (calls["move"] > 250) if optimizer in ("Adam", "AdamW") else not calls["move"]
    made = dict(calls)
    plain = alike(numba=False).train()
    assert calls == made
    assert_alike(fast, plain)


def test_every_third_step_is_taken_in_by_one_call_as_by_the_plain_code(monkeypatch, calls):
    alike = partial(Training, monkeypatch, optimizer="Adam", observe_every=3)
    fast = alike(numba=True).train()
    assert calls["update"] == 100
    assert calls["rows"] == 200
    assert_alike(fast, alike(numba=False).train())


def test_one_step_moves_the_averages_as_the_formula_says(monkeypatch, calls):
    monkeypatch.setenv("PLIANT_NO_NUMBA", "")
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-2.0]]))
        model[2].weight.copy_(torch.tensor([[0.5, -1.0], [-1.5, 3.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(
        model, optimizer, groups=chain_groups(model), decay_rate=0.0, maturity_threshold=10, optimizer_state="keep"
    )
    model(torch.tensor([[0.5], [-1.5]])).sum().backward()
    optimizer.step()
    assert calls["update"] == 1
    h = torch.tensor([[0.5, -1.0], [-1.5, 3.0]]).tanh()  # two examples, two units
    expected = torch.tensor([1.0, 2.0]) * (h[0].abs() + h[1].abs()) / 2  # mean |w_out| x mean |h|
    assert_close(cbp.utilities()["0"], expected.view(1, 2))
    assert_close(cbp.score.mean(cbp.groups[0]), ((h[0] + h[1]) / 2).view(1, 2, 1))


def test_several_forwards_of_a_step_count_together(monkeypatch, calls):
    fast = Training(monkeypatch, numba=True).train(200, forwards=(16, 1, 9))
    assert calls["update"] == 200
    assert_alike(fast, Training(monkeypatch, numba=False).train(200, forwards=(16, 1, 9)))


def _lay_across(training):
    weight = training.model[2].weight
    weight.data = weight.data.t().contiguous().t()


def _elsewhere(training):
    for each in training.model.parameters():
        each.data = each.data.clone()


def _moments_elsewhere(training):
    training.optimizer.load_state_dict(training.optimizer.state_dict())


def _freeze(training):
    training.model[0].requires_grad_(False)


@pytest.mark.parametrize("change", [_lay_across, _elsewhere, _moments_elsewhere, _freeze])
def test_what_changes_in_training_is_followed(monkeypatch, calls, change):
    runs = []
    for numba in (True, False):
        training = Training(monkeypatch, numba=numba, optimizer="Adam").train(150)
        change(training)
        runs.append(training.train(100))
    assert calls["update"] == (250 if change in (_elsewhere, _moments_elsewhere) else 150)
    assert_alike(*runs)


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": torch.float64},
        {"utility": "adaptable_contribution"},
        {"attach": False},
    ],
)
def test_anything_else_takes_the_plain_code(monkeypatch, calls, settings):
    runs = []
    for numba in (True, False):
        training = Training(monkeypatch, numba=numba, **settings)
        if "attach" in settings:  # the clock is the caller's word, which is as good
            training.optimizer.register_step_post_hook(lambda *_, cbp=training.cbp: cbp.step())
        runs.append(training.train())
    assert bool(calls["update"]) == ("attach" in settings)
    assert_alike(*runs)


def test_a_large_batch_is_summed_by_the_plain_code(monkeypatch, calls):
    monkeypatch.setattr(compiled, "LARGEST", 40 * 30)  # the matrix between the layers
    fast = Training(monkeypatch, numba=True).train(200, forwards=(16, 31))
    assert calls["rows"] == 200 * 3  # 31 examples of 40 units are too many
    assert_alike(fast, Training(monkeypatch, numba=False).train(200, forwards=(16, 31)))


def test_a_state_goes_on_with_and_without_numba(monkeypatch, calls):
    straight = Training(monkeypatch, numba=True, optimizer="Adam").train(300)
    first = Training(monkeypatch, numba=True, optimizer="Adam").train(150)
    then = Training(monkeypatch, numba=False, optimizer="Adam")
    for part in ("model", "optimizer", "cbp"):
        getattr(then, part).load_state_dict(getattr(first, part).state_dict())
    then.stream.set_state(first.stream.get_state())
    then.replaced = first.replaced
    assert_alike(then.train(150), straight)


def test_a_broken_unit_is_chosen_by_both(monkeypatch):
    """NaN counts as least useful: its activity must not come out of the sums as a number."""
    runs = []
    for numba in (True, False):
        training = Training(monkeypatch, numba=numba, optimizer="Adam", activation=nn.Tanh).train(100)
        with torch.no_grad():
            training.model[0].weight[7] = torch.nan
        before = len(training.replaced)
        training.optimizer.zero_grad()
        for _ in range(40):
            training.model(torch.zeros(4, 20))  # recorded; without gradients no weight is stepped
            training.optimizer.step()
        runs.append([units for group, _, units in training.replaced[before:] if group == "0"])
    assert [7] in runs[0]
    assert runs[0] == runs[1]


# -- when Numba is loaded -------------------------------------------------------------------------------------------------

MODEL = (
    "import sys, torch, pliant; from torch import nn; x = torch.zeros(2, 4);"
    "m = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)); o = torch.optim.SGD(m.parameters(), lr=0.1);"
)
FREE = "groups=pliant.chain_groups(m))"


@pytest.mark.parametrize(
    ("code", "environment", "loaded"),
    [
        (f"pliant.ContinualBackprop(m, o, {FREE}", {}, True),
        (f"pliant.ContinualBackprop(m, o, {FREE}", {"PLIANT_NO_NUMBA": "1"}, False),
        (f"m.double(); pliant.ContinualBackprop(m, o, {FREE}", {}, False),
        (f"pliant.ReDo(m, o, tau=0.1, period=10, {FREE}", {}, False),
        ("pliant.diagnose(m, x)", {}, False),
    ],
)
def test_numba_is_loaded_where_a_small_network_gets_the_method_and_never_before(monkeypatch, code, environment, loaded):
    monkeypatch.delenv("PLIANT_NO_NUMBA", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    script = f"{MODEL} assert 'numba' not in sys.modules; {code}; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(loaded)]


def test_a_numba_that_cannot_be_loaded_leaves_the_plain_code_and_one_warning(monkeypatch, calls, caplog):
    def broken(name):
        raise AttributeError("module 'coverage' has no attribute 'types'")

    monkeypatch.setattr(compiled, "import_module", broken)
    compiled._loaded.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="pliant"):
            Training(monkeypatch, numba=True).train(20)
            Training(monkeypatch, numba=True, optimizer="Adam").train(20)
    finally:
        monkeypatch.undo()
        compiled._loaded.cache_clear()
    assert calls == {"update": 0, "move": 0, "rows": 0}
    [record] = caplog.records
    assert "cannot be used (AttributeError: module 'coverage' has no attribute 'types')" in record.message


def test_without_numba_nothing_is_said(monkeypatch, calls, caplog):
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    compiled._loaded.cache_clear()
    try:
        Training(monkeypatch, numba=True).train(20)
    finally:
        monkeypatch.undo()
        compiled._loaded.cache_clear()
    assert calls["update"] == 0
    assert not caplog.records


def test_redo_reads_and_scores_by_the_plain_code(monkeypatch, calls):
    monkeypatch.setenv("PLIANT_NO_NUMBA", "")
    training = Training(monkeypatch, numba=True, attach=False)
    redo = ReDo(training.model, training.optimizer, tau=0.1, period=10, groups=chain_groups(training.model))
    training.train(20)
    assert redo._in_one_call == dict.fromkeys(redo.all_statistics)
