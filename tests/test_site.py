"""The site of `make docs`: it builds without a warning, is complete, and needs nothing from elsewhere."""

import doctest
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).parent.parent
PUBLIC = (
    *(
        "pliant",
        "pliant.units",
        "pliant.methods",
        "pliant.optimizers",
        "pliant.diagnostics",
        "pliant.doctor",
        "pliant.conformance",
        "pliant.nn",
    ),
    *(
        "pliant.online",
        "pliant.lab",
        "pliant.data",
        "pliant.rl.environments",
        "pliant.rl.ppo",
        "pliant.integrations.sb3",
    ),
)


def public_names(module):
    names = getattr(module, "__all__", None) or [name for name in vars(module) if name[0].isupper()]
    return [(name, getattr(module, name)) for name in names]


def test_the_site_builds_without_a_warning_is_complete_and_needs_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", tmp_path / "trees"]
    built = subprocess.run([*command, ROOT / "docs", tmp_path / "site"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""

    inventory = InventoryFile.loads((tmp_path / "site" / "objects.inv").read_bytes(), uri="").data
    documented = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    public = [(f"{home}.{name}", found) for home in PUBLIC for name, found in public_names(import_module(home))]
    callbacks = {f"pliant.integrations.{name}.ContinualBackpropCallback" for name in ("lightning", "transformers")}
    assert callbacks | {"pliant.integrations.avalanche.ContinualBackpropPlugin"} <= documented
    objects = [found for name, found in public if name in documented]  # under whichever of their names
    assert [name for name, found in public if not any(found is each for each in objects)] == []

    pages = {str(page.relative_to(tmp_path / "site")): page.read_text() for page in (tmp_path / "site").rglob("*.html")}
    assert "U[i] &lt;- η U[i] + (1 - η) |h[i]| mean_k |V[k, i]|" in pages["api/methods.html"]  # as in the docstring
    assert 'href="../api/methods.html#pliant.ContinualBackprop"' in pages["methods/continual-backpropagation.html"]
    assert '<span class="title-on-a-phone">how it shows</span>' in pages["traps.html"]  # a table of sentences
    for page, text in pages.items():
        loaded = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"(https?:[^\"]*)\"", text)
        assert not loaded, page


@pytest.mark.parametrize("name", ["docstrings", "links"])
def test_the_examples_of_what_builds_the_site_are_right(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_site")
    failed, tried = doctest.testmod(import_module(name))
    assert tried
    assert not failed
