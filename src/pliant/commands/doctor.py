"""`pliant doctor`: is it plasticity, and what now?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pliant.commands.shared import output


def doctor(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="of the model, and of its optimizer, if it holds that; no code in it is run"
        ),
    ],
    build: Annotated[
        str,
        typer.Argument(
            metavar="FUNCTION",
            help="file.py:function or module:function, which is run: it gives (model, loss, loader), or these and an optimizer",
        ),
    ],
    budget: Annotated[
        str | None,
        typer.Option(help="of the probe: 90s, 10min, 1h, or a number of optimizer steps [default: 300 a run]"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=3, help="of fresh networks and orders of examples")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps that the training still has before it")] = 100_000,
    html: Annotated[Path | None, typer.Option(help="also write the page, with its curves, to this file")] = None,
) -> None:
    """Is it plasticity, and what now? Diagnose a network, probe it beside fresh copies, say what to try first."""
    from pliant.doctor import examine
    from pliant.doctor.subject import subject
    from pliant.lab.errors import LabError
    from pliant.lab.study.modules import function_of

    function = function_of(build, "model, loss and loader")
    try:
        found = subject(function, checkpoint)
        examination = examine(
            found.model,
            *found.data,
            optimizer=found.optimizer,
            loss=found.loss,
            fresh=found.fresh,
            budget=int(budget) if budget is not None and budget.isdigit() else budget,
            seeds=seeds,
            steps_to_come=steps,
            progress=True,
        )
    except (ValueError, TypeError) as error:
        raise LabError(str(error)) from error
    print("\n".join([str(examination), *found.notes]))
    if html is not None:
        with output(html, html.parent) as unfinished:
            examination.to_html(unfinished)
        print(f"\n  page    {html}")
