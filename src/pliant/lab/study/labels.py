"""What curves, runs and jobs are called in lines of text: a method, and those settings of it that tell something.

    bp step_size=0.01        cbp step_size=0.003 replacement_rate=1e-5        linear

A curve says the fields in which the curves of its method differ. Where its method has no other, it says those in which the
study's curves differ, but for what tells nothing of it: the common value of a field, 0 (which is how a field is not set),
and a word that is the method's own name.

A value is common where most methods have it and at most one has another: betas of 0.9 and 0.999 beside one method with
betas of its own, or a utility that one method alone is tried with. A number that a method is tried with several of is not:
beside several step sizes every curve says its own. All of it is found in the settings, nowhere listed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeAlias

Settings: TypeAlias = Mapping[str, Any]  # of a run; of a curve, without the seed

_UNSET = ("0", "False")  # in words


def labels(curves: Sequence[Settings]) -> list[str]:
    """The name of each curve of a study.

    >>> labels([{"method": "bp", "step_size": 0.1}, {"method": "bp", "step_size": 0.2}, {"method": "cbp", "step_size": 0.2}])
    ['bp step_size=0.1', 'bp step_size=0.2', 'cbp step_size=0.2']
    """
    return [
        _name(str(curve["method"]), details)
        for curve, details in zip(curves, distinguishing_fields(curves), strict=True)
    ]


def _name(method: str, details: Mapping[str, str]) -> str:
    return " ".join([method, *(f"{field}={value}" for field, value in details.items())])


def distinguishing_fields(curves: Sequence[Settings]) -> list[dict[str, str]]:
    """For each curve of a study the fields that its name says, with their values in words."""
    fields = dict.fromkeys(name for curve in curves for name in curve if name != "method")
    values = {field: _by_method(curves, field) for field in fields}
    common = {field: common_value(own, _is_number(curves, field)) for field, own in values.items()}
    count = Counter(str(curve["method"]) for curve in curves)
    found: list[dict[str, str]] = []
    for curve in curves:
        method = str(curve["method"])
        words = {field: in_words(curve[field]) for field in fields if field in curve}
        if count[method] > 1:
            told = [field for field in words if len(values[field][method]) > 1 and words[field] not in _UNSET]
        else:
            told = [field for field in words if words[field] not in (common[field], method, *_UNSET)]
        found.append({field: words[field] for field in told})
    return found


def _by_method(curves: Iterable[Settings], field: str) -> dict[str, list[str]]:
    """Method -> the values of the field, each once."""
    values: dict[str, dict[str, None]] = {}
    for curve in (curve for curve in curves if field in curve):
        values.setdefault(str(curve["method"]), {})[in_words(curve[field])] = None
    return {method: list(own) for method, own in values.items()}


def _is_number(curves: Iterable[Settings], field: str) -> bool:
    return all(isinstance(curve[field], Real) for curve in curves if field in curve)


def common_value(values: Mapping[str, Sequence[str]], is_number: bool) -> str | None:
    """The value of a field that a curve need not say, None where there is none; `values` of each method, in words.

    >>> common_value({"ppo": ["0.9"], "l2": ["0.9"], "tuned-adam": ["0.99"]}, is_number=True)
    '0.9'
    >>> common_value({"bp": ["0.01", "0.003"], "l2": ["0.01"]}, is_number=True) is None
    True
    """
    [(usual, holders)] = Counter(value for own in values.values() for value in own).most_common(1)
    unusual = [own for method, own in values.items() if not {*own} <= {usual, method, *_UNSET}]
    if not unusual:
        return usual
    tried = is_number and any(len(own) > 1 for own in unusual)
    return usual if len(unusual) == 1 and holders > 1 and not tried else None


class Labels:
    """The names of a study's runs and jobs, by the settings of all its runs; `renamed`: fields of the version before, and now."""

    def __init__(self, runs: Iterable[Settings], renamed: Mapping[str, str] | None = None) -> None:
        self._renamed = renamed or {}
        found = [self._today(run) for run in runs]
        curves = {_identity(run): _curve(run) for run in found}
        self._distinguishing = dict(zip(curves, distinguishing_fields(list(curves.values())), strict=True))
        self._place = {curve: place for place, curve in enumerate(curves)}

    def _today(self, run: Settings) -> Settings:
        return {self._renamed.get(name, name): value for name, value in run.items()}

    def of_run(self, run: Settings) -> str:
        """Such as "cbp step_size=0.01  seed 3"."""
        run = self._today(run)
        return f"{_name(run['method'], self._distinguishing[_identity(run)])}  seed {run['seed']}"

    def of_job(self, runs: Sequence[Settings]) -> str:
        """All values of a method's fields together, as `--set` takes them, in the order of the study.

        >>> runs = [{"method": "bp", "seed": 0, "step_size": 0.1}, {"method": "bp", "seed": 0, "step_size": 0.2}]
        >>> Labels(runs).of_job(runs)
        'bp step_size=0.1,0.2  2 runs, seed 0'
        """
        if len(runs) == 1:
            return self.of_run(runs[0])
        runs = [self._today(run) for run in runs]
        here = {_identity(run): str(run["method"]) for run in runs}
        methods: dict[str, dict[str, dict[str, None]]] = {}  # method -> field -> its values
        for curve in sorted(here, key=self._place.__getitem__):
            fields = methods.setdefault(here[curve], {})
            for field, value in self._distinguishing[curve].items():
                fields.setdefault(field, {})[value] = None
        names = [_name(method, {f: ",".join(own) for f, own in fields.items()}) for method, fields in methods.items()]
        seeds = {run["seed"] for run in runs}
        return f"{', '.join(names)}  {len(runs)} runs, seed{'s' if len(seeds) > 1 else ''} {ranges(seeds)}"


def _curve(run: Settings) -> dict[str, Any]:
    """A run's settings but for its seed; a list is its JSON text, as in a table of rows."""
    return {
        name: json.dumps(value) if isinstance(value, list | dict) else value
        for name, value in run.items()
        if name != "seed"
    }


def _identity(run: Settings) -> str:
    return json.dumps(_curve(run), sort_keys=True)


def ranges(numbers: Iterable[int]) -> str:
    """
    >>> ranges([0, 1, 2, 7])
    '0-2,7'
    """
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def in_words(value: Any) -> str:
    """A value, short, and never the same for two values of a field.

    >>> in_words(1e-5), in_words(0.1), in_words(0.1 + 1e-9), in_words("adaptable_contribution")
    ('1e-5', '0.1', '0.100000001', 'adaptable_contribution')
    """
    if isinstance(value, list | dict):
        return json.dumps(value)
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return (short if float(short) == value else repr(float(value))).replace("e-0", "e-")
