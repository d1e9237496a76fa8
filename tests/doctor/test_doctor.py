"""`pliant.examine` and `pliant doctor`: findings beside a fresh network, advice that was tried, one page."""

import copy
import json
import logging
import os
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import pliant
from pliant.cli import main
from pliant.doctor import first_setting
from pliant.doctor.findings import findings_of
from tests.patience import PATIENCE

QUICK = {"seeds": 3, "progress": False, "budget": 3600}


def network():
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def task(count=96):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def with_dead_units(model, layer=0, count=36):
    with torch.no_grad():
        model[layer].bias[:count] = -100.0
    return model


def findings(model, **given):
    model.eval()
    x, y = task(400)
    diagnosis = pliant.diagnose(model, x, y if "loss" in given else None, **given)
    return {(each.group, each.measure): each.says for each in findings_of(diagnosis)}


# -- findings ---------------------------------------------------------------------------------------------------------


def test_an_untrained_network_differs_from_a_fresh_one_in_nothing():
    torch.manual_seed(1)
    model = network()
    assert findings(model, loss=functional.cross_entropy, optimizer=adam(model.parameters())) == {}


def test_dead_units_are_named_by_layer_beside_the_fresh_network_s():
    torch.manual_seed(1)
    found = findings(with_dead_units(network(), layer=2))
    assert found["2", "dead"] == "36 of 40 units dead (fresh: 0)"
    assert ("0", "dead") not in found
    assert ("2", "dormant_by_firing") not in found  # the same units


def test_large_weights_wide_preactivations_and_steps_that_hardly_move_them():
    torch.manual_seed(1)
    model = network()
    with torch.no_grad():
        model[2].weight *= 100.0
    found = findings(model, loss=functional.cross_entropy, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))
    assert {("2", "weight_magnitude"), ("2", "preactivation_std"), ("2", "update_ratio")} <= found.keys()
    assert ("0", "weight_magnitude") not in found


def test_a_rank_that_collapsed_is_named():
    torch.manual_seed(1)
    model = network()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:1].expand(40, 6))
        model[0].bias.fill_(0.1)
    assert ("0", "effective_rank") in findings(model)


# -- the rule for a first setting -------------------------------------------------------------------------------------


def test_a_unit_is_replaced_ten_times_a_run_and_judged_by_a_thousand_examples():
    assert first_setting(width=100, batch_size=32, steps=50_000) == (2e-4, 100, 50.0, 50_000)
    assert first_setting(width=100, batch_size=1, steps=50_000).maturity_threshold == 1000
    assert first_setting(width=5, batch_size=1, steps=10**9).replacement_rate == 1e-4
    assert first_setting(width=5, batch_size=1, steps=100).replacement_rate == 1e-3


# -- the examination --------------------------------------------------------------------------------------------------


def test_dead_units_are_a_yes_and_continual_backprop_that_was_tried_comes_first():
    torch.manual_seed(1)
    model, (x, y) = with_dead_units(with_dead_units(network(), 0), 2), task()
    found = pliant.examine(model, x, y, optimizer=adam, **QUICK)
    assert found.verdict == "yes"
    first = found.advice[0]
    assert first.title == "continual backprop"
    assert first.tried.ratio < 0.9
    assert "replacement_rate=0.0001, maturity_threshold=100, init='reset')" in first.line
    said = str(found)
    assert said.startswith("Is it plasticity? yes.")
    assert "36 of 40 units dead (fresh: 0)" in said
    assert "Try first: continual backprop" in said
    assert "What this cannot know" in said


def test_every_line_to_paste_runs_in_a_training_that_has_gone_on_for_long_and_says_nothing(caplog):
    """Weights twice as large as they started, an Adam that has stepped, a schedule that has decayed."""
    torch.manual_seed(1)
    model, (x, y) = with_dead_units(with_dead_units(network(), 0), 2), task()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2.0
    optimizer.param_groups[0].update(lr=1e-5, initial_lr=0.01)
    for state in optimizer.state.values():
        state["exp_avg_sq"] += 1e6
        state["step"] += 100_000
    found = pliant.examine(model, x, y, optimizer=optimizer, **{**QUICK, "budget": 5400})
    lines = {each.title: each.line for each in found.advice if each.line}
    assert lines.keys() == {"reset optimizer", "step size", "continual backprop", "shrink"}
    with caplog.at_level(logging.WARNING, "pliant"):
        for line in lines.values():
            exec(line, {"pliant": pliant, "model": model, "optimizer": optimizer, "x": x})
    assert [record.getMessage() for record in caplog.records] == []


