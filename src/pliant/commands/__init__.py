"""The commands: `pliant list | run | resume | merge | status | plot | report | export | watch | doctor | conformance | data`.

The laboratory is imported inside the commands: `pliant list` answers at once.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
import typer.core

from pliant import __version__
from pliant.commands.conformance import conformance
from pliant.commands.data import data
from pliant.commands.doctor import doctor
from pliant.commands.listing import list_experiments
from pliant.commands.reading import export, merge, plot, report, status
from pliant.commands.running import resume, run
from pliant.commands.watching import watch


class WholeLines(typer.core.TyperGroup):
    """Its help tells each command's first sentence, all of it, on as many lines as that takes."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands: list[Any] = [self.get_command(ctx, name) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(each.name, each.get_short_help_str(1000)) for each in commands])


app = typer.Typer(
    cls=WholeLines,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"pliant {__version__}")
        raise typer.Exit


@app.callback()
def pliant(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="say which, and stop")
    ] = False,
) -> None:
    """Loss of plasticity in the laboratory: run, resume, plot."""


app.command(name="list")(list_experiments)
for command in (run, resume, merge, status, plot, report, export, watch, doctor, conformance):
    app.command()(command)
app.add_typer(data, name="data", cls=WholeLines)
