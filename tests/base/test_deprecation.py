"""Names of the version before still work, are the same things, and say what they are called now."""

import importlib
import subprocess
import sys

import pytest

import pliant
from pliant import units
from pliant.base.deprecation import MOVED


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
