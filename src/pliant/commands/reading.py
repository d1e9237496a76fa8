"""`pliant status | merge | plot | report | export`: what a study has measured. Nothing is run but what `plot` says."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pliant.base.interrupts import interruptible
from pliant.commands.known import experiment_of, reading_of
from pliant.commands.shared import Folder, output, tell_code, tell_note, writing
from pliant.experiments import TABLE

if TYPE_CHECKING:
    from pliant.lab.report.summary import Asked


def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="studies' folders, which stay as they are")],
    out: Annotated[Path, typer.Option(help="a new folder, for the study of them all")],
) -> None:
    """Join folders of one study that ran in different places."""
    from pliant.lab.report.status import counts_in_words
    from pliant.lab.run.runner import is_done
    from pliant.lab.study.merge import merged

    study, notes = merged(folders, out)
    for note in notes:
        print(f"pliant: note: {note}", file=sys.stderr)
    print(f"{study.plan.name} / {study.plan.profile}   {study.run_count} runs in {len(study.jobs)} jobs   {out}")
    print(counts_in_words(study, study.jobs))
    finished = all(is_done(study.record(job)) for job in study.jobs)
    print(f"  plot    pliant plot {out}" if finished else f"  resume  pliant resume {out}")


def status(
    folder: Folder,
    watch: Annotated[
        bool, typer.Option("--watch", help="go on until all runs have ended, with rates, time left and small curves")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="seconds, with --watch")] = 5.0,
) -> None:
    """How far a study is."""
    from pliant.lab.report.status import status_lines
    from pliant.lab.study.study import open_study

    study = open_study(folder)
    tell_note(study)
    if watch:
        from pliant.lab.report import live

        with interruptible():
            live.watch(folder, every)
        return
    for line in status_lines(study):
        print(line)


def plot(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH", help="a study's folder, or the Parquet file of an export; with --metric several"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="a .png, .pdf or .svg [default: figure.png in DIR, or beside the export]")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="draw this column instead of the experiment's own figure; may be repeated: a panel each"),
    ] = None,
    over: Annotated[str | None, typer.Option(help="with --metric: the column that says where in a run")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="with --metric: field=value, or a range: only such rows; may be repeated")
    ] = None,
    panels: Annotated[int, typer.Option(min=1, help="with --metric: side by side")] = 2,
    size: Annotated[
        str, typer.Option(help="with --metric: width: column (85 mm), page (175 mm) or millimetres")
    ] = "page",
) -> None:
    """Draw the figure of a study, from the rows there are."""
    from pliant.lab.errors import LabError
    from pliant.lab.figures import check_figure_file

    path = paths[0]
    file = out or (path.with_suffix(".png") if path.is_file() else path / "figure.png")
    check_figure_file(file)
    if not metric and (len(paths) > 1 or over or where):
        raise LabError(
            "several studies, --over and --where go with --metric: an experiment's own figure is of one study"
        )
    figure = _figure_of_columns(paths, metric, over, where, panels, size) if metric else _own_figure(path)
    with output(file, path) as unfinished:
        figure.savefig(unfinished, dpi=300 if metric else 150)
    print(f"figure   {file}")


def _figure_of_columns(
    paths: Sequence[Path], metrics: Sequence[str], over: str | None, where: Sequence[str] | None, panels: int, size: str
) -> Any:
    from pliant.lab.report.drawing import figure_of_columns
    from pliant.lab.report.summary import Asked, summary

    found = summary(paths, Asked(metric=metrics[0], over=over, where=where or []), reading_of)
    return figure_of_columns(found, metrics, panels, size)


def _own_figure(path: Path) -> Any:
    """As the experiment draws it."""
    from pliant.lab.errors import LabError
    from pliant.lab.report.table import rows_at, with_attrs
    from pliant.lab.study.study import open_study

    rows: Any
    if path.is_file():
        rows = rows_at(path, reading_of)
        experiment = experiment_of(rows.attrs, path)
    else:
        study = open_study(path)
        tell_note(study)
        rows, before = with_attrs(study), study.reading
        tell_code(study)
        experiment = study.experiment
        if study.reading != before:  # fields are called otherwise by now
            rows = with_attrs(study)
    figure: Any = experiment.figure(rows)
    if not hasattr(figure, "savefig"):
        raise LabError(f"figure() of {type(experiment).__name__} gave {figure!r:.40}: it gives a matplotlib Figure")
    return figure


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            help="studies' folders, or the Parquet files of exports; several of one problem, together",
        ),
    ],
    metric: Annotated[str | None, typer.Option(help="a measured column [default: the experiment's second]")] = None,
    over: Annotated[str | None, typer.Option(help="the column that says where in a run [default: its first]")] = None,
    parts: Annotated[int, typer.Option(min=1, help="equal parts that a run is cut into")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(help="field=value, or a column's range, task=31-50: only such rows; may be repeated"),
    ] = None,
    against: Annotated[str | None, typer.Option(help="field=value,...: the curve to compare with")] = None,
    spread: Annotated[
        str | None, typer.Option(help="interval (Student's, 95%), error (standard error) or bootstrap (BCa, 95%)")
    ] = None,
    aggregate: Annotated[str, typer.Option(help="over seeds: mean or iqm (interquartile mean)")] = "mean",
    measure: Annotated[
        str | None,
        typer.Option(
            help="the number of a run that is compared: last, first, area, plasticity-loss or time-to-relearn [default: last]"
        ),
    ] = None,
    level: Annotated[
        float | None, typer.Option(help="for --measure time-to-relearn: the value to be reached again")
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="compare every two curves, or each with --against: interval, p, effect size"),
    ] = False,
    all_parts: Annotated[bool, typer.Option("--all-parts", help="print every part, a column for each")] = False,
    form: Annotated[str, typer.Option("--format", help="text, markdown or latex")] = "text",
    html: Annotated[Path | None, typer.Option(help="write a page instead, with figures, to this file")] = None,
    note: Annotated[str, typer.Option(help="for the page: how the settings were chosen")] = "",
    refresh: Annotated[
        int, typer.Option(min=0, help="write the page again every so many seconds, until the study has finished")
    ] = 0,
) -> None:
    """How each curve of a study begins, what it reaches, how it ends: means over seeds and what they are worth."""
    from pliant.lab.errors import LabError
    from pliant.lab.report.summary import Asked, summary_lines
    from pliant.lab.study.study import open_study

    for path in paths:
        if not path.is_file():
            tell_note(open_study(path), of_rows=True)
    asked = Asked(
        metric=metric, over=over, parts=parts, where=where or [], against=against, spread=spread, aggregate=aggregate,
        measure=measure, level=level, all_parts=all_parts, pairs=pairs, form=form,
    )  # fmt: skip
    if html is None and (note or refresh):
        raise LabError("--note and --refresh are of the page: add --html FILE")
    if html is not None:
        _write_pages(html, paths, asked, note, refresh)
        return
    for line in summary_lines(paths, asked, reading_of):
        print(line)


def _write_pages(file: Path, paths: Sequence[Path], asked: Asked, note: str, refresh: int) -> None:
    """The page of studies; with `refresh`, again until none of them has a run that goes on."""
    from pliant.lab.errors import NoRows
    from pliant.lab.report.origin import origin
    from pliant.lab.report.page import page
    from pliant.lab.report.summary import summary
    from pliant.lab.study.study import open_study

    while True:
        try:
            found = summary(paths, asked, reading_of)
        except NoRows:
            if not refresh or all(open_study(path).has_ended() for path in paths):
                raise
            time.sleep(refresh)
            continue
        where = origin(paths, found, TABLE[found.name].question if found.name in TABLE else "", note, refresh)
        with output(file, file.parent) as unfinished:
            unfinished.write_text(page(found, where, asked.parts), encoding="utf-8")
        print(f"page     {file}", flush=True)
        if not where.refresh:
            return
        time.sleep(refresh)


def export(
    folder: Folder,
    form: Annotated[str | None, typer.Option("--format", help="csv or parquet [default: as --out ends; csv]")] = None,
    out: Annotated[Path | None, typer.Option(help="file [default: DIR/rows.csv]")] = None,
) -> None:
    """Write all rows, each with its config, seed and commit, to one table; `report` and `plot` take it as Parquet."""
    from pliant.lab.report.table import export as write
    from pliant.lab.report.table import export_to
    from pliant.lab.study.study import open_study

    with writing(out or folder):
        form, file = export_to(folder, form, out)
    study = open_study(folder)
    tell_note(study, of_rows=True)
    with output(file, folder) as unfinished:
        count = write(study, form, unfinished)
    print(f"{count:,} rows   {file}")
