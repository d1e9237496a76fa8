"""The tables of docs/ppo.md say what the code does."""

import re
from ast import literal_eval
from dataclasses import fields
from pathlib import Path

import pytest

from pliant.rl.ppo import PRESETS, Settings, preset
from pliant.rl.ppo.settings import ELSEWHERE

PAGE = (Path(__file__).parents[3] / "docs" / "ppo.md").read_text()
ROWS = {cells[0]: cells[1:] for cells in re.findall(r"^\| `(\w+)`" + r" \|(.*?)" * 5 + r" ?\|$", PAGE, flags=re.M)}
NAMES = [field.name for field in fields(Settings)]


def test_every_setting_has_its_row():
    assert list(ROWS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_the_values_of_the_article_and_of_modern(name: str):
    _, article, modern, *_ = map(str.strip, ROWS[name])
    assert literal_eval(article) == getattr(PRESETS["ppo"], name)
    told = literal_eval(modern) if modern else getattr(PRESETS["ppo"], name)
    assert told == getattr(PRESETS["modern"], name)


@pytest.mark.parametrize("name", NAMES)
def test_what_others_call_a_setting_leads_to_it(name: str):
    for other in re.findall(r"`(\w+)`", "".join(ROWS[name][3:])):
        with pytest.raises(ValueError, match=f"setting '{other}' is called {name} here"):
            preset("ppo", **{other: 1})


def test_every_name_from_elsewhere_leads_to_a_setting_of_another_name():
    assert set(ELSEWHERE.values()) <= set(NAMES)
    assert not ELSEWHERE.keys() & set(NAMES)


def test_the_table_of_presets_has_their_betas_and_weight_decay():
    told = re.findall(r"^\| `([\w-]+)` \| ([\d.]+), ([\d.]+) \| (\S+) \|", PAGE, flags=re.M)
    assert {name: ((float(b1), float(b2)), float(l2)) for name, b1, b2, l2 in told} == {
        name: (each.betas, each.weight_decay) for name, each in PRESETS.items()
    }
