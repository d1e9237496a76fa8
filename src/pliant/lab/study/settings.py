"""Which runs were asked for: a profile's, narrowed by methods, repeated over seeds, with fields overridden.

    pliant run NAME --profile quick --methods bp,cbp --seeds 0-29 --set step_size=0.01,0.003

Everything is checked here, before anything runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from pliant.base.choices import shortened
from pliant.lab.errors import LabError, unknown
from pliant.lab.experiment import AnyExperiment, RunConfig, canonical, check_method, in_order, own_configs

_SEEDS = re.compile(r"([0-9]{1,18})(?:\s*-\s*([0-9]{1,18}))?")
_MOST_SEEDS = 100_000
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}


def selected(
    experiment: AnyExperiment,
    profile: str,
    methods: str | None = None,
    seeds: str | None = None,
    overrides: Sequence[str] = (),
) -> list[RunConfig]:
    """The runs asked for, each once, in the profile's order."""
    if profile not in experiment.profiles:
        raise unknown("profile", profile, experiment.profiles)
    configs = _runs(experiment, profile)
    if methods is not None:
        configs = _of_methods(configs, [name.strip() for name in methods.split(",")], profile, experiment)
    kinds = [experiment.Config, *own_configs(experiment).values()]
    axes = [override_axis(text, *kinds) for text in overrides]
    _check_read(axes, configs, own_configs(experiment))
    if seeds is not None:
        axes.append(("seed", seed_range(seeds)))
    names = [name for name, _ in axes]
    for name in names:
        if names.count(name) > 1:
            raise LabError(f"'{name}' is set twice: give its values once, separated by commas")
    points = [dict(zip(names, point, strict=True)) for point in product(*(values for _, values in axes))]
    wanted = list(
        dict.fromkeys(with_fields(config, _own_part(config, point)) for config in configs for point in points)
    )
    known: Sequence[str] | None = getattr(experiment, "methods", None)
    for config in wanted:
        if known is not None:
            check_method(config.method, known)
    return wanted


