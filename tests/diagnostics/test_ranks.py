"""Ranks against golden values, plain numpy and what must not change them; and nothing that stops a long run."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import tensor
from torch.testing import assert_close

from pliant.diagnostics import approximate_rank, effective_rank, rank, singular_values, srank, stable_rank

SUMMARIES = (effective_rank, srank, approximate_rank, stable_rank, rank)
GOLDEN = [  # made by the released code: rank, effective rank, 99% of squares, 99% of values
    ((4.0, 3.0, 2.0, 1.0), 4, 3.596115, 4, 4),
    ((100.0, 1.0, 0.5, 0.0), 3, 1.090199, 1, 2),
    ((1.0, 1.0, 1.0, 1.0), 4, 4.0, 4, 4),
]


@pytest.mark.parametrize(("diagonal", "full", "effective", "squares", "values"), GOLDEN)
def test_golden_values_of_the_released_code(diagonal, full, effective, squares, values):
    s = singular_values(torch.diag(tensor(diagonal)))
    found = [each(s).item() for each in (rank, effective_rank, approximate_rank, srank)]
    assert found == pytest.approx([full, effective, squares, values], abs=1e-6)


def test_stable_rank_is_squared_frobenius_over_squared_spectral_norm():
    h = torch.randn(30, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = h.norm() ** 2 / torch.linalg.matrix_norm(h, 2) ** 2
    assert_close(stable_rank(singular_values(h)), expected)
    assert stable_rank(tensor([2.0, 1.0, 1.0])).item() == 1.5
    assert srank(tensor([2.0, 1.0, 1.0])).item() == 3.0  # the article's "stable rank" is another thing


# -- the plain definitions -------------------------------------------------------------------------------------------------


def plain(h):
    """Effective rank, srank, approximate rank and stable rank, word by word."""
    s = np.linalg.svd(h.astype(np.float64), compute_uv=False)
    p = s[s > 0] / s.sum()

    def least(shares):
        return next(k for k in range(1, len(s) + 1) if shares[:k].sum() >= 0.99 * shares.sum() * (1 - 1e-12))

    return np.exp(-np.sum(p * np.log(p))), least(s), least(s**2), (s**2).sum() / s[0] ** 2


@pytest.mark.parametrize("shape", [(200, 30), (30, 200), (50, 50), (9, 1), (1, 9)])
def test_summaries_are_the_plain_definitions(shape):
    for seed in range(5):
        h = np.random.default_rng(seed).standard_normal(shape) @ np.diag(0.8 ** np.arange(shape[1]))
        s = singular_values(torch.from_numpy(h))
        found = [each(s).item() for each in (effective_rank, srank, approximate_rank, stable_rank)]
        assert found == pytest.approx(plain(h), rel=1e-9)


numbers = st.floats(-100, 100, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-6)
matrices = arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=numbers)


def close(found, expected):
    """All summaries agree; the counts up to what rounding may move at the very edge."""
    for measure in (effective_rank, stable_rank):
        assert_close(measure(found), measure(expected), rtol=1e-8, atol=1e-8)
    for measure in (srank, approximate_rank):
        edge = {measure(expected, share).item() for share in (0.99 - 1e-9, 0.99, 0.99 + 1e-9)}
        assert measure(found).item() in edge


@settings(max_examples=60)
@given(matrices, st.floats(1e-100, 1e100))
def test_rank_does_not_change_with_the_scale(h, scale):
    h = torch.from_numpy(h)
    close(singular_values(h * scale), singular_values(h))


@settings(max_examples=60)
@given(matrices, st.randoms(use_true_random=False))
def test_rank_does_not_change_when_units_or_inputs_change_places(h, random):
    rows, columns = (random.sample(range(size), size) for size in h.shape)
    close(singular_values(torch.from_numpy(h[rows][:, columns].copy())), singular_values(torch.from_numpy(h)))


@settings(max_examples=60)
@given(matrices)
def test_rank_lies_between_one_and_the_smaller_side_and_is_zero_for_zeros_alone(h):
    s = singular_values(torch.from_numpy(h))
    for measure in SUMMARIES:
        value = measure(s).item()
        if h.any():
            assert 1 - 1e-9 <= value <= min(h.shape) + 1e-9
        else:
            assert value == 0


# -- long runs ---------------------------------------------------------------------------------------------------------------


def test_zeros_and_single_units_have_ranks():
    zero = singular_values(torch.zeros(10, 4))
    assert [each(zero).item() for each in SUMMARIES] == [0.0] * 5
    one = singular_values(torch.ones(10, 1))
    assert [each(one).item() for each in SUMMARIES] == pytest.approx([1.0] * 5)
    none = singular_values(torch.zeros(0, 4))
    assert [each(none).item() for each in SUMMARIES] == [0.0] * 5


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_matrix_that_is_not_finite_gives_nan_and_leaves_the_other_runs_alone(bad):
    h = torch.randn(3, 20, 5, generator=torch.Generator().manual_seed(0))
    broken = h.clone()
    broken[1, 4, 2] = bad
    for measure in SUMMARIES:
        found, expected = measure(singular_values(broken)), measure(singular_values(h))
        assert found[1].isnan()
        assert_close(found[[0, 2]], expected[[0, 2]])
        assert not expected.isnan().any()


def test_a_decomposition_that_does_not_converge_gives_nan_and_leaves_the_others_alone(monkeypatch):
    svdvals = torch.linalg.svdvals

    def fails_for_twos(h):
        if (h == 2.0).any():
            raise torch.linalg.LinAlgError("did not converge")
        return svdvals(h)

    monkeypatch.setattr(torch.linalg, "svdvals", fails_for_twos)
    h = torch.stack([torch.ones(4, 3), 2.0 * torch.ones(4, 3), torch.eye(4, 3)])
    assert effective_rank(singular_values(h)).tolist() == pytest.approx([1.0, float("nan"), 3.0], nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_any_type_is_brought_to_float64(dtype):
    h = torch.randint(-3, 4, (40, 6), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_close(singular_values(h), singular_values(h.double()), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e-300, 1e150, 1e300])
def test_very_large_and_very_small_features_keep_their_rank(size):
    s = singular_values(torch.diag(tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)) * size)
    assert [each(s).item() for each in (effective_rank, srank, approximate_rank)] == pytest.approx([3.596115, 4, 4])
    assert stable_rank(s).item() == pytest.approx(30 / 16)


def test_small_singular_values_are_right_where_the_gram_matrix_would_lose_them():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 3, dtype=torch.float64, generator=generator)).Q for n in (50, 3))
    h = left @ torch.diag(tensor([1.0, 1e-6, 1e-11], dtype=torch.float64)) @ right.T
    assert_close(singular_values(h), tensor([1.0, 1e-6, 1e-11]).double(), rtol=1e-4, atol=0)
    by_gram = torch.linalg.eigvalsh(h.T @ h).clamp(min=0).sqrt()
    assert abs(by_gram.min().item() - 1e-11) > 1e-12


@pytest.mark.parametrize("shape", [(1000, 7), (2, 1000, 7)])
def test_tall_matrices_taken_block_by_block_have_the_same_singular_values(shape, monkeypatch):
    h = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.5 ** torch.arange(7.0)
    whole = singular_values(h)
    monkeypatch.setattr("pliant.diagnostics.ranks.BLOCK", 300)
    assert_close(singular_values(h), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("measure", [effective_rank, srank, approximate_rank, stable_rank, rank])
def test_features_given_for_singular_values_are_refused(measure):
    features = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    with pytest.raises(ValueError, match=r"no singular values, largest first: pass singular_values\(features\)"):
        measure(features)
    with pytest.raises(ValueError, match="no singular values"):
        measure(torch.tensor([1.0, -1.0]))
