"""Continual backpropagation has one list of parameters, by one name each, wherever they can be given."""

import inspect
from dataclasses import fields

import pytest

from pliant import ContinualBackprop, RandomReplacement
from pliant.engine.optimizer_state import OptimizerState
from pliant.engine.planning import Where
from pliant.engine.redraw import Redraw
from pliant.engine.score import RunningUtility
from pliant.engine.select import ReplacementRate
from pliant.methods.continual_backprop import Parameters
from pliant.online import OnlineEnsemble
from pliant.rl.ppo import Settings

OWN = {
    name: each.default
    for name, each in inspect.signature(ContinualBackprop).parameters.items()
    if each.kind is each.KEYWORD_ONLY
}


def taken(function):
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}


def test_what_is_passed_on_is_the_list_of_the_method():
    assert set(Parameters.__annotations__) == set(OWN)


def test_each_part_takes_its_parameters_by_the_same_name_and_with_the_same_default():
    parts = {**taken(RunningUtility), **taken(ReplacementRate), **taken(Redraw)}
    assert {name: parts[name] for name in OWN if name in parts} == {
        name: default for name, default in OWN.items() if name != "optimizer_state"
    }
    assert taken(OptimizerState)["policy"] == OWN["optimizer_state"]


def test_its_control_has_the_same_parameters_and_defaults_but_for_the_choice():
    own = taken(RandomReplacement)
    assert {name: own[name] for name in OWN if name in own} == {
        name: default for name, default in OWN.items() if name not in ("utility", "eligible")
    }


def test_agents_and_online_learners_know_no_other_names():
    elsewhere = {"eligible", "observe_every"}  # ours alone
    assert {field.name for field in fields(Settings)} >= {*OWN} - elsewhere - {
        "candidates"
    }  # agents are a stack of runs
    assert {*taken(OnlineEnsemble)} >= {*OWN} - elsewhere - {"optimizer_state"}


def test_the_callback_of_stable_baselines_passes_on_the_same_list():
    pytest.importorskip("stable_baselines3")
    from pliant.integrations.sb3.continual_backprop import Settings as Passed

    assert set(Passed.__annotations__) <= {*OWN, *Where.__annotations__}
    assert {*OWN} <= set(Passed.__annotations__)
