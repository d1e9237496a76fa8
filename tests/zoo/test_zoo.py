"""Every network of the zoo traced and verified. Its own environment: `tests/zoo/requirements.txt`; run with `pytest -m zoo`."""

from importlib.util import find_spec

import pytest

if find_spec("transformers") is None or find_spec("timm") is None:
    pytest.skip(
        "transformers and timm have an environment of their own: tests/zoo/requirements.txt", allow_module_level=True
    )

from tests.zoo.models import zoo
from tests.zoo.report import measure

MODELS = zoo()
pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("entry", MODELS, ids=[f"{entry.source}-{entry.name}" for entry in MODELS])
def test_every_network_is_covered_and_nothing_in_it_is_wrong(entry):
    row = measure(entry)
    assert row.wrong == ()
    assert row.groups >= entry.groups, str(row.plan)
    assert row.hidden is None or row.hidden >= 0.9, str(row.plan)


def test_the_zoo_has_the_families_it_promises():
    count = {source: sum(entry.source == source for entry in MODELS) for source in ("transformers", "timm", "torch")}
    assert count["transformers"] >= 15
    assert count["timm"] >= 20
    assert count["torch"] >= 3
