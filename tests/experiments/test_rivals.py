"""Rivals: shipped methods with a config of their own, which run where they are asked for, and change no other run."""

import json

import numpy as np
import pytest
import torch

from pliant import TRAC, UPGD
from pliant.engine.after_step import AfterStep
from pliant.experiments import TABLE
from pliant.experiments.methods import METHODS
from pliant.lab import Context, LabError
from pliant.lab.stored.checkpoint import from_bytes, to_bytes
from pliant.lab.study.settings import selected
from pliant.lab.study.target import load, target
from tests.experiments.cut import CUT, LIKE

OF_CBP = ("replacement_rate", "maturity_threshold")
SLOWER = {  # of compiled learners, which are steps of PyTorch here; and of the small network, which jumps at its own step size
    "continual-imagenet": {"step_size": 0.001},
    "slowly-changing-regression": {"steps": 4_000, "bin": 1_000, "period": 500},
    "permuted-mnist": {"tasks": 2, "period": 100},
    "label-permutation": {"tasks": 2, "period": 100},
    "random-labels": {"tasks": 2, "epochs": 10},
}
OFTEN = {  # settings under which a rival acts within seconds
    "random": {"replacement_rate": 0.2, "maturity_threshold": 2},
    "grama": {"tau": 0.9, "reset_period": 5},
    "snr": {"rejection": 0.5, "shortest": 1, "longest": 20},
    "ccbp": {"reset_period": 5},
    "cpr": {"reset_period": 5},
    "swr": {"reset_period": 5, "tau": 0.3},
    "hare": {"hare_period": 7, "average_decay_rate": 0.5},
    "spectral": {"strength": 1e-2},
    "parseval": {"strength": 1e-3},
    "clipping": {"kappa": 0.5},
    "upgd": {"sigma": 0.1},
}
OFFERED = [(name, rival) for name in TABLE for rival in load(target(TABLE[name].target)).rivals]


def experiment(name):
    return load(target(TABLE[name].target))


def settings(name):
    """What cuts the experiment short, without what is continual backprop's own."""
    of = name if name in CUT else LIKE.get(name, "slippery-ant")
    cut = {**CUT[of], **SLOWER.get(of, {})}
    if of == "slippery-ant" != name:
        cut.pop("friction_period")
    lists = {field: json.loads(value) for field, value in cut.items() if str(value).startswith("[")}
    return {field: value for field, value in {**cut, **lists}.items() if field not in OF_CBP}


def config(name, method, **own):
    asked = experiment(name)
    (first, *_) = asked.runs_of("quick", method)
    return type(first)(**{**first.model_dump(), **settings(name), **own})


def learned(name, of, data, state=None, advances=3):
    """A state some advances on, and the rows until then."""
    at = experiment(name).start([of], Context(data=data))
    if state is not None:
        at.load_state_dict(from_bytes(state))
    rows = []
    for _ in range(advances):
        if at.statuses()[0].word == "running":
            rows.append({column: np.asarray(values) for column, values in experiment(name).advance(at).items()})
    return at, {column: np.concatenate([each[column] for each in rows]) for column in rows[0]}


BY_DEFAULT = {  # each rival once, and a reset of units on a network of each kind
    "switching-markov-chain": experiment("switching-markov-chain").rivals,
    "class-incremental-cifar-100": ("parseval", "fire"),
    "warm-starting": ("hare",),
    "continual-imagenet": ("grama",),
    "permuted-mnist": ("snr", "l2init"),
}
CELLS = [
    pytest.param(name, rival, marks=() if rival in BY_DEFAULT.get(name, ()) else pytest.mark.slow)
    for name, rival in OFFERED
]


@pytest.mark.parametrize(("name", "rival"), CELLS)
def test_a_rival_learns_acts_and_goes_on_from_a_state(name, rival, data):
    of = config(name, rival, **OFTEN.get(rival, {}))
    straight, rows = learned(name, of, data, advances=4)
    half, first = learned(name, of, data, advances=1)
    _, second = learned(name, of, data, to_bytes(half.state_dict()), advances=3)
    for column in rows:
        joined = np.concatenate([first[column], second[column]])
        assert np.array_equal(rows[column], joined, equal_nan=True), column
    assert straight.statuses()[0].word in ("running", "done")
    if rival in ("random", "grama") or (rival, name) == ("snr", "continual-imagenet"):
        assert replaced(straight) > 0


def replaced(state):
    method = getattr(state, "method", None) or getattr(getattr(state, "learner", None), "method", None)
    if method is None:
        return 1  # an agent's: its column counts
    return sum(sum(group["replaced"]) for group in method.stats().values())


def test_every_rival_is_offered_and_every_kind_of_network_has_some():
    assert {rival for rivals in BY_DEFAULT.values() for rival in rivals} == {rival for _, rival in OFFERED}
    assert {rival for _, rival in OFFERED} == {name for name, row in METHODS.items() if row.is_own}
    assert {name for name, _ in OFFERED} == {*TABLE}


