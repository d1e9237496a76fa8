"""Names of the version before still work, are the same things, and say what they are called now."""

import importlib
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import pliant
from pliant import diagnostics, units
from pliant.base.deprecation import MOVED
from pliant.data import known_sets
from pliant.rl.ppo import Settings, preset
from pliant.units.entries import SelectedUnits


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_module_that_moved_is_found_under_its_old_name(old, new):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(new)


def test_what_was_imported_from_old_modules_is_there():
    """In a process of its own, as a user's script: also modules below a folder that moved."""
    script = """
from pliant.redraw import Redraw
from pliant.optimizer_state import OptimizerState
from pliant.young_entries.ages import Ages
from pliant.units.map import Slice, Tap
import pliant.engine.redraw, pliant.engine.optimizer_state
assert Redraw is pliant.engine.redraw.Redraw
assert OptimizerState is pliant.engine.optimizer_state.OptimizerState
"""
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", script], check=True)


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"pliant\.unit_resets"):
        importlib.import_module("pliant.unit_resets")


@pytest.mark.parametrize("home", [pliant, units])
def test_a_renamed_class_is_found_under_its_old_name(home):
    with pytest.warns(DeprecationWarning, match=r"\.Own is now .*AffineEntry"):
        assert home.Own is units.AffineEntry
    with pytest.raises(AttributeError, match="has no attribute 'Owned'"):
        _ = home.Owned


def test_a_renamed_attribute_of_a_data_set_is_found_under_its_old_name():
    mnist = {known.name: known for known in known_sets()}["mnist"]
    with pytest.warns(DeprecationWarning, match=r"KnownSet\.licence is now KnownSet\.license"):
        assert mnist.licence == mnist.license
    with pytest.warns(DeprecationWarning, match=r"KnownSet\.pictures is now KnownSet\.images"):
        assert mnist.pictures == mnist.images


def test_a_renamed_measure_and_its_column_are_found_under_their_old_names():
    with pytest.warns(DeprecationWarning, match=r"\.linearised is now linearized"):
        assert diagnostics.linearised is diagnostics.linearized
    (row,) = pliant.diagnose(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.ones(4, 2)).rows
    with pytest.warns(DeprecationWarning, match=r"GroupDiagnosis\.linearised is now GroupDiagnosis\.linearized"):
        assert row.linearised == row.linearized


@pytest.mark.parametrize("made", [Settings, partial(preset, "ppo"), partial(replace, Settings())])
def test_renamed_settings_of_ppo_are_taken_and_read_under_their_old_names(made):
    with pytest.warns(DeprecationWarning, match=r"Settings\(normalise_advantages=\.\.\.\) is now normalize_advantages"):
        settings = made(normalise_advantages="minibatch")
    assert settings == made(normalize_advantages="minibatch")
    with pytest.warns(
        DeprecationWarning, match=r"Settings\.normalise_advantages is now Settings\.normalize_advantages"
    ):
        assert settings.normalise_advantages == "minibatch"


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("pliant.lab.study", "open_study", "pliant.lab.study.study.open_study"),
        ("pliant.lab.report", "status_lines", "pliant.lab.report.status.status_lines"),
        ("pliant.units.entries", "Chosen", "pliant.units.entries.SelectedUnits"),
        ("pliant.units.bound", "Names", "pliant.units.bound.NamedModel"),
        ("pliant.engine.statistics", "Panel", "pliant.engine.statistics.ActivityStatistics"),
        ("pliant.engine.replacement", "blend", "pliant.units.entries.blend"),
        ("pliant.engine.utility", "corrected", "pliant.engine.averaging.corrected"),
    ],
)
def test_what_left_a_module_is_found_where_it_was(module, old, new):
    home, _, name = new.rpartition(".")
    with pytest.warns(DeprecationWarning, match=old):
        found = getattr(importlib.import_module(module), old)
    assert found is getattr(importlib.import_module(home), name)


def test_a_selection_of_before_may_say_full():
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.warns(DeprecationWarning, match="all_at_full_strength"):
        chosen = SelectedUnits(one, one, torch.ones(1), [1], full=True)
    with pytest.warns(DeprecationWarning, match=r"SelectedUnits\.full is now"):
        assert chosen.full


def test_events_of_before_are_applied():
    model = torch.nn.Linear(3, 2)
    with pytest.warns(DeprecationWarning, match=r"ShrinkAndPerturb\.perturb is now ShrinkAndPerturb\.apply"):
        pliant.ShrinkAndPerturb(model, noise_std=0.0, shrink=0.0, period=None).perturb()
    assert not model.weight.any()
