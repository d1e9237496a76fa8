"""Entries of an averaging optimizer (Adam and its kin) that were reset while the others went on: each counts its own steps.

Adam's m / (1 - β^t) and v / (1 - β^t) are averages of g and g²: its t-th step moves them towards the new value by

    w(t) = (1 - β) / (1 - β^t)

with t shared by a whole parameter. An entry reset τ - 1 steps ago must move by w(τ) > w(t), and before each step we add
what the shared one leaves out, on moments that are kept in such a scale that the shared correction is the right one:

    m <- m + W ((1 - β1^(t-1)) g - m),    v <- v + W ((1 - β2^(t-1)) g² - v),    W = (w(τ) - w(t)) / (1 - w(t))

The optimizer then takes exactly a freshly built one's step (to rounding), by its own code: plain, foreach, fused or
capturable. W is exactly 0 for entries that were never reset and once w(τ) rounds to w(t), after 16,629 steps at
β2 = 0.999 and float32. AMSGrad's maximum is of v before correction, so it shrinks with the scale: x <- (1 - W) x.
The moments always fit the shared counter: nothing is to be undone on detaching.

An entry lies between two units and is as young as the younger one: W is the larger of theirs.

Where a schedule or the user changes β, PyTorch corrects by the β at hand, and so would a fresh optimizer. Moments are brought
from one scale into the other first,

    m, v, x <- R m, R v, R x,    R = c(new β) / c(old β),    c = (1 - β^(t-1)) / (1 - β^(τ-1))

Departures: a pre-hook that changes gradients must be registered before the method. A gradient whose square overflows, which
makes Adam stall, gives NaN.

    averages    w and W by age                 batch    parameters stepped alike: what is planned for the next steps
    ages        the age of each position       hook     the optimizer's pre-hook; resets, saving and loading
    moves       of the moments, before a step

Source: Kingma and Ba, ICLR 2015, algorithm 1, entry by entry.
"""

from pliant.engine.optimizer_state.young.ages import NEVER
from pliant.engine.optimizer_state.young.averages import Averages, steps_of_youth, weight_of_newest
from pliant.engine.optimizer_state.young.hook import YoungEntries

__all__ = ["NEVER", "Averages", "YoungEntries", "steps_of_youth", "weight_of_newest"]