def test_a_network_that_starts_at_another_scale_is_told_to_say_so():
    def scaled():
        net = network()
        with torch.no_grad():
            net[2].weight *= 4.0
        return net

    torch.manual_seed(1)
    x, y = task()
    found = pliant.examine(with_dead_units(scaled()), x, y, optimizer=adam, fresh=scaled, **QUICK)
    first = next(each for each in found.advice if each.title == "continual backprop")
    assert "init=" not in first.line
    assert first.why.startswith("a fresh network does not start at the scale of its layers' resets: say with init=")


def test_a_decayed_step_size_and_a_stale_state_are_not_taken_for_plasticity():
    torch.manual_seed(1)
    model, (x, y) = network(), task()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.9999))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    functional.cross_entropy(model(x), y).backward()
    for _ in range(3):
        optimizer.step()
        schedule.step()
    for state in optimizer.state.values():
        state["exp_avg_sq"] += 1e4
        state["step"] += 100_000
    found = pliant.examine(model, x, y, optimizer=optimizer, seeds=3, budget=5400, progress=False, try_treatments=False)
    assert found.verdict != "yes"
    assert [each.title for each in found.advice][:2] == ["reset optimizer", "step size"]
    assert found.advice[0].line == "pliant.reset_optimizer(optimizer)"
    assert "from 0.01 to 1e-05" in found.advice[1].why


def test_labels_that_are_noise_are_pointed_out_as_data():
    torch.manual_seed(1)
    x, _ = task()
    noise = torch.randint(3, (96,), generator=torch.Generator().manual_seed(3))
    found = pliant.examine(
        network(), x, noise, optimizer=adam, try_treatments=False, seeds=3, budget=7200, progress=False
    )
    assert found.verdict != "yes"
    assert [each.title for each in found.advice] == ["data"]


def test_everything_is_afterwards_as_it_was():
    torch.manual_seed(1)
    model, (x, y) = network(), task()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict(), torch.get_rng_state()])
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    pliant.examine(model, x, y, optimizer=optimizer, **{**QUICK, "budget": 5400})
    after = [model.state_dict(), optimizer.state_dict(), torch.get_rng_state()]
    assert str(before) == str(after)
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values(), strict=True))
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks


def test_the_loader_is_read_once_and_fresh_networks_are_built_for_the_probe_alone():
    x, y = task()
    read, built = [], []

    class Counted(TensorDataset):
        def __getitem__(self, row):
            read.append(row)
            return super().__getitem__(row)

    def fresh():
        built.append(1)
        return network()

    loader = DataLoader(Counted(x, y), batch_size=16)
    pliant.examine(network(), loader, optimizer=adam, fresh=fresh, try_treatments=False, **QUICK)
    assert sorted(read) == list(range(96))
    assert len(built) <= 2 + 2 + 3  # two to see that they differ, for the diagnosis, and one per seed


