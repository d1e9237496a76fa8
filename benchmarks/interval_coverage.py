"""How often does a 95% interval hold the true value? By simulation, for few runs and for distributions that results really have.

    python benchmarks/interval_coverage.py                   the table of docs/statistics.md
    python benchmarks/interval_coverage.py --repeats 500     a rougher one

Runs are drawn from a normal distribution, from one with a tail (lognormal, sigma 1: errors), and from two modes (a run in five
fails: returns). What should be held is the distribution's mean, or the expected interquartile mean of as many runs; the bootstrap
draws 1,000 times.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.random import Generator

sys.path.insert(0, str(Path(__file__).parents[1]))

from pliant.lab.intervals import bca_interval, bootstrap_interval
from pliant.lab.statistics import estimate, interquartile_mean

SEEDS = (3, 5, 10, 30)
RESAMPLES = 1000


def normal(draw: Generator, n: int):
    return draw.normal(size=n)


def tailed(draw: Generator, n: int):
    return draw.lognormal(size=n)


def two_modes(draw: Generator, n: int):
    return np.where(draw.random(n) < 0.2, draw.normal(0, 1, n), draw.normal(10, 1, n))


DISTRIBUTIONS = {"normal": normal, "lognormal": tailed, "one in five fails": two_modes}
INTERVALS = {
    "mean, Student": (np.mean, lambda runs: estimate(runs).interval()),
    "mean, percentile bootstrap": (np.mean, lambda runs: bootstrap_interval(runs, resamples=RESAMPLES)),
    "mean, BCa bootstrap": (np.mean, lambda runs: bca_interval(runs, resamples=RESAMPLES)),
    "interquartile mean, BCa": (
        interquartile_mean,
        lambda runs: bca_interval(runs, resamples=RESAMPLES, statistic=interquartile_mean),
    ),
}


def coverage(distribution, statistic, interval, n, repeats):
    """Share of intervals of n runs that hold the value that the same statistic has over many runs of n.

    The interquartile mean of a few runs is not that of the distribution where this is skewed; its interval is of the former.
    """
    draw = np.random.default_rng(n)
    held = 0
    true = float(np.mean([statistic(distribution(draw, n)) for _ in range(50_000)]))
    for _ in range(repeats):
        low, high = interval(distribution(draw, n))
        held += bool(low <= true <= high)
    return held / repeats


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    print("| interval | runs are | " + " | ".join(f"{n} seeds" for n in SEEDS) + " |")
    print("|---|---|" + "---|" * len(SEEDS))
    for name, (statistic, interval) in INTERVALS.items():
        for of, distribution in DISTRIBUTIONS.items():
            shares = [coverage(distribution, statistic, interval, n, repeats) for n in SEEDS]
            print(f"| {name} | {of} | " + " | ".join(f"{100 * share:.1f}%" for share in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
