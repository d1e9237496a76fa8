"""Every network of the zoo traced and verified. Its own environment: `tests/zoo/requirements.txt`; run with `pytest -m zoo`."""

from collections import Counter
from importlib.util import find_spec

import pytest

if any(
    find_spec(name) is None
    for name in ("transformers", "timm", "monai", "pytorchcv", "torch_geometric", "vit_pytorch", "snntorch")
):
    pytest.skip("these libraries have an environment of their own: tests/zoo/requirements.txt", allow_module_level=True)

from tests.zoo.models import zoo
from tests.zoo.more import SOURCES, more
from tests.zoo.report import measure

MODELS = [*zoo(), *more()]
pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("entry", MODELS, ids=[f"{entry.source}-{entry.name}" for entry in MODELS])
def test_every_network_is_covered_and_nothing_in_it_is_wrong(entry):
    row = measure(entry)
    assert row.wrong == ()
    assert row.groups >= entry.groups, str(row.plan)
    assert row.hidden is None or row.hidden >= 0.9, str(row.plan)


def test_the_zoo_has_the_families_it_promises():
    count = Counter(entry.source for entry in MODELS)
    assert count["transformers"] >= 15
    assert count["timm"] >= 20
    assert count["torch"] >= 3
    assert sum(count[source] for source in SOURCES) >= 50
    assert all(count[source] >= 3 for source in SOURCES)
