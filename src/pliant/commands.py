"""The commands: `pliant list | run | resume | merge | status | plot | report | export | watch | data`.

The laboratory is imported inside the commands: `pliant list` answers at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from pliant import __version__
from pliant.base.files import refuse_link, replacing
from pliant.base.interrupts import STATUS, interruptible
from pliant.data_cli import data, in_words, telling
from pliant.experiments import TABLE

if TYPE_CHECKING:
    from pliant.lab.experiment import RunConfig
    from pliant.lab.film import Scene
    from pliant.lab.report.summary import Asked
    from pliant.lab.run.processes import Crew
    from pliant.lab.run.shards import Shard
    from pliant.lab.study.study import Plan, Study


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
app.add_typer(data, name="data", cls=WholeLines)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="a study's folder")]
AtOnce = Annotated[int | None, typer.Option("--jobs", min=1, help="at a time [default: one per core]")]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="K/N", help="every N-th job from the K-th on: a machine's part (docs/scaling.md)"),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray", metavar="ADDRESS|local", help="on a Ray cluster: host:port, auto, or local for one of this machine"
    ),
]


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


@app.command(name="list")
def list_experiments(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="profiles, fields and columns of this one")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="with NAME: a method of your own, file.py:Class, that joins it")
    ] = None,
) -> None:
    """Experiments, methods, profiles; or all of one experiment."""
    for line in _all_experiments() if name is None else _one_experiment(name, method):
        print(line)


def _all_experiments() -> Iterator[str]:
    for name, entry in TABLE.items():
        yield f"{name}   {entry.question}"
        yield f"  methods   {', '.join(entry.methods)}"
        yield f"  profiles  {', '.join(entry.profiles)}"
    yield "An experiment of your own: pliant run path/to/file.py:Class"


def _one_experiment(name: str, methods: Sequence[str] | None) -> Iterator[str]:
    from pliant.lab.report.about import experiment_lines
    from pliant.lab.study.target import load

    short, where = _experiment(name)
    return experiment_lines(
        short, TABLE[name].question if name in TABLE else where.shown, load(_joined(where, methods))
    )


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a name of `pliant list`, module:Class or file.py:Class")],
    profile: Annotated[str, typer.Option(help="which runs, at what length")] = "quick",
    methods: Annotated[str | None, typer.Option(help="some of the profile's methods: bp,cbp")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="one of your own, file.py:Class, beside these; may be repeated")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="0-29 or 0,3,7-9")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="field=value,value; may be repeated")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="folder of the study [default: runs/NAME-PROFILE]")] = None,
    jobs: AtOnce = None,
    shard: ShardOption = None,
    ray: RayOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and stop")] = False,
) -> int:
    """Run an experiment; on the folder of an earlier study, its missing runs."""
    from pliant.lab.run.shards import at_work
    from pliant.lab.run.shards import shard as shard_of
    from pliant.lab.study.facts import versions
    from pliant.lab.study.preview import preview_lines
    from pliant.lab.study.settings import selected
    from pliant.lab.study.study import begun, new_plan, with_runs
    from pliant.lab.study.target import load

    part = shard_of(shard)
    short, where = _experiment(name)
    where = _joined(where, method)
    experiment = load(where)
    configs = selected(experiment, profile, methods, seeds, set_ or [])
    _check_device(device, getattr(experiment, "devices", _DEVICES), elsewhere=ray is not None)
    _check_ray(ray, device)
    folder = out or Path("runs") / f"{short}-{profile}"
    plan = new_plan(short, where, profile, device, versions())
    if dry_run:
        study = with_runs(begun(folder, plan), configs)
        _announce(study, _at_once(jobs), part)
        for line in preview_lines(study, part.jobs(study), in_words):
            print(line)
        return 0
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with at_work(folder, part):
        study = _planned(folder, plan, configs, part)
        return _run(study, jobs, part, ray)


@app.command()
def resume(
    folder: Folder,
    jobs: AtOnce = None,
    shard: ShardOption = None,
    ray: RayOption = None,
    to: Annotated[
        str | None, typer.Option(help="steps or tasks that its runs go on to, more than was asked for")
    ] = None,
) -> int:
    """Go on with a study that was stopped, or, with --to, further than was asked."""
    from pliant.lab.errors import LabError
    from pliant.lab.run.runner import make_longer, taken_over
    from pliant.lab.run.shards import at_work
    from pliant.lab.run.shards import shard as shard_of
    from pliant.lab.study.settings import whole_number
    from pliant.lab.study.study import open_study, with_reading

    part, end = shard_of(shard), None if to is None else whole_number("--to", to)
    if end is not None and not part.is_all:
        raise LabError("--to goes without --shard: all runs of a study are made longer at once")
    _check_ray(ray, open_study(folder).plan.device)  # a folder without a study gets no lock
    with at_work(folder, part):
        study = open_study(folder)  # as it is now that nobody else can change it
        _tell_note(study)
        before = study = taken_over(study, part)
        _tell_code(study)
        if end is not None:
            study = make_longer(study, end)
        study = with_reading(_with_data_sets(study))
        if study.plan != before.plan:
            study.save()
        return _run(study, jobs, part, ray)


@app.command()
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


@app.command()
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
    _tell_note(study)
    if watch:
        from pliant.lab.report import live

        with interruptible():
            live.watch(folder, every)
        return
    for line in status_lines(study):
        print(line)


@app.command()
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
    with _output(file, path) as unfinished:
        figure.savefig(unfinished, dpi=300 if metric else 150)
    print(f"figure   {file}")


def _figure_of_columns(
    paths: Sequence[Path], metrics: Sequence[str], over: str | None, where: Sequence[str] | None, panels: int, size: str
) -> Any:
    from pliant.lab.report.drawing import figure_of_columns
    from pliant.lab.report.summary import Asked, summary

    found = summary(paths, Asked(metric=metrics[0], over=over, where=where or []), _renamed_of)
    return figure_of_columns(found, metrics, panels, size)


def _own_figure(path: Path) -> Any:
    """As the experiment draws it."""
    from pliant.lab.errors import LabError
    from pliant.lab.report.table import rows_at, with_attrs
    from pliant.lab.study.study import open_study

    rows: Any
    if path.is_file():
        rows = rows_at(path, _renamed_of)
        experiment = _experiment_of(rows.attrs, path)
    else:
        study = open_study(path)
        _tell_note(study)
        rows, before = with_attrs(study), study.reading
        _tell_code(study)
        experiment = study.experiment
        if study.reading != before:  # fields are called otherwise by now
            rows = with_attrs(study)
    figure: Any = experiment.figure(rows)
    if not hasattr(figure, "savefig"):
        raise LabError(f"figure() of {type(experiment).__name__} gave {figure!r:.40}: it gives a matplotlib Figure")
    return figure


@app.command()
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
            _tell_note(open_study(path), of_rows=True)
    asked = Asked(
        metric=metric, over=over, parts=parts, where=where or [], against=against, spread=spread, aggregate=aggregate,
        measure=measure, level=level, all_parts=all_parts, pairs=pairs, form=form,
    )  # fmt: skip
    if html is None and (note or refresh):
        raise LabError("--note and --refresh are of the page: add --html FILE")
    if html is not None:
        _write_pages(html, paths, asked, note, refresh)
        return
    for line in summary_lines(paths, asked, _renamed_of):
        print(line)


def _write_pages(file: Path, paths: Sequence[Path], asked: Asked, note: str, refresh: int) -> None:
    """The page of studies; with `refresh`, again until none of them has a run that goes on."""
    from pliant.lab.report.origin import origin
    from pliant.lab.report.page import page
    from pliant.lab.report.summary import summary

    while True:
        found = summary(paths, asked, _renamed_of)
        where = origin(paths, found, TABLE[found.name].question if found.name in TABLE else "", note, refresh)
        with _output(file, file.parent) as unfinished:
            unfinished.write_text(page(found, where, asked.parts), encoding="utf-8")
        print(f"page     {file}", flush=True)
        if not where.refresh:
            return
        time.sleep(refresh)


@app.command()
def export(
    folder: Folder,
    form: Annotated[str | None, typer.Option("--format", help="csv or parquet [default: as --out ends; csv]")] = None,
    out: Annotated[Path | None, typer.Option(help="file [default: DIR/rows.csv]")] = None,
) -> None:
    """Write all rows, each with its config, seed and commit, to one table; `report` and `plot` take it as Parquet."""
    from pliant.lab.report.table import export as write
    from pliant.lab.report.table import export_to
    from pliant.lab.study.study import open_study

    with _writing(out or folder):
        form, file = export_to(folder, form, out)
    study = open_study(folder)
    _tell_note(study, of_rows=True)
    with _output(file, folder) as unfinished:
        count = write(study, form, unfinished)
    print(f"{count:,} rows   {file}")


@app.command()
def watch(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="a study's folder; or, with --env, a model that Stable-Baselines3 saved, or agents that PPO.save wrote",
        ),
    ],
    method: Annotated[str | None, typer.Option(help="of a study's run [default: its first]")] = None,
    seed: Annotated[
        int | None, typer.Option(help="of a study's run [default: the first]; of an episode [default: 0]")
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(help="for an agent in a file: an id of gymnasium, or file.py:function of your own, which is run"),
    ] = None,
    agent: Annotated[int | None, typer.Option(help="which of several in a file: its seed [default: the first]")] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="run code that a model of Stable-Baselines3 holds; without it nothing in the file is run, and a model that "
            "needs it (a policy of one's own) is refused",
        ),
    ] = False,
    gif: Annotated[
        Path | None, typer.Option(help="file [default: DIR/watch.gif; or the agent's file, ending in .gif]")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="at most so many pictures")] = 200,
    skip: Annotated[int, typer.Option(min=0, help="pictures left out at the beginning")] = 0,
) -> None:
    """Film an episode of an agent: of a study's run as it stands at its last checkpoint, or of an agent in a file."""
    from pliant.lab.errors import LabError
    from pliant.lab.film import write_gif
    from pliant.rl.environments import GraphicsUnavailable

    of_study = env is None and not path.is_file()
    given = {"--agent": agent is not None, "--trust": trust} if of_study else {"--method": method is not None}
    for option in (name for name, is_given in given.items() if is_given):
        raise LabError(f"{option} goes with {'the file of an agent' if of_study else 'a study'}, which {path} is not")
    found, file = _of_study(path, method, seed) if of_study else _of_agent(path, env, agent, seed, trust)
    file = gif or file
    try:
        with _output(file, path) as unfinished:
            shown, more = write_gif(found, unfinished, frames, skip)
    except GraphicsUnavailable as error:
        raise LabError(str(error)) from None
    print(f"{len(shown)} pictures   {file}   in the last: {shown[-1].words}")
    if more:
        print(f"  the episode goes on: --frames {max(1000, 2 * frames)} shows more of it")


