"""Online input normalization: the recursion by hand, the compiled learners' numbers, streams and batches."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import reset_network, trace
from pliant.nn import InputNorm
from pliant.online.standardize import Standardizer


def stream(n=400, features=3, seed=0):
    generator = np.random.default_rng(seed)
    return torch.tensor(generator.normal(3.0, 2.0, (n, features)) * [1.0, 100.0, 0.0] + [0.0, 5.0, 7.0])


def test_the_recursion_by_hand():
    """η = 1/2: a is 1, 1/2, 1/2.  μ 4, 6, 5;  v 0, (0 + 16/2)/2 = 4, (4 + 4/2)/2 = 3."""
    norm = InputNorm(1, decay=0.5, eps=1e-12).double()
    seen = [norm(tensor([x], dtype=torch.float64)).item() for x in (4.0, 8.0, 4.0)]
    assert_close(tensor(seen), tensor([0.0, 1.0, -1.0 / 3.0**0.5]))
    assert (norm.mean.item(), norm.var.item(), norm.count.item()) == pytest.approx((5.0, 3.0, 3))


def test_a_plain_mean_and_variance_come_first():
    norm, x = InputNorm(3, decay=0.99).double(), stream(100)
    norm(x)
    assert_close(norm.mean, x.mean(0))
    assert_close(norm.var, x.var(0, correction=0))


def test_decay_1_keeps_a_plain_mean_and_variance():
    norm, x = InputNorm(3, decay=1.0).double(), stream(400)
    for example in x:
        norm(example)
    assert_close(norm.mean, x.mean(0))
    assert_close(norm.var, x.var(0, correction=0))


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_a_stream_of_single_examples_equals_the_compiled_learners(decay):
    x = stream()
    standardizer = Standardizer(3, decay=decay)
    theirs = standardizer(x.numpy(), np.empty((400, 3)), keep=True)
    norm = InputNorm(3, decay, eps=1e-300).double()  # they add nothing, and have 0 where the variance is 0
    ours = torch.stack([norm(example) for example in x])
    assert_close(ours, torch.tensor(theirs), rtol=1e-12, atol=1e-12)
    assert_close(norm.mean, torch.tensor(standardizer.mean), rtol=1e-13, atol=0)
    assert_close(norm.var, torch.tensor(standardizer.variance), rtol=1e-12, atol=1e-20)


@pytest.mark.parametrize("size", [1, 7, 150])
def test_a_batch_leaves_the_statistics_of_its_examples_one_after_the_other(size):
    whole, single, x = InputNorm(3).double(), InputNorm(3).double(), stream()
    for some in x.split(size):
        y = whole(some)
        for example in some:
            last = single(example)
        assert_close(y[-1], last)
        assert_close(y, (some - whole.mean) / (whole.var + whole.eps).sqrt())
    for name, held in whole.state_dict().items():
        assert_close(held, single.state_dict()[name])
    assert whole.count == 400


def test_leading_axes_are_examples_in_order_and_an_image_has_a_feature_per_pixel():
    x = torch.randn(5, 4, 2, 3, 3, dtype=torch.float64)
    whole, flat = InputNorm((2, 3, 3)).double(), InputNorm(18).double()
    assert_close(whole(x).flatten(), flat(x.reshape(20, 18)).flatten())
    assert whole.count == 20


def test_evaluation_is_frozen_and_before_any_example_the_identity():
    norm = InputNorm(3).eval()
    x = torch.randn(4, 3)
    assert_close(norm(x), x)
    norm.train()(x)
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    assert_close(norm(x + 9.0), (x + 9.0 - norm.mean) / (norm.var + 1e-8).sqrt())
    assert all(torch.equal(before[name], held) for name, held in norm.state_dict().items())


@pytest.mark.parametrize("size", [1, 30])
def test_a_feature_that_never_changes_is_0_in_spite_of_rounding(size):
    norm = InputNorm(1)
    for some in torch.full((300, 1), 12345.678).split(size):
        assert not norm(some).any()


def test_an_empty_batch_changes_nothing():
    norm = InputNorm(3)
    assert norm(torch.ones(0, 3)).shape == (0, 3)
    assert norm.count == 0


def test_the_gradient_takes_the_statistics_as_constants():
    norm, x = InputNorm(3).double(), stream(20).requires_grad_()
    norm(x).sum().backward()
    assert_close(x.grad, (1.0 / (norm.var + norm.eps).sqrt()).expand(20, 3))


def test_statistics_of_half_precision_are_computed_in_single():
    half, single = InputNorm(3).bfloat16(), InputNorm(3)
    x = torch.randn(300, 3).bfloat16() * 3.0 + 1.0
    half(x)
    single(x.float())
    assert half.mean.dtype == torch.bfloat16
    assert_close(half.mean.float(), single.mean, rtol=2**-7, atol=0)
    assert_close(half.var.float(), single.var, rtol=2**-7, atol=0)


def test_stopping_and_resuming_changes_nothing():
    straight, first, x = InputNorm(3), InputNorm(3), stream().float()
    whole = [straight(some) for some in x.split(10)]
    for some in x[:200].split(10):
        first(some)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second = InputNorm(3)
    second.load_state_dict(torch.load(saved))
    resumed = [copy.deepcopy(second)(x[200:210]), *(second(some) for some in x[200:].split(10))][1:]
    assert torch.equal(torch.cat(resumed), torch.cat(whole[20:]))


def test_a_full_reset_forgets_all_examples():
    model = nn.Sequential(InputNorm(3), nn.Linear(3, 2))
    model(torch.randn(9, 3) + 4.0)
    reset_network(model, seed=0)
    assert (model[0].count.item(), model[0].mean.tolist(), model[0].var.tolist()) == (0, [0.0] * 3, [1.0] * 3)


def test_compiled_is_the_same():
    plain, x = InputNorm(3), stream(40).float()
    compiled = copy.deepcopy(plain)
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for some in x.split(10):
        assert_close(run(some), plain(some))
    assert_close(compiled.var, plain.var)


def test_tracing_a_network_behind_it_counts_no_example():
    model = nn.Sequential(InputNorm(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(4, 6)
    plan = trace(model, x)
    assert [row.units for row in plan.rows] == [8]
    assert [row.verdict for row in plan.verify(model, x).rows] == ["exact"]
    assert model[0].count == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((),), "shape must have at least one axis, got a tuple"),
        ((0,), "shape must be 1 or more whole features, got 0"),
        ((3, 1.5), r"decay must lie in \[0, 1\], got 1.5"),
        ((3, 0.9, 0), "eps must be above 0, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        InputNorm(*arguments)


def test_an_input_of_another_shape_is_refused_before_anything_changes():
    norm = InputNorm((2, 3))
    for shape in ((3, 2), (3,), (5, 2, 4)):
        with pytest.raises(ValueError, match=r"^InputNorm\(\(2, 3\)\) takes inputs whose last axes are \(2, 3\), got"):
            norm(torch.ones(shape))
    assert norm.count == 0
