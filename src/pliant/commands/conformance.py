"""`pliant conformance`: does an implementation of a unit reset do what it should?"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer


def conformance(
    address: Annotated[
        str,
        typer.Argument(
            metavar="module:Class",
            help="an adapter of your implementation, also file.py:Class, which is run; or one of ours, as pliant:ReDo",
        ),
    ],
    form: Annotated[str, typer.Option("--format", help="text or json")] = "text",
) -> None:
    """Does an implementation of continual backpropagation, or of another unit reset, do what it should? Run checks on it.

    Ends with 1 if one of them failed.
    """
    from pliant.base.choices import one_of
    from pliant.conformance import check
    from pliant.lab.errors import LabError
    from pliant.lab.study.modules import function_of

    try:
        one_of("--format", form, ("text", "json"))
        with redirect_stdout(sys.stderr):  # what the implementation prints
            report = check(function_of(address, "adapter"))
    except (ValueError, TypeError) as error:
        raise LabError(str(error)) from error
    print(json.dumps(report.to_dict(), indent=2) if form == "json" else report)
    if not report.passed:
        raise typer.Exit(1)
