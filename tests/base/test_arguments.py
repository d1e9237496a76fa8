"""Checks of arguments: what passes, in which form, and what each refusal says."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from pliant.base.arguments import called_with, flag, integer, known_names, number, patterns, whole


@pytest.mark.parametrize("value", [0, 0.25, 1, np.float32(0.25), np.int64(1), Fraction(1, 4)])
def test_a_number_is_any_real_one_within_the_range(value):
    assert number("share", value, 0.0, 1.0) == float(value)


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (1.5, ValueError, "share must lie in [0, 1], got 1.5"),
        (float("nan"), ValueError, "share must lie in [0, 1], got nan"),
        (10**400, ValueError, "share must lie in [0, 1], got an integer of 1329 bits"),
        ("0.5", TypeError, "share must be a number, got '0.5'"),
        (True, TypeError, "share must be a number, got True"),
        (None, TypeError, "share must be a number, got None"),
        (torch.tensor(0.5), TypeError, "share must be a number, got a Tensor"),
        (float, TypeError, "share must be a number, got the class float"),
    ],
)
def test_no_other_is(value, kind, said):
    with pytest.raises(kind) as error:
        number("share", value, 0.0, 1.0)
    assert str(error.value) == said


def test_the_upper_end_may_be_excluded_and_infinity_always_is():
    assert number("decay", 0.999, 0.0, 1.0, below=True) == 0.999
    with pytest.raises(ValueError, match=r"^decay must lie in \[0, 1\), got 1$"):
        number("decay", 1, 0.0, 1.0, below=True)
    with pytest.raises(ValueError, match=r"^strength must be 0 or more, got inf$"):
        number("strength", float("inf"))


@pytest.mark.parametrize("value", [2000, 2000.0, np.int32(2000), 2**62 - 1])
def test_a_whole_number_may_come_as_a_float_and_is_an_int(value):
    assert type(whole("period", value, 1)) is int
    assert whole("period", value, 1) == value


@pytest.mark.parametrize("value", [0, 2.5, 2**62, float("inf"), float("nan"), "7", True, None, [1]])
def test_what_is_no_whole_number_of_steps_is_refused(value):
    with pytest.raises(
        (TypeError, ValueError), match=r"^period must be 1 or more whole optimizer steps, or None, got "
    ):
        whole("period", value, 1, of="optimizer steps", otherwise=", or None")


def test_an_integer_fits_in_64_bits():
    assert integer("seed", np.uint64(2**64 - 1)) == 2**64 - 1
    assert integer("seed", -(2**63)) == -(2**63)
    for value, kind in ((2**64, ValueError), (7.0, TypeError), (True, TypeError), ("7", TypeError)):
        with pytest.raises(kind, match=r"^seed must "):
            integer("seed", value)


def test_a_flag_is_a_bool():
    assert flag("trial", np.bool_(True)) is True
    for value in (1, 0, "False", None, torch.tensor(True)):
        with pytest.raises(TypeError, match=r"^trial must be True or False, got "):
            flag("trial", value)


def test_patterns_are_one_or_several_texts():
    assert patterns("include", "0") == ("0",)
    assert patterns("include", {"a.*": 1}.keys()) == ("a.*",)
    for value in ("", ["a", ""], [0], 0, None, b"a", {"a": 1}, np.array(["a"])):
        with pytest.raises(TypeError, match=r"^include takes a pattern or a list of patterns, got "):
            patterns("include", value)


def test_a_function_takes_what_it_is_called_with():
    for function in (lambda a, b: 0, lambda *a: 0, lambda a, b, c=1: 0, max, nn.Bilinear(1, 1, 1)):
        assert called_with("init", function, "name", "shape") is function
    with pytest.raises(
        TypeError, match=r"^init is called with 2 arguments \(name, shape\), which Linear does not take$"
    ):
        called_with("init", nn.Linear(1, 1), "name", "shape")
    with pytest.raises(TypeError, match=r"^init is a function of name, shape, got 'zeros'$"):
        called_with("init", "zeros", "name", "shape")


def test_a_name_that_is_not_known_is_an_error_with_the_nearest():
    known_names("ReDo", ["tau"], iter(["tau", "period"]))
    with pytest.raises(TypeError, match=r"^ReDo takes no argument 'qqq'$"):
        known_names("ReDo", ["tau", "qqq"], ["tau", "period"])
