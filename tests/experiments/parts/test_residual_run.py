import torch

from pliant.experiments.parts.residual_run import first_not_finite, pieces_an_advance


def test_the_first_loss_that_is_not_finite_is_found():
    losses = [torch.tensor(each) for each in (1.0, float("inf"), 2.0, float("nan"))]
    assert first_not_finite(losses) == 1
    assert first_not_finite(losses[:1]) is None
    assert first_not_finite([]) is None


def test_an_advance_has_fewer_steps_where_a_step_takes_longer():
    assert pieces_an_advance(8, "cpu") > pieces_an_advance(16, "cpu") > pieces_an_advance(64, "cpu") == 1
    assert pieces_an_advance(64, "cuda") >= 100
