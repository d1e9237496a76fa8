"""Examples given one by one, as a dataset or a list, are the batch that they make; or one sentence says what to give."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import pliant

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(24, 6, generator=GENERATOR)
Y = torch.randint(3, (24,), generator=GENERATOR)
IDS = torch.randint(11, (24, 5), generator=GENERATOR)
QUICK = {"seeds": 3, "factors": (1.0,), "budget": 260, "tasks": "random", "progress": False}


class Rows:
    """Not a list, and none of torch's: `datasets.Dataset`."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


class Pairs(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, number):
        return X[number].numpy(), int(Y[number])


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


class Tokens(nn.Module):
    """As Hugging Face's: keywords, and a loss where there are labels."""

    def __init__(self):
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, input_ids, labels=None):
        logits = self.head(self.body(self.embedding(input_ids).mean(dim=1)).relu())
        return {"logits": logits, "loss": None if labels is None else functional.cross_entropy(logits, labels)}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def tokens():
    torch.manual_seed(0)
    return Tokens()


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


OF_PAIRS = {
    "pairs": [(x, y) for x, y in zip(X, Y, strict=True)],
    "pairs of arrays and numbers": [(x.numpy(), int(y)) for x, y in zip(X, Y, strict=True)],
    "lists": [[x, y] for x, y in zip(X, Y, strict=True)],
    "a TensorDataset": TensorDataset(X, Y),
    "a Subset": Subset(TensorDataset(X, Y), range(24)),
    "a dataset": Pairs(),
    "a stream": Stream(),
    "rows": Rows([(x, y) for x, y in zip(X, Y, strict=True)]),
}
OF_MAPPINGS = {
    "numbers": [{"input_ids": ids.tolist(), "labels": int(y)} for ids, y in zip(IDS, Y, strict=True)],
    "label, and more": [
        {"text": "x" * i, "input_ids": ids.tolist(), "label": int(y)}
        for i, (ids, y) in enumerate(zip(IDS, Y, strict=True))
    ],
    "tensors": [{"input_ids": ids, "labels": y} for ids, y in zip(IDS, Y, strict=True)],
    "arrays": [{"input_ids": ids.numpy(), "labels": np.int64(y)} for ids, y in zip(IDS, Y, strict=True)],
    "rows": Rows([{"input_ids": ids.tolist(), "label": int(y)} for ids, y in zip(IDS, Y, strict=True)]),
}


@pytest.mark.parametrize("name", OF_PAIRS)
def test_pairs_of_an_input_and_a_target_are_the_batch_that_they_make(name):
    expected = pliant.diagnose(network(), X, Y, loss=functional.cross_entropy).to_dict()
    assert pliant.diagnose(network(), OF_PAIRS[name], loss=functional.cross_entropy).to_dict() == expected


@pytest.mark.parametrize("name", OF_MAPPINGS)
def test_rows_of_keyword_arguments_are_the_batch_that_they_make(name):
    batch = {"input_ids": IDS, "labels": Y}
    expected = pliant.diagnose(tokens(), batch, loss=lambda output: output["loss"]).to_dict()
    assert pliant.diagnose(tokens(), OF_MAPPINGS[name], loss=lambda output: output["loss"]).to_dict() == expected


@pytest.mark.parametrize(
    ("make", "given", "batch"),
    [
        (network, OF_PAIRS["a dataset"], (X, Y)),
        (tokens, OF_MAPPINGS["label, and more"], ({"input_ids": IDS, "labels": Y},)),
    ],
    ids=["pairs", "mappings"],
)
def test_single_examples_are_probed_as_the_batch_that_they_make(make, given, batch):
    model = make()
    state = torch.get_rng_state()
    probe = pliant.probe_plasticity(model, given, optimizer=adam, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert probe.records() == pliant.probe_plasticity(model, *batch, optimizer=adam, **QUICK).records()


@pytest.mark.parametrize("y", [Y, Y.tolist(), list(Y)], ids=["a tensor", "numbers", "a list"])
def test_a_list_of_inputs_with_as_many_targets_is_one_batch(y):
    expected = pliant.diagnose(network(), X, Y, loss=functional.cross_entropy).to_dict()
    assert pliant.diagnose(network(), list(X), y, loss=functional.cross_entropy).to_dict() == expected


def test_a_dataset_is_examined_and_read_no_further_than_asked():
    assert pliant.diagnose(network(), TensorDataset(X, Y), examples=10).rows[0].n == 10
    found = pliant.examine(network(), Pairs(), optimizer=adam, seeds=3, budget=3600, progress=False)
    assert found.probe.examples == 24
    assert found.diagnosis.network.loss is not None


def test_lists_of_batches_stay_lists_of_batches():
    halves = [X[:12], X[12:]]
    assert pliant.diagnose(network(), halves).rows[0].n == 24
    assert pliant.diagnose(tokens(), [{"input_ids": IDS[:12]}, {"input_ids": IDS[12:]}]).rows[0].n == 24


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (network, [(X, Y), (X, Y)], r"x holds a tuple of 2, the arguments of a forward, which Sequential .* itself$"),
        (network, (X, Y), r"x is a tuple of 2, the arguments of the forward, .*\(model, x, y\)$"),
        (tokens, [{"input_ids": [1, 2], "label": 0}, {"input_ids": [1], "label": 1}], r"no batch \(.*collate_fn.* padding"),
        (network, [("a word", 1)], "^x holds single examples that make no batch"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("act", [pliant.diagnose, pliant.probe_plasticity, pliant.examine])
def test_what_makes_no_batch_is_one_sentence(act, make, given, message):
    options = {} if act is pliant.diagnose else {"optimizer": adam, "seeds": 3, "budget": 3600, "progress": False}
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        act(make(), given, **options)
    assert "\n" not in str(caught.value)


def test_targets_beside_a_dataset_are_refused():
    with pytest.raises(ValueError, match=r"^y is in the examples \(x, y\) of a dataset: leave it out$"):
        pliant.probe_plasticity(network(), TensorDataset(X, Y), Y, optimizer=adam, **QUICK)
