"""Fresh units of other people's networks are of the size of those that these started with."""

import logging
import math
from importlib.util import find_spec

import pytest
import torch

if find_spec("transformers") is None or find_spec("timm") is None:
    pytest.skip(
        "transformers and timm have an environment of their own: tests/zoo/requirements.txt", allow_module_level=True
    )

import transformers

from pliant import ContinualBackprop
from tests.zoo.models import zoo
from tests.zoo.report import traced

MODELS = {f"{entry.source}-{entry.name}": entry for entry in zoo() if entry.source in ("transformers", "timm")}
pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("default")]

# N(0, 0.02); timm's vision transformer cuts it only at +-2, a hundred deviations out
NAMES = ["transformers-bert", "transformers-gpt2", "transformers-llama", "timm-vit_tiny_patch16_224"]


@pytest.mark.parametrize("name", NAMES)
def test_fresh_units_are_drawn_by_the_model_s_own_initializer_at_its_scale(name, caplog):
    model, x = MODELS[name].make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with caplog.at_level(logging.WARNING, logger="pliant"):
        cbp = ContinualBackprop(model, optimizer, example_inputs=x, replacement_rate=1.0, maturity_threshold=0)
    assert not caplog.records
    assert "_init_weights draws fresh units" in str(cbp.plan)
    assert all(row.fresh_std == pytest.approx(0.02, rel=0.1) for row in cbp.plan.rows)
    output = model(**x) if isinstance(x, dict) else model(x)
    (output if isinstance(output, torch.Tensor) else output.logits).square().sum().backward()
    optimizer.step()
    for group in cbp.groups:
        assert cbp.stats()[group.name]["replaced"] == [group.units]
        for part in group.incoming_weights():
            drawn = part.entries()
            live = drawn[drawn != 0]  # where two replaced units cross, the weight is 0
            assert live.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * live.numel()))
            assert live.pow(4).mean() / live.square().mean() ** 2 > 2.2  # 3 of normal numbers, 1.8 of uniform ones


def test_a_checkpoint_that_has_trained_is_drawn_by_its_modules_resets_and_one_warning_says_so(tmp_path, caplog):
    model, x = MODELS["transformers-bert"].make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        model(**x).logits.square().sum().backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="pliant"):
        cbp = ContinualBackprop(loaded, torch.optim.AdamW(loaded.parameters()), example_inputs=x)
    (record,) = [each for each in caplog.records if each.name == "pliant"]
    assert "say so with init=" in record.getMessage()
    assert cbp.plan.rows[0].fresh_std == pytest.approx(1 / math.sqrt(3 * 16))


def test_every_network_of_the_zoo_is_recognised_as_fresh_but_one():
    """Each as its library builds it. repvgg's batch norms start from N(0.1, 0.1), which looks like training."""
    looked_trained = {}
    for name, entry in MODELS.items():
        model, x = entry.make()
        plan = traced(model, x, entry)
        if plan is not None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            cbp = ContinualBackprop(model, optimizer, groups=plan, utility="weight")
            doubts = [note for note in cbp.plan.notes if "not known any more" in note]
            looked_trained |= {name: doubts[0]} if doubts else {}
            cbp.detach()
    assert [*looked_trained] == ["timm-repvgg_a0, residual"]
    assert "has a weight that is not 1" in looked_trained["timm-repvgg_a0, residual"]