@app.command()
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
        with _output(html, html.parent) as unfinished:
            examination.to_html(unfinished)
        print(f"\n  page    {html}")


def _of_study(folder: Path, method: str | None, seed: int | None) -> tuple[Iterator[Scene], Path]:
    from pliant.lab.film import chosen, scenes
    from pliant.lab.study.study import open_study

    study = open_study(folder)
    _tell_note(study)
    _tell_code(study)
    return scenes(study, *chosen(study, method, seed)), folder / "watch.gif"


def _of_agent(
    file: Path, env: str | None, agent: int | None, seed: int | None, trust: bool
) -> tuple[Iterator[Scene], Path]:
    from pliant.agent_film import agent_scenes
    from pliant.lab.errors import LabError

    if env is None:
        raise LabError(f"{file} is a file: in which environment? --env CartPole-v1, or --env my_file.py:make")
    if not file.is_file():
        raise LabError(f"{file}: with --env, give the file of an agent; a study's folder knows its environment")
    return agent_scenes(file, env, agent, seed or 0, trust), file.with_suffix(".gif")


def _tell_note(study: Study, of_rows: bool = False) -> None:
    """What a reader should know of where rows come from; beside what is asked for, not in it."""
    for note in (study.note, study.unsaid if of_rows else None):
        if note is not None:
            print(f"pliant: note: {note}", file=sys.stderr)