def test_running_statistics_of_the_fresh_network_beside_it_are_those_of_the_examples():
    """A fresh norm that has seen nothing would leave small inputs as small as they are."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40, momentum=None), nn.ReLU(), nn.Linear(40, 3))
    x, y = task()
    x = 0.01 * x
    model(x)
    assert pliant.examine(model.eval(), x, y, optimizer=adam, try_treatments=False, **QUICK).findings == []


def test_a_network_without_hidden_units_is_probed_all_the_same():
    x, y = task()
    found = pliant.examine(nn.Sequential(nn.Linear(6, 3)), x, y, optimizer=adam, **QUICK)
    assert found.diagnosis is None
    assert found.notes[0].startswith("no layer was measured: ")
    assert found.verdict in ("no", "cannot tell")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": None}, "optimizer is None"),
        ({"steps_to_come": 0}, "steps_to_come must be 1 or more"),
        ({"try_treatments": "no"}, "try_treatments must be True or False"),
        ({"budget": 10}, "budget is too small to tell"),
        ({"y": 3}, "y must be a tensor, or hold tensors, got 3"),
    ],
)
def test_bad_input_is_one_sentence(given, message):
    x, y = task()
    with pytest.raises((TypeError, ValueError), match=message):
        pliant.examine(**{"model": network(), "x": x, "y": y, "optimizer": adam, **QUICK, **given})


def test_a_probe_that_the_budget_cut_short_is_told_from_a_task_that_cannot_be_learned():
    x, y = task()

    def slow(parameters):
        return torch.optim.SGD(parameters, lr=1e-6)

    short = pliant.examine(network(), x, y, optimizer=slow, try_treatments=False, **{**QUICK, "budget": 1600})
    assert (short.verdict, short.advice[0].title) == ("cannot tell", "a longer probe")
    assert "larger budget=" in short.advice[0].why
    whole = pliant.examine(
        network(), x, y, optimizer=slow, try_treatments=False, seeds=3, progress=False, budget=3 * 3 * 4 * 300
    )
    assert (whole.verdict, whole.advice[0].title) == ("cannot tell", "data")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], set(), []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href") and not value.startswith("#")]


def test_the_page_is_whole_and_asks_for_nothing_from_outside(tmp_path):
    x, y = task()
    found = pliant.examine(with_dead_units(network()), x, y, optimizer=adam, **QUICK)
    found.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert {"html", "svg", "table", "ol", "pre"} <= tags.seen
    assert tags.links == []
    assert "Is it plasticity?" in page
    assert json.loads(json.dumps(found.to_dict()))["verdict"] == found.verdict


# -- the command ------------------------------------------------------------------------------------------------------

MINE = """
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

def build():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 6, generator=generator)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 2))
    return model, functional.cross_entropy, DataLoader(TensorDataset(x, y), 32), torch.optim.Adam(model.parameters(), lr=0.01)

def pair():
    model, loss, loader, _ = build()
    return {"model": model, "loader": loader.dataset.tensors}

def nothing():
    return 3
"""


def doctor(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "pliant", "doctor", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model[0].bias[:38] = -100.0
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "trained.pt")
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pt")
    return tmp_path


def test_the_command_prints_the_page_and_writes_it(mine):
    said = doctor(mine, "trained.pt", "mine.py:build", "--budget", "5400", "--seeds", "3", "--html", "page.html")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("Is it plasticity? yes.")
    assert "38 of 40 units dead" in said.stdout
    assert " runs of " in said.stderr.splitlines()[0]  # the cost, before it starts
    assert "probe " in said.stderr.splitlines()[-1]
    assert "optimizer state of now" in (mine / "page.html").read_text()  # the checkpoint's
    said = doctor(mine, "trained.pt", "mine:pair", "--budget", "3600", "--seeds", "3")
    assert said.returncode == 0, said.stderr
    assert "no optimizer was given: probed with Adam, step size 0.001" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt", "mine.py:build"], "missing.pt"),
        (["other.pt", "mine.py:build"], "checkpoint"),
        (["trained.pt", "mine.py:biuld"], "did you mean 'build'"),
        (["trained.pt", "mine.py"], "which function or class in mine.py? Write mine.py:build or "),
        (["trained.pt", "no_such_module:build"], "no module"),
        (["trained.pt", "mine.py:nothing"], "the function gave 3"),
        (["trained.pt", "mine.py:build", "--budget", "10"], "budget is too small to tell"),
        (["trained.pt", "mine.py:build", "--budget", "soon"], "budget is a number of steps"),
    ],
)
def test_what_the_command_cannot_use_is_one_line(mine, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(mine)
    monkeypatch.syspath_prepend(mine)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in said
    assert said.count("\n") == 1
