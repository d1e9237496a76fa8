"""Networks with one known trouble each, trained on real digits: the verdict of an examination, and what it advises first."""

import pytest

import pliant
from pliant.data import available
from tests.diagnostics.patients import PATIENTS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not available("mnist"), reason="MNIST is not in $PLIANT_DATA")]


@pytest.mark.parametrize("name", PATIENTS)
def test_the_verdict_and_the_first_advice_are_right(name):
    patient = PATIENTS[name](seed=1)
    found = pliant.examine(
        patient.model, *patient.data, optimizer=patient.optimizer, fresh=patient.fresh, progress=False
    )
    assert found.verdict in patient.verdicts
    assert not patient.advice or found.advice[0].title in patient.advice