def _tell_code(study: Study) -> None:
    """Which code is about to run because the study says so."""
    if study.code is not None:
        print(f"pliant: note: {study.code}", file=sys.stderr, flush=True)


@contextmanager
def _output(file: Path, read: Path) -> Generator[Path]:
    """Where to write what is to be at `file`, which is as it was until all is written; `read` is what it is made of.

    A link that the folder of a study holds is not followed: whoever made it may have laid it there.
    """
    with _writing(file), interruptible():
        if file.parent.resolve().is_relative_to(read.resolve()):
            refuse_link(file)
        file = file.resolve()
        if file.exists() and not file.is_file():  # such as a pipe
            yield file
            return
        with replacing(file) as unfinished:
            yield unfinished


@contextmanager
def _writing(path: Path) -> Generator[None]:
    """Says in one line why `path` cannot be written."""
    from pliant.lab.errors import LabError

    try:
        yield
    except OSError as error:
        raise LabError(f"cannot write {error.filename2 or error.filename or path}: {error.strerror or error}") from None


def _experiment(name: str) -> tuple[str, Any]:
    """A short name for the study's folder, and where the experiment is."""
    from pliant.lab.errors import unknown
    from pliant.lab.study.target import target

    if name in TABLE:
        return name, target(TABLE[name].target)
    if ":" in name or name.endswith(".py"):
        where = target(name)
        return where.address.rpartition(":")[2].lower(), where
    raise unknown("experiment", name, [*TABLE, "module:Class", "path/to/file.py:Class"])


