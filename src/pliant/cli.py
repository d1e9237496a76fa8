"""The command line: `pliant list | run | resume | status | plot | report | export | data`.

Exit status: 0 all runs finished (a diverged run is a result), 1 a run failed, 2 the request cannot
be met: one line on standard error says why. 130 after Ctrl-C.

The laboratory is imported inside the commands: `pliant list` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from pliant.experiments import TABLE

try:
    import typer
except ModuleNotFoundError as error:
    print(f'pliant: the command line needs {error.name}: pip install "pliant[lab]"', file=sys.stderr)
    raise SystemExit(2) from None

from pliant.data_cli import data, in_words, telling

if TYPE_CHECKING:
    from pliant.lab.experiment import RunConfig
    from pliant.lab.study.study import Study

EXTRAS = {
    **dict.fromkeys(("typer", "rich", "pydantic", "safetensors", "matplotlib", "pandas", "pyarrow", "scipy"), "lab"),
    **dict.fromkeys(("numba", "pooch", "requests", "PIL"), "lab"),
    **dict.fromkeys(("gymnasium", "mujoco", "imageio"), "rl"),
}
RequestError: Any = typer.BadParameter.__mro__[2]  # ClickException, which typer has in different places

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="a study's folder")]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"pliant {metadata.version('pliant')}")
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
    jobs: Annotated[int | None, typer.Option(min=1, help="at a time [default: one per core]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and stop")] = False,
) -> int:
    """Run an experiment; on the folder of an earlier study, its missing runs."""
    from pliant.lab.run.runner import taken_over
    from pliant.lab.stored.files import Lock
    from pliant.lab.study.facts import versions
    from pliant.lab.study.preview import preview_lines
    from pliant.lab.study.settings import selected
    from pliant.lab.study.study import begun, new_plan, with_runs
    from pliant.lab.study.target import load

    short, where = _experiment(name)
    where = _joined(where, method)
    experiment = load(where)
    configs = selected(experiment, profile, methods, seeds, set_ or [])
    _check_device(device, getattr(experiment, "devices", _DEVICES))
    folder = out or Path("runs") / f"{short}-{profile}"
    plan = new_plan(short, where, profile, device, versions())
    if dry_run:
        study = with_runs(begun(folder, plan), configs)
        _announce(study, _at_once(jobs))
        for line in preview_lines(study, in_words):
            print(line)
        return 0
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / "study.lock", f"the study in {folder}"):
        study = begun(folder, plan)
        _tell_note(study)
        study = _with_data_sets(with_runs(taken_over(study), configs))
        study.save()
        return _run(study, _at_once(jobs))


@app.command()
def resume(
    folder: Folder,
    jobs: Annotated[int | None, typer.Option(min=1, help="at a time [default: one per core]")] = None,
    to: Annotated[
        str | None, typer.Option(help="steps or tasks that its runs go on to, more than was asked for")
    ] = None,
) -> int:
    """Go on with a study that was stopped, or, with --to, further than was asked."""
    from pliant.lab.run.runner import make_longer, taken_over
    from pliant.lab.stored.files import Lock
    from pliant.lab.study.settings import whole_number
    from pliant.lab.study.study import open_study

    end = None if to is None else whole_number("--to", to)
    with Lock(open_study(folder).lock_file, f"the study in {folder}"):
        study = open_study(folder)  # as it is now that nobody else can change it
        _tell_note(study)
        study = taken_over(study)
        if end is not None:
            study = make_longer(study, end)
        return _run(_with_data_sets(study), _at_once(jobs))


@app.command()
def status(folder: Folder) -> None:
    """How far a study is."""
    from pliant.lab.report.status import status_lines
    from pliant.lab.study.study import open_study

    study = open_study(folder)
    _tell_note(study)
    for line in status_lines(study):
        print(line)


@app.command()
def plot(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a study's folder, or the Parquet file of an export")],
    out: Annotated[
        Path | None, typer.Option(help="a .png, .pdf or .svg [default: figure.png in DIR, or beside the export]")
    ] = None,
) -> None:
    """Draw the figure of a study, from the rows there are."""
    from pliant.lab.errors import LabError
    from pliant.lab.figures import check_figure_file
    from pliant.lab.report.table import rows_at
    from pliant.lab.study.study import open_study

    file = out or (path.with_suffix(".png") if path.is_file() else path / "figure.png")
    check_figure_file(file)
    if not path.is_file():
        _tell_note(open_study(path))
    rows = rows_at(path, _renamed_of)
    experiment = _experiment_of(rows.attrs, path) if path.is_file() else open_study(path).experiment
    figure: Any = experiment.figure(rows)
    if not hasattr(figure, "savefig"):
        raise LabError(f"figure() of {type(experiment).__name__} gave {figure!r:.40}: it gives a matplotlib Figure")
    with _writing(file):
        figure.savefig(file, dpi=150)
    print(f"figure   {file}")


@app.command()
def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
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
    spread: Annotated[str, typer.Option(help="interval (95%) or error (standard error)")] = "interval",
    all_parts: Annotated[bool, typer.Option("--all-parts", help="print every part, a column for each")] = False,
) -> None:
    """How each curve of a study begins, what it reaches, how it ends: means over seeds and what they are worth."""
    from pliant.lab.report.summary import summary_lines
    from pliant.lab.study.study import open_study

    for path in paths:
        if not path.is_file():
            _tell_note(open_study(path))
    for line in summary_lines(paths, metric, over, parts, where or [], against, spread, all_parts, _renamed_of):
        print(line)


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
    _tell_note(study)
    with _writing(file):
        count = write(study, form, file)
    print(f"{count:,} rows   {file}")


@app.command()
def watch(
    folder: Folder,
    method: Annotated[str | None, typer.Option(help="of the run [default: the study's first]")] = None,
    seed: Annotated[int | None, typer.Option(help="of the run [default: the first]")] = None,
    gif: Annotated[Path | None, typer.Option(help="file [default: DIR/watch.gif]")] = None,
    frames: Annotated[int, typer.Option(min=1, help="at most so many pictures")] = 200,
    skip: Annotated[int, typer.Option(min=0, help="pictures left out at the beginning")] = 0,
) -> None:
    """Film an episode of an agent as it stands at its last checkpoint."""
    from pliant.lab.errors import LabError
    from pliant.lab.film import chosen, scenes, write_gif
    from pliant.lab.study.study import open_study
    from pliant.rl.environments import GraphicsUnavailable

    study = open_study(folder)
    _tell_note(study)
    file = gif or folder / "watch.gif"
    found = scenes(study, *chosen(study, method, seed))
    try:
        with _writing(file):
            shown, more = write_gif(found, file, frames, skip)
    except GraphicsUnavailable as error:
        raise LabError(str(error)) from None
    print(f"{len(shown)} pictures   {file}   in the last: {shown[-1].words}")
    if more:
        print(f"  the episode goes on: --frames {max(1000, 2 * frames)} shows more of it")


def _tell_note(study: Study) -> None:
    """What a reader should know of where rows come from; beside what is asked for, not in it."""
    if study.note is not None:
        print(f"pliant: note: {study.note}", file=sys.stderr)


@contextmanager
def _writing(path: Path) -> Generator[None]:
    """Says in one line why `path` cannot be written."""
    from pliant.lab.errors import LabError

    try:
        yield
    except OSError as error:
        raise LabError(f"cannot write {path}: {error.strerror or error}") from None


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


def _check_device(device: str, served: Sequence[str]) -> None:
    from pliant.lab.errors import LabError, unknown

    kind, _, index = device.partition(":")
    if kind not in _DEVICES or (index and not index.isdigit()):
        raise unknown("device", device, ["cpu", "cuda", "cuda:0", "mps"])
    if kind not in served:
        raise LabError(f"device '{device}': this experiment runs on {', '.join(served)} alone: leave --device out")
    if kind != "cpu":
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


def _announce(study: Study, at_once: int) -> None:
    plan = study.plan
    count = f"{study.run_count} runs in {len(study.jobs)} jobs, {min(at_once, len(study.jobs))} at a time"
    print(f"{plan.name} / {plan.profile}   {count}   {study.folder}", flush=True)
    note: Callable[[Sequence[RunConfig]], Sequence[str]] | None = getattr(study.experiment, "note", None)
    configs = [config for job in study.jobs for config in study.configs(job)]
    for line in list[str]() if note is None else note(configs):
        print(f"  {line}", flush=True)


def _run(study: Study, at_once: int) -> int:
    from pliant.lab.report.status import counts_in_words
    from pliant.lab.run.progress import display
    from pliant.lab.run.runner import run_study
    from pliant.lab.study.facts import changed_versions

    for job in study.jobs:
        study.configs(job)  # an experiment that has changed is refused here, before anything runs
    _announce(study, at_once)
    for package, old, new in changed_versions(study.plan.versions):
        print(f"  {package} was {old} when this study began and is {new}: rows may differ in their last bits")
    try:
        with display() as shown:
            outcome = run_study(study, at_once, shown)
    except KeyboardInterrupt:
        print(f"stopped; what is finished is stored\n  resume  pliant resume {study.folder}")
        return 130
    print(counts_in_words(study))
    for name, why in outcome.failed.items():
        print(f"job {name} failed: {why}", file=sys.stderr)
    print(f"  resume  pliant resume {study.folder}" if outcome.failed else f"  plot    pliant plot {study.folder}")
    return 1 if outcome.failed else 0


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


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its status."""
    try:
        status = app(args=arguments, prog_name="pliant", standalone_mode=False)
    except RequestError as error:
        _refuse(error.format_message())
    except SystemExit as error:
        from pliant.lab.errors import ended

        _refuse(str(ended(error)))  # nothing of ours ends the program from within
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _refuse(f'this needs {package}: pip install "pliant[{EXTRAS[package]}]"')
    except ValueError as error:
        from pliant.data import DataError
        from pliant.lab.errors import LabError

        if not isinstance(error, (LabError, DataError)):
            raise
        _refuse(str(error))
    raise SystemExit(status or 0)


def _refuse(message: str) -> NoReturn:
    print("pliant: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