@pytest.mark.parametrize("name", TABLE)
def test_no_field_of_a_rival_is_a_column(name):
    asked = experiment(name)
    fields = {field for rival in asked.rivals for field in METHODS[rival].fields.model_fields}
    assert not fields & {*asked.columns}


@pytest.mark.parametrize("name", TABLE)
def test_shipped_runs_are_as_they_are_and_a_rival_runs_where_it_is_named(name):
    asked = experiment(name)
    for profile in asked.profiles:
        assert not {run.method for run in asked.runs(profile)} & {*asked.rivals}
    shipped = selected(asked, "quick", methods=asked.plain)
    both = selected(asked, "quick", methods=f"{asked.plain},{asked.rivals[0]}")
    assert both[: len(shipped)] == shipped
    assert [type(run)(**run.model_dump()) for run in both] == both
    assert [run.method for run in both[len(shipped) :]] == [asked.rivals[0]] * len(shipped)
    assert not {*METHODS["snr"].fields.model_fields} & {*asked.Config.model_fields}


def test_its_fields_are_set_and_are_no_one_else_s():
    asked = experiment("switching-markov-chain")
    runs = selected(asked, "quick", methods="grama", overrides=["tau=0.1,0.2"])
    assert {run.tau for run in runs} == {0.1, 0.2}
    assert {run.replacement_rate for run in selected(asked, "quick", methods="random")} == {1e-4}
    with pytest.raises(LabError, match="sigma is for method upgd: add --methods upgd"):
        selected(asked, "quick", methods="grama", overrides=["sigma=0.1"])
    with pytest.raises(LabError, match="replacement_rate is for method cbp, not grama"):
        selected(asked, "quick", methods="grama", overrides=["replacement_rate=0.1"])
    agents = experiment("rewired-cart-pole")
    assert {run.tau for run in selected(agents, "quick", methods="grama")} == {0.01}
    with pytest.raises(LabError, match="has no runs of method 'l2'"):
        selected(asked, "quick", methods="l2")


@pytest.mark.slow
def test_a_study_of_a_rival_runs_resumes_and_is_reported(tmp_path, pliant):
    study, short = tmp_path / "study", [("--set", each) for each in ("steps=300", "period=100", "reset_period=20")]
    status, said, errors = pliant(
        "run", "switching-markov-chain", "--methods", "bp,grama", "--seeds", "0", *sum(short, ()), "--out", study
    )
    assert (status, "2 of 2 finished" in said) == (0, True), errors
    for file in (study / "jobs").iterdir():
        file.unlink()
    assert pliant("resume", study)[0] == 0
    assert "grama  1, few" in pliant("report", study, "--parts", "1")[1]
    assert "fields of method grama" in pliant("list", "switching-markov-chain")[1]


# -- optimizers and events ------------------------------------------------------------------------------------------------


def test_a_rival_that_is_the_optimizer_takes_the_place_of_the_plain_one(data):
    of = config("class-incremental-cifar-100", "upgd", sigma=0.5, step_size=0.03, weight_decay=1e-3)
    upgd = learned("class-incremental-cifar-100", of, data, advances=1)[0].learner.optimizer
    assert isinstance(upgd, UPGD)
    group = upgd.param_groups[0]
    assert (group["sigma"], group["weight_decay"], group["seed"]) == (0.5, 1e-3, of.seed)
    trac = learned("switching-markov-chain", config("switching-markov-chain", "trac"), data, advances=1)[0].optimizer
    assert isinstance(trac, TRAC)
    assert isinstance(trac.base_optimizer, torch.optim.Adam)


@pytest.mark.parametrize("name", ["class-incremental-cifar-100", "warm-starting"])
def test_fire_acts_as_data_change_and_at_no_other_time(name, data):
    of = config(name, "fire")
    at = experiment(name).start([of], Context(data=data))
    fire = (at.learner if hasattr(at, "learner") else at).method
    assert isinstance(fire, AfterStep)
    changes = []
    while at.statuses()[0].word == "running":
        experiment(name).advance(at)
        changes.append((getattr(at, "task", None) or getattr(at, "stage", 0), fire.by_hand))
    events = {by_hand for _, by_hand in changes}
    assert events == {0, 1}
    assert fire.steps == [0]


def test_of_hare_and_tortoise_the_tortoise_is_evaluated(data):
    of = config("warm-starting", "hare", average_decay_rate=0.9)
    learner = learned("warm-starting", of, data, advances=1)[0].learner
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        learner.network.eval()
        hare = learner.network(x)
        tortoise = torch.func.functional_call(learner.network, learner.method.tortoise(), (x,))
        assert torch.equal(learner._logits(x, of.classes), tortoise[:, : of.classes])
        assert not torch.allclose(tortoise, hare)
        learner.network.train()
        assert not torch.equal(learner._logits(x, of.classes), tortoise[:, : of.classes])