def _joined(where: Any, methods: Sequence[str] | None) -> Any:
    """The target of an experiment with methods of a user's own."""
    from pliant.lab.study.own_method import method_target

    return where.model_copy(update={"methods": tuple(method_target(each) for each in methods or [])})


def _experiment_of(attrs: Mapping[Any, Any], path: Path) -> Any:
    """The experiment that made an exported file: one of `TABLE`, as a file of rows is no place to load code by."""
    from pliant.lab.errors import LabError
    from pliant.lab.study.target import load, target

    name = attrs["name"]
    known = TABLE[name].target if name in TABLE else None
    made_by = attrs.get("experiment", known or name)  # earlier exports only have the name
    if known is None or made_by != known:
        raise LabError(f"{path} was made by an experiment of your own, {made_by}: plot its study's folder")
    return load(target(known))


def _renamed_of(attrs: Mapping[Any, Any]) -> Mapping[str, str]:
    """What the fields of an export are called now, which may have been written by the version before."""
    name = attrs["name"]
    return TABLE[name].renamed if name in TABLE else {}


_DEVICES = ("cpu", "cuda", "mps")


def _check_device(device: str, served: Sequence[str], elsewhere: bool) -> None:
    from pliant.lab.errors import LabError, unknown

    kind, _, index = device.partition(":")
    if kind not in _DEVICES or (index and not index.isdigit()):
        raise unknown("device", device, ["cpu", "cuda", "cuda:0", "mps"])
    if kind not in served:
        raise LabError(f"device '{device}': this experiment runs on {', '.join(served)} alone: leave --device out")
    if kind != "cpu" and not elsewhere:
        import torch

        count = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
        if int(index or 0) >= count:
            raise LabError(
                f"device '{device}' is not here: torch sees {count} of kind {kind}; --device cpu always works"
            )


def _at_once(jobs: int | None) -> int:
    if jobs is not None:
        return jobs
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _planned(folder: Path, plan: Plan, configs: Sequence[RunConfig], part: Shard) -> Study:
    """The study of `folder` with these runs, written down. Several shards may be about to begin it: the first to write does."""
    from pliant.lab.run.runner import taken_over
    from pliant.lab.study.study import begun, with_reading, with_runs

    while True:
        is_new = not (folder / "study.json").exists()
        before = begun(folder, plan)
        _tell_note(before)
        study = taken_over(before, part)
        if study.plan.experiment != plan.experiment:  # methods of earlier
            _tell_code(study)
        study = with_reading(_with_data_sets(with_runs(study, configs)))
        if not is_new or part.is_all:
            study.save()
            return study
        if study.save_first():
            return study


