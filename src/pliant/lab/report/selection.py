"""Which rows of which studies a report is of.

Several studies of one problem stand in one table, with a column that says which; `--where` keeps some rows, `--against` names a
curve to compare with, whose rows are kept too.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas is typed in part)

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened
from pliant.lab.curves import config_fields
from pliant.lab.errors import LabError, unknown

if TYPE_CHECKING:
    import pandas

STUDY = "study"  # a column where several are reported together
_RANGE = re.compile(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)")  # and so not 1e-5

Condition: TypeAlias = tuple[str, str]  # field, and the value or range that it has


def condition(option: str, text: str, old: Mapping[str, str], known: Sequence[str]) -> Condition:
    """Such as `step_size=0.1`, with the field under its name of today."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise LabError(f"{option} '{shortened(text)}': write field=value")
    name = old.get(name, name)
    if name not in known:
        raise unknown("field", name, known)
    return name, value


def rows_shown(rows: Any, asked: Sequence[Condition], compared: Sequence[Condition]) -> NDArray[np.bool_]:
    """The rows that are `asked` for; and those to be compared with, whatever settings were asked for beside theirs."""
    meets = [_meets(rows, condition) for condition in asked]
    everything = np.ones(len(rows), np.bool_)
    shown = np.logical_and.reduce([everything, *meets])
    reference = np.logical_and.reduce([everything, *(_meets(rows, condition) for condition in compared)])
    if compared and not (shown & reference).any():
        of_curves = {"method", STUDY, *config_fields(rows)} - {"seed"}
        others = [each for each, (name, _) in zip(meets, asked, strict=True) if name not in of_curves]
        shown |= np.logical_and.reduce([reference, *others])
    return shown


def _meets(rows: Any, condition: Condition) -> NDArray[np.bool_]:
    name, value = condition
    return np.array([is_value(own, value) or _is_within(own, value) for own in rows[name]], np.bool_)


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Studies by the names of their folders or files; by their paths, where two have one name. Refuses one twice."""
    short = {path.stem if path.is_file() else path.resolve().name: path for path in paths}
    named = short if len(short) == len(paths) else {str(path): path for path in paths}
    if len({path.resolve() for path in paths}) < len(paths):
        raise LabError(f"{', '.join(map(str, paths))}: the same study twice")
    return named


def side_by_side(studies: Mapping[str, pandas.DataFrame]) -> pandas.DataFrame:
    """The rows of studies of one problem in one table, with a column `study` where there are several.

    A field that one of them does not have is NaN in its rows. Raises `LabError` where they are not of one problem, or do not
    measure the same.
    """
    import pandas

    (first, table), *others = studies.items()
    for name, other in others:
        of_what, measured = ([each.attrs[word] for each in (table, other)] for word in ("name", "measured"))
        if of_what[0] != of_what[1]:
            raise LabError(f"{first} is of {of_what[0]}, and {name} of {of_what[1]}: report studies of one problem")
        lacking = [
            f"{one} does not measure {', '.join(missing)}"
            for one, here, there in ((first, *measured), (name, *reversed(measured)))
            if (missing := [column for column in there if column not in here])
        ]
        if lacking:
            raise LabError(f"{'; '.join(lacking)}: {first} and {name} are of different versions, report each by itself")
    if not others:
        return table
    numbered: list[Any] = []
    count = 0
    for name, each in studies.items():
        rows: Any = each
        numbered.append(rows.assign(**{STUDY: name}, run=rows["run"] + count))
        count += int(rows["run"].max()) + 1
    seconds: list[float | None] = [each.attrs["seconds"] for each in studies.values()]
    joined: Any = pandas.concat(numbered, ignore_index=True)
    joined.attrs = {
        **table.attrs,
        "profile": ", ".join(dict.fromkeys(str(each.attrs["profile"]) for each in studies.values())),
        "colors": {method: color for each in studies.values() for method, color in each.attrs["colors"].items()},
        "seconds": sum(filter(None, seconds)) if all(seconds) else None,  # which not every export knows
    }
    return joined


def is_value(setting: Any, value: str) -> bool:
    try:
        return float(setting) == float(value)
    except (TypeError, ValueError):
        text = str(setting)
        return text == value or (text in ("True", "False") and text.lower() == value.lower())


def _is_within(setting: Any, value: str) -> bool:
    """Whether a number is in a range such as 31-50, ends included."""
    ends = _RANGE.fullmatch(value)
    try:
        return ends is not None and float(ends[1]) <= float(setting) <= float(ends[2])
    except (TypeError, ValueError):
        return False
