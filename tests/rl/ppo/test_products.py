from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pliant.rl.ppo import products
from pliant.rl.ppo.products import affine


def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rectified: bool) -> torch.Tensor:
    y = torch.stack([torch.nn.functional.linear(*each) for each in zip(x, weight, bias, strict=True)])
    return y.relu() if rectified else y


def counted(function: Any, ran: list[int]) -> Any:
    def call(*arguments: Any) -> Any:
        ran.append(1)
        return function(*arguments)

    return call


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("shape", [(3, 16, 5, 7), (2, 128, 111, 256), (1, 128, 256, 256)], ids=str)
@pytest.mark.parametrize("one_dnn", [True, False], ids=["one_dnn", "batched"])
def test_products_and_their_gradients_are_those_of_torchs_linear(
    shape: tuple[int, ...], rectified: bool, one_dnn: bool, monkeypatch: pytest.MonkeyPatch
):
    agents, n, inputs, outputs = shape
    ran: list[int] = []
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", one_dnn)  # flags(enabled=...) warns of TF32
    if products._ONE_DNN is not None:
        monkeypatch.setattr(products, "_ONE_DNN", counted(products._ONE_DNN, ran))
    draws = torch.Generator().manual_seed(0)
    x, weight, bias, pull = (
        torch.randn(size, generator=draws)
        for size in ((agents, n, inputs), (agents, outputs, inputs), (agents, outputs), (agents, n, outputs))
    )
    weight *= inputs**-0.5
    found = []
    for function in (lambda *a: affine(*a, rectified=rectified), lambda *a: plain(*a, rectified)):
        leaves = [each.clone().requires_grad_() for each in (x, weight, bias)]
        y = function(*leaves)
        (y * pull).sum().backward()
        assert all(leaf.grad.is_contiguous() for leaf in leaves)
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    fast = one_dnn and n >= 128 and products._ONE_DNN is not None
    assert len(ran) == (3 * agents if fast else 0)  # forward, and two gradients, one call for each agent
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(products._ONE_DNN is None, reason="this PyTorch has no oneDNN operator for products")
@pytest.mark.parametrize(
    ("examples", "dtype", "fast"), [(128, torch.float32, True), (128, torch.float64, False), (1, torch.float32, False)]
)
def test_large_products_in_float32_take_the_fast_way(
    examples: int, dtype: torch.dtype, fast: bool, monkeypatch: pytest.MonkeyPatch
):
    ran: list[int] = []
    monkeypatch.setattr(products, "_ONE_DNN", counted(products._ONE_DNN, ran))
    affine(*(torch.zeros(2, *shape, dtype=dtype) for shape in ((examples, 256), (256, 256), (256,))))
    assert len(ran) == (2 if fast else 0)  # one for each of two agents


def test_what_is_not_finite_stays_so():
    x = torch.full((1, 128, 256), torch.nan)
    y = affine(x, torch.ones(1, 256, 256), torch.zeros(1, 256))
    assert y.isnan().all()