def _announce(study: Study, at_once: int, part: Shard) -> None:
    plan, jobs = study.plan, part.jobs(study)
    count = f"{study.run_count} runs in {len(study.jobs)} jobs, {min(at_once, len(jobs))} at a time"
    if not part.is_all:
        count += f", of which shard {part.number}/{part.count} runs {len(jobs)}"
    print(f"{plan.name} / {plan.profile}   {count}   {study.folder}", flush=True)
    note: Callable[[Sequence[RunConfig]], Sequence[str]] | None = getattr(study.experiment, "note", None)
    configs = [config for job in study.jobs for config in study.configs(job)]
    for line in list[str]() if note is None else note(configs):
        print(f"  {line}", flush=True)


def _check_ray(ray: str | None, device: str) -> None:
    from pliant.lab.run.on_ray import check_ray

    if ray is not None:
        check_ray(ray, device)


@contextmanager
def _crew(study: Study, jobs: int | None, ray: str | None) -> Generator[Crew]:
    """Workers on this machine, or on a Ray cluster."""
    if ray is None:
        from pliant.lab.run.processes import Here

        yield Here(_at_once(jobs))
        return
    from pliant.lab.run.on_ray import cluster

    with cluster(ray, jobs, _at_once(None), study) as crew:
        yield crew


def _run(study: Study, jobs: int | None, part: Shard, ray: str | None) -> int:
    from pliant.lab.report.status import counts_in_words
    from pliant.lab.run.progress import display
    from pliant.lab.run.runner import run_study
    from pliant.lab.study.facts import changed_versions

    for job in part.jobs(study):
        study.configs(job)  # an experiment that has changed is refused here, before anything runs
    try:
        with interruptible(), _crew(study, jobs, ray) as crew:
            _announce(study, crew.at_once, part)
            for package, old, new in changed_versions(study.plan.versions):
                print(f"  {package} was {old} when this study began and is {new}: rows may differ in their last bits")
            with display() as shown:
                outcome = run_study(study, crew, shown, part)
    except KeyboardInterrupt:
        print(f"stopped; what is finished is stored\n  resume  pliant resume {study.folder}{part.option}")
        return STATUS
    print(counts_in_words(study, part.jobs(study)))
    for name, why in outcome.failed.items():
        print(f"job {name} failed: {why}", file=sys.stderr)
    if outcome.failed:
        print(f"  resume  pliant resume {study.folder}{part.option}")
        return 1
    print(f"  plot    pliant plot {study.folder}" if part.is_all else f"  status  pliant status {study.folder}")
    return 0


def _with_data_sets(study: Study) -> Study:
    """Open every data set that the runs name, before anything runs or is written: what is missing, too small for the runs, or
    no longer what it was, is an error, and what is raw is prepared.
    """
    data_sets = getattr(study.experiment, "data_sets", None)
    if data_sets is None:
        return study
    from pliant.data import load
    from pliant.lab.study.study import with_data

    configs = [config for job in study.jobs for config in study.configs(job)]
    with telling():
        found = {name: load(name) for name in sorted({name for config in configs for name in data_sets(config)})}
    _check_data(study, configs, found)
    return with_data(study, {name: data.sha256 for name, data in found.items()})


def _check_data(study: Study, configs: Sequence[RunConfig], found: Mapping[str, Any]) -> None:
    """Ask the experiment whether the data sets serve each run, seeds aside."""
    from pliant.lab.errors import LabError

    check: Callable[[Any, Any], None] | None = getattr(study.experiment, "check_data", None)
    if check is None:
        return
    different = {config.model_copy(update={"seed": 0}).model_dump_json(): config for config in configs}
    for config in different.values():
        try:
            check(config, found)
        except ValueError as error:
            raise LabError(str(error)) from None