def _own_part(config: RunConfig, point: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields of a point that the config has: it has none that are a user's method's, unless it is of that."""
    return {name: value for name, value in point.items() if name in type(config).model_fields}


def _check_read(
    axes: Iterable[tuple[str, Any]], configs: Iterable[RunConfig], own: Mapping[str, type[RunConfig]]
) -> None:
    """Raise `LabError` where a field is set that none of the runs has: a user's method's, which was not asked for."""
    there = {name for config in configs for name in type(config).model_fields}
    for name, _ in axes:
        if name not in there:
            readers = [method for method, kind in own.items() if name in kind.model_fields]
            raise LabError(f"{name} is for method {' or '.join(readers)}: add --methods {readers[0]}")


def _runs(experiment: AnyExperiment, profile: str) -> list[RunConfig]:
    """A profile's runs. Raises LabError where there are none, or where they are something else."""
    name, kind = type(experiment).__name__, experiment.Config
    try:
        found: Any = experiment.runs(profile)
    except ValidationError as error:
        raise LabError(f"runs('{profile}') of {name}: {why(error, kind)}") from None
    configs: list[Any] = list(cast(Iterable[Any], found)) if isinstance(found, Iterable) else []
    other = next((config for config in configs if not isinstance(config, kind)), None)
    if not configs or other is not None:
        given = f"a {type(other).__name__} among its runs" if configs else f"{found!r:.40}"
        raise LabError(f"runs('{profile}') of {name} gave {given}: it gives a list of its Config, at least one")
    return configs


def known_methods(config: type[RunConfig]) -> list[str]:
    """The methods that `Config` admits, in its order."""
    annotation = config.model_fields["method"].annotation
    return [str(name) for name in get_args(annotation)] if get_origin(annotation) is Literal else []


def _of_methods(
    configs: list[RunConfig], wanted: list[str], profile: str, experiment: AnyExperiment
) -> list[RunConfig]:
    known = [*known_methods(experiment.Config), *own_configs(experiment)]
    present = list(dict.fromkeys(config.method for config in configs))
    for method in wanted:
        if method not in known and method not in present:
            raise unknown("method", method, known or present)
        if method not in present and not _on_request(experiment, method):
            raise LabError(f"profile '{profile}' has no runs of method '{method}': it has {', '.join(present)}")
    more = [name for name in dict.fromkeys(wanted) if name not in present]
    of_more = [run for name in more for run in cast(Any, experiment).runs_of(profile, name)]
    return [*(config for config in configs if config.method in wanted), *of_more]


def _on_request(experiment: AnyExperiment, method: str) -> bool:
    """Whether the experiment makes runs of a method that no profile has."""
    return method in own_configs(experiment) and hasattr(experiment, "runs_of")


def seed_range(text: str) -> list[int]:
    """Seeds as typed.

    >>> seed_range("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _SEEDS.fullmatch(part.strip())
        if match is None:
            raise LabError(
                f"--seeds '{shortened(text)}': '{shortened(part)}' is neither a number nor a range such as 0-29"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= _MOST_SEEDS:
            raise LabError(
                f"--seeds '{shortened(text)}': a range goes up, over at most {_MOST_SEEDS:,} seeds, as in 0-29"
            )
        seeds.extend(range(first, last + 1))
        if len(seeds) > _MOST_SEEDS:
            raise LabError(f"--seeds '{shortened(text)}': at most {_MOST_SEEDS:,} seeds")
    return list(dict.fromkeys(seeds))


def override_axis(text: str, config: type[RunConfig], *others: type[RunConfig]) -> tuple[str, list[Any]]:
    """`field=value,value` as the field, of one of these classes, and its values, not yet checked.

    Commas within brackets do not part values.
    """
    name, equals, values = text.partition("=")
    name = config.renamed.get(name.strip(), name.strip())
    if not equals or not values.strip():
        raise LabError(f"--set '{shortened(text)}': write field=value or field=value,value")
    fields: dict[str, FieldInfo] = {}
    for each in (*others, config):
        fields.update(each.model_fields)
    if name not in fields:
        raise unknown("field", name, fields)
    if name in ("method", "seed"):
        raise LabError(f"--set {name}=...: methods and seeds are chosen by --methods and --seeds")
    parts = [part.strip() for part in _parts(values)]
    for part in parts[1:]:
        other = part.partition("=")[0].strip()
        if part != other and {other, config.renamed.get(other, other)} & fields.keys():
            raise LabError(
                f"--set '{shortened(text)}' sets two fields: repeat --set, as in --set {name}=... --set {other}=..."
            )
    return name, [_value(part, name, fields[name]) for part in parts]


def _parts(values: str) -> list[str]:
    """Parted at its commas, but for those within brackets or quotation marks.

    >>> _parts('[1,[2,3]],4'), _parts('{"a": [1, 2]},{"b": "x],"}')
    (['[1,[2,3]]', '4'], ['{"a": [1, 2]}', '{"b": "x],"}'])
    """
    parts, depth, quoted = [""], 0, False
    for letter in values:
        quoted ^= depth > 0 and letter == '"'
        if not quoted:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _value(text: str, name: str, field: FieldInfo) -> Any:
    if text.lower() in ("none", "null") and NoneType in get_args(field.annotation):
        return None
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            what = "a mapping in braces" if text[0] == "{" else "a list in brackets"
            raise LabError(f"--set {name}={shortened(text)}: not {what} ({shortened(error)})") from None
    return _whole(text) if field.annotation is int else text


def whole_number(name: str, text: str) -> int:
    """A whole number as typed for the option `name`. Raises `LabError` where it is none.

    >>> whole_number("--to", "2e6")
    2000000
    """
    try:
        return int(_whole(text))
    except ValueError:
        raise LabError(f"{name} {shortened(text)}: give a whole number, such as 2e6") from None


def _whole(text: str) -> str:
    """A whole number written as a float, such as 2e6, as an integer."""
    with suppress(ValueError):
        return str(int(text))
    with suppress(ValueError, OverflowError):
        number = float(text)
        return str(int(number)) if number.is_integer() and abs(number) < 1e18 else text
    return text


def with_fields(config: RunConfig, changed: Mapping[str, Any]) -> RunConfig:
    """The config with some fields changed, checked whole: fields may depend on each other."""
    try:
        return type(config).model_validate({**config.model_dump(), **changed})
    except ValidationError as error:
        at_fault = error.errors()[0]["loc"][:1] or tuple(changed)
        named = " ".join(f"{name}={shortened(changed[name])}" for name in map(str, at_fault) if name in changed)
        raise LabError(f"{named}: {why(error, type(config))}") from None


def why(error: ValidationError, config: type[RunConfig]) -> str:
    """The first reason why a config is refused, with what its field allows."""
    first = error.errors(include_url=False)[0]
    reason = shortened(first["msg"].removeprefix("Value error, "), 500)
    reason = reason[:1].lower() + reason[1:]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return str(unknown("field", name, config.model_fields))
    if name not in config.model_fields:
        return reason
    return f"{reason}; {name} is {allowed(config.model_fields[name])}"


def allowed(field: FieldInfo) -> str:
    """The values a field admits, in words.

    >>> from pydantic import Field
    >>> allowed(FieldInfo.from_annotated_attribute(float, Field(0.003, gt=0)))
    'float > 0 (default 0.003)'
    """
    usual: Any = None if field.is_required() else field.get_default(call_default_factory=True)
    default = "" if field.is_required() else f" (default {_in_brackets(usual)})"
    return f"{_type_in_words(field.annotation)}{_bounds(field.metadata)}{default}"


def _bounds(metadata: Iterable[Any]) -> str:
    bounds = [
        f"{sign} {getattr(limit, word)}" for limit in metadata for word, sign in _BOUNDS.items() if hasattr(limit, word)
    ]
    return " " + " and ".join(bounds) if bounds else ""


def _in_brackets(value: Any) -> Any:
    """A list, a set or a mapping as `--set` takes it."""
    if isinstance(value, tuple | list | set | frozenset | dict):
        return canonical(in_order(value, to_jsonable_python(value, fallback=str)))
    return value


def _type_in_words(annotation: Any) -> str:
    if (get_origin(annotation) or annotation) in (tuple, list, set, frozenset):
        return "a list in brackets, such as [64,64]"
    if (get_origin(annotation) or annotation) is dict:
        return 'a mapping in braces, such as {"a":1}'
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
