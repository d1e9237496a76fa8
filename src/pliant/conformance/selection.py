"""Which unit goes, and when it may: of eight units of one layer, at a step size of 0."""

from __future__ import annotations

import torch

from pliant.conformance.outcomes import NotApplicable, expect
from pliant.conformance.trial import Kind, Trial, even, named, normal

INPUTS = normal(16, 6)
MATURITY = 5
ONE_PER_STEP = 1.0 / 8.0


def least_useful(kind: Kind) -> None:
    """The unit that contributes least goes first: mean |activity| times |outgoing weights|.

    Outgoing weights double from unit to unit, in an order that is not that of the indices; activity rises slightly the other way.
    """
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    model = even()
    with torch.no_grad():
        for rank, unit in enumerate(order):
            model[2].weight[:, unit] *= 2.0 ** (rank - 3)
            model[0].bias[unit] += 0.1 * (7 - rank)
    _in_order(Trial(kind, model, ["0"], INPUTS, rate=ONE_PER_STEP, maturity=MATURITY), order)


def silent_first(kind: Kind) -> None:
    """A unit that never fires goes first, though its weights are as large as those of others."""
    found = Trial(kind, even(), ["0"], INPUTS, rate=ONE_PER_STEP, maturity=MATURITY, silent=[3]).next()
    expect(found.units["0"] == [3], "unit 3, which never fires", named(found.units["0"]))


def ties(kind: Kind) -> None:
    """Of units of equal utility the one of the lowest index goes first.

    No unit fires: all utilities are exactly 0.
    """
    _in_order(Trial(kind, even(), ["0"], INPUTS, rate=ONE_PER_STEP, maturity=MATURITY, silent=range(8)), list(range(8)))


def _in_order(trial: Trial, order: list[int]) -> None:
    """As many as go before the first of them is mature again."""
    gone = list(trial.next().units["0"])
    for units in trial.run(MATURITY - 1):
        gone += units.get("0", [])
    right = order[: len(gone)]
    expect(gone == right, f"{named(right)}, in this order", named(gone))


def decay_rate(kind: Kind) -> None:
    """Utility is a running average by the decay rate that is set.

    One unit has been useful and is silent since two steps, another has always been a tenth as useful. At decay rate 0.99 the
    second goes, at 0 the first.
    """
    for decay, right in ((0.99, 6), (0.0, 2)):
        model = even()
        with torch.no_grad():
            model[2].weight[:, 6] *= 0.1
        trial = Trial(kind, model, ["0"], INPUTS, rate=ONE_PER_STEP, maturity=20, decay=decay)
        trial.run(19)
        trial.silence([2])
        found = trial.next().units["0"]
        expect(found == [right], f"unit {right} at decay rate {decay:g}", named(found))


def bias_correction(kind: Kind) -> None:
    """Utility is corrected for its start at 0, by each unit's own age.

    A unit that was replaced is made 1.4 times as useful as the least of the others, which is to go next. Uncorrected, the running
    average of the new unit has seen half as many steps, and reads at half of what it is.
    """
    for seed in range(5):
        trial = _slow(kind, seed)
        trial.write("2.weight", (slice(None), 4), 0.25 * trial.weights()["2.weight"][:, 4])
        trial.write("2.weight", (slice(None), 1), 0.5 * trial.weights()["2.weight"][:, 1])
        event = trial.next()
        expect(event.units["0"] == [4], "unit 4, the least useful", named(event.units["0"]))
        trial.write("0.weight", 4, event.before["0.weight"][4])
        trial.write("0.bias", 4, event.before["0.bias"][4])
        trial.write("2.weight", (slice(None), 4), 1.4 * event.before["2.weight"][:, 1])
        found = trial.next()
        if found.step - event.step < 0.65 * found.step:
            units = found.units["0"]
            expect(units == [1], "unit 1, as the new unit 4 is 1.4 times as useful", named(units))
            return
    raise NotApplicable(
        "counts are drawn, and five times the next unit was so late that the correction made no difference"
    )


def utility_starts_over(kind: Kind) -> None:
    """A new unit's utility is what it has done since; nothing of the unit before it.

    Its outgoing weights are zero and stay so here: once it is mature it is the least useful, and goes again, though the other
    units contribute a hundredth of what the unit before it did.
    """
    for seed in range(5):
        trial = _slow(kind, seed)
        trial.write("2.weight", (slice(None), 4), 0.5 * trial.weights()["2.weight"][:, 4])
        event = trial.next()
        expect(event.units["0"] == [4], "unit 4, the least useful", named(event.units["0"]))
        utilities = trial.adapter.utilities()
        if utilities is not None:
            fresh, others = float(utilities["0"][4]), float(utilities["0"].abs().max())
            expect(abs(fresh) <= 1e-3 * others, "a utility of 0 of the new unit 4", f"{fresh:g} (others: {others:g})")
        others = [unit for unit in range(8) if unit != 4]
        trial.write("2.weight", (slice(None), others), 0.01 * event.after["2.weight"][:, others])
        found = trial.next()
        if found.step - event.step < 0.65 * found.step:
            units = found.units["0"]
            expect(units == [4], "unit 4 again, whose outgoing weights are zero", named(units))
            return
    raise NotApplicable(
        "counts are drawn, and five times the next unit was so late that the rest of the old made no difference"
    )


def _slow(kind: Kind, seed: int) -> Trial:
    """Averages of 1,000 steps, and a unit about every 90, the first of which has an age of 100."""
    return Trial(
        kind,
        even(),
        ["0"],
        INPUTS,
        rate=1.0 / 720.0,
        maturity=10,
        decay=0.999,
        seed=seed,
        may_refuse=True,
        patience=2000,
    )


def maturity(kind: Kind) -> None:
    """A unit goes only when its age is greater than the maturity threshold; a new one's starts at 0.

    At a threshold of 7 none goes in the first 7 steps, nor within 7 steps after it was new, at a rate of one half.
    """
    trial = Trial(kind, even(), ["0"], INPUTS, rate=0.5, maturity=7)
    born = [0] * 8
    for _ in range(40):
        units = trial.step().get("0", [])
        for unit in units:
            age = trial.steps - born[unit]
            expect(age > 7, "ages greater than 7", f"unit {unit} replaced at age {age}")
            born[unit] = trial.steps
        ages = trial.adapter.ages()
        if ages is not None and units:
            expected = [trial.steps - step for step in born]
            found = [int(each) for each in ages["0"]]
            expect(found == expected, f"ages {expected}", found)
    expect(
        sum(map(bool, born)) == 8,
        "all eight units replaced in 40 steps at a rate of one half",
        f"{sum(map(bool, born))}",
    )
