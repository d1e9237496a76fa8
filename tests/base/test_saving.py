from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pliant.base.saving import all_or_nothing, count_in, entry, load_part, load_state, save_state


def through_a_file(state: Any, folder: Path) -> Any:
    save_state(state, folder / "state.pt")
    return load_state(folder / "state.pt")


ARRAYS: list[NDArray[Any]] = [
    np.arange(6.0).reshape(2, 3),
    np.arange(6.0).reshape(2, 3).T,
    np.array([2**64 - 1], np.uint64),
    np.array([True, False]),
    np.array(3.0),
    np.zeros((0, 3), np.float32),
    np.array([np.nan, -0.0, np.inf]),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{list(array.shape)}")
def test_an_array_comes_back_with_its_type_shape_order_and_bits(array: NDArray[Any], tmp_path: Path):
    found = through_a_file({"a": array}, tmp_path)["a"]
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape, found.strides) == (array.dtype, array.shape, array.strides)
    assert found.tobytes() == array.tobytes()
    found[...] = 0  # it can be written to


def test_tensors_numbers_strings_and_what_holds_them_come_back_as_they_were(tmp_path: Path):
    state = {"n": [1, 2.5, 2**64 - 1, True, None], "t": ("x", (3,), []), 0: {"empty": {}}, "number": np.float32(0.1)}
    found = through_a_file(OrderedDict(state), tmp_path)
    assert found == state
    assert [type(each) for each in (found, found["t"], found["number"])] == [dict, tuple, np.float32]
    weights = torch.nn.Parameter(torch.arange(6.0).view(2, 3).t())
    (tensor,) = through_a_file({"w": [weights]}, tmp_path)["w"]
    assert torch.equal(tensor, weights)
    assert tensor.stride() == (1, 3)
    assert not tensor.requires_grad


def test_views_that_tensors_cannot_be_are_saved_as_what_they_show(tmp_path: Path):
    found = through_a_file({"back": np.arange(3)[::-1], "wide": np.broadcast_to(np.ones(1), (3,))}, tmp_path)
    assert (found["back"].tolist(), found["wide"].tolist()) == ([2, 1, 0], [1, 1, 1])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": np.array(["x"])}}, r"state\['a'\]\['b'\] is an array of <U1, which cannot be saved"),
        ({"a": np.array([1], ">i8")}, r"state\['a'\] is an array of >i8"),
        ({"a": [0, print]}, r"state\['a'\]\[1\] is a builtin_function_or_method: a state holds tensors"),
        ({(1, 2): 3}, r"state has the key \(1, 2\)"),
    ],
)
def test_what_cannot_be_saved_is_named_and_leaves_the_old_file(state: Any, message: str, tmp_path: Path):
    save_state({"old": 1}, tmp_path / "state.pt")
    with pytest.raises(TypeError, match=message):
        save_state(state, tmp_path / "state.pt")
    assert load_state(tmp_path / "state.pt") == {"old": 1}
    assert len(list(tmp_path.iterdir())) == 1


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm"),)


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harmful()}, "state.pt")
    with pytest.raises(ValueError, match=r"state.pt is damaged, or no saved state: UnpicklingError"):
        load_state("state.pt")
    assert not Path("harm").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_damaged_file_is_named_and_an_absent_one_is_absent(share: float, tmp_path: Path):
    save_state({"a": np.arange(1000.0)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "part.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"part.pt is damaged, or no saved state"):
        load_state(tmp_path / "part.pt")
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "absent.pt")


class Counter:
    """Two entries; loads one before it looks at the other."""

    def __init__(self) -> None:
        self.steps, self.mean = 3, np.array([1.0, 2.0])

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "mean": self.mean}

    @all_or_nothing
    def load_state_dict(self, state: Any) -> None:
        self.steps = count_in(state, "steps", most=100)
        self.mean = entry(state, "mean", self.mean)


REFUSED: list[tuple[Any, str]] = [
    ([1], "a list is no state of Counter"),
    ({"mean": np.zeros(2)}, "this state lacks 'steps'"),
    ({"steps": 7}, "this state lacks 'mean'"),
    ({"steps": -7, "mean": np.zeros(2)}, "'steps' of this state is -7: it is a whole number from 0 to 100"),
    ({"steps": 101, "mean": np.zeros(2)}, "'steps' of this state is 101"),
    ({"steps": True, "mean": np.zeros(2)}, "'steps' of this state is True"),
    ({"steps": np.nan, "mean": np.zeros(2)}, "'steps' of this state is nan"),
    ({"steps": "x" * 9999, "mean": np.zeros(2)}, "'steps' of this state is 'xxx"),
    (
        {"steps": 7, "mean": np.zeros(3)},
        r"'mean' of this state is an array of float64, shape \(3,\), here it is .*\(2,\)",
    ),
    ({"steps": 7, "mean": np.zeros(2, np.float32)}, "'mean' of this state is an array of float32"),
    ({"steps": 7, "mean": None}, "'mean' of this state is nothing"),
]


@pytest.mark.parametrize(("state", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_is_refused_has_changed_nothing_and_is_said_in_a_sentence(state: Any, message: str):
    counter = Counter()
    with pytest.raises(ValueError, match=message) as refused:
        counter.load_state_dict(state)
    assert len(str(refused.value)) < 200
    assert (counter.steps, counter.mean.tolist()) == (3, [1.0, 2.0])
    counter.load_state_dict({"steps": 7, "mean": np.array([np.nan, 0.0])})  # a mean may be of numbers that diverged
    assert counter.steps == 7


def test_what_is_loaded_is_a_copy():
    counter, held = Counter(), np.zeros(2)
    counter.load_state_dict({"steps": 7, "mean": held})
    counter.mean += 1
    assert held.tolist() == [0.0, 0.0]


def test_a_part_is_loaded_if_it_is_that_of_the_state():
    network, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)
    with pytest.raises(ValueError, match=r"'weight' of this state is a tensor of float32, shape \(4, 2\), here it is"):
        load_part(network, {"network": other.state_dict()}, "network")
    with pytest.raises(ValueError, match="'network' of this state: it was saved with none, here there is one"):
        load_part(network, {"network": None}, "network")
    with pytest.raises(ValueError, match="this state lacks 'network'"):
        load_part(network, {}, "network")
    load_part(None, {"network": None}, "network")
    load_part(network, {"network": torch.nn.Linear(2, 3).state_dict()}, "network")
