"""`pliant run | resume`: a study on this machine, a part of it, or on a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pliant.base.interrupts import interruptible, status_of
from pliant.commands.data import in_words, telling
from pliant.commands.known import experiment_named, joined
from pliant.commands.shared import Folder, tell_code, tell_note, writing

if TYPE_CHECKING:
    from pliant.lab.experiment import RunConfig
    from pliant.lab.run.processes import Crew
    from pliant.lab.run.progress import Display
    from pliant.lab.run.shards import Shard
    from pliant.lab.study.study import Plan, Study

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
LogOption = Annotated[
    str | None,
    typer.Option("--log", metavar="tensorboard|wandb|mlflow", help="send rows to a tracker too, as they are committed"),
]

_DEVICES = ("cpu", "cuda", "mps")


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
    log: LogOption = None,
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
    short, where = experiment_named(name)
    where = joined(where, method)
    experiment = load(where)
    configs = selected(experiment, profile, methods, seeds, set_ or [])
    _check_device(device, getattr(experiment, "devices", _DEVICES), elsewhere=ray is not None)
    _check_ray(ray, device)
    _check_log(log)
    folder = out or Path("runs") / f"{short}-{profile}"
    plan = new_plan(short, where, profile, device, versions())
    if dry_run:
        study = with_runs(begun(folder, plan), configs)
        _announce(study, _at_once(jobs), part)
        for line in preview_lines(study, part.jobs(study), in_words):
            print(line)
        return 0
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with at_work(folder, part):
        study = _planned(folder, plan, configs, part)
        return _run(study, jobs, part, ray, log)


def resume(
    folder: Folder,
    jobs: AtOnce = None,
    shard: ShardOption = None,
    ray: RayOption = None,
    log: LogOption = None,
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
    _check_log(log)
    with at_work(folder, part):
        study = open_study(folder)  # as it is now that nobody else can change it
        tell_note(study)
        before = study = taken_over(study, part)
        tell_code(study)
        if end is not None:
            study = make_longer(study, end)
        study = with_reading(_with_data_sets(study))
        if study.plan != before.plan:
            study.save()
        return _run(study, jobs, part, ray, log)


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
        tell_note(before)
        study = taken_over(before, part)
        if study.plan.experiment != plan.experiment:  # methods of earlier
            tell_code(study)
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


def _check_log(log: str | None) -> None:
    if log is not None:
        from pliant.commands.trackers import check_tracker

        check_tracker(log)


def _shown(study: Study, part: Shard, log: str | None) -> Display:
    """What shows its progress, and logs it."""
    from pliant.lab.run.progress import display

    if log is None:
        return display()
    from pliant.commands.trackers import Followed

    return Followed(display(), study, part, log)


def _run(study: Study, jobs: int | None, part: Shard, ray: str | None, log: str | None) -> int:
    from pliant.lab.report.status import counts_in_words
    from pliant.lab.run.runner import run_study
    from pliant.lab.study.facts import changed_versions

    for job in part.jobs(study):
        study.configs(job)  # an experiment that has changed is refused here, before anything runs
    try:
        with interruptible(), _crew(study, jobs, ray) as crew:
            _announce(study, crew.at_once, part)
            for package, old, new in changed_versions(study.plan.versions):
                print(f"  {package} was {old} when this study began and is {new}: rows may differ in their last bits")
            with _shown(study, part, log) as shown:
                outcome = run_study(study, crew, shown, part)
    except KeyboardInterrupt as stopped:
        print(f"stopped; what is finished is stored\n  resume  pliant resume {study.folder}{part.option}")
        return status_of(stopped)
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
