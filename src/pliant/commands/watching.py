"""`pliant watch`: the film of an agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pliant.commands.shared import output, tell_code, tell_note

if TYPE_CHECKING:
    from pliant.lab.film import Scene


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
        with output(file, path) as unfinished:
            shown, more = write_gif(found, unfinished, frames, skip)
    except GraphicsUnavailable as error:
        raise LabError(str(error)) from None
    print(f"{len(shown)} pictures   {file}   in the last: {shown[-1].words}")
    if more:
        print(f"  the episode goes on: --frames {max(1000, 2 * frames)} shows more of it")


def _of_study(folder: Path, method: str | None, seed: int | None) -> tuple[Iterator[Scene], Path]:
    from pliant.lab.film import chosen, scenes
    from pliant.lab.study.study import open_study

    study = open_study(folder)
    tell_note(study)
    tell_code(study)
    return scenes(study, *chosen(study, method, seed)), folder / "watch.gif"


def _of_agent(
    file: Path, env: str | None, agent: int | None, seed: int | None, trust: bool
) -> tuple[Iterator[Scene], Path]:
    from pliant.commands.agent_film import agent_scenes
    from pliant.lab.errors import LabError

    if env is None:
        raise LabError(f"{file} is a file: in which environment? --env CartPole-v1, or --env my_file.py:make")
    if not file.is_file():
        raise LabError(f"{file}: with --env, give the file of an agent; a study's folder knows its environment")
    return agent_scenes(file, env, agent, seed or 0, trust), file.with_suffix(".gif")
