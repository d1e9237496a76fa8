"""The pages of methods say what rows of promises, the table of costs and signatures say."""

import re
from ast import literal_eval
from collections import Counter
from dataclasses import replace
from inspect import signature

import pytest
import torch
from torch import nn

import pliant
from tests.methods.pages import DOCS, OVERVIEW, PAGES, cost, exceptions, kept, rows_of, written
from tests.methods.promises import METHODS, row_of

ARGUMENTS = re.compile(r"^\| of `(\w+)` \| default \| .*\n\|[-|]+\n((?:\|.*\n)+)", flags=re.M)
TABLES = [(page, *found) for page in PAGES for found in ARGUMENTS.findall(page.read_text())]
OF_THE_NETWORK = {"model", "optimizer", "head", "params", "base_optimizer", "units", "shape"}
TO_BE_GIVEN = "to be given"


@pytest.mark.parametrize("page", [OVERVIEW, *PAGES], ids=lambda page: page.stem)
def test_a_page_says_of_promises_and_cost_what_the_rows_say(page):
    assert page.read_text() == written(page), "run python -m tests.methods.pages"


def test_every_row_has_one_page():
    assert Counter(row.name for page in PAGES for row in rows_of(page)) == Counter(row.name for row in METHODS)


@pytest.mark.parametrize("section", ["# Methods", "## Which one", "## Cost", "## Promises"])
def test_the_overview_links_every_page_that_a_section_is_about(section):
    text = OVERVIEW.read_text().split(f"{section}\n")[1].split("\n## ")[0].split("```{toctree}")[0]
    linked = set(re.findall(r"^\| \[.+?\]\(methods/(.+?)\.md\)", text, flags=re.M))
    assert linked == {page.stem for page in PAGES if rows_of(page) or section != "## Promises"}


def test_the_site_has_every_page():
    listed = OVERVIEW.read_text().split("```{toctree}\n:hidden:\n")[1].split("```")[0].split()
    assert sorted(listed) == sorted(f"methods/{page.stem}" for page in (DOCS / "methods").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_source_when_traps_and_cost(page):
    text = page.read_text()
    patterns = (r"\bSources?[:,]", r"\*\*When to use it\.\*\*", r"\*\*Traps\.\*\*", r"#cost\)\.\*\* .+ keeps ")
    assert [pattern for pattern in patterns if not re.search(pattern, text)] == []


# -- arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "name", "rows"), TABLES, ids=[name for _, name, _ in TABLES])
def test_every_argument_of_a_method_is_on_its_page_with_its_default(page, name, rows):
    told = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", rows, flags=re.M))
    told = {
        each: default if default == TO_BE_GIVEN else literal_eval(default.strip("`")) for each, default in told.items()
    }
    parameters = signature(getattr(pliant, name, None) or getattr(pliant.nn, name)).parameters.values()
    expected = {
        each.name: TO_BE_GIVEN if each.default is each.empty else each.default
        for each in parameters
        if each.name not in OF_THE_NETWORK
        and each.kind is not each.VAR_KEYWORD
        and each.kind is not each.VAR_POSITIONAL
    }
    if "period" in told and "period" not in expected:
        expected["period"] = period_of(rows_of(page)[0])
    assert told == expected


def period_of(row):
    """What it is where none is given."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    settings = {name: each for name, each in row.settings.items() if name != "period"}
    return row.build(model, torch.optim.SGD(model.parameters()), torch.zeros(2, 6), **settings).period


# -- the words -----------------------------------------------------------------------------------------------------------


def test_exceptions_are_told_by_number_once_for_each_reason():
    row = replace(
        row_of("fire"),
        cannot={
            "it_resumes_to_the_bit": "a",
            "off_it_changes_nothing": "b (docs/any-network.md)",
            "it_repeats_with_its_seed": "a",
        },
    )
    assert exceptions(row) == "2, 4: a; 1: b ([any network](any-network.md))"
    assert exceptions(replace(row, cannot={})) == "none: all are kept"


def test_a_page_of_two_rows_says_of_which_a_promise_does_not_hold():
    told = kept(DOCS / "methods" / "l2.md").splitlines()
    assert told[0].endswith("All 22 are kept, but for:")
    assert told[2] == "* *another seed gives another network*: it draws nothing."
    assert told[3].startswith(
        "* *a state of other sizes is refused and changes nothing* (of l2): the state has no sizes"
    )


def test_cost_is_told_of_each_row_of_a_page():
    table = "## Cost\n\n| [A](methods/l2.md) | a copy | 7% |\n| [B](methods/l2.md) | nothing | |\n| [C](methods/aid.md) | x | |\n"
    told = "**[Cost](../methods.md#cost).** A keeps a copy, and makes a small step 7% longer. B keeps nothing."
    assert cost(DOCS / "methods" / "l2.md", table) == told
